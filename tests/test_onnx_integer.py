"""The integer form of ONNX graphs, and graphs in fewer bytes."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from helpers import random_plan
from onnx import TensorProto, helper, numpy_helper
from pyramid_task import PyramidTask
from tiny_task import TinyTask
from towers_task import TowersTask

from hsq_env.choices import Choice, Plan
from hsq_env.onnx_file import SIGNED, onnx_bytes, outputs_of
from hsq_env.onnx_integer import integer_form
from hsq_env.onnx_tidy import tidied
from hsq_env.student import Student, trace_layers


def contents(task: Any, choices: Any, activation_bits: int | None = 8) -> tuple[Student, bytes, bytes]:
    """A student, its file, and its file in integer form."""
    student = Student(task, trace_layers(task), activation_bits)
    student.apply(Plan(tuple(i.name for i in student.infos), tuple(choices)))
    images = task.calibration()[0].images
    exact, wide = (onnx_bytes(student.model, task.stages, images, widen=widen) for widen in (False, True))
    return student, exact, integer_form(wide, [batch.images.numpy() for batch in task.calibration()])


def optimized(content: bytes, folder: Path) -> list[str]:
    """What onnxruntime makes of a file, as names of operators."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node]


@pytest.mark.parametrize("kind", [TinyTask, PyramidTask, TowersTask])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_both_forms_compute_nearly_the_same(kind: Any, bits: int) -> None:
    task = kind()
    _, exact, integer = contents(task, [Choice(bits)] * len(trace_layers(task)))
    images = task.calibration()[0].images.numpy()
    for name, expected in outputs_of(exact)(images).items():
        found = outputs_of(integer)(images)[name]
        assert found.shape == expected.shape
        assert np.abs(found - expected).mean() < 0.05 * np.abs(expected).max(), name


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_convolutions_run_in_integers(tiny: TinyTask, tmp_path: Path, bits: int) -> None:
    """All but those whose result is the network's; before, those with additions and normalizations behind them too."""
    student, exact, integer = contents(tiny, [Choice(bits)] * 7)
    convolutions = sum(isinstance(layer.weight, torch.Tensor) and layer.weight.dim() == 4 for layer in student.layers)
    before, after = optimized(exact, tmp_path), optimized(integer, tmp_path)
    assert before.count("QLinearConv") < after.count("QLinearConv") >= convolutions - 1
    stored = [t.data_type for t in onnx.load_from_string(integer).graph.initializer if len(t.dims) == 4]
    assert set(stored) == {SIGNED[bits]}  # turned into 8 bits when it is loaded


def test_sparse_and_mixed_plans(tiny: TinyTask) -> None:
    """Balanced levels beside zeros, levels with a zero, masks."""
    choices = [Choice(2, 0.5), Choice(2), Choice(2, 0.25), Choice(4, 0.75), Choice(8, 0.5), Choice(4), Choice(2, 0.75)]
    student, exact, integer = contents(tiny, choices, None)
    images = tiny.calibration()[0].images
    with torch.no_grad():
        expected = student.outputs(tiny.calibration()[0])["logits"].numpy()
    for content in (exact, integer):  # nothing is rounded, so that nothing is made integer
        found = outputs_of(content)(images.numpy())["logits"]
        np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


def test_a_network_without_rounded_inputs_is_left_alone(tiny: TinyTask) -> None:
    _, _, integer = contents(tiny, [Choice(8)] * 7, None)
    assert "QuantizeLinear" not in {node.op_type for node in onnx.load_from_string(integer).graph.node}


def test_random_plans_keep_their_outputs_names_and_free_sizes(tiny: TinyTask) -> None:
    student = Student(tiny, trace_layers(tiny), 8)
    plan = random_plan(student.infos, seed=3)
    _, exact, integer = contents(tiny, plan.choices)
    one, other = onnx.load_from_string(exact), onnx.load_from_string(integer)
    assert [v.name for v in one.graph.output] == [v.name for v in other.graph.output]
    assert one.graph.input[0] == other.graph.input[0]


# ---- tidying


def graph(nodes: list[Any], tensors: list[Any]) -> onnx.ModelProto:
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", "columns"])]
    made = helper.make_graph(nodes, "g", inputs, outputs, tensors)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def ran(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found: np.ndarray = session.run(None, {"x": x})[0]
    return found


def test_constants_doubles_and_dead_ends_go() -> None:
    one, same = (numpy_helper.from_array(np.ones(3, np.float32), name) for name in ("one", "same"))
    axes = numpy_helper.from_array(np.array([0]), "axes")
    nodes = [
        helper.make_node("Constant", [], ["three"], value=numpy_helper.from_array(np.full(3, 3, np.float32))),
        helper.make_node("Unsqueeze", ["three", "axes"], ["rows"]),
        helper.make_node("Add", ["x", "one"], ["a_long_name_of_a_sum"]),
        helper.make_node("Add", ["x", "same"], ["another_long_name"]),
        helper.make_node("Identity", ["another_long_name"], ["b"]),
        helper.make_node("Mul", ["a_long_name_of_a_sum", "b"], ["squared"]),
        helper.make_node("Mul", ["x", "one"], ["unused"]),
        helper.make_node("Add", ["squared", "rows"], ["y"]),
    ]
    model = graph(nodes, [one, same, axes])
    tidy = tidied(model)
    onnx.checker.check_model(tidy)
    assert [node.op_type for node in tidy.graph.node] == ["Add", "Mul", "Add"]
    assert len(tidy.graph.initializer) == 2 and max(len(t.name) for t in tidy.graph.initializer) == 1
    x = np.random.default_rng(0).random((2, 3), np.float32)
    assert np.array_equal(ran(model, x), ran(tidy, x)) and np.array_equal(ran(model, x), (x + 1) ** 2 + 3)
    assert len(model.graph.node) == 8  # a copy was tidied


def test_equal_nodes_with_other_settings_stay_apart() -> None:
    nodes = [
        helper.make_node("Transpose", ["x"], ["a"], perm=[0, 1]),
        helper.make_node("Transpose", ["x"], ["b"], perm=[1, 0]),
        helper.make_node("MatMul", ["a", "b"], ["y"]),
    ]
    tidy = tidied(graph(nodes, []))
    assert [node.op_type for node in tidy.graph.node] == ["Transpose", "Transpose", "MatMul"]
    x = np.random.default_rng(0).random((2, 3), np.float32)
    np.testing.assert_allclose(ran(tidy, x), x @ x.T, rtol=1e-5)


def test_an_output_that_is_a_double_keeps_its_name() -> None:
    nodes = [helper.make_node("Relu", ["x"], ["a"]), helper.make_node("Relu", ["x"], ["y"])]
    tidy = tidied(graph(nodes, []))
    assert [list(node.output) for node in tidy.graph.node] == [["y"]]
    assert np.array_equal(ran(tidy, np.full((2, 3), -1, np.float32)), np.zeros((2, 3)))
