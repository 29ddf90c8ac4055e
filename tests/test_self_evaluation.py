"""Meta-self-evaluation on answers whose best alpha and beta are known."""

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from hsq_env.self_evaluation import (
    Responses,
    SelfEvaluation,
    Window,
    best_knobs,
    fit_responses,
    from_log_odds,
    log_odds,
    mse,
)

LOW, HIGH = np.array([0.0, -3.0]), np.array([1.0, 5.0])
Answer = Callable[[float, float], tuple[float, float]]


def linear(alpha: float, beta: float) -> tuple[float, float]:
    """Best at alpha 0.4 and log odds 1.5, for the targets 0.95 and 9."""
    x, y = alpha - 0.4, log_odds(beta) - 1.5
    return 0.95 + 0.03 * x + 0.02 * y, 9.0 + 0.2 * x - 2.0 * y


def curved(alpha: float, beta: float) -> tuple[float, float]:
    """Accuracy is best at alpha 0.3 and falls as the ratio grows; a ratio of 8 at log odds 2 costs 3 points."""
    y = log_odds(beta)
    ratio = 4 + 12 / (1 + np.exp(1.5 * (y - 1.0) - np.log(2) + 0.1930))
    return 0.99 - 0.1 * (alpha - 0.3) ** 2 - 0.0005 * ratio**2, float(ratio)


def run(loop: SelfEvaluation, answer: Answer, windows: int, noise: float = 0.0, seed: int = 0) -> list[Window]:
    """Let the loop steer."""
    rng = np.random.default_rng(seed)
    alpha, beta, seen = 0.8, 0.5, []
    for _ in range(windows):
        accuracy, ratio = answer(alpha, beta)
        seen.append(Window(alpha, beta, accuracy + noise * rng.normal(), ratio + 20 * noise * rng.normal()))
        adjustment = loop.observe(seen[-1])
        assert loop.alphas[0] <= adjustment.alpha <= loop.alphas[1]
        assert loop.betas[0] - 1e-12 <= adjustment.beta <= loop.betas[1] + 1e-12
        alpha, beta = adjustment.alpha, adjustment.beta
    return seen


def test_the_figure_of_merit_by_hand() -> None:
    assert mse(0.9, 8.0, 0.95, 10.0, 0.01) == pytest.approx(0.0025 + 0.02)
    assert mse(0.95, 10.0, 0.95, 10.0, 0.01) == 0.0


def test_log_odds_and_back() -> None:
    for beta in (0.05, 0.5, 0.995):
        assert from_log_odds(log_odds(beta)) == pytest.approx(beta)


# ---- the fit


def test_linear_answers_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hsq_env.self_evaluation.RIDGE", 1e-9)
    grid = [Window(a, b, *linear(a, b)) for a, b in itertools.product((0.1, 0.5, 0.9), (0.3, 0.7, 0.95))]
    found = fit_responses(grid, HIGH - LOW)
    assert found.accuracy_slopes == pytest.approx([0.03, 0.02], rel=1e-6)
    assert found.ratio_slopes == pytest.approx([0.2, -2.0], rel=1e-6)
    assert found.predict(np.array([0.4, 1.5])) == pytest.approx((0.95, 9.0))


def test_without_movement_nothing_is_claimed() -> None:
    found = fit_responses([Window(0.3, 0.8, 0.9, 7.0)] * 3, HIGH - LOW)
    assert np.abs(found.accuracy_slopes).max() == np.abs(found.ratio_slopes).max() == 0.0
    assert found.predict(np.array([0.9, 2.0])) == pytest.approx((0.9, 7.0))


# ---- the solution


@pytest.mark.parametrize("seed", range(30))
def test_no_pair_on_a_fine_grid_is_better(seed: int) -> None:
    rng = np.random.default_rng(seed)
    responses = Responses(
        rng.uniform(LOW, HIGH), rng.uniform(0.8, 1), rng.normal(size=2) * 0.1, rng.uniform(4, 14), rng.normal(size=2)
    )
    now, price, penalty = rng.uniform(LOW, HIGH), rng.uniform(1e-5, 1e-3, 2), 10.0 ** rng.uniform(-4, -1)
    found = best_knobs(responses, 0.95, 9.0, penalty, LOW, HIGH, now, price)
    assert (found >= LOW).all() and (found <= HIGH).all()

    def value(x: NDArray[np.float64]) -> NDArray[np.float64]:
        """Of pairs (..., 2)."""
        accuracy = responses.accuracy + (x - responses.center) @ responses.accuracy_slopes
        ratio = responses.ratio + (x - responses.center) @ responses.ratio_slopes
        merit = (accuracy - 0.95) ** 2 + penalty * np.abs(ratio - 9.0)
        return np.asarray(merit + ((x - now) ** 2) @ price)

    grid = np.stack(np.meshgrid(np.linspace(LOW[0], HIGH[0], 201), np.linspace(LOW[1], HIGH[1], 201)), axis=-1)
    assert value(found) <= value(grid).min() + 1e-12


