"""Meta-self-evaluation on answers whose best alpha and beta are known."""

import itertools
from collections.abc import Callable
from typing import Any

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


@pytest.mark.parametrize("now", [(-3.0, -9.0), (4.0, 9.0), (-3.0, 9.0)])
def test_a_pair_outside_the_bounds_comes_back(now: tuple[float, float]) -> None:
    """Where nothing else counts the nearest pair within them is best."""
    nothing = Responses(np.zeros(2), 0.95, np.zeros(2), 9.0, np.zeros(2))
    found = best_knobs(nothing, 0.95, 9.0, 0.01, LOW, HIGH, np.array(now), np.ones(2))
    assert found == pytest.approx(np.clip(now, LOW, HIGH), abs=1e-12)


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


# ---- its steps by hand


def at(accuracy: float, ratio: float = 9.0, alpha: float = 0.4, beta: float = 0.6) -> Window:
    return Window(alpha, beta, accuracy, ratio)


RANGES = np.array([1.0, log_odds(0.995) - log_odds(0.05)])


@pytest.mark.parametrize(
    ("ratio", "beta", "moved"),
    [(12.0, 0.6, 1), (9.0, 0.6, -1), (5.0, 0.6, -1), (12.0, 0.99, -1), (5.0, 0.06, 1)],
)
def test_beta_is_moved_towards_the_ratio_and_within_its_bounds(ratio: float, beta: float, moved: int) -> None:
    window = at(0.9, ratio, beta=beta)
    found = SelfEvaluation(0.95, 9.0).observe(window)
    assert found.alpha == 0.4 and not found.explore_again
    assert log_odds(found.beta) == pytest.approx(log_odds(beta) + moved * 0.15 * RANGES[1])
    assert found.mse == mse(0.9, ratio, 0.95, 9.0, 0.01) and "beta is unknown" in found.reason


@pytest.mark.parametrize(("beta", "bound"), [(1.0, 0.995), (0.0, 0.05)])
def test_a_beta_without_log_odds_counts_as_the_nearest_bound(beta: float, bound: float) -> None:
    """A search that weighs accuracy alone begins with 1."""
    without, at_bound = SelfEvaluation(0.95, 9.0), SelfEvaluation(0.95, 9.0)
    for ratio in (12.0, 5.0, 8.0):
        assert without.observe(at(0.9, ratio, beta=beta)) == at_bound.observe(at(0.9, ratio, beta=bound))


@pytest.mark.parametrize(("alpha", "then"), [(0.4, 0.55), (0.85, 1.0), (0.9, 0.75)])
@pytest.mark.parametrize("ratio", [5.0, 12.0])
def test_alpha_is_moved_up_where_there_is_room(alpha: float, then: float, ratio: float) -> None:
    loop = SelfEvaluation(0.95, 9.0)
    loop.observe(at(0.9, ratio, alpha, 0.6))
    found = loop.observe(at(0.9, ratio, alpha, 0.9))
    assert found.alpha == pytest.approx(then) and found.beta == pytest.approx(0.9) and "alpha is" in found.reason


def test_a_knob_is_known_once_it_has_moved_by_half_a_probe() -> None:
    def unknown(used: tuple[float, float], odds: tuple[float, float], **settings: Any) -> str:
        loop = SelfEvaluation(0.95, 9.0, **settings)
        for alpha, odd in zip(used, odds, strict=True):
            found = loop.observe(at(0.9, 9.0, alpha, from_log_odds(odd)))
        return found.reason.split(" is unknown")[0]

    half = 0.075 * RANGES[1]
    assert unknown((0.4, 0.48), (0.0, 0.97 * half)) == "the effect of beta"
    assert unknown((0.4, 0.47), (0.0, 1.03 * half)) == "the effect of alpha"
    assert unknown((0.4, 0.48), (0.0, 1.03 * half)).startswith("at accuracy")
    assert unknown((0.4, 0.44), (0.0, 1.03 * half), alphas=(0.2, 0.7)).startswith("at accuracy")


