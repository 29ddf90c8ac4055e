"""Plans that need no learning: uniform, and an integer program over the sensitivity table."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import block_diag, csr_array, vstack

from detectors.errors import InputError
from hsq_env.choices import Choice, Plan
from hsq_env.env import HSQEnv


def uniform_plan(env: HSQEnv, bits: int) -> Plan:
    """Every layer at the same bits, none pruned."""
    return Plan(tuple(info.name for info in env.layers), (Choice(bits, 0.0),) * len(env.layers))


def integer_program(costs: NDArray[np.float64], sizes: NDArray[np.int64], limit: float) -> NDArray[np.int64]:
    """One choice per layer with the least total cost within a number of bytes.

    :param costs: (layers, choices)
    :param sizes: bytes, (layers, choices)
    :param limit: bytes
    :return: index of the choice per layer
    :raises InputError: if the smallest choices exceed ``limit``
    """
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
    if solution.x is None:
        raise InputError(f"No plan fits into {limit:.0f} bytes: lower --target-ratio.")
    return np.asarray(solution.x.reshape(layers, choices).argmax(axis=1))


def integer_program_actions(env: HSQEnv) -> list[int]:
    """The integer program's choice per layer under the environment's budget (none: the bytes of an average plan)."""
    limit = env.budget.limit if np.isfinite(env.budget.limit) else float(env.sizes.mean(axis=1).sum())
    return [int(i) for i in integer_program(env.sensitivities, env.sizes, limit)]
