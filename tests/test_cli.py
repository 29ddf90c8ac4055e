"""The ``hsq`` command: what it does, and one sentence for whatever is wrong."""

import copy
import errno
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import random_plan, write_noise
from tiny_task import TinyTask

import agents.rollout
import agents.tables
import agents.teachers
import detectors.task
import hsq_env.compensation
import hsq_env.make
import restorers.teacher
from agents.callbacks import EpisodeRecorder
from agents.cli import main
from agents.explorer import Explorer
from agents.spark_file import load_spark
from detectors.errors import InputError
from detectors.folder import load_folder
from detectors.shapes import CLASS_NAMES
from detectors.task import DetectionTask
from detectors.teacher import DetectorSpec, freeze, teacher_bytes
from hsq_env.choices import Plan
from hsq_env.distillation.spark import Spark
from hsq_env.file import read_header, save_hsq
from hsq_env.layer_info import trace_layers
from hsq_env.student import Student, evaluate
from restorers.networks import DnCNN
from restorers.task import RestorationTask
from restorers.teacher import RESTORERS, RestorerSpec

Captured = pytest.CaptureFixture[str]
SPEC = DetectorSpec("fcos_resnet50_quarter", CLASS_NAMES, level_scale=0.25, min_size=64, max_size=107)


@pytest.fixture(scope="module")
def detector() -> torch.nn.Module:
    """Quarter width, random weights, sure enough of everything to give detections."""
    torch.manual_seed(0)
    model = SPEC.build_folded()
    with torch.no_grad():
        model.head.classification_head.cls_logits.bias.zero_()
    return freeze(model)


