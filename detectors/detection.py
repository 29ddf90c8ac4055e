"""From raw outputs to detections, and from detections to mAP."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.models.detection import FCOS
from torchvision.models.detection.image_list import ImageList

from detectors.coco import Batch, CocoSplit
from detectors.fcos import State, fcos_stages, head_outputs, run_stages
from detectors.metric import mean_average_precision

EVALUATION_BATCH = 16


@torch.no_grad()
def detect(
    model: FCOS, state: State, image_sizes: Sequence[tuple[int, int]], padded: tuple[int, int]
) -> list[dict[str, Tensor]]:
    """torchvision's post-processing of a final state.

    :param state: of the last stage of ``fcos_stages``
    :param image_sizes: (height, width) of each image without padding
    :param padded: (height, width) of the batch
    :return: per image ``boxes`` (K, 4) in resized pixels, ``scores`` (K,), ``labels`` (K,)
    """
    features = state["features"]
    images = ImageList(features[0].new_empty((len(image_sizes), 3, *padded)), list(image_sizes))
    anchors = model.anchor_generator(images, features)
    per_level = [x.shape[2] * x.shape[3] for x in features]
    outputs = {name: list(value.split(per_level, dim=1)) for name, value in head_outputs(state).items()}
    return model.postprocess_detections(outputs, [list(a.split(per_level)) for a in anchors], list(image_sizes))


def detections_map(
    split: CocoSplit, batches: Sequence[Batch], detections: Sequence[Sequence[dict[str, Tensor]]]
) -> float:
    """mAP@[.50:.95] of detections that were made batch by batch."""
    rows = [
        row
        for batch, found in zip(batches, detections, strict=True)
        for image_id, detection in zip(batch.image_ids, found, strict=True)
        for row in split.to_coco(image_id, detection)
    ]
    return mean_average_precision(split.truth, rows, split.image_ids)


@torch.no_grad()
def evaluate_detector(model: FCOS, split: CocoSplit) -> float:
    """mAP@[.50:.95] of a detector in evaluation mode on a whole split."""
    stages = fcos_stages(model)
    device = next(model.parameters()).device
    batches, found = [], []
    for start in range(0, len(split), EVALUATION_BATCH):
        batch = split.batch(split.image_ids[start : start + EVALUATION_BATCH])
        state = run_stages(stages, {"images": batch.images.to(device)})
        found.append(detect(model, state, batch.image_sizes, (batch.images.shape[2], batch.images.shape[3])))
        batches.append(Batch(torch.empty(0), batch.image_sizes, batch.image_ids, ()))
    return detections_map(split, batches, found)
