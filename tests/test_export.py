"""From a .hsq file to an ONNX file, with what it is worth."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from helpers import write_noise
from torchvision.models.detection import FCOS

import agents.export
from agents.cli import main
from agents.evaluate import evaluate_file
from agents.export import Exported, export
from agents.finetune import plan_of
from detectors.errors import InputError
from detectors.export import TraceableDetection
from detectors.fcos import FCOSArchitecture, fcos_stages
from detectors.folder import load_folder
from detectors.shapes import CLASS_NAMES
from detectors.stages import run_stages
from detectors.task import DetectionTask
from detectors.teacher import DetectorSpec, freeze
from hsq_env.file import save_hsq
from hsq_env.layer_info import trace_layers
from hsq_env.onnx_file import onnx_bytes, outputs_of
from hsq_env.student import Student
from restorers.images import load_photos
from restorers.task import RestorationTask
from restorers.teacher import RestorerSpec


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_noise(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module")
def model(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained DnCNN at 4 bits."""
    spec, file = RestorerSpec("dncnn", 1, noise=25), tmp_path_factory.mktemp("run") / "model.hsq"
    few = {"search_images": 1, "pool_images": 1, "calibration_images": 1, "patch": 16}
    task: Any = RestorationTask("photos", spec.build_folded(), spec, load_photos(photos, 1, 16), **few)
    student = Student(task, trace_layers(task), 8)
    student.apply(plan_of("uniform4", student.infos))
    save_hsq(student, file)
    return file


def test_both_are_measured_and_agree(model: Path, photos: Path, tmp_path: Path) -> None:
    found = export(model, tmp_path / "model.onnx", str(photos))
    assert found.agrees and found.metric == "PSNR"
    assert found.student == pytest.approx(evaluate_file(model, str(photos), "test")["psnr"], abs=1e-9)
    assert found.bytes == (tmp_path / "model.onnx").stat().st_size and found.hsq_bytes == model.stat().st_size
    onnx.checker.check_model(onnx.load(tmp_path / "model.onnx"))


@pytest.mark.parametrize("arithmetic", ["integer", "float", "auto"])
def test_arithmetic(
    model: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arithmetic: str
) -> None:
    """What is not asked for is chosen on the search split."""
    found = export(model, tmp_path / "model.onnx", str(photos), arithmetic=arithmetic)
    assert found.arithmetic == ("float" if arithmetic == "float" else "integer")
    seen = []
    metrics = agents.export._metrics

    def worse(task: Any, content: bytes, post_processing: bool, split: str) -> Any:
        student, runtime, names = metrics(task, content, post_processing, split)
        seen.append(split)
        return student, runtime - (1.0 if split == "search" else 0.0), names

    monkeypatch.setattr(agents.export, "_metrics", worse)
    found = export(model, tmp_path / "model.onnx", str(photos), arithmetic=arithmetic)
    assert seen == (["search", "test"] if arithmetic == "auto" else ["test"])
    assert found.arithmetic == ("integer" if arithmetic == "integer" else "float") and found.agrees


def test_restorers_have_no_post_processing(model: Path, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no post-processing"):
        export(model, tmp_path / "model.onnx", str(photos), post_processing=True)
    assert not list(tmp_path.iterdir())


def test_detections_are_torchvisions(shapes_folder: Path, tmp_path: Path) -> None:
    """An untrained detector, with and without post-processing, on images of other sizes too."""
    spec = DetectorSpec("fcos_resnet50_quarter", CLASS_NAMES, level_scale=0.25, min_size=64, max_size=107)
    torch.manual_seed(0)
    detector = freeze(spec.build_folded())
    assert isinstance(detector, FCOS)
    with torch.no_grad():
        detector.head.classification_head.cls_logits.bias.fill_(-2.0)
    splits = load_folder(shapes_folder, spec.classes, spec.min_size, spec.max_size)
    task = DetectionTask("shapes", detector, spec, splits, calibration_images=2, pool_images=2, batch_size=2)
    around = TraceableDetection()
    content = onnx_bytes(detector, task.stages, task.calibration()[0].images, around)
    for shape, sides in {(64, 64): (64, 64), (96, 64): (96, 64), (40, 171): (64, 192), (107, 71): (128, 96)}.items():
        images = torch.nn.functional.interpolate(task.evaluation("test")[0].images[:1], shape)
        padded = around.prepare(images)
        assert padded.shape[2:] == sides and torch.equal(padded[..., : shape[0], : shape[1]], images)
        with torch.no_grad():
            state = run_stages(fcos_stages(detector), {"images": padded})
            expected = FCOSArchitecture(detector).detect(state, [shape], sides)[0]
            found = around.finish(detector, state, images)
        assert len(expected["scores"]) > 0
        assert all(torch.equal(found[name], value) for name, value in expected.items())
        exported = outputs_of(content)(images.numpy())  # traced with another size
        np.testing.assert_allclose(exported["boxes"][:3], expected["boxes"][:3].numpy(), atol=0.01)
        np.testing.assert_allclose(exported["scores"][:3], expected["scores"][:3].numpy(), atol=1e-4)
    student = Student(task, trace_layers(task), 8)
    student.apply(plan_of("uniform8", student.infos))
    save_hsq(student, tmp_path / "model.hsq")
    for post_processing, names in ((False, "cls_logits"), (True, "boxes")):
        made = export(tmp_path / "model.hsq", tmp_path / "x.onnx", str(shapes_folder), post_processing=post_processing)
        assert names in made.outputs and made.metric == "mAP"
    run = outputs_of((tmp_path / "x.onnx").read_bytes())
    nothing = run(np.zeros((1, 3, 64, 96), np.float32))
    assert nothing["boxes"].shape[1] == 4 and len(nothing["scores"]) == len(nothing["labels"]) <= 100
    said = json.loads(onnx.load(tmp_path / "x.onnx").metadata_props[0].value)
    assert said["detector"] == spec.detector and tuple(said["classes"]) == spec.classes


def test_tolerances() -> None:
    def exported(metric: str, runtime: float) -> Exported:
        return Exported("x.onnx", 1, 1, metric, 0.7, runtime)

    assert exported("mAP", 0.7019).agrees and not exported("mAP", 0.6979).agrees
    assert exported("PSNR", 0.709).agrees and not exported("PSNR", 0.72).agrees
    assert exported("agreement", 0.7).agrees and not exported("agreement", 0.7001).agrees


def test_a_file_that_computes_something_else_is_told(
    model: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["export", str(model), "--dataset", str(photos), "--onnx", str(tmp_path / "model.onnx")]
    main([*command, "--json"])
    assert json.loads(capsys.readouterr().out)["agrees"]
    run = agents.export.outputs_of

    def wrong(content: bytes, threads: int) -> Any:
        return lambda images: {name: value + 0.1 for name, value in run(content, threads)(images).items()}

    monkeypatch.setattr(agents.export, "outputs_of", wrong)
    with pytest.raises(SystemExit) as ended:
        main(command)
    assert ended.value.code == 1 and "do not use this file" in capsys.readouterr().out


def test_bad_places(model: Path, photos: Path, tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "missing" / "model.onnx"):
        with pytest.raises(InputError, match="give a file in a folder that exists"):
            export(model, place, str(photos))
    before = model.read_bytes()
    with pytest.raises(InputError, match=r"exists already and is no \.onnx file"):
        export(model, model, str(photos))
    assert model.read_bytes() == before
    with pytest.raises(InputError, match=r"no file .*other\.hsq"):
        export(tmp_path / "other.hsq", tmp_path / "x.onnx", str(photos))
    assert not list(tmp_path.iterdir())
