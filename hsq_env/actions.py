"""Action spaces: how an agent's action stands for a choice, and how a choice is said back."""

import operator
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from detectors.errors import InputError
from hsq_env.choices import Choice, choice_grid

Mask = NDArray[np.bool_]
ALPHAS = (0.1, 0.3, 0.6, 0.9)  # that an agent may choose from


class ActionCodec(Protocol):
    """Translates between an action space and indices into the list of choices.

    Methods that take an action raise InputError for one that the space does not have, but for numbers of a continuous
    one that lie outside, see ``ContinuousActions``.
    """

    space: spaces.Space[Any]
    choices: tuple[Choice, ...]
    alphas: tuple[float, ...]

    def decode(self, action: Any) -> int:
        """Index of the choice that an action stands for."""

    def alpha(self, action: Any) -> float | None:
        """The share of the task loss that an action asks for; None where actions do not say."""

    def encode(self, index: int, alpha: float | None = None) -> Any:
        """An action that stands for a choice, and for the alpha nearest to the given one where actions say it."""

    def own(self, action: Any) -> Any:
        """A copy of an action in the space's type, which stands for the same."""

    def mask(self, allowed: Mask) -> Mask:
        """What ``env.action_masks()`` returns, from which choices are allowed."""


class DiscreteActions:
    """One number per choice, bits-major; with alphas one per choice and alpha, alphas changing fastest.

    >>> actions = DiscreteActions((2, 4, 8), (0.0, 0.5), alphas=(0.1, 0.9))
    >>> actions.space.n, str(actions.choices[actions.decode(7)]), actions.alpha(7)
    (np.int64(12), '4 bit, 50% sparse', 0.9)
    """

    def __init__(self, bits: Sequence[int], sparsities: Sequence[float], alphas: Sequence[float] = ()) -> None:
        self.choices, self.alphas = choice_grid(bits, sparsities), tuple(alphas)
        self._per_choice = max(1, len(self.alphas))
        self.space: spaces.Space[Any] = spaces.Discrete(len(self.choices) * self._per_choice)

    def decode(self, action: Any) -> int:
        """:param action: integer in [0, choices * alphas)"""
        return self.own(action) // self._per_choice

    def alpha(self, action: Any) -> float | None:
        """See ``ActionCodec``."""
        return self.alphas[self.own(action) % self._per_choice] if self.alphas else None

    def own(self, action: Any) -> int:
        """See ``ActionCodec``."""
        return _whole(action, len(self.choices) * self._per_choice)

    def encode(self, index: int, alpha: float | None = None) -> int:
        """The index itself where there are no alphas."""
        return index * self._per_choice + _nearest(self.alphas, alpha)

    def mask(self, allowed: Mask) -> Mask:
        """The allowed actions, (choices * alphas,)."""
        return np.repeat(allowed, self._per_choice)


class _FactoredActions:
    """Bits, sparsity and, where actions say it, alpha chosen apart."""

    def __init__(self, bits: Sequence[int], sparsities: Sequence[float], alphas: Sequence[float] = ()) -> None:
        self.choices, self.alphas = choice_grid(bits, sparsities), tuple(alphas)
        self.counts = (len(bits), len(sparsities), len(self.alphas)) if self.alphas else (len(bits), len(sparsities))

    def alpha(self, action: Any) -> float | None:
        """See ``ActionCodec``."""
        return self.alphas[self._indices(action)[2]] if self.alphas else None

    def decode(self, action: Any) -> int:
        """See ``ActionCodec``."""
        at = self._indices(action)
        return at[0] * self.counts[1] + at[1]

    def _places(self, index: int, alpha: float | None) -> list[int]:
        last = [_nearest(self.alphas, alpha)] if self.alphas else []
        return [*divmod(index, self.counts[1]), *last]

    def _indices(self, action: Any) -> list[int]:
        raise NotImplementedError

    def mask(self, allowed: Mask) -> Mask:
        """Bits that some allowed choice has, then sparsities likewise, then any alpha, (bits + sparsities + alphas,)"""
        grid = allowed.reshape(self.counts[:2])
        return np.concatenate([grid.any(axis=1), grid.any(axis=0), np.ones(len(self.alphas), dtype=bool)])


