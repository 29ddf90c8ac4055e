"""From FCOS's raw outputs to detections in two halves, of which the first waits for no device."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.models.detection import FCOS
from torchvision.ops import batched_nms

from detectors.architecture import anchors_of, places_of
from detectors.stages import State


@dataclass(frozen=True)
class Candidates:
    """Every location of a batch as a possible detection of every class.

    :param scores: (N, L, classes), as torchvision's FCOS scores them
    :param boxes: (N, L, 4) in resized pixels, clipped to the image
    :param per_level: locations of each pyramid level, which sum to L
    """

    scores: Tensor
    boxes: Tensor
    per_level: tuple[int, ...]


@torch.no_grad()
def candidates(
    model: FCOS, state: State, image_sizes: Sequence[tuple[int, int]], padded: tuple[int, int]
) -> Candidates:
    """The first half of ``FCOSArchitecture.detect``, for all images at once and without waiting for the device.

    :param state: of the last stage of ``fcos_stages``
    :param image_sizes: (height, width) of each image without padding
    :param padded: (height, width) of the batch
    """
    features, logits, centerness = state["features"], state["cls_logits"], state["bbox_ctrness"]
    per_level = tuple(places_of(features))
    anchors = anchors_of(model.anchor_generator, features, [padded], padded)[0]  # (L, 4), the same for all images
    scores = torch.sqrt(_sigmoid(logits, per_level) * _sigmoid(centerness, per_level))
    boxes = model.box_coder.decode(state["bbox_regression"], anchors.expand(logits.shape[0], -1, -1))
    height, width = (
        torch.tensor(sides, dtype=boxes.dtype, device=boxes.device).reshape(-1, 1)
        for sides in zip(*image_sizes, strict=True)
    )
    x, y = boxes[..., 0::2], boxes[..., 1::2]
    x, y = (torch.minimum(v.clamp(min=0), side[..., None]) for v, side in ((x, width), (y, height)))
    return Candidates(scores, torch.stack((x, y), dim=-1).flatten(-2), per_level)


def _sigmoid(x: Tensor, per_level: Sequence[int]) -> Tensor:
    """Sigmoid of (N, L, D), image by image and level by level.

    On a CPU the last few elements of a tensor go another way and may differ in the last bit, so that only the same
    pieces give torchvision's very scores.
    """
    if x.device.type != "cpu":
        return x.sigmoid()
    result = torch.empty_like(x)
    for image, into in zip(x, result, strict=True):
        for piece, place in zip(image.split(per_level), into.split(per_level), strict=True):
            torch.sigmoid(piece, out=place)
    return result


@torch.no_grad()
def detections(model: FCOS, found: Candidates) -> list[dict[str, Tensor]]:
    """The second half of it, on the CPU: threshold, the best of each level, non-maximum suppression.

    :return: exactly what it gives
    """
    images, _, classes = found.scores.shape
    scores, boxes = found.scores.cpu().reshape(images, -1), found.boxes.cpu()
    image, place = torch.where(scores > model.score_thresh)  # in order of image, level, location, class
    kept = scores[image, place]
    ends = torch.tensor(found.per_level).cumsum(0) * classes
    level = torch.bucketize(place, ends, right=True)
    levels = len(found.per_level)
    counts = torch.bincount(image * levels + level, minlength=images * levels).tolist()
    picked, at = [], 0
    for count in counts:
        if count:  # torchvision's order among equal scores is that of this very call
            picked.append(at + kept[at : at + count].topk(min(count, model.topk_candidates)).indices)
        at += count
    order = torch.cat(picked) if picked else torch.zeros(0, dtype=torch.int64)
    image, place, kept = image[order], place[order], kept[order]
    found_boxes, labels = boxes[image, torch.div(place, classes, rounding_mode="floor")], place % classes
    per_image = torch.bincount(image, minlength=images).tolist()
    pieces = zip(found_boxes.split(per_image), kept.split(per_image), labels.split(per_image), strict=True)
    return [_suppressed(model, *piece) for piece in pieces]


def _suppressed(model: FCOS, boxes: Tensor, scores: Tensor, labels: Tensor) -> dict[str, Tensor]:
    keep = batched_nms(boxes, scores, labels, model.nms_thresh)[: model.detections_per_img]
    return {"boxes": boxes[keep], "scores": scores[keep], "labels": labels[keep]}
