"""Sensitivities: measured as said, kept on disk, measured again where the disk lies."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import outputs
from pyramid_task import PyramidTask
from tiny_task import TinyNet, TinyTask

from hsq_env import sensitivity as module
from hsq_env.choices import Choice, choice_grid
from hsq_env.distillation import AKD
from hsq_env.layers import make_compressible
from hsq_env.quantizers import activation_range
from hsq_env.sensitivity import measure_sensitivity, sensitivity
from hsq_env.student import LayerInfo, trace_layers

CHOICES = choice_grid()
SOME = (Choice(2, 0.5), Choice(8, 0.0))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache that holds nothing."""
    monkeypatch.setenv("HSQ_CACHE", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(("layer", "column"), [(0, 0), (1, 6), (4, 3), (6, 9)])
def test_an_entry_is_the_loss_with_that_layer_alone(
    tiny: TinyTask, infos: tuple[LayerInfo, ...], layer: int, column: int
) -> None:
    table = measure_sensitivity(tiny, infos, CHOICES)
    assert table.shape == (7, 12) and (table >= 0).all()
    model = make_compressible(copy.deepcopy(tiny.teacher))
    ranges = tuple(activation_range(low, high, 8) for low, high in infos[layer].input_ranges)
    changed: torch.nn.Module = model.get_submodule(infos[layer].name)
    changed.compress(CHOICES[column], ranges, "unstructured")  # type: ignore[operator]
    (batch,) = tiny.calibration()
    expected = AKD().loss(
        tiny.distilled(outputs(tiny, model, batch.images)), tiny.distilled(outputs(tiny, tiny.teacher, batch.images))
    )
    assert table[layer, column] == pytest.approx(expected.item(), rel=1e-6)


def test_batches_are_averaged() -> None:
    task = PyramidTask()
    infos = trace_layers(task)
    table = measure_sensitivity(task, infos, SOME)
    first, second = task.calibration()

    def alone(batch: object) -> float:
        student = module.Student(task, infos)
        student.compress(2, SOME[0])
        got = outputs(task, student.model, batch.images)  # type: ignore[attr-defined]
        expected = outputs(task, task.teacher, batch.images)  # type: ignore[attr-defined]
        return AKD().loss(task.distilled(got), task.distilled(expected)).item()

    assert table[2, 0] == pytest.approx((alone(first) + alone(second)) / 2, rel=1e-6)


def test_fewer_bits_hurt_more(tiny: TinyTask, infos: tuple[LayerInfo, ...]) -> None:
    two, four, eight = measure_sensitivity(tiny, infos, (Choice(2), Choice(4), Choice(8))).sum(axis=0)
    assert two > four > eight


def test_outputs_that_are_no_numbers_count_as_the_largest(tiny: TinyTask, infos: tuple[LayerInfo, ...]) -> None:
    class Poisoned(TinyTask):
        def __init__(self) -> None:
            self.__dict__.update(tiny.__dict__)

        def distilled(self, outputs: dict[str, torch.Tensor]) -> list:  # type: ignore[type-arg]
            if not torch.equal(outputs["logits"], clean):
                outputs = {**outputs, "logits": outputs["logits"] * float("nan")} if self.armed else outputs
            return super().distilled(outputs)

        armed = True

    (batch,) = tiny.calibration()
    clean = outputs(tiny, tiny.teacher, batch.images)["logits"]
    task = Poisoned()
    assert np.array_equal(measure_sensitivity(task, infos, SOME), np.ones((7, 2)))
    task.armed = False
    assert np.array_equal(measure_sensitivity(task, infos, SOME), measure_sensitivity(tiny, infos, SOME))


# ---- the cache


def test_the_kept_table_equals_the_measured_one(
    tiny: TinyTask, infos: tuple[LayerInfo, ...], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = measure_sensitivity(tiny, infos, SOME)
    assert np.array_equal(sensitivity(tiny, infos, SOME), measured)
    (path,) = folder.iterdir()
    assert path.suffix == ".npy"

    def never(*arguments: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(module, "measure_sensitivity", never)
    assert np.array_equal(sensitivity(tiny, infos, SOME), measured)


@pytest.mark.parametrize("length", [0, 5, 60, -8], ids=["empty", "magic", "header", "data"])
def test_a_damaged_table_is_measured_again(
    tiny: TinyTask, infos: tuple[LayerInfo, ...], folder: Path, length: int
) -> None:
    measured = sensitivity(tiny, infos, SOME)
    (path,) = folder.iterdir()
    good = path.read_bytes()
    for damaged in (good[:length], b"\x00" * 300, b"PK\x03\x04" + good):
        path.write_bytes(damaged)
        assert np.array_equal(sensitivity(tiny, infos, SOME), measured)
        assert path.read_bytes() == good


def test_a_folder_that_cannot_be_written_does_not_stop_anything(
    tiny: TinyTask, infos: tuple[LayerInfo, ...], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "file").write_text("in the way")
    monkeypatch.setenv("HSQ_CACHE", str(folder / "file" / "cache"))
    assert np.array_equal(sensitivity(tiny, infos, SOME), measure_sensitivity(tiny, infos, SOME))


def test_whatever_changes_the_table_changes_its_name(
    tiny: TinyTask, infos: tuple[LayerInfo, ...], folder: Path
) -> None:
    def files() -> int:
        return len(list(folder.iterdir()))

    sensitivity(tiny, infos, SOME)
    sensitivity(tiny, infos, SOME)
    assert files() == 1
    sensitivity(tiny, infos, SOME, activation_bits=None)
    sensitivity(tiny, infos, SOME, pattern="n:m")
    sensitivity(tiny, infos, SOME[:1])
    assert files() == 4
    other = copy.copy(tiny)
    other.teacher = TinyNet().eval().requires_grad_(False)
    sensitivity(other, infos, SOME)
    assert files() == 5
