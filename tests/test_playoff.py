"""The end of a search: who takes part, what it costs, who wins."""

from typing import Any

import pytest
from tiny_task import TinyTask

from agents.explore import SearchLog
from agents.finalists import finetuned_student
from agents.find import Explorer
from agents.playoff import entrants, price, reserved
from hsq_env.env import HSQEnv


def nothing(message: str) -> None:
    """Says nothing."""


def explore(tiny: TinyTask, target: Any = 7.0, **settings: Any) -> tuple[HSQEnv, SearchLog]:
    explorer = Explorer(**{"episodes": 3, "surrogate": False, "playoff": 3, "warm_start": ("ilp",), **settings})
    env, log = HSQEnv(tiny, target_ratio=target, reward="divergence"), SearchLog(nothing)
    explorer.run(env, log)
    return env, log


@pytest.mark.parametrize("target", [7.0, (6.0, 10.0)])
def test_the_smallest_divergence_after_fine_tuning_wins(tiny: TinyTask, target: Any) -> None:
    env, log = explore(tiny, target)
    for aim in env.budgets:
        played = [e for e in log.played_off if e.target_ratio == aim]
        assert 1 <= len(played) <= 3 and len({e.plan for e in played}) == len(played)
        for e in played:
            student = finetuned_student(env, e.plan, 3, "")
            assert env.compressor.judge.measure_anew(student.stages) == (e.accuracy, e.divergence)
            assert aim is not None and e.ratio >= aim
        order = log.best_plans(10, aim)
        assert order[: len(played)] == sorted(played, key=lambda e: e.divergence)
        assert len({e.plan for e in order}) == len(order)
    finished = {e.plan: e.ratio for e in log.episodes}
    assert all(finished.get(e.plan, e.ratio) == e.ratio for e in log.played_off)


def test_programs_and_the_agents_own_take_part(tiny: TinyTask) -> None:
    _, log = explore(tiny, episodes=6)
    best = min(log.episodes, key=lambda e: e.divergence)
    assert best.plan in {e.plan for e in log.played_off}
    program = next(e for e in log.episodes if e.source == "ilp")
    assert program.plan in {e.plan for e in log.played_off}
    assert entrants(("ilp",)) == ("ilp",) and set(entrants(("ilp_loads",))) == {"ilp", "ilp_repaired", "ilp_loads"}


def test_it_is_paid_from_the_evaluations(tiny: TinyTask) -> None:
    env, log = explore(tiny, episodes=None, evaluations=40)
    assert price(env, 3) == 3 and price(env, 40) == 40  # two minibatches in a step, twice the network in each
    assert reserved(env, 3, ("ilp",)) == 9 and reserved(env, 3, ("ilp_loads",)) == 15
    assert reserved(env, 0, ("ilp",)) == 0
    played = len(log.played_off) * price(env, 3)
    measured = env.steps_taken[0] - env.steps_taken[1]
    assert env.evaluations == measured + played <= 40 and measured <= 40 - 9


@pytest.mark.parametrize(
    "settings",
    [{"playoff": 0}, {"algo": "ilp"}, {"warm_start": ()}, {"evaluations": 17}, {"target": None}],
    ids=["not wanted", "baseline", "no programs", "too dear", "no target"],
)
def test_searches_without_a_playoff(tiny: TinyTask, settings: dict[str, Any]) -> None:
    _, log = explore(tiny, **settings)
    assert log.played_off == [] and "playoff" not in log.notes


def test_a_plan_of_a_short_repair_does_not_win_by_it(tiny: TinyTask) -> None:
    """Divergences of steps do not count against those of the playoff."""
    _, log = explore(tiny)
    one = log.played_off[0]
    lowest = min(e.divergence for e in log.episodes)
    log.played_off[:] = [type(one)(**{**vars(one), "divergence": lowest + 1})]
    assert log.best_plans(1, 7.0) == log.played_off
