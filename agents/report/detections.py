"""What the teacher and a compressed detector find on the same test images, those where they differ most first."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.ops import box_iou

from agents.report.data_uri import data_uri
from detectors.batches import Preparation
from detectors.progress import each
from detectors.stages import run_stages
from detectors.task import DetectionTask

SHOWN_SCORE = 0.3  # detections below are not drawn, but found they are
SAME_PLACE = 0.5  # intersection over union from which two boxes are of one object
LARGEST = 480  # pixels of the longer side of an image in the page


@dataclass(frozen=True)
class Box:
    """A detection.

    :param left: as the other three, in pixels of the image in the page
    :param other: the other network's score for the same object; None where it found none
    """

    label: str
    score: float
    left: float
    top: float
    width: float
    height: float
    other: float | None


@dataclass(frozen=True)
class Pair:
    """An image with what both found.

    :param image: as a data URI
    :param difference: see ``difference_of``
    """

    image: str
    width: int
    height: int
    teacher: tuple[Box, ...]
    student: tuple[Box, ...]
    difference: float


Found = dict[str, Tensor]  # boxes (K, 4), scores (K,), labels (K,)


def agreement(teacher: Found, student: Found) -> list[tuple[int, int]]:
    """Which detections are of one object: the same label and overlapping, the surest first, each at most once.

    :return: pairs of indices
    """
    overlaps = box_iou(teacher["boxes"], student["boxes"])
    overlaps = overlaps * (teacher["labels"][:, None] == student["labels"][None])
    pairs: list[tuple[int, int]] = []
    free = set(range(len(student["scores"])))
    for i in teacher["scores"].argsort(descending=True, stable=True).tolist():
        fitting = [j for j in free if overlaps[i, j] >= SAME_PLACE]
        if fitting:
            best = max(fitting, key=lambda j: (float(overlaps[i, j]), -j))
            free.remove(best)
            pairs.append((i, best))
    return pairs


def difference_of(teacher: Found, student: Found, pairs: Sequence[tuple[int, int]]) -> float:
    """What the scores of one object differ by, summed, and the scores of what only one found.

    Only what at least one of them is sure of counts (``SHOWN_SCORE``).
    """
    scores = [found["scores"].tolist() for found in (teacher, student)]
    taken = [{i for i, _ in pairs}, {j for _, j in pairs}]
    alone = [s for own, known in zip(scores, taken, strict=True) for i, s in enumerate(own) if i not in known]
    both = [(scores[0][i], scores[1][j]) for i, j in pairs]
    return sum(s for s in alone if s >= SHOWN_SCORE) + sum(abs(a - b) for a, b in both if max(a, b) >= SHOWN_SCORE)


@torch.no_grad()
def compare(task: DetectionTask, student: nn.Module, count: int) -> list[Pair]:
    """The test images on which teacher and student differ most, the most different first; those alike left out.

    :param student: on the task's device
    :param count: of images to show
    """
    pairs: list[Pair] = []
    ways = [task.stages(task.teacher), task.stages(student)]
    for batch in each(task.evaluation("test"), "test images"):
        found = [task.predictions(run_stages(stages, {"images": batch.images}), batch) for stages in ways]
        for i, size in enumerate(batch.image_sizes):
            teacher, compressed = ({name: own[i][name].cpu() for name in own[i]} for own in found)
            agreed = agreement(teacher, compressed)
            difference = difference_of(teacher, compressed, agreed)
            if difference > (pairs[-1].difference if len(pairs) == count else 0.0):
                picture = _picture(batch.images[i], size, task.spec.preparation)
                pairs.append(_pair(picture, size, (teacher, compressed), agreed, difference, task.spec.classes))
                pairs = sorted(pairs, key=lambda pair: -pair.difference)[:count]
    return pairs


def _picture(image: Tensor, size: tuple[int, int], preparation: Preparation) -> Image.Image:
    """A prepared image (3, H, W) as it was, without its padding."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (preparation.mean, preparation.std))
    pixels = (image[:, : size[0], : size[1]].cpu() * std + mean).clamp(0, 1) * 255
    return Image.fromarray(pixels.round().byte().permute(1, 2, 0).contiguous().numpy())


def _pair(
    picture: Image.Image,
    size: tuple[int, int],
    found: Sequence[Found],
    agreed: Sequence[tuple[int, int]],
    difference: float,
    classes: Sequence[str],
) -> Pair:
    shrink = min(1.0, LARGEST / max(size))
    height, width = (round(side * shrink) for side in size)
    others: list[dict[int, float]] = [
        {i: float(found[1]["scores"][j]) for i, j in agreed},
        {j: float(found[0]["scores"][i]) for i, j in agreed},
    ]
    teacher, student = (_boxes(own, both, shrink, classes) for own, both in zip(found, others, strict=True))
    return Pair(data_uri(picture.resize((width, height)), "JPEG"), width, height, teacher, student, difference)


def _boxes(found: Found, others: dict[int, float], shrink: float, classes: Sequence[str]) -> tuple[Box, ...]:
    """What it is sure of."""
    return tuple(
        Box(
            classes[int(found["labels"][i])],
            float(found["scores"][i]),
            shrink * left,
            shrink * top,
            shrink * (right - left),
            shrink * (bottom - top),
            others.get(i),
        )
        for i, (left, top, right, bottom) in enumerate(found["boxes"].tolist())
        if found["scores"][i] >= SHOWN_SCORE
    )
