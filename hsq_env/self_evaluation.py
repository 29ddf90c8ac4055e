"""Meta-self-evaluation: how accuracy and ratio answer to alpha and beta, and the pair that serves the targets best.

Pure mathematics, without an agent: a search tells of each window of episodes what alpha and beta were and what came of
them; it is told what to use next, and why. The figure of merit is::

    MSE = (accuracy - target_accuracy)^2 + penalty * |ratio - target_ratio|

Both answers are taken as linear in alpha and in the log odds of beta (the reward weighs accuracy against size as
beta : 1 - beta), fitted by ridge regression with recent windows counting more. The minimum of the fitted MSE, with a
quadratic price on distance from the present pair, is found in closed form: the function is convex with one kink, where
the fitted ratio meets its target, so that it lies on one side of the kink or on it, inside the bounds or on them.
"""

import itertools
import math
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]
FORGETTING = 0.9  # weight of a window, per window since
RIDGE = 0.05  # of the slopes, in units of the knobs' ranges


def mse(accuracy: float, ratio: float, target_accuracy: float, target_ratio: float, penalty: float) -> float:
    """The figure of merit; smaller is better.

    :param penalty: of one unit of ratio

    >>> round(mse(accuracy=0.95, ratio=7.0, target_accuracy=0.97, target_ratio=8.0, penalty=0.01), 6)
    0.0104
    """
    return (accuracy - target_accuracy) ** 2 + penalty * abs(ratio - target_ratio)


def log_odds(beta: float) -> float:
    """The knob that beta is turned by."""
    return math.log(beta / (1 - beta))


def from_log_odds(value: float) -> float:
    """Its inverse."""
    return 1 / (1 + math.exp(-value))


@dataclass(frozen=True)
class Window:
    """Some consecutive episodes under one pair, and the means of what they ended with."""

    alpha: float
    beta: float
    accuracy: float
    ratio: float


@dataclass(frozen=True)
class Responses:
    """``accuracy = a0 + a . x`` and ``ratio = r0 + r . x`` around ``center``, x being (alpha, log odds of beta)."""

    center: Vector
    accuracy: float
    accuracy_slopes: Vector
    ratio: float
    ratio_slopes: Vector

    def predict(self, knobs: Vector) -> tuple[float, float]:
        """Accuracy and ratio at a pair."""
        x = knobs - self.center
        return float(self.accuracy + self.accuracy_slopes @ x), float(self.ratio + self.ratio_slopes @ x)


def fit_responses(windows: list[Window], ranges: Vector) -> Responses:
    """Weighted ridge regression of both answers on the knobs.

    :param windows: at least one, oldest first
    :param ranges: of the two knobs, by which slopes are made comparable
    """
    knobs = np.array([[w.alpha, log_odds(w.beta)] for w in windows])
    answers = np.array([[w.accuracy, w.ratio] for w in windows])
    weights = FORGETTING ** np.arange(len(windows) - 1, -1, -1.0)
    center = weights @ knobs / weights.sum()
    mean = weights @ answers / weights.sum()
    x = (knobs - center) / ranges
    slopes = np.linalg.solve(
        (x * weights[:, None]).T @ x + RIDGE * np.eye(2), (x * weights[:, None]).T @ (answers - mean)
    )
    per_unit = slopes / ranges[:, None]
    return Responses(center, float(mean[0]), per_unit[:, 0], float(mean[1]), per_unit[:, 1])


