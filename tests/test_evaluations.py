"""The unit of comparison: students that were measured."""

from typing import Any

import numpy as np
import pytest
from tiny_task import TinyTask

import agents.evaluation_budget
from agents.episode import Episode
from agents.evaluation_budget import EvaluationBudget
from agents.keep_best import KeepBest
from agents.rollout import play_episode, rollout
from agents.search_log import SearchLog
from agents.shared_evaluations import SharedEvaluations
from hsq_env.choices import Choice, Plan
from hsq_env.env import HSQEnv

PLAN, OTHER = [8, 5, 4, 6, 4, 9, 1], [8, 5, 4, 6, 4, 9, 2]


def nothing(message: str) -> None:
    """Says nothing."""


def make(tiny: TinyTask, **arguments: Any) -> HSQEnv:
    return HSQEnv(tiny, step_minibatches=0, sensitivities=np.zeros((7, 12)), **arguments)


@pytest.mark.parametrize("megabytes", [0.0, 0.02, 128.0])  # a table of nothing, of some prefixes, of all
@pytest.mark.parametrize("limit", [0, 1, 7, 40])
def test_the_budget_is_used_up_and_never_exceeded(tiny: TinyTask, limit: int, megabytes: float) -> None:
    inner = make(tiny, target_ratio=6.0, table_megabytes=megabytes)
    env, rng = EvaluationBudget(KeepBest(inner), limit), np.random.default_rng(0)
    env.reset()
    told = 0
    while True:
        *_, terminated, truncated, info = env.step(int(rng.integers(12)))
        told += info.get("measured", 0)
        assert told == env.spent == inner.evaluations <= limit
        if truncated:
            break
        if terminated:
            env.reset()
    assert inner.evaluations == limit


def test_a_merit_is_what_plans_are_compared_by(tiny: TinyTask) -> None:
    """In place of divergence and return, smaller is better."""

    def merit(accuracy: float, ratio: float) -> float:
        return abs(ratio - 9) + accuracy

    env, log = KeepBest(make(tiny, target_ratio=6.0), merit), SearchLog(nothing, merit=merit)
    names = tuple(info.name for info in env.unwrapped.layers)
    for bits, ratio in zip((8, 4, 2), (6.0, 9.0, 12.0), strict=True):
        plan = Plan(names, (Choice(bits),) * 7)
        log.note(Episode("dqn", plan, 12 - ratio, 0.9, ratio, 1.0, divergence=ratio, target_ratio=6.0), {})
    assert [episode.ratio for episode in log.best_plans(3, 6.0)] == [9.0, 6.0, 12.0]
    for actions in (PLAN, [0] * 7):
        env.reset()
        for action in actions:
            *_, info = env.step(action)
        assert info["score"] == -merit(info["accuracy"], info["ratio"])


