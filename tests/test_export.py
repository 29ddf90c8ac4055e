"""From a .hsq file to an ONNX file, with what it is worth."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

import agents.export
from agents.cli import main
from agents.export import Exported, export
from agents.finetune import plan_of
from agents.report import evaluate_file
from detectors.errors import InputError
from hsq_env.file import save_hsq
from hsq_env.student import Student, trace_layers
from restorers.images import load_photos
from restorers.task import RestorationTask
from restorers.teacher import RestorerSpec


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for i in range(5):
        pixels = np.random.default_rng(i).integers(0, 256, (20, 24), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


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
    with pytest.raises(InputError, match=r"no file .*other\.hsq"):
        export(tmp_path / "other.hsq", tmp_path / "x.onnx", str(photos))
    assert not list(tmp_path.iterdir())
