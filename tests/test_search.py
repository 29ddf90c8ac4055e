"""The whole pipeline on the tiny task."""

import json
from dataclasses import fields
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_task import TinyNet, TinyTask

import agents.explorer
import agents.rollout
import agents.search
from agents.algorithms import ALGORITHMS
from agents.callbacks import EpisodeRecorder
from agents.dqn import HYPERPARAMETERS
from agents.explorer import Explorer
from detectors.errors import InputError
from hsq_env.choices import BITS, SPARSITIES, Choice, Plan, choice_grid
from hsq_env.env import HSQEnv
from hsq_env.file import load_hsq, read_header
from hsq_env.layer_info import trace_layers
from hsq_env.self_evaluation import SelfEvaluation
from hsq_env.sensitivity import sensitivity
from hsq_env.size import layer_bytes, size_table
from hsq_env.student import evaluate

METHODS = ["uniform8", "uniform8_finetuned", "uniform4", "uniform4_finetuned", "hsq"]
SETTINGS: dict[str, Any] = {
    "episodes": 2,
    "finetune_steps": 8,
    "finalists": 2,
    "target_ratio": 7.0,
    "seed": 3,
    "surrogate": False,
}


def nothing(message: str) -> None:
    """Says nothing."""


def search(task: TinyTask, out: Path, **settings: Any) -> dict[str, Any]:
    """A search, with the explorer's settings among the others."""
    own = {field.name: settings.pop(field.name) for field in fields(Explorer) if field.name in settings}
    return agents.search.search(task, out, Explorer(**own), **settings)


