"""The paper's regression: how accuracy answers to bits and sparsity, over all steps that a search has measured."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from hsq_env.choices import BITS, Choice

CONFIDENCE = 0.95
NAMES = ("intercept", "bits / 8", "sparsity")
FEWEST = 6  # steps of a layer from which its own regression says something


@dataclass(frozen=True)
class Step:
    """A measured step.

    :param layer: index
    :param harm: what the step took from the accuracy (student over teacher, before less after)
    """

    layer: int
    choice: Choice
    harm: float


@dataclass(frozen=True)
class Regression:
    """Ordinary least squares of harm on the intercept, bits / 8 and sparsity.

    :param coefficients: in the order of ``NAMES``
    :param low: lower ends of their 95 % confidence intervals
    :param high: upper ends
    :param r2: share of the variance that is explained
    :param steps: how many were fitted
    :param worst: upper end of the 95 % confidence interval of the mean harm at the harshest choice of the grid
    """

    coefficients: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    r2: float
    steps: int
    worst: float

    def to_json(self) -> dict[str, Any]:
        """Coefficients with their intervals by name."""
        rows = zip(NAMES, self.coefficients, self.low, self.high, strict=True)
        fitted = {name: {"coefficient": c, "low": low, "high": high} for name, c, low, high in rows}
        return {**fitted, "r2": self.r2, "steps": self.steps, "worst": asdict(self)["worst"]}


def regress(steps: Sequence[Step]) -> Regression | None:
    """Fit; None where the steps do not determine the coefficients."""
    x = np.array([[1.0, s.choice.bits / max(BITS), s.choice.sparsity] for s in steps])
    y = np.array([s.harm for s in steps])
    if len(steps) < FEWEST or np.linalg.matrix_rank(x) < 3:
        return None
    inverse = np.linalg.inv(x.T @ x)
    coefficients = inverse @ x.T @ y
    residuals, freedom = y - x @ coefficients, len(y) - 3
    variance = float(residuals @ residuals) / freedom
    quantile = float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom))
    half = quantile * np.sqrt(variance * np.diag(inverse))
    harshest = np.array([1.0, min(BITS) / max(BITS), max(s.choice.sparsity for s in steps)])
    worst = float(harshest @ coefficients + quantile * np.sqrt(variance * (harshest @ inverse @ harshest)))
    spread = float(((y - y.mean()) ** 2).sum())
    r2 = 1 - float(residuals @ residuals) / spread if spread > 0 else 1.0
    return Regression(_tuple(coefficients), _tuple(coefficients - half), _tuple(coefficients + half), r2, len(y), worst)


def _tuple(values: NDArray[np.float64]) -> tuple[float, ...]:
    return tuple(float(v) for v in values)


def insensitive_layers(steps: Sequence[Step], layers: int, tolerance: float) -> list[int]:
    """Layers whose data shows that even the harshest choice takes less than ``tolerance`` of the accuracy.

    :param tolerance: student over teacher
    """
    found = []
    for layer in range(layers):
        fitted = regress([s for s in steps if s.layer == layer])
        if fitted is not None and fitted.worst < tolerance:
            found.append(layer)
    return found
