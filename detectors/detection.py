"""mAP of detections that were made batch by batch, and of a detector."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from detectors.architecture import architecture_of
from detectors.coco import CocoSplit
from detectors.metric import mean_average_precision
from detectors.stages import run_stages

EVALUATION_BATCH = 16


def detections_map(
    split: CocoSplit, image_ids: Sequence[Sequence[int]], detections: Sequence[Sequence[dict[str, Tensor]]]
) -> float:
    """mAP@[.50:.95] of detections that were made batch by batch.

    :param image_ids: of every batch
    """
    return mean_average_precision(split.truth, coco_rows(split, image_ids, detections), split.image_ids)


def coco_rows(
    split: CocoSplit, image_ids: Sequence[Sequence[int]], detections: Sequence[Sequence[dict[str, Tensor]]]
) -> list[dict[str, Any]]:
    """Detections that were made batch by batch as COCO results.

    :param image_ids: of every batch
    """
    return [
        row
        for ids, found in zip(image_ids, detections, strict=True)
        for image_id, detection in zip(ids, found, strict=True)
        for row in split.to_coco(image_id, detection)
    ]


@torch.no_grad()
def evaluate_detector(model: nn.Module, split: CocoSplit) -> float:
    """mAP@[.50:.95] of a detector in evaluation mode on a whole split."""
    architecture = architecture_of(model)
    stages = architecture.stages(model)
    device = next(model.parameters()).device
    chunks, found = split.chunks(EVALUATION_BATCH), []
    for ids in chunks:
        batch = split.batch(ids)
        state = run_stages(stages, {"images": batch.images.to(device)})
        padded = (batch.images.shape[2], batch.images.shape[3])
        found.append(architecture.detect(state, batch.image_sizes, padded))
    return detections_map(split, chunks, found)
