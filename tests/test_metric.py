"""Mean average precision against pycocotools' own full evaluation."""

import copy
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detectors.metric import QuickMAP, mean_average_precision, quiet_coco

IMAGES = 12
CATEGORIES = (3, 7, 90)


def _random_box(rng: np.random.Generator) -> list[float]:
    x, y, width, height = rng.uniform([0, 0, 4, 4], [300, 300, 200, 200])
    return [float(x), float(y), float(width), float(height)]


def _random_truth(rng: np.random.Generator) -> COCO:
    annotations: list[dict[str, Any]] = []
    for image_id in range(1, IMAGES):  # the last image holds nothing
        for _ in range(rng.integers(1, 9)):
            box = _random_box(rng)
            row = {"image_id": image_id, "category_id": int(rng.choice(CATEGORIES)), "bbox": box}
            crowd = int(rng.random() < 0.1)
            annotations.append({**row, "id": len(annotations) + 1, "area": box[2] * box[3], "iscrowd": crowd})
    images = [{"id": i, "width": 512, "height": 512, "file_name": f"{i}.png"} for i in range(1, IMAGES + 1)]
    categories = [{"id": c, "name": f"class {c}"} for c in CATEGORIES]
    return quiet_coco({"images": images, "annotations": annotations, "categories": categories})


def _random_detections(rng: np.random.Generator, truth: COCO) -> list[dict[str, Any]]:
    """Jittered true boxes with some wrong classes, and for one image and class more boxes than the limit of 100."""
    rows = []
    for annotation in truth.dataset["annotations"]:
        if rng.random() < 0.8:
            box = np.array(annotation["bbox"]) * rng.uniform(0.9, 1.1, 4)
            category = annotation["category_id"] if rng.random() < 0.8 else int(rng.choice(CATEGORIES))
            rows.append({"image_id": annotation["image_id"], "category_id": category, "bbox": box.tolist()})
    for i in range(250):
        image_id, category = (2, 3) if i < 150 else (int(rng.integers(1, IMAGES + 1)), int(rng.choice(CATEGORIES)))
        rows.append({"image_id": image_id, "category_id": category, "bbox": _random_box(rng)})
    return [{**row, "score": round(float(rng.random()), 2)} for row in rows]  # rounded: ties occur


def _reference(truth: COCO, detections: list[dict[str, Any]], image_ids: list[int]) -> float:
    evaluation = COCOeval(truth, truth.loadRes(detections), "bbox")
    evaluation.params.imgIds = image_ids
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return float(evaluation.stats[0])


@pytest.mark.parametrize("seed", range(5))
def test_equals_the_first_summary_line_exactly(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth = _random_truth(rng)
    detections = _random_detections(rng, truth)
    for image_ids in (list(range(1, IMAGES + 1)), [2, 5, 9, 12]):
        expected = _reference(truth, [dict(row) for row in detections], image_ids)
        assert 0 < expected < 1
        assert mean_average_precision(truth, detections, image_ids) == expected


def test_perfect_detections() -> None:
    truth = _random_truth(np.random.default_rng(0))
    kept = [a for a in truth.dataset["annotations"] if not a["iscrowd"]]
    rows = [{key: a[key] for key in ("image_id", "category_id", "bbox")} | {"score": 0.5} for a in kept]
    # pycocotools adds the smallest float to each denominator
    assert mean_average_precision(truth, rows, truth.getImgIds()) == pytest.approx(1.0, abs=1e-12)


def test_no_detections() -> None:
    assert mean_average_precision(_random_truth(np.random.default_rng(0)), [], list(range(1, IMAGES + 1))) == 0.0


def test_no_ground_truth_is_not_a_number() -> None:
    truth = _random_truth(np.random.default_rng(0))
    row = {"image_id": IMAGES, "category_id": CATEGORIES[0], "bbox": [1.0, 2.0, 30.0, 40.0], "score": 0.9}
    assert np.isnan(mean_average_precision(truth, [row], [IMAGES]))


def test_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(1)
    truth = _random_truth(rng)
    mean_average_precision(truth, _random_detections(rng, truth), truth.getImgIds())
    assert capsys.readouterr().out == ""


# ---- faster-coco-eval


def test_the_quick_form_is_equal_however_often_it_is_asked() -> None:
    """Up to the last bit: pycocotools adds the smallest float to each denominator, faster-coco-eval does not."""
    rng = np.random.default_rng(7)
    truth = _random_truth(rng)
    for image_ids in (list(range(1, IMAGES + 1)), [2, 5, 9, 12], [IMAGES - 1]):
        quick = QuickMAP(truth, image_ids)
        for round_ in range(12):
            rows = _random_detections(rng, truth)[:: round_ + 1]
            rows = [row for row in rows if row["image_id"] in image_ids]
            kept = copy.deepcopy(rows)
            found = quick(rows)
            assert rows == kept
            assert found == pytest.approx(mean_average_precision(truth, kept, image_ids), rel=0, abs=1e-15)
        assert quick([]) == 0.0


def test_the_quick_form_leaves_the_ground_truth_alone() -> None:
    rng = np.random.default_rng(8)
    truth = _random_truth(rng)
    before = copy.deepcopy(truth.dataset)
    assert QuickMAP(truth, truth.getImgIds())(_random_detections(rng, truth)) > 0
    assert truth.dataset == before


def test_the_quick_form_of_perfect_detections_and_of_none() -> None:
    truth = _random_truth(np.random.default_rng(0))
    rows = [
        {key: a[key] for key in ("image_id", "category_id", "bbox")} | {"score": 0.5}
        for a in truth.dataset["annotations"]
        if not a["iscrowd"]
    ]
    ids = truth.getImgIds()
    assert QuickMAP(truth, ids)(rows) == 1.0


def test_the_quick_form_without_ground_truth_is_not_a_number() -> None:
    truth = _random_truth(np.random.default_rng(0))
    row = {"image_id": IMAGES, "category_id": CATEGORIES[0], "bbox": [1.0, 2.0, 30.0, 40.0], "score": 0.9}
    assert np.isnan(QuickMAP(truth, [IMAGES])([row]))


def test_the_quick_form_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(1)
    truth = _random_truth(rng)
    QuickMAP(truth, truth.getImgIds())(_random_detections(rng, truth))
    assert capfd.readouterr().out == ""
