"""FCOS's loss in two halves: which location is to find which object, and what the outputs make of it.

The first half depends on the ground truth alone. torchvision computes both together and reads counts back from the
device; with the first half kept, the second one is shorter and waits for nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.models.detection import FCOS
from torchvision.ops import sigmoid_focal_loss

SMALLEST_AREA = 1e-7  # torchvision's


@dataclass(frozen=True)
class Assignment:
    """What the locations of a batch are to find.

    :param classes: (N, L, classes), 1 where an object of a class is to be found
    :param locations: indices into N * L of the locations that are to find an object, (K,)
    :param boxes: of those objects, (K, 4)
    :param anchors: of those locations, (K, 4)
    :param centerness: that those locations are to report, (K,) in [0, 1]
    """

    classes: Tensor
    locations: Tensor
    boxes: Tensor
    anchors: Tensor
    centerness: Tensor


@torch.no_grad()
def assign(
    model: FCOS, targets: Sequence[dict[str, Tensor]], anchors: Sequence[Tensor], per_level: Sequence[int]
) -> Assignment:
    """Match locations to objects as torchvision's FCOS does.

    :param targets: per image ``boxes`` (M, 4) and ``labels`` (M,)
    :param anchors: per image (L, 4)
    :param per_level: locations of each pyramid level, which sum to L
    """
    matched = torch.stack(_matches(model, targets, anchors, per_level))  # (N, L), -1 for background
    classes = torch.zeros(*matched.shape, model.head.classification_head.num_classes, device=matched.device)
    boxes, labels, places = [], [], []
    for image, (target, found) in enumerate(zip(targets, matched, strict=True)):
        place = torch.where(found >= 0)[0]
        boxes.append(target["boxes"][found[place]])
        labels.append(target["labels"][found[place]])
        places.append(place + image * matched.shape[1])
    locations, to_find = torch.cat(places), torch.cat(boxes)
    classes.flatten(0, 1)[locations, torch.cat(labels)] = 1.0
    own = torch.stack(list(anchors)).flatten(0, 1)[locations]
    sides = model.box_coder.encode(own, to_find)  # left, top, right, bottom
    nearer = torch.minimum(sides[:, :2], sides[:, 2:])
    farther = torch.maximum(sides[:, :2], sides[:, 2:])
    return Assignment(classes, locations, to_find, own, torch.sqrt((nearer / farther).prod(dim=1)))


def _matches(
    model: FCOS, targets: Sequence[dict[str, Tensor]], anchors: Sequence[Tensor], per_level: Sequence[int]
) -> list[Tensor]:
    """torchvision matches within its loss and hands the matches to its head: here a stand-in takes them."""
    taken: list[list[Tensor]] = []

    def take(targets: Any, outputs: Any, anchors: Any, matched: list[Tensor]) -> None:
        taken.append(matched)

    head = SimpleNamespace(compute_loss=take)
    stand_in: Any = SimpleNamespace(center_sampling_radius=model.center_sampling_radius, head=head)
    FCOS.compute_loss(stand_in, list(targets), {}, list(anchors), list(per_level))
    return taken[0]


def generalized_iou(one: Tensor, other: Tensor) -> Tensor:
    """Generalized intersection over union of pairs of boxes (Rezatofighi et al. 2019, arXiv 1902.09630, algorithm 1).

    torchvision's loss picks the boxes that overlap by a mask, whose length has to be read back from the device.

    :param one: (K, 4) as (x0, y0, x1, y1)
    :param other: (K, 4)
    :return: (K,) in [-1, 1]
    """

    def sides(corner: Tensor, opposite: Tensor) -> tuple[Tensor, ...]:
        return (opposite - corner).unbind(dim=1)

    width, height = sides(torch.maximum(one[:, :2], other[:, :2]), torch.minimum(one[:, 2:], other[:, 2:]))
    shared = width.clamp(min=0) * height.clamp(min=0)
    # products by hand: the gradient of prod() would look for zeros
    (w, h), (v, g) = sides(one[:, :2], one[:, 2:]), sides(other[:, :2], other[:, 2:])
    union = w * h + v * g - shared
    width, height = sides(torch.minimum(one[:, :2], other[:, :2]), torch.maximum(one[:, 2:], other[:, 2:]))
    hull = width * height
    return shared / (union + SMALLEST_AREA) - (hull - union) / (hull + SMALLEST_AREA)


def classification_error(outputs: dict[str, Tensor], assignment: Assignment) -> Tensor:
    """The focal loss of every location, summed over classes.

    :return: (N, L)
    """
    return sigmoid_focal_loss(outputs["cls_logits"], assignment.classes, reduction="none").sum(dim=-1)


def assigned_loss(model: FCOS, outputs: dict[str, Tensor], assignment: Assignment) -> Tensor:
    """The sum of torchvision's three FCOS losses.

    :param outputs: ``cls_logits (N, L, classes)``, ``bbox_regression (N, L, 4)``, ``bbox_ctrness (N, L, 1)``
    :return: a scalar
    """
    objects = max(1, len(assignment.locations))
    classification = sigmoid_focal_loss(outputs["cls_logits"], assignment.classes, reduction="sum")
    sides = outputs["bbox_regression"].flatten(0, 1)[assignment.locations]
    found = model.box_coder.decode(sides, assignment.anchors)
    boxes = (1 - generalized_iou(found, assignment.boxes)).sum()
    centerness = F.binary_cross_entropy_with_logits(
        outputs["bbox_ctrness"].flatten()[assignment.locations], assignment.centerness, reduction="sum"
    )
    return torch.stack([classification, boxes, centerness]).sum() / objects
