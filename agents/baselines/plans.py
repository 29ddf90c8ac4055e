"""Plans that need no learning: uniform, random, greedy, and an integer program over a sensitivity table."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import block_diag, csr_array, vstack

from detectors.errors import InputError
from hsq_env.choices import Choice, Plan
from hsq_env.env import HSQEnv

NOTHING_FITS = "No plan fits into {:.0f} (bytes or ns): lower --target-ratio or raise --target-latency."


def uniform_plan(env: HSQEnv, bits: int) -> Plan:
    """Every layer at the same bits, none pruned."""
    return Plan(tuple(info.name for info in env.layers), (Choice(bits, 0.0),) * len(env.layers))


def integer_program(costs: NDArray[np.float64], sizes: NDArray[np.int64], limit: float) -> NDArray[np.int64]:
    """One choice per layer with the least total cost within a number of bytes; a greedy plan if that takes too long.

    :param costs: (layers, choices)
    :param sizes: bytes, (layers, choices)
    :param limit: bytes
    :return: index of the choice per layer
    :raises InputError: if the smallest choices exceed ``limit``
    """
    if sizes.min(axis=1).sum() > limit:
        raise InputError(NOTHING_FITS.format(limit))
    layers, choices = costs.shape
    one_each: Any = block_diag([np.ones((1, choices))] * layers)
    rows = csr_array(vstack([one_each, sizes.reshape(1, -1) / sizes.max()]))
    low, high = np.r_[np.ones(layers), -np.inf], np.r_[np.ones(layers), min(limit, float(sizes.sum())) / sizes.max()]
    solution = milp(
        costs.ravel(),
        constraints=LinearConstraint(rows, low, high),
        integrality=np.ones(costs.size, dtype=np.int64),
        bounds=Bounds(0, 1),
        options={"mip_rel_gap": 1e-4, "time_limit": 20.0},
    )
    if solution.x is None:  # not in that time, on a machine that has other things to do
        return np.array(greedy_choices(costs, sizes, limit))
    return np.asarray(solution.x.reshape(layers, choices).argmax(axis=1))


def cost_limit(env: HSQEnv, target: float | None = None) -> float:
    """Bytes (or nanoseconds) that the layers may take under the environment's budget (none: those of an average plan).

    :param target: of the environment's several; the present one when None
    """
    limit = env.budgets[env.target_ratio if target is None else target].limit
    return limit if np.isfinite(limit) else float(env.costs.mean(axis=1).sum())


def integer_program_choices(env: HSQEnv, costs: NDArray[np.float64] | None = None) -> list[int]:
    """The integer program's choice per layer under the environment's budget.

    :param costs: (layers, choices); the sensitivities as they are when None
    """
    return [int(i) for i in integer_program(env.sensitivities if costs is None else costs, env.costs, cost_limit(env))]


def greedy_choices(costs: NDArray[np.float64], sizes: NDArray[np.int64], limit: float) -> list[int]:
    """From the least harmful choices on, the change that costs least per byte saved, until the plan fits.

    :param costs: (layers, choices)
    :param sizes: bytes, (layers, choices)
    :param limit: bytes
    :return: index of the choice per layer
    :raises InputError: if the smallest choices exceed ``limit``
    """
    rows = np.arange(len(costs))
    chosen = np.lexsort((sizes, costs), axis=1)[:, 0]
    while sizes[rows, chosen].sum() > limit:
        saved = sizes[rows, chosen][:, None] - sizes  # (layers, choices)
        harm = costs - costs[rows, chosen][:, None]
        with np.errstate(divide="ignore", invalid="ignore"):
            price = np.where(saved > 0, harm / saved, np.inf)
        if not np.isfinite(price).any():
            raise InputError(NOTHING_FITS.format(limit))
        layer, choice = np.unravel_index(int(price.argmin()), price.shape)
        chosen[layer] = choice
    return [int(i) for i in chosen]


def uniform_choices(env: HSQEnv) -> list[list[int]]:
    """The plans that make the same choice everywhere and meet the budget, largest file first."""
    totals = env.costs.sum(axis=0)
    order = np.argsort(-totals, kind="stable")
    return [[int(i)] * len(env.layers) for i in order if totals[i] <= env.budget.limit]


def random_choices(env: HSQEnv, rng: np.random.Generator) -> list[int]:
    """A plan drawn layer by layer among what the budget allows, layers in random order.

    Drawn in the order of the layers, the first ones would take all bytes and leave the rest the smallest choices.
    """
    least = env.costs.min(axis=1)
    spent, chosen = int(least.sum()), [0] * len(env.layers)
    for layer in rng.permutation(len(env.layers)):
        fits = np.flatnonzero(spent - least[layer] + env.costs[layer] <= env.budget.limit)
        chosen[layer] = int(rng.choice(fits))
        spent += int(env.costs[layer, chosen[layer]] - least[layer])
    return chosen


def warm_starts(env: HSQEnv) -> list[list[int]]:
    """The integer programs' plans, over the sensitivities before and after a step's repair, without repetition."""
    plans = [integer_program_choices(env), integer_program_choices(env, env.repaired_sensitivities)]
    return plans[:1] if plans[0] == plans[1] else plans
