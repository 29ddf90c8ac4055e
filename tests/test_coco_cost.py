"""What the costs of a search on COCO are derived from."""

import pytest

from benchmarks.coco_cost import IMAGES, Speed, hours, passes


def test_passes_by_hand() -> None:
    """Ten layers with twelve choices: 2 minibatches of 8 a step, 300 steps at length for two finalists and two more."""
    parts = passes(10, 12, 70, {**IMAGES, "calibration": 4, "search": 20, "test": 100})
    assert parts["tables"] == {"forward": 2 * 120 * 4, "training": 120 * 16}
    assert parts["search"] == {"forward": (1 + 70) * 20, "training": 70 * 16}
    assert parts["fine-tuning"] == {"forward": 2 * 2 * 20, "training": 4 * 300 * 8}
    assert parts["test"] == {"forward": 6 * 100, "training": 0}


def test_hours_follow_from_the_speed() -> None:
    parts = {"tables": {"forward": 3600, "training": 7200}, "test": {"forward": 1800, "training": 0}}
    assert hours(parts, Speed(0.5, 2.0)) == pytest.approx({"tables": 4.5, "test": 0.25})