# ---- the loop


@pytest.mark.parametrize("noise", [0.0, 0.002])
@pytest.mark.parametrize("seed", range(5))
def test_the_best_pair_of_linear_answers_is_reached(noise: float, seed: int) -> None:
    """Both targets can be met; on the line of pairs with the asked ratio, accuracy differs by alpha alone."""
    loop = SelfEvaluation(0.95, 9.0)
    end = run(loop, linear, 25, noise, seed)[-5:]
    assert np.mean([w.ratio for w in end]) == pytest.approx(9.0, abs=0.1 + 40 * noise)
    assert np.mean([w.accuracy for w in end]) == pytest.approx(0.95, abs=0.02)
    assert np.mean([log_odds(w.beta) for w in end]) == pytest.approx(1.5, abs=0.1 + 40 * noise)


def test_curved_answers_are_followed() -> None:
    """The fit is only local; the loop has to move with it."""
    loop = SelfEvaluation(0.99, 8.0)
    seen = run(loop, curved, 30)
    assert loop.merit(seen[0]) > 10 * loop.merit(seen[-1])
    assert seen[-1].ratio == pytest.approx(8.0, abs=0.2)
    fixed = [loop.merit(Window(a, b, *curved(a, b))) for a, b in itertools.product((0.1, 0.5, 0.9), (0.2, 0.6, 0.95))]
    assert loop.merit(seen[-1]) < min(fixed)


def test_targets_out_of_reach_end_at_the_bounds() -> None:
    loop = SelfEvaluation(0.99, 40.0)
    end = run(loop, linear, 30)[-1]
    assert end.beta == pytest.approx(loop.betas[0])


def test_reasons_are_told() -> None:
    loop = SelfEvaluation(0.95, 9.0)
    reasons = []
    alpha, beta = 0.8, 0.5
    for _ in range(4):
        adjustment = loop.observe(Window(alpha, beta, *linear(alpha, beta)))
        alpha, beta = adjustment.alpha, adjustment.beta
        reasons.append(adjustment.reason)
    assert reasons[:2] == ["the effect of beta is unknown: move it", "the effect of alpha is unknown: move it"]
    assert reasons[2].startswith("at accuracy ") and "the fit over 3 windows expects" in reasons[2]


def test_a_fall_that_nothing_explains_asks_for_exploration() -> None:
    loop = SelfEvaluation(0.95, 9.0)
    alpha, beta, asked = 0.8, 0.5, []
    for window in range(20):
        accuracy, ratio = linear(alpha, beta)
        adjustment = loop.observe(Window(alpha, beta, accuracy - 0.15 * (window >= 10), ratio))
        alpha, beta = adjustment.alpha, adjustment.beta
        asked.append(adjustment.explore_again)
    assert asked.index(True) == 10 + loop.patience - 1
    assert asked.count(True) == 1  # what is learned from then on explains it


def test_a_fall_that_beta_explains_does_not() -> None:
    """The same accuracy is lost because the ratio is asked for."""
    loop = SelfEvaluation(0.95, 12.0)
    alpha, beta, asked = 0.4, 0.95, []
    for _ in range(20):
        adjustment = loop.observe(Window(alpha, beta, *linear(alpha, beta)))
        alpha, beta = adjustment.alpha, adjustment.beta
        asked.append(adjustment.explore_again)
    assert not any(asked)


@pytest.mark.parametrize("wrong", [{"alphas": (0.5, 0.5)}, {"betas": (0.0, 0.9)}, {"alphas": (-0.1, 1.0)}])
def test_impossible_bounds_are_refused(wrong: dict[str, tuple[float, float]]) -> None:
    with pytest.raises(ValueError, match="in order"):
        SelfEvaluation(0.95, 9.0, **wrong)  # type: ignore[arg-type]
