"""Action spaces: what an action means, and how a choice is said back."""

from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from detectors.errors import InputError
from hsq_env.actions import ACTION_SPACES, ALPHAS
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
        assert found.tolist() == [True, True, False, True, True, False, True] and found.dtype == np.bool_


def test_smaller_grids() -> None:
    codec = ACTION_SPACES["multi_discrete"]((4, 8), (0.0, 0.25, 0.5))
    assert codec.space == spaces.MultiDiscrete([2, 3])
    assert codec.choices[codec.decode((1, 2))] == Choice(8, 0.5)
    for kind in ACTION_SPACES.values():
        assert kind((4, 8), (0.0, 0.25, 0.5)).choices == choice_grid((4, 8), (0.0, 0.25, 0.5))


# ---- actions that say alpha


@pytest.mark.parametrize("name", sorted(ACTION_SPACES))
def test_encode_inverts_decode_and_alpha(name: str) -> None:
    codec = ACTION_SPACES[name](BITS, SPARSITIES, ALPHAS)
    assert codec.choices == choice_grid()
    for index in range(12):
        for alpha in ALPHAS:
            action = codec.encode(index, alpha)
            assert codec.space.contains(action if name != "discrete" else np.int64(action))
            assert (codec.decode(action), codec.alpha(action)) == (index, alpha)


def test_spaces_with_alpha() -> None:
    made = {name: kind(BITS, SPARSITIES, ALPHAS).space for name, kind in ACTION_SPACES.items()}
    assert made == {
        "discrete": spaces.Discrete(48),
        "multi_discrete": spaces.MultiDiscrete([3, 4, 4]),
        "continuous": spaces.Box(-1.0, 1.0, (3,), np.float32),
    }


@pytest.mark.parametrize("name", sorted(ACTION_SPACES))
def test_other_actions_say_nothing_of_alpha(name: str) -> None:
    codec = ACTION_SPACES[name](BITS, SPARSITIES)
    assert np.array_equal(codec.encode(5, 0.9), codec.encode(5)) and codec.alpha(codec.encode(5)) is None


@pytest.mark.parametrize("given", [22, np.int64(22), np.array(22)])
def test_alphas_change_fastest(given: int) -> None:
    codec = ACTION_SPACES["discrete"](BITS, SPARSITIES, ALPHAS)
    assert codec.choices[codec.decode(given)] == Choice(4, 0.25) and codec.alpha(given) == 0.6


@pytest.mark.parametrize(("asked", "said"), [(0.0, 0.1), (0.19, 0.1), (0.21, 0.3), (0.7, 0.6), (1.0, 0.9)])
def test_the_nearest_alpha_is_said(asked: float, said: float) -> None:
    for kind in ACTION_SPACES.values():
        codec = kind(BITS, SPARSITIES, ALPHAS)
        assert codec.alpha(codec.encode(3, asked)) == said


@pytest.mark.parametrize(
    ("value", "alpha"), [(-1.0, 0.1), (-0.51, 0.1), (-0.49, 0.3), (0.1, 0.6), (0.51, 0.9), (7.0, 0.9), (np.nan, 0.6)]
)
def test_continuous_alphas_are_cut_into_equal_intervals(value: float, alpha: float) -> None:
    codec = ACTION_SPACES["continuous"](BITS, SPARSITIES, ALPHAS)
    assert codec.alpha(np.array([0.0, 0.0, value], dtype=np.float32)) == alpha


def test_masks_leave_every_alpha() -> None:
    allowed = np.zeros(12, dtype=bool)
    allowed[[1, 3, 4]] = True
    found = ACTION_SPACES["discrete"](BITS, SPARSITIES, ALPHAS).mask(allowed)
    assert np.flatnonzero(found).tolist() == [4, 5, 6, 7, *range(12, 20)]
    for name in ("multi_discrete", "continuous"):
        mask = ACTION_SPACES[name](BITS, SPARSITIES, ALPHAS).mask(allowed)
        assert mask.tolist() == [True, True, False, True, True, False, True, True, True, True, True]


@pytest.mark.parametrize(
    ("name", "action"),
    [
        ("discrete", -1),
        ("discrete", 12),
        ("discrete", 3.7),
        ("discrete", "3"),
        ("discrete", [3]),
        ("multi_discrete", [0, 7]),
        ("multi_discrete", [-1, 0]),
        ("multi_discrete", [1]),
        ("multi_discrete", [0.5, 1]),
        ("multi_discrete", 1),
        ("multi_discrete", [0, [1, 2]]),
        ("continuous", [0.0]),
        ("continuous", 0.0),
        ("continuous", ["a", "b"]),
    ],
)
def test_what_is_no_action_is_refused(name: str, action: Any) -> None:
    codec = ACTION_SPACES[name](BITS, SPARSITIES)
    for asked in (codec.decode, codec.own):
        with pytest.raises(InputError, match="is no action here: give"):
            asked(action)


def test_an_action_of_ones_own_is_a_copy_in_the_spaces_type() -> None:
    for name, given, kept in (
        ("discrete", np.int64(5), 5),
        ("multi_discrete", np.array([1, 2], np.int32), [1, 2]),
        ("continuous", np.array([0.25, -3.0]), [0.25, -1.0]),
    ):
        codec = ACTION_SPACES[name](BITS, SPARSITIES)
        own = codec.own(given)
        assert codec.space.contains(np.int64(own) if name == "discrete" else own)
        assert own is not given and np.array_equal(own, kept)
