"""The hard budget of bytes or time: which choices of a layer can still meet the target ratio."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from detectors.errors import InputError
from hsq_env.choices import Choice


class Budget:
    """Bytes (or nanoseconds) to spend on layers, and what the choices so far leave of them.

    :param sizes: bytes of every layer (rows) under every choice (columns)
    :param fixed_bytes: of the file apart from the layers
    :param teacher_bytes: of the float32 teacher file
    :param target_ratio: teacher over student; None for no budget
    :raises InputError: if no plan reaches the ratio, naming the largest that one reaches

    >>> budget = Budget(np.array([[10, 40], [10, 40]]), fixed_bytes=0, teacher_bytes=160, target_ratio=3.0)
    >>> budget.mask(layer=0, spent=0).tolist(), budget.mask(layer=1, spent=40).tolist()
    ([True, True], [True, False])
    >>> budget.slack(layer=1, spent=10)
    1.0
    """

    def __init__(
        self, sizes: NDArray[np.int64], fixed_bytes: int, teacher_bytes: int, target_ratio: float | None
    ) -> None:
        self.sizes = sizes
        self.least_after = np.r_[np.cumsum(sizes.min(axis=1)[::-1])[::-1][1:], 0]  # by layers k+1...
        self.largest_ratio = teacher_bytes / (int(sizes.min(axis=1).sum()) + fixed_bytes)
        if target_ratio is not None and not 0 < target_ratio <= self.largest_ratio:
            reached = math.floor(100 * self.largest_ratio) / 100  # rounded down: whoever asks for it gets it
            raise InputError(
                f"A target ratio of {target_ratio:g} cannot be reached: this detector reaches up to {reached:.2f} with "
                "the given choices; lower --target-ratio (target_ratio)."
            )
        self.share = 1.0 if target_ratio is None else 1 / target_ratio  # of the teacher's cost that a student may have
        # sizes are whole bytes: the slack only undoes the division's rounding
        self.limit: float = np.inf if target_ratio is None else teacher_bytes / target_ratio - fixed_bytes + 1e-6

    def mask(self, layer: int, spent: int) -> NDArray[np.bool_]:
        """Which choices of ``layer`` leave a way to meet the budget.

        :param spent: bytes of the layers before
        """
        return spent + self.sizes[layer] + self.least_after[layer] <= self.limit

    def slack(self, layer: int, spent: int) -> float:
        """Where the rest of the budget lies between the smallest (0) and the largest choices (1) of what is left."""
        least = self.sizes[layer].min() + self.least_after[layer]
        most = self.sizes[layer:].max(axis=1).sum()
        return 1.0 if most == least else float(np.clip((self.limit - spent - least) / (most - least), 0.0, 1.0))


def nearest_allowed(action: int, choices: Sequence[Choice], mask: NDArray[np.bool_]) -> int:
    """The allowed choice nearest to the asked one: steps in bits and in sparsity count alike, fewer bytes break ties.

    :param action: index into ``choices``
    :param mask: of the allowed choices; at least one is

    >>> grid = [Choice(b, s) for b in (2, 4, 8) for s in (0.0, 0.25)]
    >>> allowed = np.array([False, True, False, True, False, False])
    >>> str(grid[nearest_allowed(4, grid, allowed)])  # asked: 8 bit
    '4 bit, 25% sparse'
    """
    if mask[action]:
        return action
    asked = choices[action]

    def distance(i: int) -> tuple[float, int, float]:
        bits = abs(np.log2(choices[i].bits) - np.log2(asked.bits))
        return float(bits + abs(choices[i].sparsity - asked.sparsity) * 4), choices[i].bits, -choices[i].sparsity

    return min(np.flatnonzero(mask).tolist(), key=distance)