def best_knobs(
    responses: Responses,
    target_accuracy: float,
    target_ratio: float,
    penalty: float,
    low: Vector,
    high: Vector,
    now: Vector,
    price: Vector,
) -> Vector:
    """The pair that minimizes the fitted MSE plus ``price . (x - now)^2`` within bounds, exactly.

    :param low: smallest values of the knobs
    :param high: largest values
    :param now: present values
    :param price: > 0, of moving each knob
    """
    a, r = responses.accuracy_slopes, responses.ratio_slopes
    a0 = float(responses.accuracy - a @ responses.center - target_accuracy)  # 0 with a . x where the target is met
    r0 = float(responses.ratio - r @ responses.center - target_ratio)  # likewise

    def value(x: Vector) -> float:
        return float((a0 + a @ x) ** 2 + penalty * abs(r0 + r @ x) + price @ (x - now) ** 2)

    hessian = 2 * (np.outer(a, a) + np.diag(price))
    candidates = [np.clip(now, low, high)]
    for fixed in itertools.product((None, 0, 1), repeat=2):  # each knob free, at its smallest, at its largest
        free = np.array([f is None for f in fixed])
        base = np.array([0.0 if f is None else (low, high)[f][i] for i, f in enumerate(fixed)])
        for sign in (-1.0, 1.0, 0.0):  # below the kink, above it, on it
            linear = hessian @ base + 2 * a0 * a - 2 * price * now + sign * penalty * r
            candidate = _stationary(hessian, linear, base, free, None if sign else (r, r0))
            if candidate is not None and (candidate >= low - 1e-12).all() and (candidate <= high + 1e-12).all():
                candidates.append(np.clip(candidate, low, high))
    return min(candidates, key=value)


def _stationary(
    hessian: Vector, linear: Vector, base: Vector, free: NDArray[np.bool_], kink: tuple[Vector, float] | None
) -> Vector | None:
    """Where the gradient over the free knobs vanishes, on the line ``r . x + r0 = 0`` if a kink is given."""
    count = int(free.sum())
    if kink is None:
        solution = np.linalg.solve(hessian[np.ix_(free, free)], -linear[free]) if count else np.zeros(0)
    else:
        r, r0 = kink
        if not count or not np.abs(r[free]).max() > 1e-12:
            return None
        system = np.zeros((count + 1, count + 1))
        system[:count, :count] = hessian[np.ix_(free, free)]
        system[:count, count] = system[count, :count] = r[free]
        solution = np.linalg.solve(system, np.r_[-linear[free], -(r0 + r @ base)])[:count]
    found = base.copy()
    found[free] = solution
    return found


@dataclass(frozen=True)
class Adjustment:
    """What to use next.

    :param reason: one sentence for the log
    :param mse: of the window that has ended
    :param explore_again: accuracy has fallen for several windows although nothing asked for it
    """

    alpha: float
    beta: float
    reason: str
    mse: float
    explore_again: bool = False