@pytest.fixture(scope="module")
def run(tiny: TinyTask, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A finished run. Not to be changed."""
    out = tmp_path_factory.mktemp("runs") / "run"
    return out, search(tiny, out, model="tinynet", say=nothing, **SETTINGS)


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if k not in ("seconds", "search_seconds")}
    return [without_times(v) for v in value] if isinstance(value, list) else value


# ---- what a run leaves


def test_what_was_known_of_layers(tiny: TinyTask, run: tuple[Path, dict[str, Any]]) -> None:
    infos = trace_layers(tiny)
    layers = run[1]["layers"]
    choices = [Choice(bits, sparsity) for bits, sparsity in layers["choices"]]
    assert choices == list(choice_grid(BITS, SPARSITIES))
    assert [row["name"] for row in layers["rows"]] == [info.name for info in infos]
    assert [row["bytes"] for row in layers["rows"]] == size_table(infos, choices).tolist()
    assert [row["sensitivity"] for row in layers["rows"]] == sensitivity(tiny, infos, choices).tolist()
    assert [row["float_bytes"] for row in layers["rows"]] == [layer_bytes(info, None) for info in infos]


def test_result_holds_what_was_promised(tiny: TinyTask, run: tuple[Path, dict[str, Any]]) -> None:
    out, result = run
    assert json.loads((out / "result.json").read_text()) == result
    fixed = {
        "dataset": "tiny",
        "model": "tinynet",
        "metric": "mAP",
        "split": "test",
        "seed": 3,
        "episodes": 2,
        "algo": "dqn",
    }
    assert {key: result[key] for key in fixed} == fixed
    assert result["seconds"] > 0
    assert list(result["methods"]) == METHODS
    assert all({"map", "bytes", "ratio"} <= set(row) for row in result["methods"].values())
    assert result["teacher"]["map"] == evaluate(tiny, tiny.stages(tiny.teacher), "test")
    assert [row["source"] for row in result["history"]] == ["ilp_loads", "dqn", "dqn"]
    assert result["environment"]["versions"]["torch"]


def test_bytes_and_ratios_are_those_on_disk(tiny: TinyTask, run: tuple[Path, dict[str, Any]]) -> None:
    out, result = run
    teacher = (out / "teacher.safetensors").stat().st_size
    assert (out / "teacher.safetensors").read_bytes() == tiny.teacher_file()
    assert result["teacher"]["bytes"] == teacher
    for name, row in result["methods"].items():
        path = out / ("model.hsq" if name == "hsq" else f"baselines/{name}.hsq")
        assert row["bytes"] == path.stat().st_size and row["ratio"] == teacher / row["bytes"]
    assert result["methods"]["hsq"]["ratio"] >= 7.0


def test_files_measure_again_as_they_did(tiny: TinyTask, run: tuple[Path, dict[str, Any]]) -> None:
    out, result = run
    for name, row in result["methods"].items():
        model = TinyNet().requires_grad_(False)
        load_hsq(out / ("model.hsq" if name == "hsq" else f"baselines/{name}.hsq"), model)
        assert evaluate(tiny, tiny.stages(model), "test") == row["map"]


def test_plan_is_that_of_the_file_and_of_an_episode(run: tuple[Path, dict[str, Any]]) -> None:
    out, result = run
    plan = Plan.read(out / "plan.json")
    assert plan == read_header(out / "model.hsq").plan()
    found = [row for row in result["history"] if row["choices"] == [[c.bits, c.sparsity] for c in plan.choices]]
    assert found and found[0]["source"] == result["methods"]["hsq"]["source"]
    left = [row["finetuned_divergence"] for row in result["candidates"]]
    assert result["candidates"][int(np.argmin(left))]["source"] == result["methods"]["hsq"]["source"]


def test_policy_loads_and_plays(tiny: TinyTask, run: tuple[Path, dict[str, Any]]) -> None:
    env = HSQEnv(tiny, target_ratio=7.0, step_minibatches=0)
    policy = ALGORITHMS["dqn"].kind.load(run[0] / "policy.zip", env=env)
    observation, _ = env.reset()
    for _ in range(7):
        action, _ = policy.predict(observation, deterministic=True)
        observation, _, _, _, info = env.step(action)
        assert info["executed_action"] == int(action)
    assert info["ratio"] >= 7.0


def test_logs_are_for_tensorboard(run: tuple[Path, dict[str, Any]]) -> None:
    assert list((run[0] / "tensorboard").rglob("events.out.tfevents.*"))


def test_nothing_else_is_left(run: tuple[Path, dict[str, Any]]) -> None:
    names = {
        "result.json",
        "plan.json",
        "model.hsq",
        "policy.zip",
        "replay.npz",
        "teacher.safetensors",
        "baselines",
        "tensorboard",
    }
    assert {path.name for path in run[0].iterdir()} == names


def test_the_same_seed_gives_the_same_run(tiny: TinyTask, run: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    again = search(tiny, tmp_path / "again", model="tinynet", say=nothing, **SETTINGS)
    assert without_times(again) == without_times(run[1])
    for name in ("model.hsq", "plan.json", "baselines/uniform4_finetuned.hsq"):
        assert (tmp_path / "again" / name).read_bytes() == (run[0] / name).read_bytes()


# ---- other ways through


@pytest.mark.slow
@pytest.mark.parametrize("algo", ["ppo", "sac"])
def test_other_agents(tiny: TinyTask, tmp_path: Path, algo: str) -> None:
    result = search(tiny, tmp_path / "run", algo=algo, **{**SETTINGS, "finetune_steps": 0}, say=nothing)
    assert (result["algo"], result["episodes"]) == (algo, 2)
    assert {row["source"] for row in result["history"]} == {"ilp_loads", algo}
    assert result["methods"]["hsq"]["ratio"] >= 7.0
    for bits in (8, 4):  # without steps, both uniform rows are the same
        assert result["methods"][f"uniform{bits}"] == result["methods"][f"uniform{bits}_finetuned"]


@pytest.fixture
def exploring(monkeypatch: pytest.MonkeyPatch) -> None:
    """The agent acts at random throughout, so that its plans differ from the seeds'."""
    monkeypatch.setitem(HYPERPARAMETERS, "exploration_initial_eps", 1.0)
    monkeypatch.setitem(HYPERPARAMETERS, "exploration_final_eps", 1.0)


@pytest.mark.usefixtures("exploring")
def test_without_a_target_the_return_decides(tiny: TinyTask, tmp_path: Path) -> None:
    settings = {**SETTINGS, "target_ratio": None, "finalists": 1, "beta": 0.0, "step_minibatches": 0}
    result = search(tiny, tmp_path / "run", **settings, say=nothing)
    best = max(result["history"], key=lambda row: row["total_reward"])
    assert best["divergence"] > min(row["divergence"] for row in result["history"])  # the smallest, not the best
    plan = Plan.read(tmp_path / "run" / "plan.json")
    assert [[c.bits, c.sparsity] for c in plan.choices] == best["choices"]
    assert result["target_ratio"] is None


def test_no_episodes_leave_the_baselines_plan(tiny: TinyTask, tmp_path: Path) -> None:
    result = search(tiny, tmp_path / "run", **{**SETTINGS, "episodes": 0}, say=nothing)
    assert result["episodes"] == 0
    assert result["methods"]["hsq"]["source"] == "ilp_loads"
    assert (tmp_path / "run" / "policy.zip").is_file()


@pytest.mark.parametrize("algo", ["local", "tpe"])
def test_baselines_go_the_same_way(tiny: TinyTask, tmp_path: Path, algo: str) -> None:
    result = search(tiny, tmp_path / "run", **{**SETTINGS, "algo": algo, "episodes": 5}, say=nothing)
    assert [row["source"] for row in result["history"]] == [algo] * 5 and result["episodes"] == 5
    assert result["methods"]["hsq"]["source"] == algo and result["methods"]["hsq"]["ratio"] >= 7.0
    assert not (tmp_path / "run" / "policy.zip").exists()


def test_one_search_for_several_targets(tiny: TinyTask, tmp_path: Path) -> None:
    out = tmp_path / "run"
    settings = {**SETTINGS, "target_ratio": (6.0, 10.0), "episodes": 4, "finetune_steps": 2}
    result = search(tiny, out, **settings, say=nothing)
    assert result["target_ratio"] == [6.0, 10.0]
    assert list(result["methods"]) == [*METHODS[:-1], "hsq-6", "hsq-10"]
    assert list(result["candidates"]) == ["6.0", "10.0"]
    for target, name in ((6.0, "6"), (10.0, "10")):
        row = result["methods"][f"hsq-{name}"]
        assert row["ratio"] == result["teacher"]["bytes"] / (out / f"model-{name}.hsq").stat().st_size >= target
        model = TinyNet().requires_grad_(False)
        plan = load_hsq(out / f"model-{name}.hsq", model).plan()
        assert plan == Plan.read(out / f"plan-{name}.json")
        assert evaluate(tiny, tiny.stages(model), "test") == row["map"]
        best = min((r for r in result["history"] if r["ratio"] >= target), key=lambda r: r["divergence"])
        assert best["divergence"] == result["candidates"][str(target)][0]["divergence"]
    assert not (out / "model.hsq").exists() and not (out / "plan.json").exists()


def test_evaluations_that_finish_no_plan_are_told(tiny: TinyTask, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No plan was finished: give 'random' more evaluations, episodes or seconds"):
        search(tiny, tmp_path / "run", **{**SETTINGS, "algo": "random", "evaluations": 3}, say=nothing)


# ---- side by side


@pytest.mark.parametrize(("algo", "returns"), [("dqn", True), ("ppo", False)])
def test_two_workers_search_together(tiny: TinyTask, tmp_path: Path, algo: str, returns: bool) -> None:
    """Both finish at the same step, so that three episodes become four."""
    settings = {**SETTINGS, "episodes": 3, "finetune_steps": 1, "algo": algo}
    result = search(tiny, tmp_path / "run", **settings, workers=2, say=nothing)
    assert result["workers"] == 2 and result["return_to_best"] is returns
    assert [row["source"] for row in result["history"]] == ["ilp_loads", *[algo] * 4]
    assert result["steps"] == (1 + 4) * 7 and 0 <= result["visited_steps"] < result["steps"]
    for row in result["history"][1:]:  # every episode is what one environment gives for its choices
        env = HSQEnv(tiny, target_ratio=7.0)
        env.reset()
        for bits, sparsity in row["choices"]:
            info = env.step(env.choices.index(Choice(bits, sparsity)))[4]
        assert (info["accuracy"], info["ratio"]) == (row["accuracy"], row["ratio"])
    assert active_children() == []
    assert load_hsq(tmp_path / "run" / "model.hsq", TinyNet().requires_grad_(False)).plan() == Plan.read(
        tmp_path / "run" / "plan.json"
    )


def test_an_interruption_of_two_workers_leaves_the_best_plan(
    tiny: TinyTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Soon(Interrupted):
        stop_at = 20  # timesteps of both: in the second pair of episodes

    monkeypatch.setattr(agents.rollout, "EpisodeRecorder", Soon)
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt, match="best plan so far"):
        search(tiny, out, **{**SETTINGS, "episodes": 9}, workers=2, say=nothing)
    check_usable(tiny, out)
    assert active_children() == []
    history = json.loads((out / "interrupted.json").read_text())["history"]
    assert [row["source"] for row in history] == ["ilp_loads", "dqn", "dqn"]
    best = min(history, key=lambda row: row["divergence"])
    assert best["choices"] == [[c.bits, c.sparsity] for c in Plan.read(out / "plan.json").choices]


def test_the_best_plan_is_followed_unless_told_otherwise(tiny: TinyTask, tmp_path: Path) -> None:
    """Most steps of an episode that follows a known plan at first were visited before."""
    settings = {**SETTINGS, "episodes": 6, "finetune_steps": 0}
    followed = search(tiny, tmp_path / "a", **settings, say=nothing)
    free = search(tiny, tmp_path / "b", **settings, return_to_best=False, say=nothing)
    assert (followed["return_to_best"], free["return_to_best"]) == (True, False)
    assert followed["steps"] == free["steps"] == (1 + 6) * 7
    assert followed["visited_steps"] >= 6 and followed["history"][0] | {"seconds": 0} == free["history"][0] | {
        "seconds": 0
    }


# ---- interruptions


class Interrupted(EpisodeRecorder):
    """Ctrl-C in the middle of the second episode."""

    stop_at = 10

    def _on_step(self) -> bool:
        if self.num_timesteps == self.stop_at:
            raise KeyboardInterrupt
        return super()._on_step()


def check_usable(tiny: TinyTask, out: Path) -> None:
    """``plan.json`` and ``model.hsq`` belong together and to an episode, and there is no result."""
    plan = Plan.read(out / "plan.json")
    model = TinyNet().requires_grad_(False)
    assert load_hsq(out / "model.hsq", model).plan() == plan
    assert 0 < evaluate(tiny, tiny.stages(model), "test") <= 1
    assert not (out / "result.json").exists()
    assert not [path for path in out.rglob("*") if "partial" in path.name]


def test_an_interrupted_agent_leaves_the_best_plan(
    tiny: TinyTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agents.rollout, "EpisodeRecorder", Interrupted)
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt) as error:
        search(tiny, out, **SETTINGS, say=nothing)
    assert str(out) in str(error.value) and "best plan so far" in str(error.value)
    check_usable(tiny, out)
    record = json.loads((out / "interrupted.json").read_text())
    assert [row["source"] for row in record["history"]] == ["ilp_loads", "dqn"]
    best = min(record["history"], key=lambda row: row["divergence"])
    assert best["choices"] == [[c.bits, c.sparsity] for c in Plan.read(out / "plan.json").choices]
    ALGORITHMS["dqn"].kind.load(out / "policy.zip")


@pytest.mark.usefixtures("exploring")
@pytest.mark.parametrize("call", [1, 2, 3, 7, 8])
def test_an_interruption_after_the_agent_leaves_a_plan_too(
    tiny: TinyTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    """Evaluations: two finalists, five methods, the teacher."""
    calls = 0

    def evaluate_or_stop(*arguments: Any) -> float:
        nonlocal calls
        calls += 1
        if calls == call:
            raise KeyboardInterrupt
        return evaluate(*arguments)

    monkeypatch.setattr("agents.finalists.evaluate", evaluate_or_stop)
    monkeypatch.setattr("agents.search.evaluate", evaluate_or_stop)
    with pytest.raises(KeyboardInterrupt, match="holds the best plan so far"):
        search(tiny, tmp_path / "run", **{**SETTINGS, "finetune_steps": 1}, say=nothing)
    check_usable(tiny, tmp_path / "run")


@pytest.mark.usefixtures("exploring")
def test_plan_and_file_never_contradict_each_other(
    tiny: TinyTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The winner is not the best plan so far, and its file is written when Ctrl-C comes."""
    choose = agents.search.choose

    def choose_another(env: HSQEnv, best: list[Any], *arguments: Any) -> Any:
        assert len(best) == 2
        return choose(env, best[1:], *arguments)

    calls: list[str] = []

    def evaluate_or_stop(task: TinyTask, stages: Any, split: str) -> float:
        calls.append(split)
        if calls.count("test") == 5:
            raise KeyboardInterrupt
        return evaluate(task, stages, split)

    monkeypatch.setattr(agents.search, "choose", choose_another)
    monkeypatch.setattr("agents.finalists.evaluate", evaluate_or_stop)
    with pytest.raises(KeyboardInterrupt):
        search(tiny, tmp_path / "run", **{**SETTINGS, "finetune_steps": 1}, say=nothing)
    check_usable(tiny, tmp_path / "run")


def test_an_interruption_before_any_plan_says_so(
    tiny: TinyTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(agents.explorer, "rollout", stop)
    with pytest.raises(KeyboardInterrupt, match="holds no plan"):
        search(tiny, tmp_path / "run", **SETTINGS, say=nothing)
    assert not (tmp_path / "run" / "plan.json").exists()


# ---- what is refused


def test_a_used_folder_is_refused_before_any_work(tiny: TinyTask, run: tuple[Path, dict[str, Any]]) -> None:
    before = {path: path.stat().st_mtime_ns for path in run[0].rglob("*")}
    with pytest.raises(InputError, match="already holds something"):
        search(tiny, run[0], **SETTINGS, say=nothing)
    assert {path: path.stat().st_mtime_ns for path in run[0].rglob("*")} == before


@pytest.mark.parametrize(
    "wrong",
    [
        {"target_ratio": 100.0},
        {"algo": "rainbow"},
        {"algo": "nowhere:make"},
        {"warm_start": ("cold",)},
        {"evaluations": 0},
        {"target_ratio": ()},
        {"reward": "best"},
        {"alpha": 2.0},
        {"finalists": 0},
        {"workers": 0},
        {"table_megabytes": -1.0},
    ],
)
def test_bad_input_leaves_no_folder(tiny: TinyTask, tmp_path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        search(tiny, tmp_path / "run", **{**SETTINGS, **wrong}, say=nothing)
    assert list(tmp_path.iterdir()) == []


# ---- aims


def test_with_an_aim_the_self_evaluation_steers(tiny: TinyTask, tmp_path: Path) -> None:
    explorer = Explorer("dqn", seed=3, episodes=12, window=3, surrogate=False)
    settings: dict[str, Any] = {"target_ratio": 9.0, "target_accuracy": 0.99, "finetune_steps": 1, "say": nothing}
    result = agents.search.search(tiny, tmp_path / "run", explorer, **settings)
    told = result["diagnostics"]["self_evaluation"]
    assert len(told) == 4 and all(row["reason"] for row in told)
    assert len({(row["alpha"], row["beta"]) for row in told}) > 1
    loop = SelfEvaluation(0.99, 9.0)
    merits = [loop.merit_of(row["accuracy"], row["ratio"]) for row in result["history"]]
    best = result["history"][int(np.argmin(merits))]
    shown = [[c.bits, c.sparsity] for c in Plan.read(tmp_path / "run" / "plan.json").choices]
    different = {str(row["choices"]): merit for row, merit in zip(result["history"], merits, strict=True)}
    finalists = sorted(different, key=lambda choices: different[choices])[: len(result["candidates"])]
    assert str(shown) in finalists and str(best["choices"]) == finalists[0]
    assert result["target_accuracy"] == 0.99 and len(different) > len(finalists) > 0
    assert "reason" in (tmp_path / "run" / "tensorboard" / "progress.csv").read_text()


@pytest.mark.parametrize("wrong", [{"target_accuracy": 0.0}, {"target_accuracy": 0.9, "target_ratio": (5.0, 9.0)}])
def test_impossible_aims_are_refused(tiny: TinyTask, tmp_path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"target_accuracy is|needs one ratio"):
        agents.search.search(tiny, tmp_path / "run", Explorer(), say=nothing, **wrong)
    assert not (tmp_path / "run").exists()
