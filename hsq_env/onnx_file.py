"""ONNX files: a compressed network for any runtime.

Weights are initializers of as many bits as the plan gives them, turned back by DequantizeLinear with a scale per output
channel; activations pass QuantizeLinear and DequantizeLinear where the student rounds them. Pruned weights are zeros.
The balanced levels of 2-bit weights, {-1.5, -0.5, 0.5, 1.5} scales, are codes {-2, -1, 0, 1} plus half a scale; where
some are pruned they are {-3, -1, 1, 3} half scales beside zero, which take 4 bits.
"""

import copy
import io
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from hsq_env.channels import shrunk
from hsq_env.layers import CompressedLayer
from hsq_env.onnx_tidy import tidied
from hsq_env.quantizers import ActivationRange, weight_levels
from hsq_env.raw_outputs import PostProcessing, RawOutputs, Stages

EXPORTED_OPSET = 18  # of the network before weights are replaced
SIGNED = {2: TensorProto.INT2, 4: TensorProto.INT4, 8: TensorProto.INT8}
OPSETS = {8: 21, 4: 21, 2: 25}  # the first in which they are known


@dataclass(frozen=True)
class StoredWeight:
    """How a layer's weights are held.

    :param codes: int8, of the weight's shape
    :param scale: float32, per output channel
    :param bits: of a code
    :param shift: added to a code's value, in scales
    """

    codes: NDArray[np.int8]
    scale: NDArray[np.float32]
    bits: int
    shift: float

    @classmethod
    def of(cls, layer: CompressedLayer) -> "StoredWeight":
        """What a layer with a choice computes with."""
        assert layer.choice is not None and layer.codes is not None
        levels, codes = weight_levels(layer.choice), layer.codes.cpu().numpy()
        scale, bits = layer.scale().detach().float().cpu().numpy(), layer.choice.bits
        if layer.mask is None:
            return cls(codes, scale, bits, levels.offset)
        mask = layer.mask.cpu().numpy()
        if levels.offset == 0:
            return cls(np.where(mask, codes, 0).astype(np.int8), scale, bits, 0.0)
        return cls(np.where(mask, 2 * codes + 1, 0).astype(np.int8), (scale / 2).astype(np.float32), 4, 0.0)


def onnx_bytes(
    model: nn.Module, stages: Stages, images: Tensor, around: PostProcessing | None = None, widen: bool = False
) -> bytes:
    """The content of an ONNX file with the input "images" and the last stage's outputs by name.

    Channels that no layer looks at any more are left out (``hsq_env.channels``).

    :param model: with layers that carry choices, as ``load_hsq`` leaves it
    :param stages: makes the forward pass of a model
    :param images: (N, C, H, W), any on which the network runs; the file takes others too
    :param around: post-processing that can be traced, of one image; the file then takes one image at a time
    :param widen: let weights of fewer than 8 bits be turned into 8 bits when the file is loaded; only then does
        onnxruntime 1.31 compute with them in integers
    """
    model = shrunk(model, stages, images)
    layers = {n: m for n, m in model.named_modules() if isinstance(m, CompressedLayer) and m.choice is not None}
    graph = _Graph(_exported(model, stages, images, around))
    for name, layer in layers.items():
        graph.store_weight(f"model.{name}.weight", StoredWeight.of(layer), widen)
        graph.quantize_handed_on(f"model.{name}.mark", layer.activations)
        graph.quantize_inputs(f"model.{name}.weight", layer.activations)
        if layer.bias is not None:
            graph.store_bias(f"model.{name}.bias")
    return graph.finished()


