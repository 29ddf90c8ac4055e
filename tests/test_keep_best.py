"""The best finished plan is on disk as soon as it is finished."""

from pathlib import Path

import pytest
from test_env import NO_SENSITIVITIES, NotANumber
from tiny_task import TinyNet, TinyTask

from agents.keep_best import KeepBest
from hsq_env.env import HSQEnv
from hsq_env.file import load_hsq, student_bytes
from hsq_env.student import evaluate

GOOD, MIDDLING, BAD = [8] * 7, [4] * 7, [3] * 7  # 8 bits; 4 bits; 2 bits at 75 % sparsity


class Kept:
    """The environment with what it hands out written down."""

    def __init__(self, env: HSQEnv) -> None:
        self.env, self.plan, self.content = KeepBest(env), None, b""  # type: tuple[KeepBest, Plan | None, bytes]
        self.scores: list[float | None] = []
        self.divergence = 0.0

    def play(self, actions: list[int], target: float | None = None) -> tuple[float, float]:
        """Accuracy and return of an episode."""
        self.env.reset(options=None if target is None else {"target_ratio": target})
        steps = [self.env.step(action) for action in actions]
        assert not any({"model", "score"} & step[4].keys() for step in steps[:-1])
        info = steps[-1][4]
        self.scores.append(info.get("score"))
        self.divergence = info["divergence"]
        if "model" in info:
            self.plan, self.content = info["plan"], info["model"]
        return info["accuracy"], sum(float(step[1]) for step in steps)


def test_only_better_plans_replace_the_kept_one(tiny: TinyTask) -> None:
    inner = HSQEnv(tiny, step_minibatches=0, target_ratio=3.0, beta=0.0)  # by divergence, whatever the return
    kept = Kept(inner)
    kept.play(BAD)
    bad = kept.divergence
    assert kept.plan == inner.plan()
    kept.play(GOOD)
    good = kept.divergence
    best, content = inner.plan(), student_bytes(inner.student)
    assert good < bad and kept.plan == best
    kept.play(BAD)
    assert kept.plan == best and kept.content == content
    assert kept.env.best == {3.0: -good} and kept.scores == [-bad, -good, -bad]


def test_without_a_budget_the_return_decides(tiny: TinyTask) -> None:
    inner = HSQEnv(tiny, step_minibatches=0, beta=0.0)  # the smallest plan has the highest return
    kept = Kept(inner)
    _, low = kept.play(GOOD)
    _, high = kept.play(BAD)
    assert high > low and kept.plan == inner.plan()
    assert kept.env.best == {None: pytest.approx(high)}
    smallest = inner.plan()
    kept.play(MIDDLING)
    assert kept.plan == smallest


def test_an_episode_that_was_given_up_does_not_count(tiny: TinyTask) -> None:
    kept = Kept(HSQEnv(tiny, step_minibatches=0))
    kept.env.reset()
    for action in GOOD[:5]:
        assert "model" not in kept.env.step(action)[4]
    _, total = kept.play(MIDDLING)
    assert kept.env.best == {None: pytest.approx(total)}


def test_the_kept_file_is_the_student_that_was_measured(tiny: TinyTask, tmp_path: Path) -> None:
    inner = HSQEnv(tiny, target_ratio=6.0)
    kept = Kept(inner)
    accuracy, _ = kept.play([4, 6, 4, 6, 4, 4, 9])
    (tmp_path / "model.hsq").write_bytes(kept.content)
    model = TinyNet().requires_grad_(False)
    assert load_hsq(tmp_path / "model.hsq", model).plan() == kept.plan
    assert evaluate(tiny, tiny.stages(model), "search") / inner.compressor.judge.scale.teacher == accuracy


def test_every_target_has_a_best_of_its_own(tiny: TinyTask) -> None:
    kept = Kept(HSQEnv(tiny, step_minibatches=0, target_ratio=(3.0, 6.0)))
    kept.play(GOOD, 3.0)
    good = kept.divergence
    kept.play(MIDDLING, 6.0)
    middling, plan = kept.divergence, kept.plan
    assert plan is not None and plan.choices[0].bits == 4  # kept although a better one is known for 3x
    assert kept.env.best == {3.0: -good, 6.0: -middling} and good < middling
    kept.play(BAD, 6.0)
    assert kept.plan == plan


def test_a_diverged_plan_is_not_kept(tiny: TinyTask) -> None:
    kept = Kept(HSQEnv(NotANumber(tiny, "logits"), step_minibatches=0, sensitivities=NO_SENSITIVITIES))
    accuracy, _ = kept.play(GOOD)
    assert accuracy == 0.0 and kept.env.best == {}
    assert kept.plan is None and kept.scores == [None]


def test_steps_pass_through(tiny: TinyTask) -> None:
    env, plain = KeepBest(HSQEnv(tiny)), HSQEnv(tiny)
    env.reset()
    plain.reset()
    for action in MIDDLING:
        (one, reward, *ends, info), (other, same, *same_ends, told) = env.step(action), plain.step(action)
        assert (one == other).all() and reward == same and ends == same_ends
        assert info.keys() - {"score", "model"} == told.keys()