def test_repeating_what_is_known_ends_too(tiny: TinyTask, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where one plan fits into the budget, evaluations are never used up."""
    monkeypatch.setattr(agents.evaluation_budget, "IDLE_EPISODES", 2)
    largest = make(tiny).budget.largest_ratio
    env = EvaluationBudget(make(tiny, target_ratio=largest), 50)
    env.reset()
    steps, truncated = 0, False
    while not truncated and steps < 5 * 7:
        *_, terminated, truncated, info = env.step(0)
        steps += 1
        if terminated:
            env.reset()
    assert truncated and info["evaluations_spent"] and (steps, env.spent) == (3 * 7 + 1, 7)


@pytest.mark.parametrize("space", ["discrete", "continuous"])
def test_a_truncated_step_does_nothing(tiny: TinyTask, space: str) -> None:
    inner = make(tiny, action_space=space, target_ratio=6.0)
    env = EvaluationBudget(inner, 3)
    env.reset()
    for choice in PLAN[:3]:
        observation, _, _, truncated, info = env.step(inner.actions.encode(choice))
        assert not truncated and "evaluations_spent" not in info
    before = inner.get_state(), inner.steps_taken
    asked = inner.actions.encode(PLAN[3])
    for _ in range(2):
        again, reward, terminated, truncated, told = env.step(asked)
        assert np.array_equal(again, observation) and (reward, terminated, truncated) == (0.0, False, True)
        assert told["evaluations_spent"] and told["accuracy"] == info["accuracy"]
        assert np.array_equal(told["action_mask"], info["action_mask"]) and told["executed_action"] is asked
    assert (inner.get_state(), inner.steps_taken) == before


def test_allowed_are_as_many_as_said_from_now_on(tiny: TinyTask) -> None:
    env = EvaluationBudget(make(tiny), 2)
    env.reset()
    assert [env.step(choice)[3] for choice in PLAN[:3]] == [False, False, True]
    env.allow(3)
    assert [env.step(choice)[3] for choice in PLAN[2:6]] == [False, False, False, True]
    env.allow(0)
    assert env.step(PLAN[5])[3] and env.spent == 5


class Workers:
    """Notes what its workers are allowed."""

    def __init__(self, count: int) -> None:
        self.num_envs, self.parts = count, [0] * count

    def get_env(self) -> "Workers":
        """As a model does."""
        return self

    def env_method(self, name: str, evaluations: int, indices: int) -> None:
        """See ``VecEnv``."""
        assert name == "allow"
        self.parts[indices] = evaluations


def test_what_is_left_is_divided_anew_when_one_has_used_up_its_part() -> None:
    shared, made = SharedEvaluations(11), Workers(3)
    shared.model = made  # type: ignore[assignment]

    def step(*infos: dict[str, Any]) -> list[int]:
        made.parts = [-1, -1, -1]
        shared.locals = {"infos": infos}
        assert shared._on_step()
        return made.parts

    shared._on_training_start()
    assert made.parts == [4, 4, 3]
    for _ in range(2):
        assert step({"measured": 0}, {}, {"measured": 1}) == [-1, -1, -1]
    assert step({"measured": 1}, {}, {"measured": 1}) == [3, 2, 2]  # seven are left
    assert step({"measured": 1}, {"worker_lost": True}, {"measured": 1}) == [2, 2, 1]  # whoever takes its place
    assert step({"measured": 1}, {"measured": 1}, {"measured": 1}) == [1, 1, 0]
    assert step({"measured": 1}, {"measured": 1}, {}) == [-1, -1, -1]
    assert shared.left == 0
    shared.left = 5
    shared.on_new_workers()
    assert made.parts == [2, 2, 1]


def test_answers_from_the_table_cost_nothing(tiny: TinyTask) -> None:
    inner = make(tiny)
    env = EvaluationBudget(inner, 7)
    for _ in range(3):
        env.reset()
        steps = [env.step(choice) for choice in PLAN]
        assert [step[3] for step in steps] == [False] * 7 and steps[-1][2]
    assert (env.spent, inner.steps_taken) == (7, (21, 14))
    env.reset()
    assert [env.step(choice)[3] for choice in OTHER] == [False] * 6 + [True]


def test_what_was_spent_before_does_not_count(tiny: TinyTask) -> None:
    inner = make(tiny)
    inner.reset()
    for choice in PLAN:
        inner.step(choice)
    env = EvaluationBudget(inner, 1)
    env.reset()
    assert [env.step(choice)[3] for choice in OTHER] == [False] * 7
    assert (env.spent, inner.evaluations) == (1, 8)


def test_no_limit_is_none(tiny: TinyTask) -> None:
    env, plain = EvaluationBudget(make(tiny), None), make(tiny)
    env.reset()
    plain.reset()
    for choice in PLAN:
        (one, *rest, info), (other, *same, told) = env.step(choice), plain.step(choice)
        assert np.array_equal(one, other) and rest == same and info.keys() == told.keys()
    assert env.spent == 7


def test_unfinished_episodes_are_no_episodes(tiny: TinyTask) -> None:
    log = SearchLog(nothing)
    inner = make(tiny)
    env = EvaluationBudget(KeepBest(inner), 10)
    assert len(rollout(env, PLAN, "one", log)) == 7
    assert rollout(env, [0] * 7, "two", log) == []  # an episode without an end would spoil returns of several steps
    assert play_episode(Always(3), env, "three", log) is None
    assert len(rollout(env, PLAN, "four", log)) == 7
    assert [episode.source for episode in log.episodes] == ["one", "four"]
    assert inner.evaluations == 10


class Always:
    """Chooses one action."""

    def __init__(self, action: int) -> None:
        self.action = action

    def predict(self, observation: Any, state: Any = None, **arguments: Any) -> tuple[Any, Any]:
        """See ``Policy``."""
        return self.action, state
