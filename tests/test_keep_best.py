"""The best finished plan is on disk as soon as it is finished."""

import math
from pathlib import Path

import pytest
from test_env import NO_SENSITIVITIES, NotANumber
from tiny_task import TinyNet, TinyTask

from agents.keep_best import KeepBest
from agents.run_folder import RunFolder
from hsq_env.choices import Plan
from hsq_env.env import HSQEnv
from hsq_env.file import load_hsq, student_bytes
from hsq_env.student import evaluate

GOOD, MIDDLING, BAD = [8] * 7, [4] * 7, [3] * 7  # 8 bits; 4 bits; 2 bits at 75 % sparsity


def play(env: KeepBest, actions: list[int]) -> tuple[float, float]:
    """Accuracy and return of an episode."""
    env.reset()
    steps = [env.step(action) for action in actions]
    return steps[-1][4]["accuracy"], sum(float(step[1]) for step in steps)


def kept(path: Path) -> Plan:
    return Plan.read(path / "plan.json")


def test_only_better_plans_replace_the_kept_one(tiny: TinyTask, tmp_path: Path) -> None:
    inner = HSQEnv(tiny, finetune_steps=0, target_ratio=3.0, beta=0.0)  # by accuracy, whatever the return
    env = KeepBest(inner, RunFolder(tmp_path))
    bad, _ = play(env, BAD)
    assert kept(tmp_path) == inner.plan()
    good, _ = play(env, GOOD)
    best, content = inner.plan(), student_bytes(inner.student)
    assert good > bad and kept(tmp_path) == best
    play(env, BAD)
    assert kept(tmp_path) == best and (tmp_path / "model.hsq").read_bytes() == content
    assert env.best == good


def test_without_a_budget_the_return_decides(tiny: TinyTask, tmp_path: Path) -> None:
    inner = HSQEnv(tiny, finetune_steps=0, beta=0.0)  # the smallest plan has the highest return
    env = KeepBest(inner, RunFolder(tmp_path))
    _, low = play(env, GOOD)
    _, high = play(env, BAD)
    assert high > low and kept(tmp_path) == inner.plan()
    assert env.best == pytest.approx(high)
    smallest = inner.plan()
    play(env, MIDDLING)
    assert kept(tmp_path) == smallest


def test_an_episode_that_was_given_up_does_not_count(tiny: TinyTask, tmp_path: Path) -> None:
    env = KeepBest(HSQEnv(tiny, finetune_steps=0), RunFolder(tmp_path))
    env.reset()
    for action in GOOD[:5]:
        env.step(action)
    assert list(tmp_path.iterdir()) == []
    _, total = play(env, MIDDLING)
    assert env.best == pytest.approx(total)


def test_the_kept_file_is_the_student_that_was_measured(tiny: TinyTask, tmp_path: Path) -> None:
    inner = HSQEnv(tiny, target_ratio=6.0)
    accuracy, _ = play(KeepBest(inner, RunFolder(tmp_path)), [4, 6, 4, 6, 4, 4, 9])
    model = TinyNet().requires_grad_(False)
    assert load_hsq(tmp_path / "model.hsq", model).plan() == kept(tmp_path)
    assert evaluate(tiny, tiny.stages(model), "search") / inner.compressor.teacher_metric == accuracy


def test_a_diverged_plan_is_not_kept(tiny: TinyTask, tmp_path: Path) -> None:
    inner = HSQEnv(NotANumber(tiny, "logits"), finetune_steps=0, sensitivities=NO_SENSITIVITIES)
    env = KeepBest(inner, RunFolder(tmp_path))
    accuracy, _ = play(env, GOOD)
    assert accuracy == 0.0 and env.best == -math.inf
    assert list(tmp_path.iterdir()) == []


def test_without_a_folder_nothing_is_written(tiny: TinyTask) -> None:
    env = KeepBest(HSQEnv(tiny, finetune_steps=0), None)
    _, total = play(env, GOOD)
    assert env.best == pytest.approx(total)


def test_steps_pass_through(tiny: TinyTask) -> None:
    env, plain = KeepBest(HSQEnv(tiny), None), HSQEnv(tiny)
    env.reset()
    plain.reset()
    for action in MIDDLING:
        (one, reward, *ends, info), (other, same, *same_ends, told) = env.step(action), plain.step(action)
        assert (one == other).all() and reward == same and ends == same_ends and info.keys() == told.keys()
