"""ONNX files: what onnxruntime computes from them, and how weights lie in them."""

import math
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from helpers import random_plan
from onnx import TensorProto, numpy_helper
from pyramid_task import LEVELS, PyramidTask
from tiny_task import TinyTask
from torch import nn
from towers_task import TowersTask

from detectors.stages import Stage
from hsq_env.choices import Choice, Plan
from hsq_env.layer_info import trace_layers
from hsq_env.layers import CompressedLayer, make_compressible
from hsq_env.onnx_file import SIGNED, StoredWeight, onnx_bytes, outputs_of, packed
from hsq_env.quantizers import activation_range
from hsq_env.raw_outputs import RawOutputs
from hsq_env.student import Student

TASKS = {"tiny": TinyTask, "pyramid": PyramidTask, "towers": TowersTask}
GRID = [Choice(bits, sparsity) for bits in (2, 4, 8) for sparsity in (0.0, 0.25, 0.5, 0.75)]


def uniform(task: Any, choice: Choice, activation_bits: int | None = 8) -> Student:
    student = Student(task, trace_layers(task), activation_bits)
    student.apply(Plan(tuple(i.name for i in student.infos), (choice,) * len(student.infos)))
    return student


def both(student: Student, images: torch.Tensor) -> list[tuple[np.ndarray, np.ndarray]]:
    """Each output, from onnxruntime and from the student."""
    task: Any = student.task
    content = onnx_bytes(student.model, task.stages, task.calibration()[0].images)
    found = outputs_of(content)(images.numpy())
    with torch.no_grad():
        expected = RawOutputs(student.model, task.stages).state(images)
    assert list(found) == list(expected)
    return [(found[name], expected[name].numpy()) for name in found]


@pytest.mark.parametrize("choice", GRID, ids=str)
def test_weights_mean_what_the_students_mean(tiny: TinyTask, choice: Choice) -> None:
    for found, expected in both(uniform(tiny, choice, None), tiny.evaluation("test")[0].images):
        np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("kind", TASKS)
@pytest.mark.parametrize("activation_bits", [8, 4])
def test_rounded_inputs_agree_up_to_ties(kind: str, activation_bits: int) -> None:
    """Heads that run several times have a range for each, beside one set of weights."""
    task: Any = TASKS[kind]()
    student = Student(task, trace_layers(task), activation_bits)
    student.apply(random_plan(student.infos, seed=1))
    images = task.calibration()[0].images
    floats = [expected for _, expected in both(uniform(task, Choice(8), None), images)]
    for (found, expected), other in zip(both(student, images), floats, strict=True):
        largest = np.abs(expected).max()
        assert np.abs(other - expected).mean() > 0.01 * largest
        apart = np.abs(found - expected) > 1e-5 * largest
        assert apart.mean() < 0.35  # where a value lies between two codes, sums that end otherwise go the other way


def test_files_take_images_of_other_sizes_and_numbers() -> None:
    task: Any = PyramidTask()
    images = torch.rand(3, *task.calibration()[0].images.shape[1:])[..., :24]
    for found, expected in both(uniform(task, Choice(8), None), torch.cat([images, images], dim=2)[:, :, :24]):
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_dense_weights_take_their_bits(bits: int) -> None:
    task: Any = PyramidTask()
    student = uniform(task, Choice(bits))
    model = onnx.load_from_string(onnx_bytes(student.model, task.stages, task.calibration()[0].images))
    stored = [t for t in model.graph.initializer if t.data_type == SIGNED[bits] and len(t.dims) > 1]
    assert len(stored) == len(student.infos)  # the head's once, although it runs on every level
    assert sorted(tuple(t.dims) for t in stored) == sorted(info.shape for info in student.infos)
    assert all(len(t.raw_data) == math.ceil(math.prod(t.dims) * bits / 8) for t in stored)
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("QuantizeLinear") == sum(info.calls for info in student.infos) == 1 + 2 * LEVELS
    assert not [
        t for t in model.graph.initializer if t.data_type == TensorProto.FLOAT and len(t.dims) == 4 and t.dims[1] > 1
    ]


def test_codes_are_read_back_by_onnx() -> None:
    """Two's complement, lowest bits first, padded."""
    rng = np.random.default_rng(0)
    for bits in (2, 4, 8):
        codes = rng.integers(-(2 ** (bits - 1)), 2 ** (bits - 1), (3, 5, 1, 1)).astype(np.int8)
        stored = StoredWeight(codes, np.ones(3, np.float32), bits, 0.0)
        tensor = onnx.helper.make_tensor("x", SIGNED[bits], codes.shape, packed(stored), raw=True)
        assert np.array_equal(numpy_helper.to_array(tensor).astype(np.int8), codes)


def test_layers_with_equal_weights_stay_apart(tiny: TinyTask) -> None:
    """The exporter makes one initializer of equal ones, but their choices and ranges differ."""
    student = Student(tiny, trace_layers(tiny), 8)
    for name in ("block1.conv2", "block2.conv2"):
        student.model.get_submodule(name).weight.data.fill_(0.25)
    choices = [Choice(bits) for bits in (8, 8, 4, 8, 8, 8, 8)]
    student.apply(Plan(tuple(i.name for i in student.infos), tuple(choices)))
    model = onnx.load_from_string(onnx_bytes(student.model, tiny.stages, tiny.calibration()[0].images))
    stored = [t.data_type for t in model.graph.initializer if t.data_type in SIGNED.values() and len(t.dims) > 1]
    assert sorted(stored) == sorted(SIGNED[choice.bits] for choice in choices)
    for found, expected in both(student, tiny.calibration()[0].images):
        assert (np.abs(found - expected) > 1e-5 * np.abs(expected).max()).mean() < 0.35


def test_the_model_stays_as_it_is(tiny: TinyTask) -> None:
    student = uniform(tiny, Choice(4, 0.5))
    before = {name: tensor.clone() for name, tensor in student.model.state_dict().items()}
    onnx_bytes(student.model, tiny.stages, tiny.calibration()[0].images)
    assert all(torch.equal(tensor, before[name]) for name, tensor in student.model.state_dict().items())
    assert all(layer.choice == Choice(4, 0.5) for layer in student.layers)


def test_layers_of_few_bits_right_behind_each_other_load() -> None:
    """Here onnxruntime 1.31 makes an integer convolution by itself, which takes no weights of 2 bits."""
    torch.manual_seed(0)
    model = make_compressible(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 1))).eval().requires_grad_(False)
    images = torch.rand(2, 3, 6, 6)
    for layer in model:
        assert isinstance(layer, CompressedLayer)
        layer.compress(Choice(2, 0.25), (activation_range(-2.0, 2.0, 8),), "unstructured")

    def stages(network: nn.Module) -> list[Stage]:
        return [Stage("all", "all", frozenset({"images"}), lambda state: {"y": network(state["images"])})]

    with pytest.raises(Exception, match="int2"):  # as soon as this loads, nothing has to be widened for it
        outputs_of(onnx_bytes(model, stages, images))
    found = outputs_of(onnx_bytes(model, stages, images, widen=True))(images.numpy())["y"]
    np.testing.assert_allclose(found, model(images).numpy(), atol=0.05)  # a code of the second layer's input apart