@pytest.fixture(scope="module")
def teacher(detector: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher file. Not to be changed."""
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    path.write_bytes(teacher_bytes(detector, SPEC))
    return path


@pytest.fixture(scope="module")
def student(detector: Any, shapes_folder: Path) -> Student:
    """A compressed detector. Not to be changed."""
    splits = load_folder(shapes_folder, SPEC.classes, SPEC.min_size, SPEC.max_size)
    task = DetectionTask("shapes", detector, SPEC, splits, search_images=None, calibration_images=2, pool_images=2)
    infos = trace_layers(task)
    made = Student(task, infos)
    made.apply(random_plan(infos, 0))
    return made


@pytest.fixture
def file(student: Student, tmp_path: Path) -> Path:
    """``model.hsq`` of a detector."""
    save_hsq(student, tmp_path / "model.hsq")
    return tmp_path / "model.hsq"


@pytest.fixture
def on_tiny(tiny: TinyTask, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """``hsq search`` runs on the tiny task; what the command asked for."""
    asked: dict[str, Any] = {}

    def tiny_task(dataset: Any, teacher: Any, splits: Any, detector: Any, patch: Any, **settings: Any) -> TinyTask:
        asked.update(settings, dataset=dataset, detector=detector, teacher=teacher, splits=splits, patch=patch)
        task = copy.copy(tiny)
        task.spec = SimpleNamespace(name="tinynet")  # type: ignore[attr-defined]
        return task

    monkeypatch.setattr(hsq_env.make, "make_task", tiny_task)
    return asked


def fails(capsys: Captured, *arguments: str, code: int = 2) -> str:
    """The one line on standard error with which the command ends."""
    with pytest.raises(SystemExit) as end:
        main(list(arguments))
    captured = capsys.readouterr()
    assert end.value.code == code
    (line,) = [line for line in captured.err.splitlines() if line.startswith("hsq: ")]
    assert "Traceback" not in captured.err + captured.out
    assert captured.err.endswith(line + "\n")
    return line


# ---- what works


def test_search(on_tiny: dict[str, Any], tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    out = tmp_path / "run"
    flags = [
        "--episodes",
        "1",
        "--target-ratio",
        "6",
        "--seed",
        "4",
        "--finetune-steps",
        "2",
        "--search-images",
        "32",
        "--finalists",
        "1",
    ]
    main(["search", "--out", str(out), *flags])
    result = json.loads((out / "result.json").read_text())
    assert (result["seed"], result["episodes"], result["model"]) == (4, 1, "tinynet")
    assert result["methods"]["hsq"]["ratio"] >= 6
    assert (on_tiny["dataset"], on_tiny["search_images"], on_tiny["seed"]) == (None, 32, 4)
    text = capsys.readouterr().out
    assert f"{result['methods']['hsq']['bytes']:,}" in text and f"Written to {out}." in text


def test_search_passes_its_flags_on(on_tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}

    def record(task: Any, out: Path, explorer: Explorer, **settings: Any) -> dict[str, Any]:
        given.update(vars(explorer), **settings, out=out)
        raise InputError("enough")

    monkeypatch.setattr("agents.search.search", record)
    flags = "--algo sac --episodes 7 --time-budget 60 --target-ratio 9.5 --reward size --alpha 0.1 --beta 0.9"
    more = "--activation-bits 4 --sparsity-pattern n:m --dataset photos --teacher t.safetensors --detector d"
    more += " --splits a b c --seed 3 --workers 2 --evaluations 90 --warm-start ilp greedy --no-return-to-best"
    more += " --observe-repaired --no-surrogate --distillation akd+spark --patch 32 --track mlflow"
    with pytest.raises(SystemExit):
        main(["search", "--out", str(tmp_path / "run"), *flags.split(), *more.split()])
    expected = {"algo": "sac", "episodes": 7, "time_budget": 60.0, "target_ratio": 9.5, "reward": "size"}
    expected |= {"alpha": 0.1, "beta": 0.9, "activation_bits": 4, "sparsity_pattern": "n:m"}
    expected |= {"seed": 3, "workers": 2, "evaluations": 90, "warm_start": ("ilp", "greedy"), "return_to_best": False}
    expected |= {"observe_repaired": True, "surrogate": False, "distillation": "akd+spark", "track": "mlflow"}
    assert {name: given[name] for name in expected} == expected
    assert (on_tiny["dataset"], on_tiny["teacher"], on_tiny["detector"]) == ("photos", Path("t.safetensors"), "d")
    assert on_tiny["splits"] == ("a", "b", "c") and on_tiny["patch"] == 32


def test_search_for_several_targets(on_tiny: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "run"
    main(["search", "--out", str(out), "--pareto", "5", "9.5", "--episodes", "0", "--finetune-steps", "0"])
    result = json.loads((out / "result.json").read_text())
    assert result["target_ratio"] == [5.0, 9.5] and list(result["candidates"]) == ["5.0", "9.5"]
    for name in ("5", "9.5"):
        assert result["methods"][f"hsq-{name}"]["ratio"] >= float(name)
        assert read_header(out / f"model-{name}.hsq").plan() == Plan.read(out / f"plan-{name}.json")


def certainty(split: Any, batches: Any, detections: Any) -> float:
    """In place of mAP, which is 0 for random weights: a figure that every detection changes."""
    scores = torch.cat([detection["scores"] for batch in detections for detection in batch])
    return float(scores.double().mean()) + len(scores)


@pytest.mark.parametrize("split", ["search", "test"])
def test_evaluate(
    student: Student, file: Path, shapes_folder: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch, split: str
) -> None:
    monkeypatch.setattr(detectors.task, "detections_map", certainty)
    main(["evaluate", str(file), "--dataset", str(shapes_folder), "--split", split, "--json"])
    found = json.loads(capsys.readouterr().out)
    expected = evaluate(student.task, student.stages, split)
    assert expected > 10
    assert found == {
        "file": str(file),
        "dataset": str(shapes_folder),
        "split": split,
        "map": expected,
        "bytes": file.stat().st_size,
        "metric": "mAP",
    }


def test_evaluate_knows_the_ratio_beside_a_teacher(
    file: Path, teacher: Path, shapes_folder: Path, capsys: Captured
) -> None:
    (file.parent / "teacher.safetensors").write_bytes(teacher.read_bytes())
    main(["evaluate", str(file), "--dataset", str(shapes_folder), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["ratio"] == teacher.stat().st_size / file.stat().st_size


def test_info(student: Student, file: Path, capsys: Captured) -> None:
    main(["info", str(file), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert Plan.from_json(found) == student.plan() and len(found["layers"]) == 72
    assert found["model"]["detector"] == "fcos_resnet50_quarter"


def test_shapes(tmp_path: Path, capsys: Captured) -> None:
    out = tmp_path / "shapes"
    main(["shapes", "--out", str(out), "--train", "1", "--val", "1", "--test", "2"])
    assert capsys.readouterr().out == f"wrote {out}\n"
    assert {path.name for path in out.iterdir()} == {"annotations", "train", "val", "test"}
    assert len(list((out / "test").iterdir())) == 2
    assert str(out) in fails(capsys, "shapes", "--out", str(out))


def test_teacher(shapes_folder: Path, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}

    def record(splits: Any, spec: DetectorSpec, out: Path, **settings: Any) -> dict[str, Any]:
        given.update(settings, spec=spec, out=out, train=len(splits["train"]))
        return {"map": 0.5, "epoch": 3, "seconds": 9.0}

    monkeypatch.setattr(agents.teachers, "train_teacher", record)
    out = tmp_path / "t.safetensors"
    flags = [
        "--image-size",
        "160",
        "--epochs",
        "3",
        "--batch-size",
        "4",
        "--learning-rate",
        "5e-4",
        "--vertical-flip",
        "--seed",
        "2",
    ]
    main(["teacher", "--dataset", str(shapes_folder), "--out", str(out), *flags])
    spec = given["spec"]
    assert (spec.detector, spec.classes, spec.level_scale) == ("fcos_resnet50", CLASS_NAMES, 0.25)
    assert (spec.min_size, spec.max_size) == (160, 267)
    settings = {"epochs": 3, "batch_size": 4, "learning_rate": 5e-4, "vertical_flip": True, "seed": 2, "train": 8}
    assert {name: given[name] for name in settings} == settings
    assert capsys.readouterr().out == f"wrote {out}: mAP 0.5000 on the search split at epoch 3, 9 s\n"


# ---- bad input


def test_a_missing_dataset(teacher: Path, tmp_path: Path, capsys: Captured) -> None:
    nowhere, out = tmp_path / "nowhere", tmp_path / "run"
    flags = ["--dataset", str(nowhere), "--teacher", str(teacher), "--out", str(out)]
    assert str(nowhere) in fails(capsys, "search", *flags)
    assert not out.exists()


def test_a_dataset_without_a_teacher(shapes_folder: Path, tmp_path: Path, capsys: Captured) -> None:
    line = fails(capsys, "search", "--dataset", str(shapes_folder), "--out", str(tmp_path / "run"))
    assert "needs a teacher" in line and "hsq teacher" in line


def test_a_missing_teacher(shapes_folder: Path, tmp_path: Path, capsys: Captured) -> None:
    missing = tmp_path / "t.safetensors"
    flags = ["--dataset", str(shapes_folder), "--teacher", str(missing), "--out", str(tmp_path / "run")]
    assert f"no teacher file {missing}" in fails(capsys, "search", *flags)


def test_a_teacher_of_other_classes(detector: Any, shapes_folder: Path, tmp_path: Path, capsys: Captured) -> None:
    path = tmp_path / "t.safetensors"
    names = tuple(f"thing {i}" for i in range(len(CLASS_NAMES)))
    spec = DetectorSpec(SPEC.detector, names, SPEC.level_scale, SPEC.min_size, SPEC.max_size)
    path.write_bytes(teacher_bytes(detector, spec))
    flags = ["--dataset", str(shapes_folder), "--teacher", str(path), "--out", str(tmp_path / "run")]
    assert "categories that the teacher does not know" in fails(capsys, "search", *flags)


def test_a_teacher_of_another_kind(teacher: Path, shapes_folder: Path, tmp_path: Path, capsys: Captured) -> None:
    flags = ["--dataset", str(shapes_folder), "--teacher", str(teacher), "--out", str(tmp_path / "run")]
    assert "is a fcos_resnet50_quarter, not a fcos_resnet50" in fails(
        capsys, "search", *flags, "--detector", "fcos_resnet50"
    )


@pytest.mark.parametrize("command", ["info", "evaluate"])
@pytest.mark.parametrize("kept", [0, 100, -1])
def test_a_truncated_file(file: Path, capsys: Captured, command: str, kept: int) -> None:
    file.write_bytes(file.read_bytes()[:kept])
    assert f"{file} is not a complete .hsq file" in fails(capsys, command, str(file))


@pytest.mark.parametrize("command", ["info", "evaluate"])
def test_a_foreign_file(teacher: Path, capsys: Captured, command: str) -> None:
    assert f"{teacher} is a safetensors file but not a .hsq file" in fails(capsys, command, str(teacher))


def test_a_file_of_a_model_that_is_no_detector(tiny: TinyTask, tmp_path: Path, capsys: Captured) -> None:
    student = Student(tiny, trace_layers(tiny))
    save_hsq(student, tmp_path / "tiny.hsq")
    assert "a model that this command cannot build" in fails(capsys, "evaluate", str(tmp_path / "tiny.hsq"))


def test_an_impossible_ratio(on_tiny: dict[str, Any], tmp_path: Path, capsys: Captured) -> None:
    line = fails(capsys, "search", "--out", str(tmp_path / "run"), "--target-ratio", "50")
    assert "target ratio of 50 cannot be reached" in line and "up to 12." in line
    assert list(tmp_path.iterdir()) == []


def test_a_used_folder(tmp_path: Path, capsys: Captured) -> None:
    (tmp_path / "result.json").write_text("{}")
    assert f"{tmp_path} already holds something" in fails(capsys, "search", "--out", str(tmp_path))
    assert (tmp_path / "result.json").read_text() == "{}"


@pytest.mark.parametrize(
    ("flag", "value", "told"),
    [
        ("--workers", "0", "0 workers can do no work: give --workers 1 or more."),
        ("--table-megabytes", "-1", "table_megabytes is -1.0: give 0 or more (--table-megabytes)."),
        ("--table-megabytes", "nan", "table_megabytes is nan: give 0 or more (--table-megabytes)."),
        ("--time-budget", "-5", "Nothing can be found in -5 seconds: give 0 or more (--time-budget)."),
        ("--time-budget", "nan", "Nothing can be found in nan seconds: give 0 or more (--time-budget)."),
        (
            *("--checkpoint-minutes", "nan"),
            "There are no nan minutes between checkpoints: give 0 or more (--checkpoint-minutes).",
        ),
        ("--finetune-steps", "-5", "There are no -5 steps: give 0 or more (--finetune-steps)."),
        ("--step-minibatches", "-1", "There are no -1 minibatches in a step: give 0 or more (--step-minibatches)."),
    ],
)
def test_impossible_numbers(
    on_tiny: dict[str, Any], tmp_path: Path, capsys: Captured, flag: str, value: str, told: str
) -> None:
    assert fails(capsys, "search", "--out", str(tmp_path / "run"), flag, value) == f"hsq: {told}"
    assert list(tmp_path.iterdir()) == []


def test_two_ways_of_saying_ratios(on_tiny: dict[str, Any], tmp_path: Path, capsys: Captured) -> None:
    line = fails(capsys, "search", "--out", str(tmp_path / "run"), "--pareto", "5", "6", "--target-ratio", "7")
    assert "--pareto names the ratios: leave out --target-ratio." in line and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("flag", ["--detector fcos_resnet50", "--image-size 64", "--level-scale 1", "--proposals 9"])
def test_a_restorer_has_no_flags_of_detectors(tmp_path: Path, capsys: Captured, flag: str) -> None:
    line = fails(capsys, "teacher", "--restorer", "dncnn", "--out", str(tmp_path / "t"), *flag.split())
    assert "--restorer trains a restorer: leave out --detector" in line and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("flag", "value"), [("--image-size", "-5"), ("--train-images", "0"), ("--level-scale", "0")])
def test_a_teacher_that_cannot_be(tmp_path: Path, capsys: Captured, flag: str, value: str) -> None:
    line = fails(capsys, "teacher", "--out", str(tmp_path / "t"), flag, value)
    assert "give" in line and flag[2:].split("-")[0] in line and list(tmp_path.iterdir()) == []


def test_an_unknown_agent(on_tiny: dict[str, Any], tmp_path: Path, capsys: Captured) -> None:
    assert "Unknown agent 'best'" in fails(capsys, "search", "--out", str(tmp_path / "run"), "--algo", "best")
    assert list(tmp_path.iterdir()) == []


def test_a_mistyped_flag(tmp_path: Path, capsys: Captured) -> None:
    with pytest.raises(SystemExit) as error:
        main(["search", "--datset", "photos/"])
    said = capsys.readouterr()
    assert error.value.code == 2
    text = said.out + said.err
    assert "--dataset STR" in text and "hsq search --help" in text and "hsq finetune" not in text
    with pytest.raises(SystemExit):
        main(["--datset", "photos/"])
    said = capsys.readouterr()
    assert "--dataset STR" in said.out + said.err


def test_help_shows_what_a_flag_takes(capsys: Captured) -> None:
    with pytest.raises(SystemExit):
        main(["finetune", "--help"])
    text = capsys.readouterr().out
    assert "usage: hsq finetune" in text and "{None}" not in text and "default: None" not in text
    for flag in ("--teacher PATH", "--alpha FLOAT", "--splits STR [STR ...]", "--rounding {nearest,compensated}"):
        assert flag in text
    assert "--activation-bits INT|None" in text  # whose default is 8
    with pytest.raises(SystemExit):
        main(["latency", "--help"])
    assert "--size INT INT " in capsys.readouterr().out


def test_an_unknown_flag_or_command(tmp_path: Path, capsys: Captured) -> None:
    for arguments in (["search", "--out", str(tmp_path / "run"), "--target", "8"], ["serch"]):
        with pytest.raises(SystemExit) as end:
            main(arguments)
        assert end.value.code == 2
        assert "Traceback" not in capsys.readouterr().err


# ---- a full disk, and Ctrl-C


@pytest.mark.parametrize(
    ("number", "remedy"), [(errno.ENOSPC, "free some space"), (errno.EROFS, "choose another place")]
)
def test_a_disk_that_takes_nothing(
    on_tiny: dict[str, Any],
    tmp_path: Path,
    capsys: Captured,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    remedy: str,
) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    line = fails(capsys, "search", "--out", str(tmp_path / "run"), "--target-ratio", "6")
    assert os.strerror(number) in line and remedy in line
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_disk_that_fills_up_later(
    on_tiny: dict[str, Any], tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, fsync, calls = tmp_path / "run", os.fsync, 0

    def full_after_four(descriptor: int) -> None:
        nonlocal calls
        calls += str(out) in os.readlink(f"/proc/self/fd/{descriptor}")  # not of kept tables, elsewhere
        if calls > 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full_after_four)
    flags = ["--target-ratio", "6", "--episodes", "0", "--finetune-steps", "0"]
    fails(capsys, "search", "--out", str(out), *flags)
    assert read_header(out / "model.hsq").plan() == Plan.read(out / "plan.json")  # whole, and nothing half-written
    assert not [path for path in out.rglob("*") if "partial" in path.name or path.name == "result.json"]


def test_another_os_error_is_not_hidden(
    on_tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(descriptor: int) -> None:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        main(["search", "--out", str(tmp_path / "run"), "--target-ratio", "6"])


def test_an_interrupted_search(
    on_tiny: dict[str, Any], tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupted(EpisodeRecorder):
        def _on_step(self) -> bool:
            raise KeyboardInterrupt

    monkeypatch.setattr(agents.rollout, "EpisodeRecorder", Interrupted)
    out = tmp_path / "run"
    line = fails(capsys, "search", "--out", str(out), "--target-ratio", "6", code=130)
    assert f"{out} holds the best plan so far" in line
    assert read_header(out / "model.hsq").plan() == Plan.read(out / "plan.json")


def test_an_interrupted_command(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(agents.tables, "print_info", stop)
    assert fails(capsys, "info", "model.hsq", code=130) == "hsq: Interrupted."


def test_a_package_that_cannot_be_imported(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*arguments: Any, **options: Any) -> None:
        raise ModuleNotFoundError("No module named 'onnx.helper'", name="onnx.helper")

    def mistaken(*arguments: Any, **options: Any) -> None:
        raise ImportError("cannot import name 'this'", name="hsq_env.choices")

    monkeypatch.setattr(agents.tables, "print_info", missing)
    line = fails(capsys, "info", "model.hsq")
    assert (
        line
        == "hsq: onnx.helper cannot be imported (No module named 'onnx.helper'): 'hsq doctor' says what to install."
    )
    monkeypatch.setattr(agents.tables, "print_info", mistaken)
    with pytest.raises(ImportError, match="cannot import name 'this'"):
        main(["info", "model.hsq"])


def test_a_restorer_from_search_to_evaluation(
    tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An untrained, short DnCNN on noise: the same commands, PSNR in place of mAP."""
    monkeypatch.setattr(RestorationTask, "untreated_metric", lambda self, split: 0.0)  # no better than no network
    monkeypatch.setitem(RESTORERS, "dncnn", lambda channels: DnCNN(channels, 6, 24))
    monkeypatch.setattr(hsq_env.compensation, "IMAGES", 2)  # that rounding looks at, instead of 32
    spec = RestorerSpec("dncnn", 1, noise=25)
    teacher, photos, out = tmp_path / "teacher.safetensors", tmp_path / "photos", tmp_path / "run"
    teacher.write_bytes(restorers.teacher.teacher_bytes(spec.build_folded(), spec))
    write_noise(photos)
    data = ["--dataset", str(photos)]
    flags = "--patch 16 --search-images 2 --pool-images 24 --calibration-images 2 --episodes 0 --warm-start ilp"
    flags += " --target-ratio 6 --finetune-steps 1 --finalists 1 --distillation akd+spark"
    main(["search", *data, "--teacher", str(teacher), "--out", str(out), *flags.split()])
    result = json.loads((out / "result.json").read_text())
    assert (result["model"], result["metric"]) == ("dncnn", "PSNR") and result["methods"]["hsq"]["ratio"] >= 6
    assert "dB lost" in capsys.readouterr().out
    load_spark(Spark(), out / "spark.pt")
    main(["evaluate", str(out / "model.hsq"), *data, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["psnr"] == pytest.approx(result["methods"]["hsq"]["psnr"], rel=1e-9)
    assert found["ratio"] == result["methods"]["hsq"]["ratio"]
    main(["monitor", str(out), *data, "--target-accuracy", "0.5"])
    assert "photos: PSNR " in capsys.readouterr().out
    wrong = fails(
        capsys, "search", *data, "--teacher", str(teacher), "--detector", "edsr", "--out", str(tmp_path / "x")
    )
    assert "is a dncnn, not a edsr" in wrong


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--detector", "ssdlite320_mobilenet_v3_large", "--image-size", "64"], "takes images of 320 pixels alone"),
        (["--detector", "ssdlite320_mobilenet_v3_large", "--batch-size", "1"], "does not train on one image at a time"),
        (["--detector", "retinanet_resnet50_fpn", "--proposals", "9"], "for a Faster R-CNN alone"),
        (["--detector", "fasterrcnn_resnet50_fpn", "--proposals", "0"], "give 1 or more"),
    ],
)
def test_what_a_detector_cannot_be_trained_with(
    arguments: list[str], sentence: str, shapes_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["teacher", "--dataset", str(shapes_folder), "--out", str(tmp_path / "teacher.safetensors"), *arguments])
    assert exit_.value.code == 2 and sentence in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