@dataclass
class SelfEvaluation:
    """The loop's memory.

    :param target_accuracy: student over teacher on the search split
    :param target_ratio: teacher bytes over student bytes
    :param penalty: see ``mse``; by default a tenth of a unit of ratio weighs like 3 points of accuracy
    :param alphas: smallest and largest alpha
    :param betas: smallest and largest beta, inside (0, 1)
    :param probe: how far a knob is moved, as a share of its range, while its effect is unknown
    :param patience: windows of falling accuracy that make the agent explore again
    :param tolerance: what accuracy may lie below what the fit expects before it counts as falling

    >>> loop = SelfEvaluation(target_accuracy=0.97, target_ratio=8.0)
    >>> advice = loop.observe(Window(alpha=0.3, beta=0.8, accuracy=0.99, ratio=6.0))
    >>> advice.reason, advice.beta < 0.8
    ('the effect of beta is unknown: move it', True)
    """

    target_accuracy: float
    target_ratio: float
    penalty: float = 0.01
    alphas: tuple[float, float] = (0.0, 1.0)
    betas: tuple[float, float] = (0.05, 0.995)
    probe: float = 0.15
    patience: int = 3
    tolerance: float = 0.02
    windows: list[Window] = field(default_factory=list)
    _falling: int = 0

    def __post_init__(self) -> None:
        if not (0 <= self.alphas[0] < self.alphas[1] <= 1 and 0 < self.betas[0] < self.betas[1] < 1):
            raise ValueError(f"alphas {self.alphas} must lie in [0, 1] and betas {self.betas} in (0, 1), in order")

    @property
    def _low(self) -> Vector:
        return np.array([self.alphas[0], log_odds(self.betas[0])])

    @property
    def _high(self) -> Vector:
        return np.array([self.alphas[1], log_odds(self.betas[1])])

    def merit(self, window: Window) -> float:
        """The MSE of a window."""
        return self.merit_of(window.accuracy, window.ratio)

    def merit_of(self, accuracy: float, ratio: float) -> float:
        """The MSE of a plan or of a window's means."""
        return mse(accuracy, ratio, self.target_accuracy, self.target_ratio, self.penalty)

    def observe(self, window: Window) -> Adjustment:
        """Take note of a window and say what to use next.

        A beta outside of ``betas``, as 1 is, counts as the nearest inside.
        """
        window = replace(window, beta=min(max(window.beta, self.betas[0]), self.betas[1]))
        degraded = self._degraded(window)
        self.windows.append(window)
        if degraded:
            del self.windows[:-1]  # what was learned before no longer holds
            reason = (
                f"accuracy has stayed below what alpha and beta explain for {self.patience} windows "
                f"({window.accuracy:.4f}): explore again"
            )
            return Adjustment(window.alpha, window.beta, reason, self.merit(window), explore_again=True)
        now = np.array([window.alpha, log_odds(window.beta)])
        unknown = self._unknown_knob()
        if unknown is not None:
            return self._probe(unknown, now, window)
        return self._solve(now, window)

    def _degraded(self, window: Window) -> bool:
        """Whether accuracy has been lower than expected, for the last time that is tolerated."""
        if len(self.windows) < 2:
            self._falling = 0
            return False
        responses = fit_responses(self.windows, self._high - self._low)
        expected, _ = responses.predict(np.array([window.alpha, log_odds(window.beta)]))
        recent = max(w.accuracy for w in self.windows[-self.patience - 1 :])
        below = window.accuracy < min(expected, recent) - self.tolerance
        self._falling = self._falling + 1 if below else 0
        if self._falling < self.patience:
            return False
        self._falling = 0
        return True

    def _unknown_knob(self) -> int | None:
        """A knob that has not been moved yet."""
        knobs = np.array([[w.alpha, log_odds(w.beta)] for w in self.windows])
        moved = np.ptp(knobs, axis=0) / (self._high - self._low)
        still = np.flatnonzero(moved < 0.5 * self.probe)
        return int(still[-1]) if still.size else None  # beta first: it decides about the ratio

    def _probe(self, knob: int, now: Vector, window: Window) -> Adjustment:
        step = self.probe * (self._high - self._low)[knob]
        towards = 1.0
        if knob == 1:  # more weight on accuracy makes larger files
            towards = 1.0 if window.ratio > self.target_ratio else -1.0
        moved = now.copy()
        moved[knob] += towards * step
        if not self._low[knob] <= moved[knob] <= self._high[knob]:
            moved[knob] = now[knob] - towards * step
        name = ("alpha", "beta")[knob]
        return self._adjusted(moved, window, f"the effect of {name} is unknown: move it")

    def _solve(self, now: Vector, window: Window) -> Adjustment:
        responses = fit_responses(self.windows, self._high - self._low)
        price = 0.02 * self.penalty / (self.probe * (self._high - self._low)) ** 2
        reach = 2 * self.probe * (self._high - self._low)  # the fit is local
        low, high = np.maximum(self._low, now - reach), np.minimum(self._high, now + reach)
        found = best_knobs(responses, self.target_accuracy, self.target_ratio, self.penalty, low, high, now, price)
        accuracy, ratio = responses.predict(found)
        reason = (
            f"at accuracy {window.accuracy:.4f} and {window.ratio:.2f}x, aiming at {self.target_accuracy:.4f} and "
            f"{self.target_ratio:.2f}x: the fit over {len(self.windows)} windows expects {accuracy:.4f} and "
            f"{ratio:.2f}x"
        )
        return self._adjusted(found, window, reason)

    def _adjusted(self, knobs: Vector, window: Window, reason: str) -> Adjustment:
        knobs = np.clip(knobs, self._low, self._high)
        return Adjustment(float(knobs[0]), from_log_odds(float(knobs[1])), reason, self.merit(window))
