"""Detections and their mAP against torchvision's own forward pass from images to boxes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.models.detection import FCOS

from detectors.batches import make_batch
from detectors.coco import CocoSplit
from detectors.detection import evaluate_detector
from detectors.fcos import FCOSArchitecture, build_fcos, fcos_stages
from detectors.fcos_detections import candidates, detections
from detectors.metric import quiet_coco
from detectors.stages import run_stages

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
    found = FCOSArchitecture(detector).detect(state, batch.image_sizes, (96, 96))
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


# ---- all images at once


@pytest.fixture(scope="module")
def heads() -> dict[int, FCOS]:
    """Post-processing for 1, 5 and 12 classes; only their settings count."""
    return {classes: build_fcos(classes, width=0.25, level_scale=0.25, score_thresh=0.1) for classes in (1, 5, 12)}


def _random_outputs(images: int, classes: int, padded: tuple[int, int], kind: str, seed: int) -> dict[str, Any]:
    """Raw outputs of a head on five levels: like a detector's, full of ties, silent, loud, or no numbers."""
    generator = torch.Generator().manual_seed(seed)
    sides = [(-(-padded[0] // 2**level), -(-padded[1] // 2**level)) for level in range(3, 8)]
    locations = sum(h * w for h, w in sides)

    def normal(*shape: int) -> Tensor:
        return torch.randn(images, locations, *shape, generator=generator)

    logits, centerness = 2 * normal(classes) - 3, normal(1)
    if kind == "ties":
        logits, centerness = logits.round(), centerness.round()
    if kind == "constant":
        logits, centerness = torch.full_like(logits, 2.0), torch.full_like(centerness, 50.0)
    if kind == "silent":
        logits -= 100
    if kind == "loud":
        logits += 10
    if kind == "not numbers":
        logits[normal(classes) > 1] = torch.nan
    boxes = (normal(4) + 1).relu()
    features = [torch.zeros(images, 1, h, w) for h, w in sides]
    return {"features": features, "cls_logits": logits, "bbox_ctrness": centerness, "bbox_regression": boxes}


@pytest.mark.parametrize("kind", ["plain", "ties", "constant", "silent", "loud", "not numbers"])
@pytest.mark.parametrize("classes", [1, 5, 12])
@pytest.mark.parametrize("sizes", [((64, 96),), ((64, 96), (50, 64), (64, 33), (1, 90)), ((32, 32),) * 5])
def test_all_images_at_once_give_torchvisions_detections(
    heads: dict[int, FCOS], kind: str, classes: int, sizes: tuple[tuple[int, int], ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    head = heads[classes]
    padded = (-(-max(h for h, _ in sizes) // 32) * 32, -(-max(w for _, w in sizes) // 32) * 32)
    found = 0
    for seed, (topk, most) in enumerate(((1000, 100), (7, 100), (1000, 3))):
        monkeypatch.setattr(head, "topk_candidates", topk)
        monkeypatch.setattr(head, "detections_per_img", most)
        state = _random_outputs(len(sizes), classes, padded, kind, seed)
        expected = FCOSArchitecture(head).detect(state, sizes, padded)
        some = detections(head, candidates(head, state, sizes, padded))
        assert len(some) == len(expected) == len(sizes)
        for one, other in zip(some, expected, strict=True):
            assert one.keys() == other.keys()
            assert all(torch.equal(one[key], other[key]) and one[key].dtype == other[key].dtype for key in one)
            found += len(one["scores"])
    assert (found == 0) == (kind == "silent")


@torch.no_grad()
def test_a_real_forward_pass_gives_the_same_detections(detector: FCOS) -> None:
    pictures = _pictures(SIZES)
    batch = make_batch(pictures, [{}] * len(pictures), [1, 2, 3])
    state = run_stages(fcos_stages(detector), {"images": batch.images})
    some = detections(detector, candidates(detector, state, batch.image_sizes, (96, 96)))
    for own, expected in zip(some, _torchvision_detections(detector, pictures), strict=True):
        assert len(own["boxes"]) > 0
        assert all(torch.equal(own[key], expected[key]) for key in own)
