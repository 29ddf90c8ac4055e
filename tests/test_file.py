"""The ``.hsq`` file: what is written comes back bit for bit, and what cannot be read is refused by name."""

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import outputs, random_plan, student_logits
from pyramid_task import PyramidNet, PyramidTask
from tiny_task import TinyNet, TinyTask
from torch import nn

import hsq_env.file
from detectors.errors import InputError
from hsq_env.choices import Choice
from hsq_env.file import load_hsq, save_hsq, student_bytes
from hsq_env.layer_info import LayerInfo, trace_layers
from hsq_env.long_finetuning import finetune_all
from hsq_env.pruning import magnitude_mask
from hsq_env.student import Student


class LargerNet(TinyNet):
    """The tiny network with a layer more."""

    def __init__(self) -> None:
        super().__init__()
        self.extra = nn.Linear(3, 3)


# ---- what comes back


@pytest.mark.parametrize("activation_bits", [8, 4, None, "match"])
@pytest.mark.parametrize("pattern", ["unstructured", "n:m", "channels"])
@pytest.mark.parametrize("seed", [1, 2])
def test_reloaded_outputs_are_bit_identical(
    tiny: TinyTask,
    infos: tuple[LayerInfo, ...],
    tmp_path: Path,
    seed: int,
    pattern: str,
    activation_bits: int | str | None,
) -> None:
    student = Student(tiny, infos, activation_bits, pattern)
    plan = random_plan(infos, seed)
    student.apply(plan)
    assert finetune_all(student, 3)  # scales and biases away from where they started
    size = save_hsq(student, tmp_path / "model.hsq")
    model = TinyNet().requires_grad_(False)
    header = load_hsq(tmp_path / "model.hsq", model)
    assert size == (tmp_path / "model.hsq").stat().st_size
    assert header.plan() == plan and header.pattern == pattern and header.model == tiny.describe()
    first, *others = [entry.activation_bits for entry in header.layers]
    assert first == (activation_bits and 8)  # the picture
    assert others == [choice.bits if activation_bits == "match" else activation_bits for choice in plan.choices[1:]]
    for split in ("search", "test"):
        expected = student_logits(student, split)
        assert torch.equal(outputs(tiny, model, tiny.evaluation(split)[0].images)["logits"], expected)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("sparsity", [0.0, 0.25, 0.5, 0.75])
@pytest.mark.parametrize("pattern", ["unstructured", "n:m"])
def test_reloaded_weights_are_those_of_the_student(
    tiny: TinyTask, infos: tuple[LayerInfo, ...], tmp_path: Path, bits: int, sparsity: float, pattern: str
) -> None:
    student = Student(tiny, infos, pattern=pattern)
    for index in range(len(infos)):
        student.compress(index, Choice(bits, sparsity))
    save_hsq(student, tmp_path / "model.hsq")
    model = TinyNet()
    load_hsq(tmp_path / "model.hsq", model)
    for info, layer in zip(infos, student.layers, strict=True):
        loaded: Any = model.get_submodule(info.name)
        assert torch.equal(loaded.weight_and_bias()[0], layer.weight_and_bias()[0])
        if sparsity:
            assert (loaded.weight_and_bias()[0] == 0).sum() >= round(sparsity * layer.weight.numel())


def test_unchosen_layers_and_other_tensors_come_back_exactly(
    tiny: TinyTask, infos: tuple[LayerInfo, ...], tmp_path: Path
) -> None:
    student = Student(tiny, infos)
    student.compress(1, Choice(4, 0.5))
    student.compress(5, Choice(2))
    with torch.no_grad():
        student.model.get_parameter("head.1.weight").mul_(1.25)  # a group norm
    save_hsq(student, tmp_path / "model.hsq")
    model = TinyNet().requires_grad_(False)
    header = load_hsq(tmp_path / "model.hsq", model)
    assert [entry.choice for entry in header.layers] == [None, Choice(4, 0.5), None, None, None, Choice(2), None]
    for name in ("stem.weight", "stem.bias", "logits.weight", "head.1.weight"):
        assert torch.equal(model.get_parameter(name), student.model.get_parameter(name))
    expected = student_logits(student)
    assert torch.equal(outputs(tiny, model, tiny.evaluation("test")[0].images)["logits"], expected)
    with pytest.raises(InputError, match="no plan"):
        header.plan()


def test_a_model_that_carried_another_plan_is_overwritten(
    tiny: TinyTask, infos: tuple[LayerInfo, ...], path: Path
) -> None:
    model = TinyNet().requires_grad_(False)
    load_hsq(path, model)
    untouched = Student(tiny, infos)
    save_hsq(untouched, path)
    load_hsq(path, model)
    assert torch.equal(outputs(tiny, model, tiny.evaluation("test")[0].images)["logits"], student_logits(untouched))


def test_layers_that_a_second_file_leaves_alone(
    tiny: TinyTask, infos: tuple[LayerInfo, ...], path: Path, tmp_path: Path
) -> None:
    """Its header names one layer less, whose weights are then among the rest."""
    model = TinyNet().requires_grad_(False)
    load_hsq(path, model)
    fewer = Student(tiny, infos[:-1])
    fewer.compress(0, Choice(4))
    save_hsq(fewer, tmp_path / "fewer.hsq")
    load_hsq(tmp_path / "fewer.hsq", model)
    fresh = TinyNet().requires_grad_(False)
    load_hsq(tmp_path / "fewer.hsq", fresh)
    images = tiny.evaluation("test")[0].images
    assert torch.equal(outputs(tiny, model, images)["logits"], outputs(tiny, fresh, images)["logits"])


