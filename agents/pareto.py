"""What no other is both smaller and better than."""

from collections.abc import Sequence


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points that no other is at least as good as on both counts and better on one.

    Of points that are equal, all are in it or none.

    :param points: two figures each, higher is better
    """
    found: list[int] = []
    for i in sorted(range(len(points)), key=lambda i: points[i], reverse=True):
        if not found or points[i][1] > points[found[-1]][1] or points[i] == points[found[-1]]:
            found.append(i)
    return sorted(found)
