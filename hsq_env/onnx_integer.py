"""The form of an ONNX graph that onnxruntime computes in integers.

A convolution runs in integer arithmetic (``QLinearConv``) where its input, its weight and its output are rounded. A
student rounds inputs alone; what a convolution hands to an addition or a normalization is float32, and so is the
convolution then. Here those outputs are rounded too, to 8 bits within the span that they have on some images, and sums
take what was rounded for the next convolution already. That is one more rounding than the student was trained with;
what it costs is measured where the file is written.
"""

from collections.abc import Sequence

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from hsq_env.onnx_tidy import tidied

LEVELS = 255  # of 8 bits
PASSED_ON = {"Relu", "MaxPool", "Clip"}  # what may stand between a convolution and its rounding


def integer_form(content: bytes, images: Sequence[NDArray[np.float32]]) -> bytes:
    """The content of a file whose convolutions with rounded inputs are computed in integers.

    Those whose results are the network's stay as they are.

    :param content: of ``onnx_bytes``
    :param images: batches for the spans of outputs
    """
    graph = _Integer(onnx.load_from_string(content))
    graph.round_outputs(images)
    graph.share_rounded()
    model = tidied(graph.finished())
    onnx.checker.check_model(model)
    return model.SerializeToString()


class _Integer:
    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.nodes = list(model.graph.node)
        self.outputs = {value.name for value in model.graph.output}
        self.new: dict[int, list[NodeProto]] = {}  # by the id of the node behind which they stand

    def _readers(self, name: str) -> list[NodeProto]:
        return [node for node in self.nodes if name in node.input]

    def _rounded_next(self, name: str) -> bool:
        """Whether all that reads a value rounds it first."""
        readers = self._readers(name)
        return bool(readers) and all(
            node.op_type == "QuantizeLinear" or (node.op_type in PASSED_ON and self._rounded_next(node.output[0]))
            for node in readers
        )

    def _reaches_output(self, name: str) -> bool:
        """Whether nothing but moving elements lies between a value and an output of the network."""
        moving = {"Reshape", "Transpose", "Concat", "Relu", "Mul", "Squeeze", "Flatten", "Identity", "Slice", "Split"}
        moving |= {"Sigmoid", "Unsqueeze", "Sqrt", "Sub"}
        return name in self.outputs or any(
            node.op_type in moving and any(self._reaches_output(o) for o in node.output) for node in self._readers(name)
        )

    def round_outputs(self, images: Sequence[NDArray[np.float32]]) -> None:
        """Round what convolutions with rounded inputs hand on in float32."""
        rounded = {node.output[0] for node in self.nodes if node.op_type == "DequantizeLinear"}
        chosen: dict[str, NodeProto] = {}
        for node in self.nodes:
            if node.op_type != "Conv" or node.input[0] not in rounded or self._rounded_next(node.output[0]):
                continue
            at, behind = node, self._readers(node.output[0])
            if len(behind) == 1 and behind[0].op_type == "Relu":
                at = behind[0]
            if not self._reaches_output(at.output[0]):
                chosen[at.output[0]] = at
        for name, (low, high) in self._spans(list(chosen), images).items():
            self._round(name, chosen[name], low, high)

    def _spans(self, names: list[str], images: Sequence[NDArray[np.float32]]) -> dict[str, tuple[float, float]]:
        """The smallest and the largest number of values, 0 included."""
        if not names:
            return {}
        seen = onnx.ModelProto()
        seen.CopyFrom(self.model)
        del seen.graph.output[:]
        seen.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(seen.SerializeToString(), options, providers=["CPUExecutionProvider"])
        spans = dict.fromkeys(names, (0.0, 0.0))
        for batch in images:
            for name, value in zip(names, session.run(names, {"images": batch}), strict=True):
                low, high = spans[name]
                spans[name] = min(low, float(value.min())), max(high, float(value.max()))
        return spans

    def _round(self, name: str, node: NodeProto, low: float, high: float) -> None:
        scale = np.float32(max(high - low, 1e-12) / LEVELS)
        zero = np.uint8(np.clip(np.rint(-low / scale), 0, LEVELS))
        constants = [f"{name}_scale", f"{name}_zero"]
        for constant, value in zip(constants, (scale, zero), strict=True):
            self.model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), constant))
        codes, result = f"{name}_codes", f"{name}_rounded"
        for reader in self._readers(name):
            reader.input[:] = [result if given == name else given for given in reader.input]
        self.new[id(node)] = [
            helper.make_node("QuantizeLinear", [name, *constants], [codes]),
            helper.make_node("DequantizeLinear", [codes, *constants], [result]),
        ]

    def share_rounded(self) -> None:
        """Let sums take values as they were rounded for a convolution, where they are."""
        everything = [*self.nodes, *(new for some in self.new.values() for new in some)]
        dequantized = {n.input[0]: n.output[0] for n in everything if n.op_type == "DequantizeLinear"}
        rounded = {
            n.input[0]: dequantized[n.output[0]]
            for n in everything
            if n.op_type == "QuantizeLinear" and n.output[0] in dequantized
        }
        for node in self.nodes:
            if node.op_type == "Add":
                node.input[:] = [rounded.get(name, name) for name in node.input]

    def finished(self) -> onnx.ModelProto:
        """The model, its nodes in order."""
        ordered = [new for node in self.nodes for new in (node, *self.new.get(id(node), []))]
        del self.model.graph.node[:], self.model.graph.value_info[:]
        self.model.graph.node.extend(_sorted(self.model, ordered))
        return self.model


def _sorted(model: onnx.ModelProto, nodes: list[NodeProto]) -> list[NodeProto]:
    """Every node behind those that make what it reads, otherwise in the order given."""
    known = {t.name for t in model.graph.initializer} | {v.name for v in model.graph.input} | {""}
    ordered, waiting = [], nodes
    while waiting:
        ready = [node for node in waiting if known.issuperset(node.input)]
        later, known_before = [], len(known)
        for node in waiting:
            if known.issuperset(node.input):
                ordered.append(node)
                known |= set(node.output)
            else:
                later.append(node)
        assert len(known) > known_before or not ready, "a cycle"
        waiting = later
    return ordered
