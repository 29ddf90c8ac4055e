"""What the teacher and a compressed restorer make of the same test images, and where SPARK's policy looks."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from agents.report.data_uri import data_uri, grey_or_color, heat
from detectors.progress import each
from detectors.stages import run_stages
from hsq_env.distillation.spark import Spark
from hsq_env.lessons import error_maps
from restorers.metric import psnr
from restorers.task import RestorationTask

SIDE = 96  # pixels of a crop of the restored image
SHOWN = 192  # pixels of a longer side on the page
BRIGHTEST = 16 / 255  # error that is shown as brightest


@dataclass(frozen=True)
class Crop:
    """A piece of a test image.

    :param pictures: title and data URI of each
    :param teacher: its PSNR in dB, of the crop, measured as the task does
    :param student: likewise
    """

    pictures: tuple[tuple[str, str], ...]
    teacher: float
    student: float


@torch.no_grad()
def compare(task: RestorationTask, student: nn.Module, count: int, spark: Spark | None = None) -> list[Crop]:
    """A crop of each of the test images on which teacher and student differ most, the most different first.

    :param student: on the task's device
    :param count: of images to show
    :param spark: the policy of the run; its weight map, of the whole image, is shown beside the crop
    """
    ways = [task.stages(task.teacher), task.stages(student)]
    found: list[tuple[float, int]] = []
    batches = task.evaluation("test")
    for index, batch in enumerate(each(batches, "test images")):
        ours, theirs = (run_stages(stages, {"images": batch.images})["restored"] for stages in ways)
        found.append((float((ours - theirs).square().mean()), index))
    chosen = sorted(found, key=lambda pair: (-pair[0], pair[1]))[:count]
    return [_crop(task, ways, batches[index], spark) for _, index in chosen]


def _crop(task: RestorationTask, ways: Sequence[Any], batch: Any, spark: Spark | None) -> Crop:
    outputs = [run_stages(stages, {"images": batch.images}) for stages in ways]
    ((teacher, clean),), ((student, _),) = (task.predictions(own, batch) for own in outputs)
    top, left = _most_different(np.abs(teacher - student))
    window = (slice(top, top + SIDE), slice(left, left + SIDE))
    crops = {"teacher": teacher[window], "student": student[window], "clean image": clean[window]}
    error = np.abs(crops["student"] - crops["clean image"])
    pictures = [(name, _shown(grey_or_color(crop))) for name, crop in crops.items()]
    gray = error.mean(axis=-1) if error.ndim == 3 else error
    pictures.append((f"student's error, brightest from {255 * BRIGHTEST:.0f} of 255", _shown(heat(gray, 0, BRIGHTEST))))
    if spark is not None:
        weights = _weights(task, outputs, batch, spark)
        low, high = float(weights.min()), float(weights.max())
        title = f"weights of the policy on the whole image, {low:.2f} to {high:.2f}"
        pictures.append((title, _shown(heat(weights, low, high))))
    values = [psnr(crops[name], crops["clean image"], **task.compared()) for name in ("teacher", "student")]
    return Crop(tuple(pictures), *values)


def _most_different(difference: NDArray[np.floating]) -> tuple[int, int]:
    """Top and left of the window in which a map (H, W) or (H, W, C) sums to most."""
    gray = difference.mean(axis=-1) if difference.ndim == 3 else difference
    sums = np.pad(gray, ((1, 0), (1, 0))).cumsum(axis=0).cumsum(axis=1)
    height, width = min(SIDE, gray.shape[0]), min(SIDE, gray.shape[1])
    windows = sums[height:, width:] - sums[:-height, width:] - sums[height:, :-width] + sums[:-height, :-width]
    top, left = np.unravel_index(int(windows.argmax()), windows.shape)
    return int(top), int(left)


def _weights(task: RestorationTask, outputs: Sequence[Any], batch: Any, spark: Spark) -> NDArray[np.floating]:
    """(grid, grid), mean 1."""
    teacher, student = (task.distilled(own) for own in outputs)
    signals = spark.signals(batch.images, error_maps(task, outputs[1], batch), student, teacher)
    return np.asarray(spark.means(signals)[0].cpu().numpy(), dtype=np.float64)


def _shown(picture: Any) -> str:
    scale = SHOWN / max(picture.size)
    return data_uri(picture.resize([round(scale * side) for side in picture.size], resample=0))
