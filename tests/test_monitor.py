"""A finished model on new images."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_resume import policy
from tiny_task import TinyNet, TinyTask

import agents.monitor
from agents.cli import main
from agents.explorer import Explorer
from agents.monitor import Verdict, agent_of_run, arguments_of, monitor, read_run
from agents.search import search
from detectors.errors import InputError
from hsq_env.accuracy import Scale

QUIET: dict[str, Any] = {"say": lambda line: None, "finetune_steps": 2, "target_ratio": 7.0}


class Spec:
    """Builds the tiny network."""

    name = "tinynet"

    def build_folded(self) -> torch.nn.Module:
        return TinyNet()


@pytest.fixture(scope="module")
def run(tiny: TinyTask, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run. Not to be changed."""
    out = tmp_path_factory.mktemp("runs") / "run"
    search(tiny, out, Explorer("dqn", episodes=2, surrogate=False), **QUIET)
    return out


@pytest.fixture
def new_images(tiny: TinyTask, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is asked for is the tiny task."""
    asked: list[Any] = []

    def make(dataset: str, teacher: Path, splits: Any) -> TinyTask:
        asked.append((dataset, teacher, splits))
        task = TinyTask()
        task.spec, task.device = Spec(), torch.device("cpu")  # type: ignore[attr-defined]
        return task

    monkeypatch.setattr(agents.monitor, "make_task", make)
    return asked


def test_the_same_images_give_what_the_run_measured(run: Path, new_images: list[Any]) -> None:
    result = json.loads((run / "result.json").read_text())
    verdict, _task = monitor(run, "photos", None, ("a", "b"))
    assert new_images == [("photos", run / "teacher.safetensors", ("a", "b"))]
    assert (verdict.model, verdict.scale.teacher) == (result["methods"]["hsq"]["map"], result["teacher"]["map"])
    assert verdict.accuracy == pytest.approx(verdict.claimed) and verdict.meets
    assert verdict.target == pytest.approx(verdict.claimed - 0.01)
    assert "the target is met." in verdict.sentence("photos")


def test_a_target_may_be_missed(run: Path, new_images: list[Any]) -> None:
    verdict, _ = monitor(run, "photos", target_accuracy=1.2)
    assert not verdict.meets
    assert verdict.sentence("photos").startswith("photos: mAP ") and "search again with --retrain" in verdict.sentence(
        ""
    )


def test_records_of_earlier_versions(run: Path, new_images: list[Any], tmp_path: Path) -> None:
    """A detector's untreated images score nothing, whether the record says so or not; a restorer's must be known."""
    claimed = monitor(run, "photos")[0].claimed
    result = json.loads((run / "result.json").read_text())
    del result["teacher"]["untreated_map"]
    old = tmp_path / "old"
    shutil.copytree(run, old)
    (old / "result.json").write_text(json.dumps(result))
    assert monitor(old, "photos")[0].claimed == claimed
    teacher, methods = {"psnr": 30.0}, {"hsq": {"psnr": 29.0}}
    (old / "result.json").write_text(json.dumps({**result, "metric": "PSNR", "teacher": teacher, "methods": methods}))
    with pytest.raises(InputError, match="did not measure untreated images: search again"):
        monitor(old, "photos")
    teacher["untreated_psnr"] = 30.5
    (old / "result.json").write_text(json.dumps({**result, "metric": "PSNR", "teacher": teacher, "methods": methods}))
    with pytest.raises(InputError, match=r"scores 30 and images as they come 30\.5 on its own test split"):
        monitor(old, "photos")


def test_verdicts_by_hand() -> None:
    assert Verdict(Scale(0.8), model=0.76, target=0.95, claimed=0.97, metric="mAP").meets
    assert not Verdict(Scale(0.8), model=0.759, target=0.95, claimed=0.97, metric="mAP").meets


def test_a_search_goes_on_with_the_old_policy_and_replay(tiny: TinyTask, run: Path, tmp_path: Path) -> None:
    assert agent_of_run(run) == "dqn"
    explorer = Explorer(episodes=1, surrogate=False, continue_from=run)
    agents_seen: list[Any] = []
    explorer_run = Explorer.run

    def watch(self: Explorer, env: Any, log: Any, logs: Any, on_agent: Any, *rest: Any) -> Any:
        def note(agent: Any) -> None:
            weights = {name: value.clone() for name, value in agent.policy.state_dict().items()}
            agents_seen.append((agent, agent.replay_buffer.size(), weights))
            on_agent(agent)

        return explorer_run(self, env, log, logs, note, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Explorer, "run", watch)
        search(tiny, tmp_path / "new", explorer, **QUIET)
    _, size, weights = agents_seen[0]
    old = policy(run)
    assert weights.keys() == old.keys() and all(torch.equal(value, old[name]) for name, value in weights.items())
    assert size == 7 + 2 * 7 - 1  # the old run's rollout and episodes; SB3 does not store the step it stops at
    assert (tmp_path / "new" / "result.json").is_file()


@pytest.mark.parametrize("content", [None, "{", "[]", "{}", '{"teacher": {}}'])
def test_a_folder_that_is_no_run_is_refused(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "result.json").write_text(content)
    with pytest.raises(InputError, match="is not the folder of a finished search"):
        read_run(tmp_path)


def test_a_run_without_a_policy_cannot_be_continued(tiny: TinyTask, tmp_path: Path) -> None:
    search(tiny, tmp_path / "run", Explorer("greedy", episodes=None), **QUIET)
    with pytest.raises(InputError, match="its search was 'greedy', which learns nothing"):
        agent_of_run(tmp_path / "run")


def test_a_search_anew_has_the_budget_of_the_old_one(tmp_path: Path) -> None:
    record = {
        "metric": "mAP", "teacher": {"map": 0.5}, "methods": {"hsq": {"map": 0.4}}, "algo": "dqn", "target_ratio": None,
        "target_latency": 1.5, "reward": "latency", "beta": 1.0, "latency": {"hsq": 1.4},
        "rebuild": {"activation_bits": 4, "sparsity_pattern": "channels", "bfloat16": False,
                    "task": {"pool_images": 9, "dataset": "old/", "splits": None}},
    }  # fmt: skip
    (tmp_path / "result.json").write_text(json.dumps(record))
    assert arguments_of(tmp_path) == {
        "target_ratio": None, "target_latency": 1.5, "reward": "latency", "beta": 1.0, "activation_bits": 4,
        "sparsity_pattern": "channels", "bfloat16": False, "pool_images": 9, "latency_table": tmp_path / "latency.json",
    }  # fmt: skip
    (tmp_path / "result.json").write_text(json.dumps({**record, "target_accuracy": 0.97, "aimed_ratio": 6.0}))
    assert arguments_of(tmp_path)["target_accuracy"] == 0.97 and arguments_of(tmp_path)["target_ratio"] == 6.0


@pytest.mark.parametrize("more", [{}, {"target_accuracy": 0.97}])
def test_a_record_that_says_no_aim(tmp_path: Path, more: dict[str, float]) -> None:
    """A search of the command would take its usual ratio."""
    figures = {"metric": "mAP", "teacher": {"map": 0.5}, "methods": {"hsq": {"map": 0.4}}, "algo": "dqn"}
    (tmp_path / "result.json").write_text(json.dumps({**figures, "target_ratio": None, **more}))
    with pytest.raises(InputError, match="says no ratio and no time to aim at: search with hsq search --continue-from"):
        arguments_of(tmp_path)


def test_agents_that_cannot_go_on(run: Path, tmp_path: Path) -> None:
    assert agent_of_run(run, "dqn") == "dqn"
    with pytest.raises(InputError, match="is 'dqn', not 'ppo': leave out --algo"):
        agent_of_run(run, "ppo")
    shutil.copytree(run, tmp_path / "own")
    record = json.loads((run / "result.json").read_text())
    (tmp_path / "own" / "result.json").write_text(json.dumps({**record, "algo": "mine:make"}))
    with pytest.raises(InputError, match=r"was by 'mine:make': let what it makes load .*policy\.zip itself"):
        agent_of_run(tmp_path / "own")


def test_a_search_anew_is_one_of_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked for what the old run was asked for; it can be resumed, and its record says how its task was made."""

    def make(*given: Any, **settings: Any) -> TinyTask:
        task = TinyTask()
        task.spec, task.device = Spec(), torch.device("cpu")  # type: ignore[attr-defined]
        return task

    for place in ("agents.monitor.make_task", "hsq_env.make.make_task"):
        monkeypatch.setattr(place, make)
    old, new, stopped = (tmp_path / name for name in ("old", "new", "stopped"))
    short = ["--finetune-steps", "1", "--episodes", "1"]
    flags = "--target-ratio 7 --step-minibatches 1 --observe-repaired --alpha 0.2 --no-surrogate --warm-start greedy"
    main(["search", "--out", str(old), *short, *flags.split()])
    again = ["monitor", str(old), "--target-accuracy", "1.4", "--retrain", *short]
    main([*again, "--out", str(new)])
    before, after = (json.loads((run / "result.json").read_text()) for run in (old, new))
    assert {**before["rebuild"], "task": None} == {**after["rebuild"], "task": None}
    assert [after[name] for name in ("target_ratio", "warm_start", "surrogate")] == [7.0, ["greedy"], False]
    assert after["rebuild"]["observe_repaired"] and after["rebuild"]["alpha"] == 0.2
    with np.load(old / "replay.npz") as one, np.load(new / "replay.npz") as other:
        assert len(other["rewards"]) > len(one["rewards"])

    def stop(*given: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("agents.search.measure", stop)
        with pytest.raises(SystemExit):
            main([*again, "--out", str(stopped)])
    main(["search", "--resume", str(stopped)])
    assert json.loads((stopped / "result.json").read_text())["target_ratio"] == 7.0
