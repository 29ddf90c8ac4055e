"""Timing beside float32, and what runs in integers."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import random_plan

import agents.bench
from agents.bench import Speed, bench, integer_convolutions
from agents.cli import main
from detectors.errors import InputError
from hsq_env.choices import Choice, Plan
from hsq_env.file import save_hsq
from hsq_env.layer_info import trace_layers
from hsq_env.onnx_file import onnx_bytes, outputs_of
from hsq_env.student import Student
from restorers.images import Photos
from restorers.task import RestorationTask
from restorers.teacher import RestorerSpec


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained EDSR with a random plan."""
    spec, file = RestorerSpec("edsr", 3, scale=2), tmp_path_factory.mktemp("run") / "model.hsq"
    one = Photos(("a",), (np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8),))
    photos = dict.fromkeys(("train", "search", "test"), one)
    task = RestorationTask("photos", spec.build_folded(), spec, photos, pool_images=1, calibration_images=1, patch=32)
    student = Student(task, trace_layers(task), 8)
    student.apply(random_plan(student.infos, 0))
    save_hsq(student, file)
    return file


def test_both_networks_are_the_same_but_for_rounding(model: Path) -> None:
    loaded, spec = agents.bench.load_model(model)
    plain = agents.bench._in_float32(loaded, spec)
    images = torch.rand(1, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    stages = agents.bench.restorer_stages
    exact, float32 = (outputs_of(onnx_bytes(m, stages, images))(images.numpy()) for m in (loaded, plain))
    for name, value in float32.items():
        assert 0 < np.abs(exact[name] - value).mean() < 0.1 * np.abs(value).mean()


def test_what_is_measured(model: Path) -> None:
    found = bench(model, (24, 32), (1, 2), 2)
    assert [speed.threads for speed in found.speeds] == [1, 2] and found.image == (24, 32)
    assert all(speed.float32 > 0 and speed.compressed > 0 for speed in found.speeds)
    assert found.bytes[1] < found.bytes[0] / 3
    integer, every = found.integer
    assert every - 1 <= integer <= every  # the last one's result is the image


def test_a_network_without_most_of_its_channels(tmp_path: Path) -> None:
    """It has some hundred times as many weights as its file has bytes, and is one that fits nevertheless."""
    spec, file = RestorerSpec("dncnn", 1, noise=25), tmp_path / "model.hsq"
    one = Photos(("a",), (np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8),))
    photos = dict.fromkeys(("train", "search", "test"), one)
    task = RestorationTask("photos", spec.build_folded(), spec, photos, pool_images=1, calibration_images=1, patch=32)
    student = Student(task, trace_layers(task), 8, "channels")
    student.apply(Plan(tuple(i.name for i in student.infos), (Choice(2, 0.75),) * len(student.infos)))
    size = save_hsq(student, file)
    assert sum(layer.weight.numel() for layer in student.layers) > 25 * size
    dense = sum(layer.weight.numel() for layer in student.layers)
    found = bench(file, (24, 32), (1,), 1)
    assert found.bytes[0] > 4 * dense * 0.99 and found.bytes[1] < 4 * dense / 50


def test_times_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Speed(1, 0.3, 0.1).times == pytest.approx(3.0)
    clock = iter([0.0, 0.0, *[0.0, 1.0, 0.0, 2.0], *[0.0, 5.0, 0.0, 3.0], *[0.0, 2.0, 0.0, 2.5]])
    monkeypatch.setattr("agents.bench.time.perf_counter", lambda: next(clock))
    calls: list[int] = []
    assert agents.bench.medians([lambda: calls.append(0), lambda: calls.append(1)], 3) == [2.0, 2.5]
    assert calls == [0, 1] * 4


def test_a_float_network_has_no_integer_convolution(model: Path) -> None:
    loaded, spec = agents.bench.load_model(model)
    content = onnx_bytes(agents.bench._in_float32(loaded, spec), agents.bench.restorer_stages, torch.rand(1, 3, 16, 16))
    integer, every = integer_convolutions(content)
    assert integer == 0 < every


def test_the_command(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["bench", str(model), "--size", "16", "24", "--threads", "1", "--repeats", "1", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["image"] == [16, 24] and found["speeds"][0]["times"] > 0
    main(["bench", str(model), "--size", "16", "24", "--threads", "1", "--repeats", "1"])
    assert "convolutions in integers" in capsys.readouterr().out


@pytest.mark.parametrize("settings", [{"repeats": 0}, {"threads": ()}, {"threads": (0,)}, {"size": (8, 100)}], ids=str)
def test_numbers_that_cannot_be(model: Path, settings: dict[str, object]) -> None:
    with pytest.raises(InputError, match="give"):
        bench(model, **settings)  # type: ignore[arg-type]