@pytest.mark.parametrize("coded", [False, True])
def test_a_layer_without_survivors(tmp_path: Path, coded: bool) -> None:
    """One weight, pruned: a mask and no codes, between layers that have some."""
    small = nn.Sequential(nn.Conv2d(3, 1, 3), nn.Conv2d(1, 1, 1), nn.Conv2d(1, 8, 3))
    entries = [["0", [1, 3, 3, 3], True, 4, 0.0, None, 0], ["1", [1, 1, 1, 1], True, 2, 0.75, None, 0]]
    entries.append(["2", [8, 1, 3, 3], True, 8, 0.0, None, 0])
    layers = [(b"", bytes(range(14))), (b"\x00", b""), (b"", bytes(range(72)))]
    joined = {"scales": torch.ones(10, dtype=torch.bfloat16), "biases": torch.ones(10, dtype=torch.float16)}
    parts = [(np.frombuffer(mask, np.uint8), np.frombuffer(codes, np.uint8)) for mask, codes in layers]
    content = hsq_env.file._Content({"model": {}, "pattern": "unstructured", "layers": entries}, parts, joined, {})
    (tmp_path / "x.hsq").write_bytes((hsq_env.file._coded if coded else hsq_env.file._plain)(content))
    load_hsq(tmp_path / "x.hsq", small)
    assert small.get_submodule("1").weight.item() == 0.0
    assert small.get_submodule("2").weight[0, 0, 0].tolist() == [-128.0, -127.0, -126.0]


def test_layers_that_run_several_times_or_never(tmp_path: Path) -> None:
    task = PyramidTask()
    infos = trace_layers(task)
    student = Student(task, infos)
    student.apply(random_plan(infos, 3))
    save_hsq(student, tmp_path / "model.hsq")
    model = PyramidNet().requires_grad_(False)
    header = load_hsq(tmp_path / "model.hsq", model)
    assert [(entry.name, entry.ranges) for entry in header.layers] == [("stem", 1), ("neck", 3), ("head", 3)]
    assert torch.equal(outputs(task, model, task.evaluation("test")[1].images)["logits"], _second_batch(student))
    assert torch.equal(model.spare.weight, task.teacher.spare.weight)


def _second_batch(student: Student) -> torch.Tensor:
    with torch.no_grad():
        logits = student.outputs(student.task.evaluation("test")[1])["logits"]
    assert isinstance(logits, torch.Tensor)
    return logits


def test_masks_are_those_of_magnitude_pruning(tiny: TinyTask, infos: tuple[LayerInfo, ...], tmp_path: Path) -> None:
    student = Student(tiny, infos, pattern="n:m")
    student.compress(1, Choice(8, 0.5))
    save_hsq(student, tmp_path / "model.hsq")
    model = TinyNet()
    load_hsq(tmp_path / "model.hsq", model)
    loaded: Any = model.block1.conv1
    mask = magnitude_mask(tiny.teacher.block1.conv1.weight, 0.5, "n:m")
    assert mask is not None and torch.equal(loaded.mask, mask)


def test_equal_students_give_equal_bytes(tiny: TinyTask, infos: tuple[LayerInfo, ...], student: Student) -> None:
    again = Student(tiny, infos)
    again.apply(random_plan(infos, 0))
    assert student_bytes(again) == student_bytes(student)


# ---- version 2


def test_both_versions_hold_the_same_student(student: Student, tmp_path: Path) -> None:
    states = []
    for coded in (False, True):
        (tmp_path / "model.hsq").write_bytes(student_bytes(student, coded))
        model = TinyNet()
        header = load_hsq(tmp_path / "model.hsq", model)
        states.append({**model.state_dict(), "masks": [getattr(m, "mask", None) for m in model.modules()]})
        assert header.plan() == student.plan()
    for name, value in states[0].items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, states[1][name]), name


def test_the_smaller_version_is_written(student: Student) -> None:
    plain, small = student_bytes(student, coded=False), student_bytes(student)
    assert len(small) < len(plain) and b'"version\\":2' in small[:400] and b'"version\\":1' in plain[:400]


def test_one_code_everywhere_takes_next_to_nothing(tiny: TinyTask, infos: tuple[LayerInfo, ...]) -> None:
    student = Student(tiny, infos)
    for index in range(len(infos)):
        student.compress(index, Choice(4))
    before = len(student_bytes(student))
    for layer in student.layers:
        assert layer.codes is not None
        layer.codes.zero_()
    assert len(student_bytes(student)) < before - sum(layer.weight.numel() for layer in student.layers) / 3


# ---- writing


def test_a_full_disk_leaves_the_old_file(
    student: Student, infos: tuple[LayerInfo, ...], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = path.read_bytes()
    other = Student(student.task, infos)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        save_hsq(other, path)
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == ["model.hsq"]


def test_a_bias_too_large_for_the_file_is_cut(tiny: TinyTask, infos: tuple[LayerInfo, ...], tmp_path: Path) -> None:
    made = Student(tiny, infos)
    made.apply(random_plan(infos, 0))
    with torch.no_grad():
        made.layers[2].bias[:2] = torch.tensor([7e4, -7e4])  # type: ignore[index]
    made.layers[2].store()
    (tmp_path / "model.hsq").write_bytes(student_bytes(made))
    model = TinyNet().requires_grad_(False)
    load_hsq(tmp_path / "model.hsq", model)
    loaded: Any = model.get_submodule(infos[2].name)
    assert loaded.stored_bias[:2].tolist() == made.layers[2].stored_bias[:2].tolist() == [65504.0, -65504.0]  # type: ignore[index]
