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
MEASURING = {"Shape", "Size"}  # what looks at no values
COMPUTING = {"Conv", "MatMul", "Gemm", "ConvTranspose", "QuantizeLinear", "InstanceNormalization"}
SLACK = 0.01  # share of a span by which a range may fall short of it
Span = tuple[float, float]


def integer_form(content: bytes, images: Sequence[NDArray[np.float32]]) -> bytes:
    """The content of a file whose convolutions with rounded inputs are computed in integers.

    Those whose results become the network's without another layer in between stay as they are, and so do the sums that
    make these. Where nothing is rounded, ``content`` is returned.

    :param content: of ``onnx_bytes``
    :param images: batches for the spans of outputs
    """
    graph = _Integer(onnx.load_from_string(content))
    if not graph.quantized:
        return content
    outputs, sums = graph.to_round(), graph.to_share()
    spans = graph.spans([*outputs, *sums], images)
    graph.share_rounded(sums, spans)
    graph.round_outputs(outputs, spans)
    model = tidied(graph.finished())
    onnx.checker.check_model(model)
    return model.SerializeToString()


class _Integer:
    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.nodes = list(model.graph.node)
        self.inputs = {value.name for value in model.graph.input}
        self.outputs = {value.name for value in model.graph.output}
        self.new: dict[int, list[NodeProto]] = {}  # by the id of the node behind which they stand
        self._open: dict[str, bool] = {}
        self.numbers = {t.name: t for t in model.graph.initializer}
        self.quantized = [node for node in self.nodes if node.op_type == "QuantizeLinear"]

    def _readers(self, name: str) -> list[NodeProto]:
        """Nodes that look at a value."""
        return [node for node in self.nodes if name in node.input and node.op_type not in MEASURING]

    def _rounded_next(self, name: str) -> bool:
        """Whether all that reads a value rounds it first."""
        readers = self._readers(name)
        return bool(readers) and all(
            node.op_type == "QuantizeLinear" or (node.op_type in PASSED_ON and self._rounded_next(node.output[0]))
            for node in readers
        )

    def _reaches_output(self, name: str) -> bool:
        """Whether a value becomes one of the network's without another layer in between."""
        if name not in self._open:
            self._open[name] = False  # until it is known; graphs have no cycles
            self._open[name] = name in self.outputs or any(
                self._reaches_output(output)
                for node in self._readers(name)
                if node.op_type not in COMPUTING
                for output in node.output
            )
        return self._open[name]

    def to_round(self) -> dict[str, NodeProto]:
        """What convolutions with rounded inputs hand on in float32, and the nodes that it comes from."""
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
        return chosen

    def round_outputs(self, chosen: dict[str, NodeProto], spans: dict[str, Span]) -> None:
        """Round them."""
        for name, node in chosen.items():
            self._round(name, node, *spans[name])

    def spans(self, names: list[str], images: Sequence[NDArray[np.float32]]) -> dict[str, Span]:
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
            self.numbers[constant] = numpy_helper.from_array(np.asarray(value), constant)
        codes, result = f"{name}_codes", f"{name}_rounded"
        for reader in self.nodes:  # those that look at its shape too: a second reader would keep it in float32
            reader.input[:] = [result if given == name else given for given in reader.input]
        self.new[id(node)] = [
            helper.make_node("QuantizeLinear", [name, *constants], [codes]),
            helper.make_node("DequantizeLinear", [codes, *constants], [result]),
        ]

    def to_share(self) -> list[str]:
        """What goes into a sum and is rounded for a convolution too."""
        rounded = {node.input[0] for node in self.quantized} - self.inputs
        return sorted({name for node in self._sums() for name in node.input if name in rounded})

    def _sums(self) -> list[NodeProto]:
        return [n for n in self.nodes if n.op_type == "Add" and not self._reaches_output(n.output[0])]

    def share_rounded(self, shared: Sequence[str], spans: dict[str, Span]) -> None:
        """Let sums take values as they were rounded for a convolution, where the range is wide enough for them."""
        dequantized = {n.input[0]: n.output[0] for n in self.nodes if n.op_type == "DequantizeLinear"}
        sums = self._sums()
        for name in shared:
            ranges = [
                (self._range(node), dequantized[node.output[0]])
                for node in self.quantized
                if node.input[0] == name and node.output[0] in dequantized
            ]
            low, high = spans[name]
            (least, most), result = max(ranges, key=lambda found: found[0][1] - found[0][0])
            slack = SLACK * (high - low)
            if least <= low + slack and high - slack <= most:
                for node in sums:
                    node.input[:] = [result if given == name else given for given in node.input]

    def _range(self, node: NodeProto) -> Span:
        """Of the values that a QuantizeLinear of 8 bits can tell apart."""
        scale, zero = (float(numpy_helper.to_array(self.numbers[name])) for name in node.input[1:3])
        return -zero * scale, (LEVELS - zero) * scale

    def finished(self) -> onnx.ModelProto:
        """The model, its nodes in order."""
        ordered = [new for node in self.nodes for new in (node, *self.new.get(id(node), []))]
        del self.model.graph.node[:], self.model.graph.value_info[:], self.model.graph.initializer[:]
        self.model.graph.initializer.extend(self.numbers.values())
        self.model.graph.node.extend(_sorted(self.model, ordered))
        return self.model


def _sorted(model: onnx.ModelProto, nodes: list[NodeProto]) -> list[NodeProto]:
    """Every node behind those that make what it reads, otherwise in the order given."""
    known = {t.name for t in model.graph.initializer} | {v.name for v in model.graph.input} | {""}
    ordered, waiting = [], nodes
    while waiting:
        later = []
        for node in waiting:
            if known.issuperset(node.input):
                ordered.append(node)
                known |= set(node.output)
            else:
                later.append(node)
        assert len(later) < len(waiting), "nodes that wait for each other"
        waiting = later
    return ordered
