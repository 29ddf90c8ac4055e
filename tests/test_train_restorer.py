"""Teacher training for restorers, on pictures of waves and a network of four layers."""

from pathlib import Path
from typing import Any

import pytest
import torch
from test_restoration_task import splits

import restorers.train
from agents.cli import main
from detectors.errors import InputError
from hsq_env.student import evaluate
from restorers.networks import DnCNN
from restorers.task import RestorationTask
from restorers.teacher import RESTORERS, RestorerSpec, load_teacher
from restorers.train import train_restorer

SPEC = RestorerSpec("dncnn", 1, noise=50)
SETTINGS: dict[str, Any] = {"steps_per_epoch": 12, "batch_size": 4, "patch": 16}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four layers of eight channels."""
    monkeypatch.setitem(RESTORERS, "dncnn", lambda channels: DnCNN(channels, 4, 8))


def test_training_helps_and_keeps_the_best_epoch(tmp_path: Path) -> None:
    out = tmp_path / "teacher.safetensors"
    result = train_restorer(splits(1), SPEC, out, epochs=4, learning_rate=5e-3, **{**SETTINGS, "steps_per_epoch": 40})
    model, spec = load_teacher(out)
    assert spec == SPEC and not list(tmp_path.glob("*.checkpoint"))
    task = RestorationTask("x", model, spec, splits(1), pool_images=1, calibration_images=1, batch_size=4, patch=16)
    assert evaluate(task, task.stages(model), "search") == pytest.approx(result["psnr"], abs=1e-6)
    batches = task.evaluation("search")
    untouched = [task.predictions({"restored": batch.images}, batch) for batch in batches]
    as_it_was = task.metric(untouched, "search")
    assert result["psnr"] > as_it_was + 2


def test_an_interrupted_training_goes_on_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, parts = tmp_path / "whole.safetensors", tmp_path / "parts.safetensors"
    train_restorer(splits(1), SPEC, whole, epochs=3, **SETTINGS)
    train, calls = restorers.train._train_epoch, []

    def interrupted(*given: Any) -> float:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return train(*given)

    monkeypatch.setattr(restorers.train, "_train_epoch", interrupted)
    with pytest.raises(KeyboardInterrupt, match=r"the same command again goes on .*parts\.safetensors\.check"):
        train_restorer(splits(1), SPEC, parts, epochs=3, **SETTINGS)
    with pytest.raises(InputError, match="does not fit these arguments"):
        train_restorer(splits(1), SPEC, parts, epochs=5, **SETTINGS)
    train_restorer(splits(1), SPEC, parts, epochs=3, **SETTINGS)
    one, other = (load_teacher(path)[0].state_dict() for path in (whole, parts))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_half_precision_halves_the_file(tmp_path: Path) -> None:
    sizes = []
    for half in (False, True):
        train_restorer(splits(1), SPEC, tmp_path / str(half), epochs=1, half=half, **SETTINGS)
        sizes.append((tmp_path / str(half)).stat().st_size)
    assert sizes[1] < 0.7 * sizes[0]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"epochs": 0}, "0 epochs of 12 batches of 4"),
        ({"learning_rate": -1.0}, r"The learning rate is -1\.0: give a number above 0"),
        ({"learning_rate": float("nan")}, "The learning rate is nan: give a number above 0"),
        ({"seed": -1}, "The seed is -1: give 0 or more"),
        ({"patch": 64}, "smaller than the patch of 64"),
        ({"learning_rate": float("inf")}, "The training loss became infinite or NaN"),
    ],
)
def test_bad_input(given: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=said):
        train_restorer(splits(1), SPEC, tmp_path / "out", **{"epochs": 1, **SETTINGS, **given})
    assert not (tmp_path / "out").exists()


def test_a_file_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"mine")
    with pytest.raises(InputError, match="exists already"):
        train_restorer(splits(1), SPEC, tmp_path / "out", epochs=1, **SETTINGS)
    assert (tmp_path / "out").read_bytes() == b"mine"


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "t.safetensors"
    flags = "--restorer dncnn --noise 15 --channels 1 --epochs 1 --steps-per-epoch 2 --batch-size 2 --patch 16"
    main(["teacher", "--out", str(out), *flags.split()])
    assert f"wrote {out}: PSNR " in capsys.readouterr().out
    assert load_teacher(out)[1] == RestorerSpec("dncnn", 1, noise=15)
    with pytest.raises(SystemExit) as stop:
        main(["teacher", "--out", str(tmp_path / "x"), *flags.replace("15", "0").split()])
    assert stop.value.code == 2 and "give a level above 0" in capsys.readouterr().err
