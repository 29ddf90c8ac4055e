"""Sensitivities: measured as said, kept on disk, measured again where the disk lies."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import outputs
from pyramid_task import PyramidTask
from tiny_task import TinyNet, TinyTask

from hsq_env import sensitivity as module
from hsq_env import table_cache
from hsq_env.choices import Choice, choice_grid
from hsq_env.compressor import Compressor
from hsq_env.distillation import AKD, JUDGING_WEIGHTS
from hsq_env.env import HSQEnv
from hsq_env.layer_info import LayerInfo, trace_layers
from hsq_env.layers import make_compressible
from hsq_env.quantizers import activation_range
from hsq_env.sensitivity import (
    _numbers,
    measure_repaired_sensitivity,
    measure_sensitivity,
    repaired_sensitivity,
    sensitivity,
)

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
    expected = AKD(weights=JUDGING_WEIGHTS).loss(
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
        return AKD(weights=JUDGING_WEIGHTS).loss(task.distilled(got), task.distilled(expected)).item()

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


def test_numbers_by_hand() -> None:
    table = np.array([[5.0, np.nan], [0.1, np.inf]])
    assert _numbers(table).tolist() == [[5.0, 5.0], [0.1, 5.0]]


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


# ---- after a repair


@pytest.mark.parametrize("scope", ["layer", "block", "all"])
def test_a_repaired_entry_is_the_loss_after_the_first_step_of_an_episode(tiny: TinyTask, scope: str) -> None:
    """The first layer's row can be had from the environment: all other layers are as the teacher has them."""
    env = HSQEnv(tiny, finetune_scope=scope, alpha=0.6, sensitivities=np.zeros((7, 12)))
    table = measure_repaired_sensitivity(env.compressor, env.choices, 0.6)
    (batch,) = tiny.calibration()
    expected = tiny.distilled(outputs(tiny, tiny.teacher, batch.images))
    for column in (0, 3, 5, 11):
        env.reset()
        env.step(column)
        with torch.no_grad():
            got = tiny.distilled(env.student.outputs(batch))
        assert table[0, column] == pytest.approx(AKD(weights=JUDGING_WEIGHTS).loss(got, expected).item(), rel=1e-5)


def test_a_repaired_entry_of_a_later_layer(tiny: TinyTask) -> None:
    """Other layers do not matter, nor what was measured before."""
    env = HSQEnv(tiny, sensitivities=np.zeros((7, 12)))
    env.reset()
    env.step(3)
    before = student_bytes_of(env)
    table = measure_repaired_sensitivity(env.compressor, env.choices, 0.3)
    assert student_bytes_of(env) == before
    own = env.compressor.fork()
    (batch,) = tiny.calibration()
    with torch.no_grad(), own.alone(4, env.choices[7], 0.3) as (student, _):
        got = tiny.distilled(student.outputs(batch))
        expected = tiny.distilled(outputs(tiny, tiny.teacher, batch.images))
        assert table[4, 7] == AKD(weights=JUDGING_WEIGHTS).loss(got, expected).item()
    again = measure_repaired_sensitivity(env.compressor, env.choices, 0.3)
    assert (table == again).all()


def test_repair_helps(tiny: TinyTask, infos: tuple[LayerInfo, ...]) -> None:
    """Where there is damage to repair."""
    env = HSQEnv(tiny, step_minibatches=4, sensitivities=np.zeros((7, 12)))
    raw = measure_sensitivity(tiny, infos, CHOICES)
    repaired = measure_repaired_sensitivity(env.compressor, env.choices, 0.0)
    damaged = raw > np.median(raw)
    assert repaired[damaged].sum() < raw[damaged].sum()


def test_without_repair_both_tables_agree(tiny: TinyTask, infos: tuple[LayerInfo, ...]) -> None:
    env = HSQEnv(tiny, step_minibatches=0, sensitivities=np.zeros((7, 12)))
    repaired = measure_repaired_sensitivity(env.compressor, env.choices, 0.3)
    assert repaired == pytest.approx(measure_sensitivity(tiny, infos, CHOICES), rel=1e-6, abs=1e-9)


def test_repaired_tables_are_kept_by_their_settings(
    tiny: TinyTask, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = HSQEnv(tiny, sensitivities=np.zeros((7, 12))).compressor
    first = repaired_sensitivity(one, CHOICES, 0.3)
    other = HSQEnv(tiny, step_minibatches=3, sensitivities=np.zeros((7, 12))).compressor
    for different in (repaired_sensitivity(other, CHOICES, 0.3), repaired_sensitivity(one, CHOICES, 0.5)):
        assert (different != first).any()
    assert len(list(folder.iterdir())) == 3
    monkeypatch.setattr(module, "measure_repaired_sensitivity", None)
    assert (repaired_sensitivity(one, CHOICES, 0.3) == first).all()


def student_bytes_of(env: HSQEnv) -> list[float]:
    """What the student's layers compute with."""
    return [float(tensor.double().sum()) for tensor in env.student.model.state_dict().values()]


@pytest.mark.parametrize("repaired", [False, True])
def test_an_interrupted_measurement_goes_on(
    tiny: TinyTask,
    infos: tuple[LayerInfo, ...],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    repaired: bool,
) -> None:
    compressor = Compressor(tiny)
    loss, calls = module._loss, [0]

    def table() -> np.ndarray:
        return repaired_sensitivity(compressor, SOME, 0.3) if repaired else sensitivity(tiny, infos, SOME)

    def interrupted(*arguments: Any) -> float:
        calls[0] += 1
        if calls[0] == 3 * len(SOME) + 1:
            raise KeyboardInterrupt
        return loss(*arguments)

    expected = (
        measure_repaired_sensitivity(compressor, SOME, 0.3) if repaired else measure_sensitivity(tiny, infos, SOME)
    )
    monkeypatch.setattr(table_cache, "ROWS_SECONDS", -1.0)
    monkeypatch.setattr(module, "_loss", interrupted)
    with pytest.raises(KeyboardInterrupt):
        table()
    assert np.array_equal(table(), expected)
    assert calls[0] == 7 * len(SOME) + 1  # three layers were kept
    assert [path.name.count(".") for path in folder.iterdir()] == [1]
