"""What a report shows of test images."""

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import write_noise
from PIL import Image

from agents.cli import main
from agents.report.data_uri import data_uri, grey_or_color, heat
from agents.report.detections import agreement, compare, difference_of
from agents.report.pictures import pictures_of
from agents.report.restorations import _most_different
from agents.report.run import read_run
from detectors.stages import run_stages
from detectors.task import SHIPPED_TEACHER, detection_task
from restorers.teacher import RestorerSpec, teacher_bytes


def found(*rows: tuple[float, float, float, float, float, int]) -> dict[str, torch.Tensor]:
    """Detections from (left, top, right, bottom, score, label)."""
    table = torch.tensor(rows, dtype=torch.float32).reshape(-1, 6)
    return {"boxes": table[:, :4], "scores": table[:, 4], "labels": table[:, 5].long()}


TEACHER = found((0, 0, 10, 10, 0.9, 1), (20, 20, 30, 30, 0.8, 2), (50, 50, 60, 60, 0.5, 1))


def test_objects_are_the_same_by_label_and_place() -> None:
    student = found((21, 20, 31, 30, 0.7, 2), (0, 0, 10, 10, 0.9, 2), (0, 0, 10, 9, 0.6, 1))
    assert sorted(agreement(TEACHER, student)) == [(0, 2), (1, 0)]
    # alone: the teacher's third (.5) and the student's second (.9); scores differ by .1 and .3
    pairs = agreement(TEACHER, student)
    assert difference_of(TEACHER, student, pairs) == pytest.approx(0.5 + 0.9 + 0.1 + 0.3)


def test_what_neither_is_sure_of_does_not_count() -> None:
    teacher, student = found((0, 0, 9, 9, 0.31, 1), (50, 50, 60, 60, 0.2, 1)), found((0, 0, 9, 9, 0.29, 1))
    pairs = agreement(teacher, student)
    assert pairs == [(0, 0)]  # found it is, if with less than is drawn
    assert difference_of(teacher, student, pairs) == pytest.approx(0.02)
    faint = found((0, 0, 9, 9, 0.25, 1))
    assert difference_of(faint, student, agreement(faint, student)) == 0.0


def test_each_detection_is_of_one_object_and_the_best_place_wins() -> None:
    twice = found((0, 0, 10, 8, 0.9, 1), (0, 0, 10, 10, 0.4, 1))
    assert agreement(TEACHER, twice) == [(0, 1)]
    assert agreement(twice, found((0, 0, 10, 10, 0.4, 1))) == [(0, 0)]  # the surest chooses first


def test_nothing_found_by_anybody() -> None:
    assert agreement(found(), found()) == []
    assert difference_of(found(), TEACHER, []) == pytest.approx(2.2)


def test_pictures_are_what_was_given() -> None:
    values = np.linspace(0, 1, 12).reshape(3, 4)
    content = base64.b64decode(data_uri(grey_or_color(values)).removeprefix("data:image/png;base64,"))
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(content))), np.round(255 * values).astype(np.uint8))
    colors = np.asarray(heat(np.array([[0.0, 1.0, 2.0]]), 0.5, 1.0))
    assert np.array_equal(colors[0, 1], colors[0, 2]) and colors[0, 0].sum() < colors[0, 1].sum()


def test_the_most_different_window() -> None:
    difference = np.zeros((200, 150))
    difference[120:130, 100] = 1.0
    top, left = _most_different(difference)
    assert top <= 120 and top + 96 >= 130 and left <= 100 < left + 96
    assert _most_different(np.ones((20, 30, 3))) == (0, 0)


@pytest.mark.slow
def test_detectors(shapes_folder: Path, tmp_path: Path) -> None:
    data = ["--dataset", str(shapes_folder), "--teacher", str(SHIPPED_TEACHER)]
    main(["finetune", "--plan", "uniform2", "--steps", "0", *data, "--out", str(tmp_path / "run")])
    run = read_run(tmp_path / "run")
    pictures = pictures_of(run, None, None, images=3, shown=2)
    assert (pictures.model, pictures.looked_at, pictures.missing) == ("as quantized", 3, "")
    first, second = pictures.pairs
    assert first.difference >= second.difference > 0
    task = detection_task(
        shapes_folder, None, SHIPPED_TEACHER, test_images=3, search_images=1, pool_images=1, calibration_images=1
    )
    assert compare(task, task.teacher, 3) == []  # images on which both do alike are not shown
    (batch,) = task.evaluation("test")
    detections = task.predictions(run_stages(task.stages(task.teacher), {"images": batch.images}), batch)
    sure = sorted(int((own["scores"] >= 0.3).sum()) for own in detections)
    every = pictures_of(run, None, None, images=3, shown=3).pairs
    assert sorted(len(pair.teacher) for pair in every) == sure and sum(sure) > 0
    expected = [own["boxes"][0].tolist() for own in detections]
    for box in (pair.teacher[0] for pair in every):
        corners = [box.left, box.top, box.left + box.width, box.top + box.height]
        assert any(corners == pytest.approx(other, abs=1e-4) for other in expected)
    assert pictures_of(run, str(tmp_path / "absent"), None, 3, 2).missing.startswith("There is no data folder")


def test_restorers_with_the_weights_of_the_policy(tmp_path: Path) -> None:
    spec = RestorerSpec("dncnn", 1, noise=25)
    (tmp_path / "teacher.safetensors").write_bytes(teacher_bytes(spec.build_folded(), spec))
    photos = write_noise(tmp_path / "photos", 10)
    out = tmp_path / "run"
    main(
        ["finetune", "--teacher", str(tmp_path / "teacher.safetensors"), "--dataset", str(photos), "--plan", "uniform2",
         "--steps", "2", "--policy-every", "2", "--patch", "16", "--batch-size", "2", "--out", str(out)]
    )  # fmt: skip
    run = read_run(out)
    pictures = pictures_of(run, None, None, images=4, shown=2)
    assert not pictures.missing and len(pictures.crops) == min(2, pictures.looked_at)
    names = [name for name, _ in pictures.crops[0].pictures]
    assert names[:3] == ["teacher", "student", "clean image"]
    assert names[4].startswith("weights of the policy on the whole image")
    (out / "spark.pt").unlink()
    assert len(pictures_of(run, None, None, 4, 2).crops[0].pictures) == 4
    record = json.loads((out / "result.json").read_text())
    del record["rebuild"]
    (out / "result.json").write_text(json.dumps(record))
    assert pictures_of(read_run(out), None, None, 4, 2).missing == (
        "The record does not say where its data are: give --dataset."
    )
