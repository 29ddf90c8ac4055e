"""Action spaces: what an action means, and how a choice is said back."""

import numpy as np
import pytest
from gymnasium import spaces

from hsq_env.actions import ACTION_SPACES
from hsq_env.choices import BITS, SPARSITIES, Choice, choice_grid


@pytest.mark.parametrize("name", sorted(ACTION_SPACES))
def test_encode_inverts_decode(name: str) -> None:
    codec = ACTION_SPACES[name](BITS, SPARSITIES)
    assert codec.choices == choice_grid()
    for index in range(12):
        action = codec.encode(index)
        assert codec.space.contains(action if name != "discrete" else np.int64(action))
        assert codec.decode(action) == index


def test_spaces() -> None:
    made = {name: kind(BITS, SPARSITIES).space for name, kind in ACTION_SPACES.items()}
    assert made == {
        "discrete": spaces.Discrete(12),
        "multi_discrete": spaces.MultiDiscrete([3, 4]),
        "continuous": spaces.Box(-1.0, 1.0, (2,), np.float32),
    }


@pytest.mark.parametrize("given", [5, np.int64(5), np.array(5)])
def test_discrete_takes_any_integer(given: int) -> None:
    codec = ACTION_SPACES["discrete"](BITS, SPARSITIES)
    assert codec.choices[codec.decode(given)] == Choice(4, 0.25)


def test_multi_discrete_is_bits_then_sparsity() -> None:
    codec = ACTION_SPACES["multi_discrete"](BITS, SPARSITIES)
    assert codec.choices[codec.decode(np.array([2, 1]))] == Choice(8, 0.25)


@pytest.mark.parametrize(
    ("action", "choice"),
    [
        ((-1.0, -1.0), Choice(2, 0.0)),
        ((1.0, 1.0), Choice(8, 0.75)),
        ((0.0, 0.0), Choice(4, 0.5)),
        ((-0.34, -0.51), Choice(2, 0.0)),
        ((-0.33, -0.49), Choice(4, 0.25)),
        ((0.32, 0.49), Choice(4, 0.5)),
        ((0.34, 0.51), Choice(8, 0.75)),
        ((-7.0, 7.0), Choice(2, 0.75)),
        ((float("nan"), float("inf")), Choice(4, 0.75)),
    ],
)
def test_continuous_is_cut_into_equal_intervals(action: tuple[float, float], choice: Choice) -> None:
    codec = ACTION_SPACES["continuous"](BITS, SPARSITIES)
    assert codec.choices[codec.decode(np.array(action, dtype=np.float32))] == choice


def test_masks() -> None:
    allowed = np.zeros(12, dtype=bool)
    allowed[[1, 3, 4]] = True  # 2 bits at 25 and 75 %, 4 bits at 0 %
    assert np.array_equal(ACTION_SPACES["discrete"](BITS, SPARSITIES).mask(allowed), allowed)
    for name in ("multi_discrete", "continuous"):
        found = ACTION_SPACES[name](BITS, SPARSITIES).mask(allowed)
        assert found.tolist() == [True, True, False, True, True, False, True]


def test_smaller_grids() -> None:
    codec = ACTION_SPACES["multi_discrete"]((4, 8), (0.0, 0.25, 0.5))
    assert codec.space == spaces.MultiDiscrete([2, 3])
    assert codec.choices[codec.decode((1, 2))] == Choice(8, 0.5)
