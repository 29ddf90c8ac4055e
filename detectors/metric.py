"""COCO mean average precision: through pycocotools, or through faster-coco-eval where every step asks for it."""

import contextlib
import copy
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from faster_coco_eval.core import coco as quick_coco
from faster_coco_eval.core.faster_eval_api import COCOeval_faster
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
        return _mean_precision(COCOeval(truth, truth.loadRes(list(detections)), "bbox"), image_ids)


class QuickMAP:
    """``mean_average_precision`` for many sets of detections against one ground truth, through faster-coco-eval.

    The same figure within 1e-15 in half the time (a test compares them): pycocotools adds the smallest float to each
    denominator, so that a first correct detection counts 1 - 2e-16. What is published comes from pycocotools.

    :param truth: ground truth
    :param image_ids: the images that count
    """

    def __init__(self, truth: COCO, image_ids: Sequence[int]) -> None:
        self._truth = quick_coco.COCO(copy.deepcopy(truth.dataset), print_function=_silent)
        self._image_ids = list(image_ids)

    def __call__(self, detections: Sequence[dict[str, Any]]) -> float:
        """:param detections: as ``mean_average_precision`` takes them"""
        if not detections:
            return 0.0
        found = self._truth.loadRes([dict(row) for row in detections])
        return _mean_precision(COCOeval_faster(self._truth, found, "bbox", print_function=_silent), self._image_ids)


def _silent(*_: Any) -> None:
    pass


def _mean_precision(evaluation: Any, image_ids: Sequence[int]) -> float:
    evaluation.params.imgIds = list(image_ids)
    evaluation.params.areaRng = [[0, 1e10]]
    evaluation.params.areaRngLbl = ["all"]
    evaluation.params.maxDets = [100]
    evaluation.evaluate()
    evaluation.accumulate()
    precision = evaluation.eval["precision"]  # (IoU thresholds, recalls, categories, areas, maxDets)
    counted = precision[precision > -1]
    return float(np.mean(counted)) if counted.size else float("nan")
