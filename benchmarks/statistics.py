"""What a comparison over a few seeds says: interquartile means and their bootstrap intervals."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats


def interquartile_mean(values: Any, axis: int = -1) -> Any:
    """The mean of the middle half (Agarwal et al. 2021, arXiv 2108.13264, section 4.3)."""
    return stats.trim_mean(values, 0.25, axis=axis)


def interval(values: Sequence[float]) -> list[float]:
    """The 95 % percentile bootstrap interval of the interquartile mean; the range of fewer than three values."""
    sample = np.array(values)
    low, high = float(sample.min()), float(sample.max())
    if len(sample) < 3 or low == high:
        return [low, high]
    found = stats.bootstrap(
        (sample,), interquartile_mean, method="percentile", n_resamples=9999, rng=np.random.default_rng(0)
    ).confidence_interval
    return [float(found.low), float(found.high)]