def test_a_solution_is_local_and_pays_for_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the loop asks of the fit and of the solution."""
    asked: list[tuple[Any, ...]] = []
    fitted: list[Any] = []

    def solve(*arguments: Any) -> NDArray[np.float64]:
        asked.append(arguments)
        return best_knobs(*arguments)

    def fit(windows: list[Window], ranges: NDArray[np.float64]) -> Responses:
        fitted.append((len(windows), ranges.tolist()))
        return fit_responses(windows, ranges)

    monkeypatch.setattr("hsq_env.self_evaluation.best_knobs", solve)
    monkeypatch.setattr("hsq_env.self_evaluation.fit_responses", fit)
    loop = SelfEvaluation(0.95, 10.0, penalty=0.02, probe=0.1, alphas=(0.1, 0.6))
    windows = [at(0.9, 9.0, 0.4, 0.6), at(0.91, 8.0, 0.4, 0.9), at(0.92, 8.0, 0.5, 0.9)]
    for window in windows:
        found = loop.observe(window)
    ((responses, *targets, low, high, now, price),) = asked
    ranges = np.array([0.5, RANGES[1]])
    assert targets == [0.95, 10.0, 0.02]
    assert now == pytest.approx([0.5, log_odds(0.9)])
    assert low == pytest.approx(now - 0.2 * ranges) and high == pytest.approx([0.6, now[1] + 0.2 * RANGES[1]])
    assert price == pytest.approx(0.02 * 0.02 / (0.1 * ranges) ** 2)
    assert fitted == [(2, ranges.tolist()), (3, ranges.tolist())]
    assert [found.alpha, log_odds(found.beta)] == pytest.approx(best_knobs(responses, *targets, low, high, now, price))
    assert found.mse == mse(0.92, 8.0, 0.95, 10.0, 0.02)


@pytest.mark.parametrize(("far", "ends"), [(-9.0, (0.1, 0.05)), (9.0, (0.6, 0.995))])
def test_whatever_is_found_lies_within_the_bounds(
    far: float, ends: tuple[float, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hsq_env.self_evaluation.best_knobs", lambda *arguments: np.array([far, far]))
    loop = SelfEvaluation(0.95, 10.0, alphas=(0.1, 0.6))
    for window in (at(0.9, 9.0, 0.4, 0.6), at(0.91, 8.0, 0.4, 0.9), at(0.92, 8.0, 0.5, 0.9)):
        found = loop.observe(window)
    assert (found.alpha, found.beta) == pytest.approx(ends)


def explores(accuracies: list[float], **settings: Any) -> list[int]:
    """After which windows the loop asks for exploration, while the same pair stays in use."""
    loop = SelfEvaluation(0.95, 9.0, **settings)
    return [number for number, accuracy in enumerate(accuracies) if loop.observe(at(accuracy)).explore_again]


def test_accuracy_has_to_fall_for_so_many_windows_in_a_row() -> None:
    assert explores([0.9, 0.9, 0.8, 0.8, 0.8]) == [4]
    assert explores([0.9, 0.9, 0.8, 0.8, 0.9, 0.8, 0.8]) == []
    assert explores([0.9, 0.9, 0.8, 0.8, 0.9, 0.8, 0.8, 0.8]) == [7]
    assert explores([0.9, 0.9, 0.8, 0.8], patience=2) == [3]
    assert explores([0.9, 0.8, 0.8, 0.8]) == []  # one window is no expectation


def test_small_falls_are_tolerated() -> None:
    assert explores([0.9, 0.9, 0.885, 0.885, 0.885, 0.885]) == []
    assert explores([0.9, 0.9, 0.885, 0.885, 0.885], tolerance=0.005) == [4]


def test_only_recent_windows_say_what_accuracy_was() -> None:
    assert explores([0.9, 0.8, 0.8, 0.79], patience=1) == [2]
    assert explores([0.9, 0.8, 0.8, 0.77], patience=1, tolerance=0.05) == []  # the first is out of sight
    assert explores([0.9, 0.8, 0.8, 0.74], patience=1, tolerance=0.05) == [3]
    assert explores([0.8, 0.9, 0.89, 0.89, 0.87], patience=1, tolerance=0.025) == []


def test_what_was_learned_before_a_fall_is_forgotten() -> None:
    loop = SelfEvaluation(0.95, 9.0)
    for accuracy in (0.9, 0.9, 0.8, 0.8):
        assert not loop.observe(at(accuracy)).explore_again
    found = loop.observe(at(0.81, 8.5))
    assert found.explore_again and loop.windows == [at(0.81, 8.5)]
    assert (found.alpha, found.beta, found.mse) == (0.4, 0.6, mse(0.81, 8.5, 0.95, 9.0, 0.01))
    assert found.reason == "accuracy has stayed below what alpha and beta explain for 3 windows (0.8100): explore again"


@pytest.mark.parametrize(
    "wrong",
    [
        {"alphas": (0.5, 0.5)},
        {"alphas": (-0.1, 1.0)},
        {"alphas": (0.5, 1.5)},
        {"betas": (0.0, 0.9)},
        {"betas": (0.5, 0.5)},
        {"betas": (0.5, 1.0)},
        {"betas": (0.5, 1.5)},
    ],
)
def test_impossible_bounds_are_refused(wrong: dict[str, tuple[float, float]]) -> None:
    with pytest.raises(ValueError, match="in order"):
        SelfEvaluation(0.95, 9.0, **wrong)  # type: ignore[arg-type]