class MultiDiscreteActions(_FactoredActions):
    """A pair (index of bits, index of sparsity), or a triple with the index of alpha.

    >>> actions = MultiDiscreteActions((2, 4, 8), (0.0, 0.25, 0.5, 0.75))
    >>> str(actions.choices[actions.decode([1, 3])]), actions.encode(7).tolist()
    ('4 bit, 75% sparse', [1, 3])
    """

    def __init__(self, bits: Sequence[int], sparsities: Sequence[float], alphas: Sequence[float] = ()) -> None:
        super().__init__(bits, sparsities, alphas)
        self.space: spaces.Space[Any] = spaces.MultiDiscrete(list(self.counts))

    def _indices(self, action: Any) -> list[int]:
        return [_whole(i, n) for i, n in zip(_numbers(action, self.counts), self.counts, strict=True)]

    def own(self, action: Any) -> NDArray[np.int64]:
        """See ``ActionCodec``."""
        return np.array(self._indices(action), dtype=np.int64)

    def encode(self, index: int, alpha: float | None = None) -> NDArray[np.int64]:
        """The indices of a choice."""
        return np.array(self._places(index, alpha), dtype=np.int64)


class ContinuousActions(_FactoredActions):
    """Numbers in [-1, 1], cut into equal intervals: fewest to most bits, least to most sparsity, least alpha to most.

    Values outside [-1, 1] count as its ends, NaN as its middle.

    >>> actions = ContinuousActions((2, 4, 8), (0.0, 0.25, 0.5, 0.75))
    >>> str(actions.choices[actions.decode([0.0, -1.0])]), str(actions.choices[actions.decode([9.0, 0.6])])
    ('4 bit', '8 bit, 75% sparse')
    """

    def __init__(self, bits: Sequence[int], sparsities: Sequence[float], alphas: Sequence[float] = ()) -> None:
        super().__init__(bits, sparsities, alphas)
        self.space: spaces.Space[Any] = spaces.Box(-1.0, 1.0, (len(self.counts),), np.float32)

    def _indices(self, action: Any) -> list[int]:
        unit = (self._cut(action) + 1) / 2
        return [min(int(u * n), n - 1) for u, n in zip(unit, self.counts, strict=True)]

    def _cut(self, action: Any) -> NDArray[np.float64]:
        try:
            numbers = np.array([float(number) for number in _numbers(action, self.counts)])
        except (TypeError, ValueError) as error:
            raise InputError(f"Action {action!r} is no action here: give {len(self.counts)} numbers.") from error
        return np.nan_to_num(numbers).clip(-1, 1)

    def own(self, action: Any) -> NDArray[np.float32]:
        """See ``ActionCodec``."""
        return self._cut(action).astype(np.float32)

    def encode(self, index: int, alpha: float | None = None) -> NDArray[np.float32]:
        """The middle of a choice's intervals."""
        at = self._places(index, alpha)
        return np.array([2 * (i + 0.5) / n - 1 for i, n in zip(at, self.counts, strict=True)], dtype=np.float32)


def _whole(number: Any, count: int) -> int:
    """An index below ``count``, of any integer type.

    :raises InputError: if it is none
    """
    try:
        index = operator.index(number)
    except TypeError:
        index = -1
    if not 0 <= index < count:
        raise InputError(f"Action {number!r} is no action here: give a whole number from 0 to {count - 1}.")
    return index


def _numbers(action: Any, counts: Sequence[int]) -> Sequence[Any]:
    """The numbers of an action, one for each of ``counts``.

    :raises InputError: if there are more or fewer
    """
    try:
        shape = np.shape(action)
    except ValueError:  # ragged
        shape = ()
    if shape != (len(counts),):
        raise InputError(f"Action {action!r} is no action here: give {len(counts)} numbers.")
    return list(action)


def _nearest(alphas: tuple[float, ...], alpha: float | None) -> int:
    """Index of the alpha that is nearest to a given one; 0 where there is nothing to choose."""
    return 0 if alpha is None or not alphas else min(range(len(alphas)), key=lambda i: abs(alphas[i] - alpha))


ACTION_SPACES: dict[str, type[DiscreteActions] | type[MultiDiscreteActions] | type[ContinuousActions]] = {
    "discrete": DiscreteActions,
    "multi_discrete": MultiDiscreteActions,
    "continuous": ContinuousActions,
}
