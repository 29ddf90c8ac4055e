"""Searches with several workers that end in their middle: what was finished counts, and is not played again."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from test_resume import KilledError, outcome, search
from tiny_task import TinyTask

from agents.baselines.planner import SurrogatePlanner
from agents.dyna import Dyna
from agents.explorer import Explorer
from agents.rollout import revisited
from agents.search_log import SearchLog
from hsq_env.compressor import Compressor
from hsq_env.env import HSQEnv
from hsq_env.outcomes import KeptOutcomes


def killed_after(tiny: TinyTask, out: Path, explorer: Explorer, episodes: int) -> None:
    """Only the checkpoint with which the training begins is written."""

    def say(line: str) -> None:
        if line.startswith(f"episode {episodes} "):
            raise KilledError

    with pytest.raises(KilledError):
        search(tiny, out, explorer, say=say, checkpoint_minutes=1000.0)


def plans(result: dict[str, Any], source: str) -> list[str]:
    return [str(row["choices"]) for row in result["history"] if row["source"] == source]


@pytest.mark.parametrize(
    ("algo", "settings"), [("ppo", {}), ("haq", {}), ("dqn", {"surrogate": False}), ("dqn", {"arguments": {}})]
)
def test_what_was_finished_is_not_played_again(
    tiny: TinyTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, algo: str, settings: dict[str, Any]
) -> None:
    monkeypatch.setattr("agents.dyna.FIRST", 2)
    explorer = Explorer(algo, seed=3, episodes=16, workers=2, **settings)
    killed_after(tiny, tmp_path / "run", explorer, 9)
    result = search(tiny, tmp_path / "run", explorer, resume=True)
    found = plans(result, algo)
    before, after = found[:8], found[8:]
    assert len(found) == result["episodes"] >= 16
    assert len(set(before) & set(after)) <= 1


def test_what_was_finished_is_paid_for(tiny: TinyTask, tmp_path: Path) -> None:
    explorer = Explorer("dqn", seed=3, episodes=None, evaluations=90, workers=2, surrogate=False)
    killed_after(tiny, tmp_path / "run", explorer, 9)
    result = search(tiny, tmp_path / "run", explorer, resume=True)
    assert 80 <= result["steps"] - result["visited_steps"] <= 90


def test_without_a_checkpoint_all_begins_anew(tiny: TinyTask, tmp_path: Path) -> None:
    """The same episodes come again, for nothing, and count once."""
    explorer = Explorer("dqn", seed=3, episodes=8, workers=2, surrogate=False)
    search(tiny, tmp_path / "through", explorer)
    killed_after(tiny, tmp_path / "run", explorer, 6)
    for file in (tmp_path / "run" / "checkpoints").glob("*.checkpoint"):
        file.write_bytes(b"torn")
    record = tmp_path / "run" / "checkpoints" / "episodes.jsonl"
    record.write_bytes(record.read_bytes() + b'{"source": "to')
    search(tiny, tmp_path / "run", explorer, resume=True)
    one, other = outcome(tmp_path / "through"), outcome(tmp_path / "run")
    assert one["history"] == other["history"] and one["episodes"] == other["episodes"]


def test_lost_episodes_are_taught_without_measuring(tiny: TinyTask, monkeypatch: pytest.MonkeyPatch) -> None:
    env = HSQEnv(tiny, target_ratio=6.0)
    log = SearchLog(lambda line: None)
    Explorer("random", seed=1, episodes=3).run(env, log)
    measured, other = env.evaluations, HSQEnv(tiny, target_ratio=6.0)
    assert revisited(other, log.episodes) == [] and other.evaluations == 0
    steps = revisited(env, log.episodes)
    assert env.evaluations == measured and len(steps) == 3 * len(env.layers)
    assert [info["plan"] for *_, info in steps if "plan" in info] == [episode.plan for episode in log.episodes]
    shared, third = KeptOutcomes(), HSQEnv(tiny, target_ratio=6.0)
    for one in (other, third):
        one.share(shared)
    Explorer("random", seed=1, episodes=3).run(other, SearchLog(lambda line: None))
    monkeypatch.setattr(Compressor, "measure", None)
    assert len(revisited(third, log.episodes)) == len(steps) and third.evaluations == measured


@pytest.mark.parametrize("algo", ["dqn", "ppo"])
def test_a_signal_in_the_last_step_is_heard(tiny: TinyTask, tmp_path: Path, algo: str) -> None:
    lines: list[str] = []

    def say(line: str) -> None:
        lines.append(line)
        if line.startswith("episode 3 "):  # the second of the agent's two, after the warm start's
            os.kill(os.getpid(), signal.SIGINT)

    explorer = Explorer(algo, seed=3, episodes=2, surrogate=False)
    with pytest.raises(KeyboardInterrupt, match="Go on with: hsq search --resume"):
        search(tiny, tmp_path / "run", explorer, say=say)
    present = "step" if algo == "dqn" else "rollout of 72 steps"
    assert f"Stopping after the present {present}, with a checkpoint; once more to stop at once." in lines
    assert not any("fine-tun" in line for line in lines)
    again: list[str] = []
    result = search(tiny, tmp_path / "run", explorer, resume=True, say=again.append)
    assert result["episodes"] == 2 and any("had found its plans" in line for line in again)


def test_the_model_draws_anew(tiny: TinyTask) -> None:
    planner = SurrogatePlanner(HSQEnv(tiny, target_ratio=6.0), seed=0)
    dyna = Dyna(planner, seed=0)
    first = (dyna._rng.random(), planner._rng.random())
    dyna.draw_anew(7, [])
    assert (dyna._rng.random(), planner._rng.random()) != first
