"""Baselines: the integer program against brute force, and what the others propose."""

import itertools
from types import SimpleNamespace

import numpy as np
import optuna
import pytest
from numpy.typing import NDArray
from tiny_task import TinyTask

from agents.baselines import plans as plans_module
from agents.baselines.planner import loads_choices
from agents.baselines.plans import (
    cost_limit,
    greedy_choices,
    integer_program,
    integer_program_choices,
    random_choices,
    uniform_choices,
    uniform_plan,
    warm_starts,
)
from agents.baselines.proposers import LocalSearch, OptunaSearch
from agents.surrogate import load
from detectors.errors import InputError
from hsq_env.choices import Choice
from hsq_env.env import HSQEnv


def instance(seed: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Costs that fall and sizes that grow, with noise; five layers, four choices."""
    rng = np.random.default_rng(seed)
    sizes = np.sort(rng.integers(100, 5000, size=(5, 4)), axis=1)
    return np.sort(10.0 ** rng.uniform(-5, 1, size=(5, 4)), axis=1)[:, ::-1].copy(), sizes


def total(table: NDArray[np.float64] | NDArray[np.int64], plan: tuple[int, ...]) -> float:
    return float(sum(table[layer, choice] for layer, choice in enumerate(plan)))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.9])
def test_integer_program_equals_brute_force(seed: int, share: float) -> None:
    costs, sizes = instance(seed)
    least, most = sizes.min(axis=1).sum(), sizes.max(axis=1).sum()
    limit = float(least + share * (most - least))
    plans = [p for p in itertools.product(range(4), repeat=5) if total(sizes, p) <= limit]
    best = min(total(costs, plan) for plan in plans)
    found = tuple(int(i) for i in integer_program(costs, sizes, limit))
    assert total(sizes, found) <= limit
    assert total(costs, found) == pytest.approx(best, rel=1e-4)


def test_without_a_limit_every_layer_takes_its_cheapest() -> None:
    costs, sizes = instance(9)
    assert integer_program(costs, sizes, np.inf).tolist() == costs.argmin(axis=1).tolist()


def test_too_few_bytes_are_refused() -> None:
    costs, sizes = instance(0)
    with pytest.raises(InputError, match=r"No plan fits into \d+ "):
        integer_program(costs, sizes, float(sizes.min(axis=1).sum()) - 1)


@pytest.mark.parametrize("target", [5.0, 8.0, 12.0])
def test_actions_meet_the_budget_of_the_environment(tiny: TinyTask, target: float) -> None:
    env = HSQEnv(tiny, target_ratio=target, step_minibatches=0)
    actions = integer_program_choices(env)
    env.reset()
    executed = [env.step(action)[4]["executed_action"] for action in actions]
    assert executed == actions
    assert env.ratio >= target


def test_actions_without_a_budget_take_average_bytes(tiny: TinyTask) -> None:
    env = HSQEnv(tiny)
    expected = integer_program(env.sensitivities, env.sizes, env.sizes.sum() / 12)
    assert integer_program_choices(env) == expected.tolist()


def test_uniform_plan(tiny: TinyTask) -> None:
    plan = uniform_plan(HSQEnv(tiny), 4)
    assert plan.layers == ("stem", "block1.conv1", "block1.conv2", "block2.conv1", "block2.conv2", "head.0", "logits")
    assert plan.choices == (Choice(4, 0.0),) * 7


def test_costs_may_be_others_than_the_sensitivities(tiny: TinyTask) -> None:
    env = HSQEnv(tiny, target_ratio=8.0, step_minibatches=0)
    costs = np.random.default_rng(0).random((7, 12))
    expected = integer_program(costs, env.sizes, env.budget.limit).tolist()
    assert integer_program_choices(env, costs) == expected != integer_program_choices(env)


# ---- greedy


COSTS = np.array([[0.0, 1.0, 4.0], [0.0, 2.0, 3.0]])
SIZES = np.array([[100, 50, 10], [100, 60, 20]])


@pytest.mark.parametrize(
    ("limit", "plan"),
    [
        (np.inf, [0, 0]),
        (200, [0, 0]),
        (160, [1, 0]),  # 1 for 50 bytes is the best price of all
        (100, [1, 2]),  # then 3 for 80, cheaper than 2 for 40
        (30, [2, 2]),
    ],
)
def test_greedy_takes_the_best_price(limit: float, plan: list[int]) -> None:
    assert greedy_choices(COSTS, SIZES, limit) == plan


def test_greedy_starts_small_among_equals() -> None:
    assert greedy_choices(np.zeros((1, 3)), np.array([[100, 10, 40]]), np.inf) == [1]


def test_greedy_refuses_too_few_bytes() -> None:
    with pytest.raises(InputError, match=r"No plan fits into 29 \(bytes or ns\): lower --target-ratio"):
        greedy_choices(COSTS, SIZES, 29)


def test_an_integer_program_that_takes_too_long_gives_a_greedy_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    costs, sizes = rng.random((5, 4)), rng.integers(1, 100, (5, 4))
    limit = float(sizes.min(axis=1).sum()) + 20
    monkeypatch.setattr(plans_module, "milp", lambda *arguments, **options: SimpleNamespace(x=None))
    assert integer_program(costs, sizes, limit).tolist() == greedy_choices(costs, sizes, limit)
    with pytest.raises(InputError, match="No plan fits"):
        integer_program(costs, sizes, float(sizes.min(axis=1).sum()) - 1)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.9])
def test_greedy_fits_and_is_no_better_than_the_integer_program(seed: int, share: float) -> None:
    costs, sizes = instance(seed)
    least, most = sizes.min(axis=1).sum(), sizes.max(axis=1).sum()
    limit = float(least + share * (most - least))
    found = tuple(greedy_choices(costs, sizes, limit))
    assert total(sizes, found) <= limit
    best = tuple(int(i) for i in integer_program(costs, sizes, limit))
    assert total(costs, found) >= total(costs, best) * (1 - 1e-4)


# ---- uniform and random


def test_uniform_plans_are_all_that_fit_largest_first(tiny: TinyTask) -> None:
    env = HSQEnv(tiny, target_ratio=6.0, step_minibatches=0)
    plans = uniform_choices(env)
    totals = [int(env.sizes[:, plan[0]].sum()) for plan in plans]
    assert all(plan == [plan[0]] * 7 for plan in plans)
    assert totals == sorted(totals, reverse=True) and totals[0] <= env.budget.limit
    left_out = set(range(12)) - {plan[0] for plan in plans}
    assert left_out and all(env.sizes[:, choice].sum() > env.budget.limit for choice in left_out)
    assert len(uniform_choices(HSQEnv(tiny, step_minibatches=0))) == 12


@pytest.mark.parametrize("target", [None, 6.0, 11.0])
def test_random_plans_meet_the_budget(tiny: TinyTask, target: float | None) -> None:
    env = HSQEnv(tiny, target_ratio=target, step_minibatches=0)
    rng = np.random.default_rng(0)
    plans = np.array([random_choices(env, rng) for _ in range(300)])
    assert (env.sizes[np.arange(7), plans].sum(axis=1) <= env.budget.limit).all()
    same = np.random.default_rng(0)
    assert [random_choices(env, same) for _ in range(3)] == plans[:3].tolist()
    first, last = env.sizes[0, plans[:, 0]], env.sizes[6, plans[:, 6]]
    assert {env.sizes[0].max(), env.sizes[0].min()} <= set(first.tolist())
    assert {env.sizes[6].max(), env.sizes[6].min()} <= set(last.tolist())  # the last layer is not left the rest


# ---- local search


def local(tiny: TinyTask, target: float | None = 8.0) -> tuple[HSQEnv, LocalSearch]:
    env = HSQEnv(tiny, target_ratio=target, step_minibatches=0)
    return env, LocalSearch(env, seed=0)


def test_local_search_starts_from_the_integer_programs(tiny: TinyTask) -> None:
    env, search = local(tiny)
    starts = warm_starts(env)
    assert [search.propose() for _ in starts] == starts


def test_warm_starts_are_the_integer_programs_plans_once(tiny: TinyTask) -> None:
    env = HSQEnv(tiny, target_ratio=8.0, step_minibatches=0)
    plain = integer_program_choices(env)
    env._repaired = env.sensitivities
    assert warm_starts(env) == [plain]
    env._repaired = env.sensitivities[:, ::-1].copy()
    assert warm_starts(env) == [plain, integer_program_choices(env, env._repaired)]
    assert warm_starts(env)[1] != plain


def test_the_program_over_loads_minimizes_loads(tiny: TinyTask) -> None:
    """Loads grow faster than sensitivities: one large damage weighs more than several small ones of the same sum."""
    env = HSQEnv(tiny, target_ratio=10.0, step_minibatches=0)
    rows, different = np.arange(7), 0
    for seed in range(8):
        table = np.sort(10.0 ** np.random.default_rng(seed).uniform(-2, 0, (7, 12)), axis=1)[:, ::-1].copy()
        env._repaired = table
        plain, other = (table[rows, choices] for choices in (integer_program_choices(env, table), loads_choices(env)))
        assert plain.sum() <= other.sum() * (1 + 1e-4) and load(other).sum() <= load(plain).sum() * (1 + 1e-4)
        different += bool((plain != other).any())
    assert different


@pytest.mark.parametrize("target", [8.0, 12.0, None])
def test_neighbours_are_near_new_and_fit(tiny: TinyTask, target: float | None) -> None:
    env, search = local(tiny, target)
    for _ in range(2):
        search.told(search.propose(), 0.0, 8.0)
    for _ in range(100):
        plan = search.propose()
        assert plan != search.best
        assert env.sizes[np.arange(7), plan].sum() <= cost_limit(env)


def test_local_search_climbs(tiny: TinyTask) -> None:
    """What was executed counts, not what was proposed; equal scores are no progress."""
    _, search = local(tiny)
    one, two, three = ([i] * 7 for i in (0, 1, 2))
    for choices, score, best in (
        (one, -1.0, (one, -1.0)),
        (two, -1.0, (one, -1.0)),
        (two, -0.5, (two, -0.5)),
        (three, float("-inf"), (two, -0.5)),
        (three, -0.4, (three, -0.4)),
    ):
        search.told(choices, score, 8.0)
        assert (search.best, search.score) == best


# ---- Optuna's samplers


def optuna_search(tiny: TinyTask, objectives: int, seed: int = 0) -> OptunaSearch:
    env = HSQEnv(tiny, target_ratio=6.0, step_minibatches=0)
    return OptunaSearch(env, optuna.samplers.TPESampler(seed=seed), objectives)


@pytest.mark.parametrize(("objectives", "values"), [(1, [-0.5]), (2, [-0.5, 7.25])])
def test_the_study_is_told(tiny: TinyTask, objectives: int, values: list[float]) -> None:
    search = optuna_search(tiny, objectives)
    plan = search.propose()
    assert len(plan) == 7 and all(0 <= choice < 12 for choice in plan)
    search.told([0] * 7, -0.5, 7.25)
    search.propose()
    search.told([0] * 7, float("-inf"), 7.25)  # a diverged student
    kept, failed = search._study.get_trials()
    assert kept.values == values and list(kept.params.values()) == plan
    assert search._study.directions == [optuna.study.StudyDirection.MAXIMIZE] * objectives
    assert failed.state is optuna.trial.TrialState.FAIL


def test_optuna_learns_from_what_it_is_told(tiny: TinyTask) -> None:
    """Many plans with the last choice everywhere, once that pays."""
    search = optuna_search(tiny, 1)
    found = []
    search.propose()  # the integer program's plan, not the sampler's
    search.told([0] * 7, 0.0, 6.0)
    for _ in range(100):
        plan = search.propose()
        found.append(sum(choice == 11 for choice in plan))
        search.told(plan, float(found[-1]), 6.0)
    assert sum(found[-20:]) > 2 * sum(found[:20])


def test_the_same_seed_proposes_the_same(tiny: TinyTask) -> None:
    """Behind the integer programs' plans, with which all begin."""
    runs = []
    for seed in (1, 1, 2):
        search = optuna_search(tiny, 1, seed)
        plans = []
        for _ in range(4):
            plans.append(search.propose())
            search.told(plans[-1], 0.0, 6.0)
        runs.append(plans)
    one, same, other = runs
    assert one == same and one[0] == other[0] and one[-1] != other[-1]
