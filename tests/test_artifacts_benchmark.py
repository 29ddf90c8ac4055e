"""The measurements of files, on small ones."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from helpers import random_plan
from tiny_task import TinyNet, TinyTask

import benchmarks.artifacts as artifacts
from hsq_env.choices import Choice, Plan
from hsq_env.file import load_hsq, student_bytes
from hsq_env.layer_info import LayerInfo
from hsq_env.onnx_file import onnx_bytes
from hsq_env.student import Student


def loaded(content: bytes, folder: Path) -> TinyNet:
    (folder / "model.hsq").write_bytes(content)
    model = TinyNet()
    load_hsq(folder / "model.hsq", model)
    return model


def test_parts_keep_each_others_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifacts, "RESULTS", tmp_path)
    monkeypatch.setattr("benchmarks.record.RESULTS", tmp_path)
    artifacts.merged("first", {"one": 1, "both": 1})
    artifacts.merged("second", {"two": 2, "both": 2})
    found = json.loads((tmp_path / "artifacts.json").read_text())
    assert (found["one"], found["two"], found["both"]) == (1, 2, 2) and "command" in found
    assert list(found["made"]) == ["first", "second"] and "command" in found["made"]["first"]


def test_equal_and_other_networks(tiny: TinyTask, infos: tuple[LayerInfo, ...], tmp_path: Path) -> None:
    student = Student(tiny, infos)
    student.apply(random_plan(infos, 0))
    plain, small = (loaded(student_bytes(student, coded), tmp_path) for coded in (False, True))
    assert artifacts.same_network(plain, small)
    layer: Any = small.get_submodule(infos[2].name)
    before = layer.bias.clone()
    with torch.no_grad():
        layer.bias[0] += 1
    assert not artifacts.same_network(plain, small)
    layer.bias.data.copy_(before)
    assert artifacts.same_network(plain, small)
    student.compress(1, Choice(8, 0.75))
    assert not artifacts.same_network(plain, loaded(student_bytes(student), tmp_path))


def test_numeral_systems_against_the_entropy(tiny: TinyTask, infos: tuple[LayerInfo, ...]) -> None:
    """Dense codes of 8 bits: never above packing, and not far above what their shares say."""
    student = Student(tiny, infos)
    student.apply(Plan(tuple(i.name for i in infos), (Choice(8),) * len(infos)))
    packed = sum(layer.weight.numel() for layer in student.layers)
    found = artifacts.numeral_systems_bytes(student)
    least = 0.0
    for layer in student.layers:
        assert layer.codes is not None
        shares = np.bincount(layer.codes.numpy().reshape(-1).astype(int) + 128) / layer.codes.numel()
        least -= layer.codes.numel() * (shares[shares > 0] * np.log2(shares[shares > 0])).sum() / 8
    assert least < found <= packed
    for layer in student.layers:
        assert layer.codes is not None
        layer.codes.zero_()
    assert artifacts.numeral_systems_bytes(student) < packed / 2


def test_bits_in_which_weights_lie(tiny: TinyTask, infos: tuple[LayerInfo, ...]) -> None:
    student = Student(tiny, infos)
    student.apply(Plan(tuple(i.name for i in infos), tuple(Choice(b) for b in (8, 4, 2, 4, 2, 8, 8))))
    content = onnx_bytes(student.model, tiny.stages, tiny.calibration()[0].images, widen=True)
    counts = [layer.weight.numel() for layer in student.layers]
    eights, fours, twos = counts[0] + counts[5] + counts[6], counts[1] + counts[3], counts[2] + counts[4]
    assert artifacts.bits_stored(content) == {"INT8": eights, "INT4": fours / 2, "INT2": twos / 4}


@pytest.mark.slow
def test_onnxruntimes_own_quantization_is_one(tiny: TinyTask, tmp_path: Path) -> None:
    images = tiny.calibration()[0].images
    plain = onnx_bytes(tiny.teacher, tiny.stages, images)
    theirs = artifacts.quantize_static_bytes(plain, [images.numpy()], tmp_path)
    kinds = [node.op_type for node in onnx.load_from_string(theirs).graph.node]
    assert "QuantizeLinear" in kinds and len(theirs) < len(plain)
