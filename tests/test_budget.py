"""The budget against brute force over all plans of a small detector."""

import itertools
import re

import numpy as np
import pytest
from numpy.typing import NDArray

from detectors.errors import InputError
from hsq_env.budget import Budget, nearest_allowed
from hsq_env.choices import Choice, choice_grid

FIXED, TEACHER = 100, 10_000


def draw_sizes(seed: int, layers: int = 4, choices: int = 5) -> NDArray[np.int64]:
    return np.random.default_rng(seed).integers(50, 900, size=(layers, choices))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("share", [0.4, 0.7, 0.97])
def test_masks_equal_brute_force(seed: int, share: float) -> None:
    sizes = draw_sizes(seed)
    target = share * Budget(sizes, FIXED, TEACHER, None).largest_ratio
    budget = Budget(sizes, FIXED, TEACHER, target)
    layers, choices = sizes.shape
    good = [
        plan
        for plan in itertools.product(range(choices), repeat=layers)
        if TEACHER / (sum(int(sizes[k, c]) for k, c in enumerate(plan)) + FIXED) >= target
    ]
    assert good
    begun: set[tuple[int, ...]] = {plan[:k] for plan in good for k in range(layers)}
    for prefix in begun:
        k = len(prefix)
        spent = sum(int(sizes[i, c]) for i, c in enumerate(prefix))
        expected = {plan[k] for plan in good if plan[:k] == prefix}
        assert set(np.flatnonzero(budget.mask(k, spent))) == expected


def test_without_a_target_everything_is_allowed() -> None:
    sizes = draw_sizes(0)
    budget = Budget(sizes, FIXED, TEACHER, None)
    assert all(budget.mask(k, 10**9).all() for k in range(4))
    assert [budget.slack(k, 10**9) for k in range(4)] == [1.0] * 4


@pytest.mark.parametrize("target", [1e6, 0.0, -1.0, float("nan")])
def test_an_unreachable_target_is_refused_with_the_largest_ratio(target: float) -> None:
    sizes = draw_sizes(1)
    largest = TEACHER / (int(sum(row.min() for row in sizes)) + FIXED)
    with pytest.raises(InputError, match=r"cannot be reached.*target_ratio") as error:
        Budget(sizes, FIXED, TEACHER, target)
    (said,) = re.findall(r"up to (\S+) ", str(error.value))
    assert largest - 0.01 < float(said) <= largest
    Budget(sizes, FIXED, TEACHER, float(said))  # whoever follows the advice succeeds


@pytest.mark.parametrize("seed", range(200))
def test_the_largest_ratio_itself_is_reached(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = draw_sizes(seed)
    fixed, teacher = int(rng.integers(1, 5000)), int(rng.integers(5000, 10**8))
    budget = Budget(sizes, fixed, teacher, Budget(sizes, fixed, teacher, None).largest_ratio)
    spent = 0
    for k in range(4):
        smallest = int(sizes[k].argmin())
        assert budget.mask(k, spent)[smallest]
        spent += int(sizes[k, smallest])


def test_slack_goes_from_smallest_only_to_anything() -> None:
    sizes = np.array([[10, 30], [20, 40]])
    # layers may take 30 to 70 bytes
    assert Budget(sizes, 0, 700, 700 / 30).slack(0, 0) == pytest.approx(0.0, abs=1e-6)
    assert Budget(sizes, 0, 700, 700 / 50).slack(0, 0) == pytest.approx(0.5, abs=1e-6)
    assert Budget(sizes, 0, 700, 700 / 70).slack(0, 0) == pytest.approx(1.0, abs=1e-6)
    assert Budget(sizes, 0, 700, 1.0).slack(0, 0) == 1.0
    assert Budget(sizes, 0, 700, 700 / 50).slack(1, 10) == pytest.approx(1.0, abs=1e-6)
    assert Budget(sizes, 0, 700, 700 / 55).slack(1, 30) == pytest.approx(0.25, abs=1e-6)
    assert Budget(sizes, 0, 700, 700 / 50).slack(1, 45) == 0.0  # more has been spent than there was
    for spent in (0, 1000):  # nothing is left to be chosen
        assert Budget(np.array([[5, 5]]), 0, 700, 10.0).slack(0, spent) == 1.0


@pytest.mark.parametrize(("target", "share"), [(None, 1.0), (4.0, 0.25), (0.5, 2.0)])
def test_the_share_of_the_teacher_that_a_student_may_have(target: float | None, share: float) -> None:
    assert Budget(draw_sizes(0), FIXED, TEACHER, target).share == share


# ---- the nearest choice

GRID = choice_grid()


def nearest(asked: Choice, allowed: list[Choice]) -> Choice:
    mask = np.array([choice in allowed for choice in GRID])
    return GRID[nearest_allowed(GRID.index(asked), GRID, mask)]


def test_an_allowed_choice_is_kept() -> None:
    for i in range(len(GRID)):
        assert nearest_allowed(i, GRID, np.ones(12, dtype=bool)) == i


def test_fewest_steps_win() -> None:
    assert nearest(Choice(8, 0.0), [Choice(2, 0.75), Choice(4, 0.0), Choice(8, 0.5)]) == Choice(4, 0.0)
    assert nearest(Choice(8, 0.0), [Choice(2, 0.75), Choice(2, 0.0), Choice(8, 0.75)]) == Choice(2, 0.0)
    assert nearest(Choice(4, 0.5), [Choice(8, 0.0), Choice(2, 0.25)]) == Choice(2, 0.25)


def test_fewer_bytes_break_ties() -> None:
    assert nearest(Choice(4, 0.0), [Choice(8, 0.0), Choice(2, 0.0)]) == Choice(2, 0.0)  # one step of bits each
    assert nearest(Choice(8, 0.0), [Choice(4, 0.0), Choice(8, 0.25)]) == Choice(4, 0.0)  # a step of bits or sparsity
    assert nearest(Choice(4, 0.0), [Choice(8, 0.0), Choice(4, 0.25)]) == Choice(4, 0.25)
    assert nearest(Choice(8, 0.25), [Choice(8, 0.0), Choice(8, 0.5)]) == Choice(8, 0.5)  # more sparsity


def test_every_answer_is_allowed_and_none_is_nearer() -> None:
    rng = np.random.default_rng(0)

    def steps(a: Choice, b: Choice) -> float:
        return abs(np.log2(a.bits / b.bits)) + 4 * abs(a.sparsity - b.sparsity)

    for _ in range(300):
        mask = rng.random(12) < 0.3
        if not mask.any():
            continue
        asked = int(rng.integers(12))
        found = nearest_allowed(asked, GRID, mask)
        assert mask[found]
        assert steps(GRID[asked], GRID[found]) == min(steps(GRID[asked], GRID[i]) for i in np.flatnonzero(mask))
