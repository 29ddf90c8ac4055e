"""Long fine-tuning, the choice on the search split, and the figures of the table."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import random_plan, student_logits
from test_finetuning import BadLoss
from tiny_task import TinyNet, TinyTask
from torch import Tensor

from agents.episode import Episode
from agents.finalists import choose, finetuned_student, measure
from agents.run_folder import RunFolder
from hsq_env.choices import Choice, Plan
from hsq_env.env import HSQEnv
from hsq_env.file import load_hsq
from hsq_env.latency_table import LatencyTable
from hsq_env.layer_info import trace_layers
from hsq_env.long_finetuning import finetune_all
from hsq_env.student import Student, evaluate


def nothing(message: str) -> None:
    """Says nothing."""


@pytest.fixture(scope="module")
def env(tiny: TinyTask) -> HSQEnv:
    return HSQEnv(tiny, sparsity_pattern="n:m", activation_bits=6)


def episode(plan: Plan, source: str = "dqn", target: float | None = None) -> Episode:
    return Episode(source, plan, 1.0, 0.9, 6.0, 1.0, divergence=0.25, target_ratio=target)


def short(plan: Plan) -> list[list[float]]:
    return [[c.bits, c.sparsity] for c in plan.choices]


def uniform(env: HSQEnv, choice: Choice) -> Plan:
    return Plan(tuple(info.name for info in env.layers), (choice,) * len(env.layers))


@pytest.mark.parametrize("steps", [0, 5])
def test_a_fine_tuned_student_starts_from_the_teacher(tiny: TinyTask, env: HSQEnv, steps: int) -> None:
    plan = random_plan(env.layers, 0)
    expected = Student(tiny, env.layers, 6, "n:m")
    expected.apply(plan)
    if steps:
        finetune_all(expected, steps)
    assert torch.equal(student_logits(finetuned_student(env, plan, steps, "")), student_logits(expected))


def test_a_diverged_student_falls_back_to_the_plan_alone(tiny: TinyTask) -> None:
    env = HSQEnv(tiny)
    env.task = BadLoss(tiny, 2)
    plan = random_plan(env.layers, 1)
    expected = Student(tiny, env.layers)
    expected.apply(plan)
    assert torch.equal(student_logits(finetuned_student(env, plan, 9, "")), student_logits(expected))


@pytest.mark.parametrize("target", [None, 6.0])
def test_the_best_on_the_search_split_wins(tiny: TinyTask, env: HSQEnv, target: float | None) -> None:
    """By the metric without a target, by the divergence with one."""
    plans = [uniform(env, c) for c in (Choice(2, 0.75), Choice(8), Choice(2, 0.5))]
    entered = [episode(p, f"plan {i}", target) for i, p in enumerate(plans)]
    winner, student, rows = choose(env, entered, 0, nothing)
    students = [finetuned_student(env, plan, 0, "") for plan in plans]
    scores = [evaluate(tiny, student.stages, "search") for student in students]
    divergences = [env.compressor.judge.measure_anew(student.stages)[1] for student in students]
    assert max(scores) == scores[1] > scores[2] and min(divergences) == divergences[1]
    assert winner.plan == student.plan() == plans[1]
    assert rows == [
        {"source": f"plan {i}", "divergence": 0.25, "finetuned_search_map": score, "finetuned_divergence": divergence}
        for i, (score, divergence) in enumerate(zip(scores, divergences, strict=True))
    ]


def test_metric_and_divergence_may_disagree(env: HSQEnv, monkeypatch: pytest.MonkeyPatch) -> None:
    plans = [uniform(env, c) for c in (Choice(2, 0.75), Choice(8))]
    monkeypatch.setattr("agents.finalists.evaluate", lambda task, stages, split: next(scores))
    for target, expected in ((None, 0), (6.0, 1)):
        scores = iter([0.9, 0.1])
        winner, _, _ = choose(env, [episode(plan, target=target) for plan in plans], 0, nothing)
        assert winner.plan == plans[expected]
    scores = iter([math.nan, 0.1])  # what is no number is worse than all
    winner, _, _ = choose(env, [episode(plan) for plan in plans], 0, nothing)
    assert winner.plan == plans[1]


def test_a_budget_of_time_decides_by_divergence_too(tiny: TinyTask, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [info.name for info in trace_layers(tiny)]
    table = LatencyTable("by hand", {name: {str(bits): 1e-6 * bits for bits in (2, 4, 8, 32)} for name in names})
    env = HSQEnv(tiny, latency_table=table, target_latency=1e6, step_minibatches=0)
    assert env.bounded and env.target_ratio is None
    plans = [uniform(env, c) for c in (Choice(2, 0.75), Choice(8))]
    scores = iter([0.9, 0.1])
    monkeypatch.setattr("agents.finalists.evaluate", lambda task, stages, split: next(scores))
    winner, _, _ = choose(env, [episode(plan) for plan in plans], 0, nothing)
    assert winner.plan == plans[1]


def test_among_equals_the_first_wins(env: HSQEnv) -> None:
    plan = uniform(env, Choice(8))
    winner, _, _ = choose(env, [episode(plan, "first"), episode(plan, "second")], 0, nothing)
    assert winner.source == "first"


def test_figures_are_those_of_the_files(tiny: TinyTask, env: HSQEnv, tmp_path: Path) -> None:
    student = finetuned_student(env, random_plan(env.layers, 2), 4, "")
    found = {"hsq": (None, episode(student.plan(), "sac"), student)}
    methods = measure(env, RunFolder(tmp_path), found, len(tiny.teacher_file()), 4, nothing)
    assert list(methods) == ["uniform8", "uniform8_finetuned", "uniform4", "uniform4_finetuned", "hsq"]
    maps = []
    for name, row in methods.items():
        path = tmp_path / ("model.hsq" if name == "hsq" else f"baselines/{name}.hsq")
        model = TinyNet().requires_grad_(False)
        plan = load_hsq(path, model).plan()
        maps.append(evaluate(tiny, tiny.stages(model), "test"))
        assert row == {
            "map": maps[-1],
            "bytes": path.stat().st_size,
            "ratio": len(tiny.teacher_file()) / path.stat().st_size,
            **({"source": "sac", "choices": short(plan)} if name == "hsq" else {}),
        }
        if name != "hsq":
            assert plan == uniform(env, Choice(int(name[7]), 0.0))
    assert load_hsq(tmp_path / "model.hsq", TinyNet()).plan() == random_plan(env.layers, 2)


def test_every_target_has_files_and_figures_of_its_own(tiny: TinyTask, env: HSQEnv, tmp_path: Path) -> None:
    plans = {6.0: uniform(env, Choice(4)), 10.0: uniform(env, Choice(2))}
    found = {f"hsq-{t:g}": (t, episode(p, f"for {t:g}"), finetuned_student(env, p, 0, "")) for t, p in plans.items()}
    methods = measure(env, RunFolder(tmp_path, several=True), found, 1000, 0, nothing)
    assert list(methods)[4:] == ["hsq-6", "hsq-10"]
    for name, plan in zip(("6", "10"), plans.values(), strict=True):
        path = tmp_path / f"model-{name}.hsq"
        model = TinyNet().requires_grad_(False)
        assert load_hsq(path, model).plan() == Plan.read(tmp_path / f"plan-{name}.json") == plan
        assert methods[f"hsq-{name}"] == {
            "map": evaluate(tiny, tiny.stages(model), "test"),
            "bytes": path.stat().st_size,
            "ratio": 1000 / path.stat().st_size,
            "source": f"for {name}",
            "choices": short(plan),
        }
    assert not (tmp_path / "model.hsq").exists() and not (tmp_path / "plan.json").exists()


def test_both_sides_get_the_same_fine_tuning(tiny: TinyTask, tmp_path: Path) -> None:
    counted: list[int] = []

    class Counting(TinyTask):
        def __init__(self) -> None:
            self.__dict__.update(tiny.__dict__)

        def long_finetuning(self, step: int) -> Any:
            counted.append(step)
            return super().long_finetuning(step)

        def task_loss(self, outputs: dict[str, Any], batch: Any) -> Tensor:
            return super().task_loss(outputs, batch)

    env = HSQEnv(tiny)
    env.task = Counting()
    winner, student, _ = choose(env, [episode(uniform(env, Choice(4)))], 3, nothing)
    assert counted == [0, 1, 2]
    measure(env, RunFolder(tmp_path), {"hsq": (None, winner, student)}, 1, 3, nothing)
    assert counted == [0, 1, 2] * 3
    fine = [TinyNet(), TinyNet()]
    load_hsq(tmp_path / "model.hsq", fine[0])
    load_hsq(tmp_path / "baselines" / "uniform4_finetuned.hsq", fine[1])
    images = tiny.evaluation("test")[0].images
    assert torch.equal(fine[0](images), fine[1](images))  # the same plan, so the same student
