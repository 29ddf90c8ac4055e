"""Settings of teachers of one's own data."""

import pytest

from agents.teachers import level_scale_for


@pytest.mark.parametrize(
    ("size", "scale"), [(800, 1.0), (600, 1.0), (400, 1.0), (256, 0.5), (160, 0.25), (128, 0.25), (64, 0.125)]
)
def test_level_scale_is_the_nearest_power_of_two(size: int, scale: float) -> None:
    assert level_scale_for(size) == scale
