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
from hsq_env.layer_info import trace_layers
from hsq_env.onnx_file import SIGNED, onnx_bytes, outputs_of
from hsq_env.onnx_integer import integer_form
from hsq_env.onnx_tidy import tidied
from hsq_env.student import Student


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
    """With a normalization behind them too, but not where only sums lie between them and the features put out."""
    _, exact, integer = contents(tiny, [Choice(bits)] * 7)
    before, after = optimized(exact, tmp_path), optimized(integer, tmp_path)
    assert after.count("QLinearConv") == 3  # the first of both blocks, and the head's
    assert before.count("QLinearConv") == (2 if bits == 8 else 0)
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


def test_sums_take_what_is_wide_enough(tmp_path: Path) -> None:
    """A value whose range for the convolution cuts it off goes into the sum as it is, and so does the network's."""
    rng = np.random.default_rng(0)
    images = rng.uniform(0, 1.5, (1, 2, 6, 6)).astype(np.float32)
    weight = rng.normal(size=(2, 2, 1, 1)).astype(np.float32)
    tensors = [numpy_helper.from_array(weight, "w")]
    for name, scale in (("xs", 1 / 255), ("ys", 4 / 255)):
        tensors += [numpy_helper.from_array(np.array(scale, np.float32), name)]
    tensors += [numpy_helper.from_array(np.array(0, np.uint8), "z")]
    make = helper.make_node
    nodes = [
        make("Relu", ["images"], ["x"]),
        make("QuantizeLinear", ["x", "xs", "z"], ["xq"]),  # up to 1, where x goes up to 1.5
        make("DequantizeLinear", ["xq", "xs", "z"], ["xd"]),
        make("Conv", ["xd", "w"], ["c"]),
        make("Add", ["c", "x"], ["sum"]),
        make("QuantizeLinear", ["sum", "ys", "z"], ["sq"]),
        make("DequantizeLinear", ["sq", "ys", "z"], ["sd"]),
        make("Conv", ["sd", "w"], ["d"]),
        make("Add", ["d", "d"], ["y"]),
    ]
    value = helper.make_tensor_value_info
    inputs = [value("images", TensorProto.FLOAT, [1, 2, 6, 6])]
    made = helper.make_graph(nodes, "g", inputs, [value("y", TensorProto.FLOAT, [1, 2, 6, 6])], tensors)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    content = model.SerializeToString()
    exact, found = (outputs_of(c)(images)["y"] for c in (content, integer_form(content, [images])))
    assert np.abs(exact - found).max() < 0.15  # the first sum's convolution is rounded, and no more
    kinds = optimized(integer_form(content, [images]), tmp_path)
    assert kinds.count("QLinearConv") == 1 and kinds.count("Conv") + kinds.count("FusedConv") == 1


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


def test_what_must_not_be_made_one() -> None:
    """Equal constants that are outputs, draws, outputs of which one is left out, and constants given as numbers."""
    value, make = helper.make_tensor_value_info, helper.make_node
    two = [numpy_helper.from_array(np.ones(2, np.float32), name) for name in ("p", "q")]
    two.append(numpy_helper.from_array(np.array(7, np.float32), "seven"))
    nodes = [
        make("RandomNormalLike", ["x"], ["r"]),
        make("RandomNormalLike", ["x"], ["s"]),
        make("Sub", ["r", "s"], ["difference"]),
        make("Constant", [], ["k"], value_ints=[1]),
        make("MaxPool", ["x"], ["most"], kernel_shape=[3]),
        make("MaxPool", ["x"], ["again", "places"], kernel_shape=[3]),
        make("Identity", ["places"], ["where"]),
        make("Neg", ["again"], ["least"]),
        make("Clip", ["least", "", "seven"], ["clipped"]),
    ]
    outputs = [value(n, TensorProto.FLOAT, None) for n in ("p", "q", "difference", "most")]
    outputs += [value("k", TensorProto.INT64, None), value("clipped", TensorProto.FLOAT, None)]
    outputs.append(value("where", TensorProto.INT64, None))
    inputs = [value("x", TensorProto.FLOAT, [1, 2, 3])]
    made = helper.make_graph(nodes, "g", inputs, outputs, two)
    tidy = tidied(helper.make_model(made, opset_imports=[helper.make_opsetid("", 21)], ir_version=10))
    session = onnxruntime.InferenceSession(tidy.SerializeToString(), providers=["CPUExecutionProvider"])
    x = np.array([[[1, 3, 2], [6, 5, 4]]], np.float32)
    p, q, difference, most, k, clipped, where = session.run(None, {"x": x})
    assert p.tolist() == q.tolist() == [1, 1] and np.abs(difference).max() > 0
    assert most.tolist() == [[[3], [6]]] and where.tolist() == [[[1], [3]]] and k.tolist() == [1]
    assert clipped.tolist() == [[[-3], [-6]]]


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
