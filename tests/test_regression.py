"""The regression against known coefficients and against SciPy."""

import numpy as np
import pytest
from scipy import stats

from agents.regression import Step, insensitive_layers, regress
from hsq_env.choices import Choice, choice_grid


def steps(coefficients: tuple[float, float, float], noise: float, count: int, seed: int, layer: int = 0) -> list[Step]:
    rng, grid = np.random.default_rng(seed), choice_grid()
    drawn = [grid[i] for i in rng.integers(12, size=count)]
    a, b, c = coefficients
    return [Step(layer, x, a + b * x.bits / 8 + c * x.sparsity + noise * rng.normal()) for x in drawn]


def test_exact_data_give_the_coefficients() -> None:
    found = regress(steps((0.05, -0.04, 0.02), 0.0, 60, 0))
    assert found is not None and found.coefficients == pytest.approx((0.05, -0.04, 0.02))
    assert found.r2 == pytest.approx(1.0) and found.steps == 60
    assert found.worst == pytest.approx(0.05 - 0.04 / 4 + 0.02 * 0.75)


def test_one_predictor_agrees_with_scipy() -> None:
    """Bits alone vary as much as they like: with sparsity uncorrelated in a full grid, its slope is SciPy's."""
    rng = np.random.default_rng(1)
    rows = [Step(0, choice, 0.03 - 0.02 * choice.bits / 8 + 0.01 * rng.normal()) for choice in choice_grid() * 5]
    found = regress(rows)
    expected = stats.linregress([s.choice.bits / 8 for s in rows], [s.harm for s in rows])
    assert found is not None and found.coefficients[1] == pytest.approx(expected.slope)


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    covered = []
    for seed in range(400):
        found = regress(steps((0.05, -0.04, 0.02), 0.03, 24, seed))
        assert found is not None
        covered.append(found.low[1] <= -0.04 <= found.high[1])
    assert np.mean(covered) == pytest.approx(0.95, abs=0.035)  # three deviations of 400 trials


def test_too_little_is_said_so() -> None:
    assert regress(steps((0.0, 0.0, 0.0), 0.1, 5, 0)) is None
    assert regress([Step(0, Choice(4, 0.5), 0.1)] * 20) is None


def test_insensitive_layers_are_those_that_the_data_shows() -> None:
    rows = [
        *steps((0.001, 0.0, 0.0), 0.0005, 40, 0, layer=0),
        *steps((0.05, -0.04, 0.02), 0.002, 40, 1, layer=1),
        *steps((0.001, 0.0, 0.0), 0.05, 8, 2, layer=2),  # may be insensitive, but nobody can know yet
        *steps((0.001, 0.0, 0.0), 0.0005, 3, 3, layer=3),
    ]
    assert insensitive_layers(rows, 4, 0.005) == [0]


def test_json_names_the_coefficients() -> None:
    found = regress(steps((0.05, -0.04, 0.02), 0.001, 60, 0))
    assert found is not None
    data = found.to_json()
    assert set(data) == {"intercept", "bits / 8", "sparsity", "r2", "steps", "worst"}
    assert data["sparsity"]["low"] < 0.02 < data["sparsity"]["high"]
