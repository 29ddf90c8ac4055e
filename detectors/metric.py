"""COCO mean average precision through pycocotools."""

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval


def quiet_coco(data: dict[str, Any]) -> COCO:
    """A pycocotools index over a dictionary in COCO's annotation format, without its printing."""
    coco = COCO()
    coco.dataset = data
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def mean_average_precision(truth: COCO, detections: Sequence[dict[str, Any]], image_ids: Sequence[int]) -> float:
    """mAP@[.50:.95] over all areas, at most 100 detections per image, as pycocotools' first summary line has it.

    :param truth: ground truth
    :param detections: dictionaries with ``image_id``, ``category_id``, ``bbox`` (x, y, width, height) and ``score``
    :param image_ids: the images that count
    :return: in [0, 1]; 0 when there are no detections, NaN when there are no ground-truth boxes
    """
    if not detections:
        return 0.0
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(truth, truth.loadRes(list(detections)), "bbox")
        evaluation.params.imgIds = list(image_ids)
        evaluation.params.areaRng = [[0, 1e10]]
        evaluation.params.areaRngLbl = ["all"]
        evaluation.params.maxDets = [100]
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"]  # (IoU thresholds, recalls, categories, areas, maxDets)
    counted = precision[precision > -1]
    return float(np.mean(counted)) if counted.size else float("nan")
