"""Action spaces: how an agent's action stands for a choice, and how a choice is said back."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from hsq_env.choices import Choice, choice_grid

Mask = NDArray[np.bool_]


class ActionCodec(Protocol):
    """Translates between an action space and indices into the list of choices."""

    space: spaces.Space[Any]
    choices: tuple[Choice, ...]

    def decode(self, action: Any) -> int:
        """Index of the choice that an action stands for."""

    def encode(self, index: int) -> Any:
        """An action that stands for a choice."""

    def mask(self, allowed: Mask) -> Mask:
        """What ``env.action_masks()`` returns, from which choices are allowed."""


class DiscreteActions:
    """One number per choice, bits-major."""

    def __init__(self, bits: Sequence[int], sparsities: Sequence[float]) -> None:
        self.choices = choice_grid(bits, sparsities)
        self.space: spaces.Space[Any] = spaces.Discrete(len(self.choices))

    def decode(self, action: Any) -> int:
        """:param action: integer in [0, choices)"""
        return int(action)

    def encode(self, index: int) -> int:
        """The index itself."""
        return index

    def mask(self, allowed: Mask) -> Mask:
        """The allowed choices, (choices,)."""
        return allowed


class _FactoredActions:
    """Bits and sparsity chosen apart."""

    def __init__(self, bits: Sequence[int], sparsities: Sequence[float]) -> None:
        self.choices = choice_grid(bits, sparsities)
        self.counts = (len(bits), len(sparsities))

    def mask(self, allowed: Mask) -> Mask:
        """Bits that some allowed choice has, then sparsities that some allowed choice has, (bits + sparsities,)."""
        grid = allowed.reshape(self.counts)
        return np.concatenate([grid.any(axis=1), grid.any(axis=0)])


class MultiDiscreteActions(_FactoredActions):
    """A pair (index of bits, index of sparsity)."""

    def __init__(self, bits: Sequence[int], sparsities: Sequence[float]) -> None:
        super().__init__(bits, sparsities)
        self.space: spaces.Space[Any] = spaces.MultiDiscrete(list(self.counts))

    def decode(self, action: Any) -> int:
        """:param action: two integers"""
        return int(action[0]) * self.counts[1] + int(action[1])

    def encode(self, index: int) -> NDArray[np.int64]:
        """The pair of a choice."""
        return np.array(divmod(index, self.counts[1]), dtype=np.int64)


class ContinuousActions(_FactoredActions):
    """Two numbers in [-1, 1], cut into equal intervals: fewest to most bits, least to most sparsity."""

    def __init__(self, bits: Sequence[int], sparsities: Sequence[float]) -> None:
        super().__init__(bits, sparsities)
        self.space: spaces.Space[Any] = spaces.Box(-1.0, 1.0, (2,), np.float32)

    def decode(self, action: Any) -> int:
        """:param action: two numbers; values outside [-1, 1] count as its ends, NaN as its middle"""
        unit = (np.nan_to_num(np.asarray(action, dtype=np.float64)).clip(-1, 1) + 1) / 2
        at = [min(int(u * n), n - 1) for u, n in zip(unit, self.counts, strict=True)]
        return at[0] * self.counts[1] + at[1]

    def encode(self, index: int) -> NDArray[np.float32]:
        """The middle of a choice's intervals."""
        at = divmod(index, self.counts[1])
        return np.array([2 * (i + 0.5) / n - 1 for i, n in zip(at, self.counts, strict=True)], dtype=np.float32)


ACTION_SPACES: dict[str, type[DiscreteActions] | type[MultiDiscreteActions] | type[ContinuousActions]] = {
    "discrete": DiscreteActions,
    "multi_discrete": MultiDiscreteActions,
    "continuous": ContinuousActions,
}
