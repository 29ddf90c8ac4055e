"""The front of two figures."""

import numpy as np
import pytest

from agents.pareto import pareto_front


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([], []),
        ([(1, 1)], [0]),
        ([(1, 3), (2, 2), (3, 1), (2, 1)], [0, 1, 2]),
        ([(2, 2), (1, 1), (2, 2)], [0, 2]),
        ([(1, 5), (1, 6), (0, 6)], [1]),
        ([(3, 1), (3, 0), (1, 1)], [0]),
    ],
)
def test_the_front(points: list[tuple[float, float]], expected: list[int]) -> None:
    assert pareto_front(points) == expected


def test_as_each_point_against_all_others() -> None:
    for points in np.random.default_rng(0).integers(0, 6, (50, 30, 2)).tolist():
        unbeaten = [
            i for i, (x, y) in enumerate(points) if not any(a >= x and b >= y and (a, b) != (x, y) for a, b in points)
        ]
        assert pareto_front([(x, y) for x, y in points]) == unbeaten
