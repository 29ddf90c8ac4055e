"""Accuracy between no network and the teacher."""

import math
from typing import Any

import pytest
from tiny_task import TinyTask

from detectors.errors import InputError
from hsq_env.accuracy import Scale, scale_of, untreated_metric
from hsq_env.env import HSQEnv


class Improving(TinyTask):
    """The tiny task, whose images score something before any network."""

    def __init__(self, tiny: TinyTask, untreated: float) -> None:
        self.__dict__.update(tiny.__dict__)
        self.untreated = untreated

    def untreated_metric(self, split: str) -> float:
        return self.untreated


def test_from_nothing_to_the_teacher() -> None:
    scale = Scale(30.0, 20.0)
    assert [scale.accuracy(m) for m in (20.0, 25.0, 30.0, 31.0)] == pytest.approx([0.0, 0.5, 1.0, 1.1])
    assert scale.accuracy(15.0) == 0.0 and math.isnan(scale.accuracy(math.nan))
    assert Scale(0.8).accuracy(0.6) == pytest.approx(0.75)
    for teacher, untreated in ((19.0, 20.0), (20.0, 20.0), (0.0, 0.0), (math.nan, 0.0)):
        with pytest.raises(InputError, match="scores"):
            Scale(teacher, untreated)


def test_steps_count_from_what_images_score_untreated(tiny: TinyTask) -> None:
    half = Improving(tiny, 0.5)
    assert untreated_metric(tiny, "search") == 0.0 and untreated_metric(half, "search") == 0.5
    seen: list[Any] = []
    for task in (tiny, half):
        env = HSQEnv(task)
        env.reset()
        seen.append(
            env.step(0)[4]["accuracy"] * (env.compressor.judge.scale.teacher - env.compressor.judge.scale.untreated)
        )
    assert seen[1] == pytest.approx(max(0.0, seen[0] - 0.5))


def test_a_teacher_no_better_than_no_network_is_refused(tiny: TinyTask) -> None:
    with pytest.raises(InputError, match=r"'tiny' scores 20 and images as they come 20\.5 on the test split: "):
        scale_of(Improving(tiny, 20.5), "test", 20.0)
    with pytest.raises(InputError, match="'tiny' scores 0 on the test split: train it further"):
        scale_of(tiny, "test", 0.0)
