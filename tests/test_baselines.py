"""Baselines: the integer program against brute force."""

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray
from tiny_task import TinyTask

from agents.baselines import integer_program, integer_program_actions, uniform_plan
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
    with pytest.raises(InputError, match=r"No plan fits into \d+ bytes"):
        integer_program(costs, sizes, float(sizes.min(axis=1).sum()) - 1)


@pytest.mark.parametrize("target", [5.0, 8.0, 12.0])
def test_actions_meet_the_budget_of_the_environment(tiny: TinyTask, target: float) -> None:
    env = HSQEnv(tiny, target_ratio=target, finetune_steps=0)
    actions = integer_program_actions(env)
    env.reset()
    executed = [env.step(action)[4]["executed_action"] for action in actions]
    assert executed == actions
    assert env.ratio >= target


def test_actions_without_a_budget_take_average_bytes(tiny: TinyTask) -> None:
    env = HSQEnv(tiny)
    expected = integer_program(env.sensitivities, env.sizes, env.sizes.sum() / 12)
    assert integer_program_actions(env) == expected.tolist()


def test_uniform_plan(tiny: TinyTask) -> None:
    plan = uniform_plan(HSQEnv(tiny), 4)
    assert plan.layers == ("stem", "block1.conv1", "block1.conv2", "block2.conv1", "block2.conv2", "head.0", "logits")
    assert plan.choices == (Choice(4, 0.0),) * 7
