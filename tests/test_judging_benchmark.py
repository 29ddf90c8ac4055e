"""The bookkeeping of the comparison of judges."""

from typing import Any

import pytest

import benchmarks.judging as judging


def row(target: str, weights: tuple[float, ...], seed: int, score: float) -> dict[str, Any]:
    return {"target": target, "weights": list(weights), "seed": seed, "map": score, "teacher_map": 0.75}


def test_runs_are_known_by_their_weights() -> None:
    planned = judging.plan_of()
    assert len(set(planned)) == len(planned) == judging.SEEDS * len(judging.TARGETS) * len(judging.WEIGHTINGS)
    first = planned[0]
    assert judging.done([row(first.target, first.weights, first.seed, 0.7)]) == {first}


def test_points_lost_are_means_over_seeds() -> None:
    one, other = judging.WEIGHTINGS[:2]
    rows = [row("14", one, 0, 0.70), row("14", one, 1, 0.72), row("14", other, 0, 0.69), row("14", (9.0,) * 4, 0, 0.1)]
    found = judging.summary(rows)
    assert list(found["points_lost"]) == ["14"]
    assert list(found["points_lost"]["14"].values()) == pytest.approx([4.0, 6.0])
    assert found["left"] == len(judging.plan_of()) - 3  # weights that are compared no longer do not count
