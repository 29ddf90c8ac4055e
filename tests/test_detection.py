"""Detections and their mAP against torchvision's own forward pass from images to boxes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.models.detection import FCOS

from detectors.coco import CocoSplit, make_batch
from detectors.detection import detect, evaluate_detector
from detectors.fcos import build_fcos, fcos_stages, run_stages
from detectors.metric import quiet_coco

SIZES = ((64, 64), (64, 90), (80, 64))  # the shorter side is min_size: neither side resizes


@pytest.fixture(scope="module")
def detector() -> FCOS:
    torch.manual_seed(0)
    return build_fcos(5, width=0.25, level_scale=0.25, min_size=64, max_size=96).eval()


def _pictures(sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
    """Random images (3, H, W) uint8."""
    generator = torch.Generator().manual_seed(2)
    return [torch.randint(0, 256, (3, h, w), dtype=torch.uint8, generator=generator) for h, w in sizes]


@torch.no_grad()
def _torchvision_detections(model: FCOS, pictures: list[Tensor]) -> list[dict[str, Tensor]]:
    return model([picture.float() / 255 for picture in pictures])


@torch.no_grad()
def test_detect_equals_torchvisions_forward(detector: FCOS) -> None:
    pictures = _pictures(SIZES)
    batch = make_batch(pictures, [{}] * len(pictures), [1, 2, 3])
    assert batch.images.shape == (3, 3, 96, 96) and batch.image_sizes == SIZES
    state = run_stages(fcos_stages(detector), {"images": batch.images})
    found = detect(detector, state, batch.image_sizes, (96, 96))
    for own, expected in zip(found, _torchvision_detections(detector, pictures), strict=True):
        assert own.keys() == expected.keys()
        assert len(own["boxes"]) > 0
        assert all(torch.equal(own[key], expected[key]) for key in own)


def test_a_detector_scores_full_marks_on_its_own_detections(detector: FCOS, monkeypatch: pytest.MonkeyPatch) -> None:
    """Categories 10, 20, ... and originals twice as large: everything must be mapped back to score."""
    monkeypatch.setattr("detectors.detection.EVALUATION_BATCH", 2)  # so that the last batch is not full
    pictures = dict(enumerate(_pictures([(64, 96)] * 3), start=1))  # unpadded: no boxes of zero area
    annotations: list[dict[str, Any]] = []
    for image_id, found in zip(pictures, _torchvision_detections(detector, list(pictures.values())), strict=True):
        for (x0, y0, x1, y1), label in zip(found["boxes"].tolist(), found["labels"].tolist(), strict=True):
            box = [2 * x0, 2 * y0, 2 * (x1 - x0), 2 * (y1 - y0)]
            row = {"id": len(annotations) + 1, "image_id": image_id, "category_id": 10 * (label + 1), "bbox": box}
            annotations.append({**row, "area": box[2] * box[3], "iscrowd": 0})
    images = [{"id": image_id, "height": 128, "width": 192, "file_name": ""} for image_id in pictures]
    labels = {10 * (label + 1): label for label in range(5)}
    categories = [{"id": category, "name": str(label)} for category, label in labels.items()]
    truth = quiet_coco({"images": images, "annotations": annotations, "categories": categories})
    split = CocoSplit(Path(), truth, labels, min_size=64, max_size=96)
    monkeypatch.setattr(split, "_pixels", pictures)
    assert evaluate_detector(detector, split) == pytest.approx(1.0, abs=1e-12)
