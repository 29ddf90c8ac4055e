"""Searches that end in their middle and go on as if they had not."""

import errno
import json
import os
import signal
import threading
import time
import zipfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3.common.callbacks import BaseCallback
from tiny_task import TinyTask

import agents.checkpoint
import agents.explorer
import agents.search
import hsq_env.long_finetuning
from agents.dyna import Dyna
from agents.explorer import Explorer
from agents.keeper import Callbacks, Keeper
from agents.run_folder import RunFolder
from agents.self_evaluation import SelfEvaluationCallback
from detectors.errors import InputError
from hsq_env.compressor import Compressor
from hsq_env.env import HSQEnv
from hsq_env.self_evaluation import SelfEvaluation

SETTINGS: dict[str, Any] = {"target_ratio": 6.0, "finetune_steps": 3, "say": lambda line: None}


class KilledError(Exception):
    """What takes the place of a kill."""


def search(tiny: TinyTask, out: Path, explorer: Explorer, **settings: Any) -> dict[str, Any]:
    return agents.search.search(tiny, out, explorer, **{**SETTINGS, **settings})


PLAIN = Explorer("dqn", seed=3, episodes=6, surrogate=False)


@pytest.fixture(scope="module")
def through(tiny: TinyTask, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of ``PLAIN`` that nothing interrupted. Not to be changed."""
    run = tmp_path_factory.mktemp("runs") / "through"
    search(tiny, run, PLAIN)
    return run


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint every five steps or rollouts, whatever the clock says; little practice."""
    between_steps, calls = Keeper.between_steps, [0]

    def counted(self: Keeper, callbacks: Any) -> None:
        calls[0] += 1
        self._due = 0.0 if calls[0] % 5 == 1 else np.inf
        between_steps(self, callbacks)

    monkeypatch.setattr(Keeper, "between_steps", counted)
    monkeypatch.setattr(agents.explorer, "Dyna", partial(Dyna, first=4, each=2, gradient_steps=3))


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let the environment's n-th step from now on raise; None for none."""
    step = HSQEnv.step

    def at(count: int | None) -> None:
        steps = [0]

        def counted(self: HSQEnv, action: Any) -> Any:
            steps[0] += type(self.compressor).__name__ == "Compressor"  # not those of practice
            if count is not None and steps[0] > count:
                raise KilledError
            return step(self, action)

        monkeypatch.setattr(HSQEnv, "step", counted)

    return at


def outcome(run: Path) -> dict[str, Any]:
    """What a search has found, without clocks."""
    result = json.loads((run / "result.json").read_text())
    history = [{k: v for k, v in episode.items() if k != "seconds"} for episode in result["history"]]
    kept = {name: result[name] for name in ("methods", "candidates", "steps", "visited_steps", "episodes")}
    diagnostics = result["diagnostics"]
    return {**kept, "history": history, "diagnostics": diagnostics, "sha256": result["sha256"]}


def policy(run: Path) -> dict[str, torch.Tensor]:
    with zipfile.ZipFile(run / "policy.zip") as file, file.open("policy.pth") as weights:
        found: dict[str, torch.Tensor] = torch.load(weights, weights_only=True)
        return found


def assert_same_runs(one: Path, other: Path) -> None:
    assert outcome(one) == outcome(other)
    weights, others = policy(one), policy(other)
    assert weights.keys() == others.keys() and all(torch.equal(weights[name], others[name]) for name in weights)
    if (one / "replay.npz").exists():
        with np.load(one / "replay.npz") as mine, np.load(other / "replay.npz") as theirs:
            assert all(np.array_equal(mine[name], theirs[name]) for name in mine.files)


@pytest.mark.parametrize(
    ("algo", "settings"),
    [
        ("dqn", {}),
        ("maskable_ppo", {"arguments": {"n_steps": 4, "batch_size": 4}}),
        pytest.param("dqn", {"surrogate": False}, marks=pytest.mark.long),
        pytest.param("qrdqn", {}, marks=pytest.mark.long),
        pytest.param("td3", {}, marks=pytest.mark.long),
        pytest.param("haq", {}, marks=pytest.mark.long),
    ],
)
def test_a_killed_search_ends_as_if_it_had_run_through(
    tiny: TinyTask, tmp_path: Path, often: None, killed: Any, algo: str, settings: dict[str, Any]
) -> None:
    explorer = Explorer(algo, seed=3, episodes=6, **settings)
    search(tiny, tmp_path / "through", explorer)
    for resume, count in ((False, 23), (True, 8), (True, 11)):
        killed(count)
        with pytest.raises(KilledError):
            search(tiny, tmp_path / "killed", explorer, resume=resume)
        assert list((tmp_path / "killed" / "checkpoints").glob("*.checkpoint"))
    killed(None)
    search(tiny, tmp_path / "killed", explorer, resume=True)
    assert_same_runs(tmp_path / "through", tmp_path / "killed")
    assert not (tmp_path / "killed" / "checkpoints").exists()


def test_worker_processes_lose_no_finished_episode(tiny: TinyTask, tmp_path: Path, often: None, killed: Any) -> None:
    explorer, seen = Explorer("dqn", seed=3, episodes=8, workers=2), []

    def say(line: str) -> None:
        seen.append(line)
        if line.startswith("episode 6 "):
            raise KilledError

    with pytest.raises(KilledError):
        search(tiny, tmp_path / "run", explorer, say=say)
    assert any(line.startswith("episode 5 ") for line in seen)
    lines: list[str] = []
    result = search(tiny, tmp_path / "run", explorer, resume=True, say=lines.append)
    after = next(int(line.split()[3]) for line in lines if line.startswith("going on after"))
    assert after >= 6 and result["episodes"] == 8
    assert next(line.split()[1] for line in lines if line.startswith("episode ")) == str(after + 1)
    assert len(result["history"]) >= 9


@pytest.mark.parametrize("algo", ["local", "tpe", "random", "examples.custom_agent:make"])
def test_other_searchers_play_again_what_was_measured(
    tiny: TinyTask, tmp_path: Path, killed: Any, monkeypatch: pytest.MonkeyPatch, algo: str
) -> None:
    explorer = Explorer(algo, seed=1, episodes=6)
    search(tiny, tmp_path / "through", explorer)
    killed(24)
    with pytest.raises(KilledError):
        search(tiny, tmp_path / "killed", explorer)
    killed(None)
    measured, measure = [0], Compressor.measure

    def counted(self: Compressor, *arguments: Any) -> Any:
        measured[0] += 1
        return measure(self, *arguments)

    monkeypatch.setattr(Compressor, "measure", counted)
    search(tiny, tmp_path / "killed", explorer, resume=True)
    one, other = outcome(tmp_path / "through"), outcome(tmp_path / "killed")
    assert one == other and measured[0] < one["steps"] - one["visited_steps"] - 15


def test_an_ended_training_is_not_repeated(tiny: TinyTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    explorer = Explorer("dqn", seed=3, episodes=2, surrogate=False)
    search(tiny, tmp_path / "through", explorer)
    trained, take_steps = [0], hsq_env.long_finetuning._take_steps

    def torn(*arguments: Any) -> bool:
        trained[0] += 1
        if trained[0] == 2:
            raise KilledError
        return take_steps(*arguments)

    monkeypatch.setattr(hsq_env.long_finetuning, "_take_steps", torn)
    with pytest.raises(KilledError):
        search(tiny, tmp_path / "killed", explorer)
    monkeypatch.setattr(Explorer, "run", None)  # must not be called again
    result = search(tiny, tmp_path / "killed", explorer, resume=True)
    assert trained[0] == 2 + len(result["candidates"]) + 2 - 1  # the first finalist was there, the second anew
    assert_same_runs(tmp_path / "through", tmp_path / "killed")


def settled(tiny: TinyTask, run: Path, killed: Any, **settings: Any) -> Explorer:
    """An interrupted search."""
    killed(22)
    with pytest.raises(KilledError):
        search(tiny, run, PLAIN, **settings)
    killed(None)
    return PLAIN


def test_what_is_no_interrupted_search_is_refused(tiny: TinyTask, tmp_path: Path, killed: Any) -> None:
    with pytest.raises(InputError, match="holds no search that could go on"):
        search(tiny, tmp_path / "absent", Explorer(), resume=True)
    run = tmp_path / "run"
    explorer = settled(tiny, run, killed)
    with pytest.raises(InputError, match="already holds something"):
        search(tiny, run, explorer)
    with pytest.raises(InputError, match=r"was begun with seed 3, not 4"):
        search(tiny, run, replace(explorer, seed=4), resume=True)
    with pytest.raises(InputError, match=r"was begun with target_ratio 6\.0, not 7\.0"):
        search(tiny, run, explorer, resume=True, target_ratio=7.0)
    with pytest.raises(InputError, match="another teacher, other images, other settings or an earlier version"):
        search(TinyTask(1), run, explorer, resume=True)
    search(tiny, run, explorer, resume=True)
    with pytest.raises(InputError, match=r"has ended: its figures are in .*result\.json"):
        search(tiny, run, explorer, resume=True)


def test_another_users_search_goes_on_for_those_who_trust_it(
    tiny: TinyTask, through: Path, tmp_path: Path, often: None, killed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    explorer = settled(tiny, run, killed)
    monkeypatch.setenv("HSQ_CACHE", str(tmp_path / "of another"))
    with pytest.raises(InputError, match="give --trust-checkpoints"):
        search(tiny, run, explorer, resume=True)
    search(tiny, run, explorer, resume=True, trust_checkpoints=True)
    assert_same_runs(through, run)


def test_a_torn_checkpoint_is_passed_over(
    tiny: TinyTask, through: Path, tmp_path: Path, often: None, killed: Any
) -> None:
    harms: list[Callable[[bytes], bytes]] = [
        lambda data: data[:-40],
        lambda data: b"",
        lambda data: data[:90] + bytes([data[90] ^ 1]) + data[91:],
    ]
    for number, harm in enumerate(harms):
        run = tmp_path / str(number)
        explorer = settled(tiny, run, killed)
        files = sorted(run.glob("checkpoints/*.checkpoint"))
        files[-1].write_bytes(harm(files[-1].read_bytes()))
        lines: list[str] = []
        search(tiny, run, explorer, resume=True, say=lines.append)
        assert f"{files[-1]} is damaged: going on from the checkpoint before it." in lines
        assert_same_runs(through, run)


def test_two_searches_do_not_share_a_folder(tiny: TinyTask, tmp_path: Path, killed: Any) -> None:
    explorer = settled(tiny, tmp_path / "run", killed)
    with (
        RunFolder(tmp_path / "run", resumed=True).locked(),
        pytest.raises(InputError, match="Another search writes to"),
    ):
        search(tiny, tmp_path / "run", explorer, resume=True)
    search(tiny, tmp_path / "run", explorer, resume=True)


def test_a_full_disk_costs_a_checkpoint_and_no_more(
    tiny: TinyTask, through: Path, tmp_path: Path, often: None, monkeypatch: pytest.MonkeyPatch, killed: Any
) -> None:
    write, lines, calls = agents.checkpoint.write_atomically, [], [0]

    def full(path: Path, content: bytes) -> None:
        calls[0] += 1
        if calls[0] > 2:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write(path, content)

    monkeypatch.setattr(agents.checkpoint, "write_atomically", full)
    killed(22)
    with pytest.raises(KilledError):
        search(tiny, tmp_path / "run", PLAIN, say=lines.append)
    kept = [path.name for path in sorted((tmp_path / "run" / "checkpoints").glob("*.checkpoint"))]
    assert kept == ["00000002.checkpoint"]  # the older one made room, in vain
    told = [line for line in lines if line.startswith("No checkpoint could be written to")]
    assert told and told[0].endswith("(No space left on device): the search goes on, 00000002.checkpoint stays.")
    monkeypatch.setattr(agents.checkpoint, "write_atomically", write)
    killed(None)
    search(tiny, tmp_path / "run", PLAIN, resume=True)
    assert_same_runs(through, tmp_path / "run")


def test_clocks_may_jump(
    tiny: TinyTask, through: Path, tmp_path: Path, killed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() - 1e7 if int(now() * 50) % 2 else now() + 1e7)
    explorer = settled(tiny, tmp_path / "run", killed)
    search(tiny, tmp_path / "run", explorer, resume=True)
    assert_same_runs(through, tmp_path / "run")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_a_search_between_two_steps(
    tiny: TinyTask, through: Path, tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []

    def say(line: str) -> None:
        lines.append(line)
        if line.startswith("episode 4 "):
            os.kill(os.getpid(), number)

    handlers = [signal.getsignal(some) for some in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(KeyboardInterrupt, match="Go on with: hsq search --resume"):
        search(tiny, tmp_path / "run", PLAIN, say=say)
    assert [signal.getsignal(some) for some in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert "Stopping after the present step, with a checkpoint; once more to stop at once." in lines
    result = search(tiny, tmp_path / "run", PLAIN, resume=True)
    assert not (tmp_path / "run" / "interrupted.json").exists() and result["episodes"] == 6
    assert_same_runs(through, tmp_path / "run")


def test_what_cannot_be_kept_is_said(tiny: TinyTask, tmp_path: Path) -> None:
    class Unkept(BaseCallback):
        def __init__(self) -> None:
            super().__init__()
            self.lock = threading.Lock()

        def _on_step(self) -> bool:
            return True

    lines: list[str] = []
    search(tiny, tmp_path / "run", Explorer("dqn", episodes=1, surrogate=False, callbacks=[Unkept()]), say=lines.append)
    assert any("cannot be kept in a checkpoint" in line and line.endswith("goes on without one.") for line in lines)


def test_resumed_workers_begin_where_they_are_told(tiny: TinyTask, tmp_path: Path, often: None) -> None:
    explorer = Explorer(
        "dqn", seed=3, episodes=9, workers=2, surrogate=False, window=2, self_evaluation=SelfEvaluation(0.95, 6.0)
    )

    def say(line: str) -> None:
        if line.startswith("episode 6 "):
            raise KilledError

    settings: dict[str, Any] = {"target_ratio": None, "reward": "size", "beta": 0.9}
    with pytest.raises(KilledError):
        search(tiny, tmp_path / "run", explorer, say=say, **settings)
    seen: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        start = Callbacks._on_training_start

        def noted(self: Callbacks) -> None:
            start(self)
            weights = next(c._weights for c in self.callbacks if isinstance(c, SelfEvaluationCallback))
            workers = [tuple(self.training_env.get_attr(name)) for name in ("alpha", "beta")]
            buffer = self.model.replay_buffer
            seen.append((weights, workers, buffer.dones[buffer.pos - 1].tolist()))

        patch.setattr(Callbacks, "_on_training_start", noted)
        result = search(tiny, tmp_path / "run", explorer, resume=True, **settings)
    (weights, workers, ended), *_ = seen
    assert weights != (0.3, 0.9) and workers == [(w, w) for w in weights] and ended == [1.0, 1.0]
    assert result["episodes"] == 9


def test_a_search_that_died_before_it_began_can_be_given_its_folder(
    tiny: TinyTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    explorer, write = Explorer("dqn", seed=3, episodes=1, surrogate=False), RunFolder.write_settings

    def full(self: RunFolder, settings: dict[str, Any]) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "settings.json")

    monkeypatch.setattr(RunFolder, "write_settings", full)
    with pytest.raises(OSError, match="No space left"):
        search(tiny, tmp_path / "run", explorer)
    monkeypatch.setattr(RunFolder, "write_settings", write)
    search(tiny, tmp_path / "run", explorer)