@torch.no_grad()
def _exported(model: nn.Module, stages: Stages, images: Tensor, around: PostProcessing | None) -> onnx.ModelProto:
    """The network with weights under the names of its parameters; those of layers with choices mean nothing yet."""
    plain, generator = copy.deepcopy(model).cpu().eval(), torch.Generator().manual_seed(0)
    for number, layer in enumerate(plain.modules()):
        if isinstance(layer, CompressedLayer) and layer.choice is not None:
            layer.mark = nn.Parameter(torch.tensor(float(number)), requires_grad=False) if layer.activations else None
            _, bias = layer.weight_and_bias()
            layer.weight.normal_(generator=generator)  # the exporter makes one of weights that are equal
            if bias is not None and layer.bias is not None:
                layer.bias.copy_(bias)
            layer.forget()
    network, file = RawOutputs(plain, stages, around), io.BytesIO()
    images = images.cpu() if around is None else images[:1].cpu()
    free = {2: "height", 3: "width"} if around is not None else {0: "batch", 2: "height", 3: "width"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter's age, and of shapes that are constants: they are meant to be
        torch.onnx.export(
            network,
            (images,),
            file,  # type: ignore[arg-type]  # torch: takes any binary file
            dynamo=False,
            opset_version=EXPORTED_OPSET,
            do_constant_folding=False,  # it would rename weights
            input_names=["images"],
            output_names=list(network.state(images)),
            dynamic_axes={"images": free},
        )
    return onnx.load_from_string(file.getvalue())


def with_metadata(content: bytes, described: dict[str, Any]) -> bytes:
    """The content of a file whose metadata entry "hsq" is a JSON text.

    :param described: what a user of the file has to know, e.g. ``Task.describe()``
    """
    model = onnx.load_from_string(content)
    helper.set_model_props(model, {"hsq": json.dumps(described)})
    return model.SerializeToString()


class _Graph:
    """A network's graph whose weights and inputs are replaced one after the other."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model, self.bits = model, {8}
        self.nodes = list(model.graph.node)
        self.weights = {tensor.name: tensor for tensor in model.graph.initializer}
        self._before: dict[int, list[onnx.NodeProto]] = {}  # new nodes by the id of the node that they stand before
        self._rounded: set[str] = set()  # what is handed on, rounded
        self._first: list[onnx.NodeProto] = []
        self._count = 0

    def _name(self) -> str:
        self._count += 1
        return f"q{self._count}"

    def _constant(self, tensor: onnx.TensorProto) -> str:
        tensor.name = self._name()
        self.weights[tensor.name] = tensor
        return tensor.name

    def _widened(self, codes: str, halves: bool) -> str:
        """Codes as 8 bits; for levels between whole numbers twice the code plus one, of half scales."""
        if halves:
            two, one = (self._constant(numpy_helper.from_array(np.array(n, np.int32))) for n in (2, 1))
            wide, doubled, moved = (self._name() for _ in range(3))
            self._first.append(helper.make_node("Cast", [codes], [wide], to=TensorProto.INT32))
            self._first.append(helper.make_node("Mul", [wide, two], [doubled]))
            self._first.append(helper.make_node("Add", [doubled, one], [moved]))
            codes = moved
        result = self._name()
        self._first.append(helper.make_node("Cast", [codes], [result], to=TensorProto.INT8))
        return result

    def _short_number(self, values: NDArray[np.float32], kind: int) -> str:
        """Numbers in the two bytes that they are known to fit into, turned back to float32 before the first layer."""
        name = self._name()
        held = self._constant(numpy_helper.from_array(values.astype(helper.tensor_dtype_to_np_dtype(kind))))
        self._first.append(helper.make_node("Cast", [held], [name], to=TensorProto.FLOAT))
        return name

    def store_bias(self, name: str) -> None:
        """Halve a bias, if that changes nothing; biases of a ``.hsq`` file are float16."""
        if name not in self.weights:  # the exporter made one of several that are equal
            return
        values = numpy_helper.to_array(self.weights[name])
        if np.array_equal(values, values.astype(np.float16).astype(np.float32)):
            del self.weights[name]
            self._first.append(helper.make_node("Identity", [self._short_number(values, TensorProto.FLOAT16)], [name]))

    def _number(self, value: float) -> str:
        return self._constant(numpy_helper.from_array(np.array(value, np.float32)))

    def store_weight(self, name: str, stored: StoredWeight, widen: bool) -> None:
        """Put codes in the place of a float initializer; every node that reads it reads them.

        :param widen: see ``onnx_bytes``
        """
        self.bits.add(stored.bits)
        del self.weights[name]
        tensor = helper.make_tensor("", SIGNED[stored.bits], stored.codes.shape, packed(stored), raw=True)
        codes, halves = self._constant(tensor), widen and stored.shift != 0
        scale = self._short_number(stored.scale * np.float32(0.5 if halves else 1.0), TensorProto.BFLOAT16)
        if widen and stored.bits < 8:
            codes = self._widened(codes, halves)
        dequantized = name if halves or not stored.shift else self._name()
        self._first.append(helper.make_node("DequantizeLinear", [codes, scale], [dequantized], axis=0))
        if stored.shift and not halves:
            shift = (stored.shift * stored.scale).reshape(-1, *[1] * (stored.codes.ndim - 1))
            moved = self._constant(numpy_helper.from_array(shift.astype(np.float32)))
            self._first.append(helper.make_node("Add", [dequantized, moved], [name]))

    def quantize_inputs(self, weight: str, ranges: Sequence[ActivationRange]) -> None:
        """Round what is multiplied with a weight, call by call in the order of the forward pass."""
        for node, given in zip(list(self._readers(weight)), ranges, strict=bool(ranges)):
            if node.input[0] not in self._rounded:
                source, node.input[0] = node.input[0], self._name()
                self._before.setdefault(id(node), []).extend(self._rounding(source, given, node.input[0]))

    def quantize_handed_on(self, mark: str, ranges: Sequence[ActivationRange]) -> None:
        """Round what a layer hands on as it reads it, in the place of the addition that marks it."""
        if mark not in self.weights:
            return
        del self.weights[mark]
        ((place, node),) = ((i, node) for i, node in enumerate(self.nodes) if mark in node.input)
        (given,), (source,) = ranges, (name for name in node.input if name != mark)
        self.nodes[place : place + 1] = self._rounding(source, given, node.output[0])
        self._rounded.add(node.output[0])

    def _rounding(self, source: str, given: ActivationRange, result: str) -> list[onnx.NodeProto]:
        """Nodes that round ``source`` as a range does."""
        new = []
        if given.bits < 8:  # onnxruntime 1.31 makes invalid graphs of activations with types of fewer bits
            limits = [(code - given.zero_point) * given.scale for code in (0, 2**given.bits - 1)]
            clipped = self._name()
            new.append(helper.make_node("Clip", [source, *map(self._number, limits)], [clipped]))
            source = clipped
        zero = self._constant(helper.make_tensor("", TensorProto.UINT8, (), bytes([given.zero_point]), raw=True))
        constants, codes = [self._number(given.scale), zero], self._name()
        new.append(helper.make_node("QuantizeLinear", [source, *constants], [codes]))
        new.append(helper.make_node("DequantizeLinear", [codes, *constants], [result]))
        return new

    def _readers(self, weight: str) -> Iterator[onnx.NodeProto]:
        """Nodes that multiply with a weight, as it is or turned over."""
        for node in self.nodes:
            if weight not in node.input:
                continue
            if node.op_type == "Transpose":
                yield from self._readers(node.output[0])
            else:
                yield node

    def finished(self) -> bytes:
        """The file."""
        ordered = [*self._first, *(new for node in self.nodes for new in (*self._before.get(id(node), []), node))]
        converted = onnx.ModelProto()
        converted.CopyFrom(self.model)
        del converted.graph.node[:], converted.graph.initializer[:], converted.graph.value_info[:]
        converted.graph.node.extend(ordered)
        converted.graph.initializer.extend(self.weights.values())
        opset = helper.make_opsetid("", max(OPSETS[bits] for bits in self.bits))
        del converted.opset_import[:]
        converted.opset_import.append(opset)
        converted.ir_version = helper.find_min_ir_version_for([opset])
        converted = tidied(converted)
        onnx.checker.check_model(converted)
        return converted.SerializeToString()


def packed(stored: StoredWeight) -> bytes:
    """Codes as ONNX holds them: two's complement, the first of a byte in its lowest bits, padded to a whole byte."""
    per_byte = 8 // stored.bits
    flat = stored.codes.reshape(-1).view(np.uint8) & (2**stored.bits - 1)
    padded = np.pad(flat, (0, -len(flat) % per_byte)).reshape(-1, per_byte).astype(np.uint16)
    return (padded << (stored.bits * np.arange(per_byte, dtype=np.uint16))).sum(axis=1).astype(np.uint8).tobytes()


Outputs = dict[str, NDArray[Any]]


def outputs_of(content: bytes, threads: int = 1) -> Callable[[NDArray[np.float32]], Outputs]:
    """A function that runs a file in onnxruntime, on the CPU: from images (N, C, H, W) to outputs by name."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # by default it rounds what linear layers with few bits are given to 8 bits, whatever the file says
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda images: dict(zip(names, session.run(names, {"images": images}), strict=True))
