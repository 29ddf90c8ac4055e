"""How long every layer takes at each bit-width, in onnxruntime on this machine's CPU."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN

from agents.bench import SMALLEST_SIDE, Session, medians, session, size_of
from detectors.architecture import architecture_of
from detectors.errors import InputError
from detectors.progress import each
from detectors.stages import run_stages
from detectors.teacher import SHIPPED_TEACHER, DetectorSpec, load_teacher
from hsq_env.choices import BITS, SPARSITIES, Choice, choice_grid
from hsq_env.latency_table import FLOAT32, timed_as
from hsq_env.onnx_file import OPSETS, SIGNED, StoredWeight, packed
from hsq_env.pruning import dropped_channels
from restorers.teacher import is_restorer
from restorers.teacher import load_teacher as load_restorer

SHORTEST = 1e-6  # seconds of a call: medians are no more exact
Columns = dict[str, Choice | None]  # by their names in the table; None: float32


@dataclass(frozen=True)
class LayerLatency:
    """One layer.

    :param shape: of the weight
    :param inputs: shape of the input in each call of a forward pass, (1, C, H, W)
    :param seconds: of all calls together, by column: "32" is float32, "8" weights of 8 bits, "8/0.5" the same with
        half of the input channels dropped
    """

    name: str
    shape: tuple[int, ...]
    inputs: tuple[tuple[int, ...], ...]
    seconds: dict[str, float]


def latency(
    teacher: Path | None = None,
    size: tuple[int, int] | None = None,
    threads: int = 1,
    repeats: int = 10,
    sparsity_pattern: str = "unstructured",
) -> dict[str, Any]:
    """The table of a teacher's layers, each alone: what stands beside it in a network may make it faster or slower.

    Compressed layers take and give 8-bit activations; their weights are stored in so many bits and computed in 8.

    :param teacher: a teacher file; the shipped detector's when None
    :param size: (height, width) of the image in pixels; a detector's own when None
    :param repeats: of which the median counts, all widths of a layer in turn
    :param sparsity_pattern: "channels" times layers without 25, 50 and 75 % of their input channels too; single zeros
        make nothing faster
    :return: ``{"teacher", "image", "threads", "repeats", "layers": [...], "seconds": {column: of all layers}}``
    :raises InputError: if the file cannot be used, or for a number that cannot be
    """
    if repeats < 1 or threads < 1:
        raise InputError("Nothing can be timed: give --repeats and --threads of 1 or more.")
    teacher = teacher or SHIPPED_TEACHER
    model, spec = load_restorer(teacher) if is_restorer(teacher) else load_teacher(teacher)
    if isinstance(model, FasterRCNN):
        raise InputError("The linear layers of a Faster R-CNN cannot be timed yet: give another detector.")
    height, width = size or size_of(spec)
    if min(height, width) < SMALLEST_SIDE:
        raise InputError(f"An image of {height}x{width} pixels is too small: give {SMALLEST_SIDE} or more (--size).")
    channels = 3 if isinstance(spec, DetectorSpec) else spec.channels
    columns = columns_of(sparsity_pattern)
    layers = []
    calls = calls_of(model, torch.zeros(1, channels, height, width))
    for name, (module, shapes) in each(calls.items(), "timing layer"):
        layers.append(
            LayerLatency(
                name, tuple(module.weight.shape), tuple(shapes), _seconds(module, shapes, columns, threads, repeats)
            )
        )
    total = {key: sum(layer.seconds[key] for layer in layers) for key in layers[0].seconds}
    return {
        "teacher": teacher.name,
        "image": [height, width],
        "threads": threads,
        "repeats": repeats,
        "layers": [asdict(layer) for layer in layers],
        "seconds": total,
    }


@torch.no_grad()
def calls_of(model: nn.Module, images: Tensor) -> dict[str, tuple[nn.Conv2d, list[tuple[int, ...]]]]:
    """Every convolution that runs, with the shapes of its inputs, in the order in which they first run."""
    found: dict[str, tuple[nn.Conv2d, list[tuple[int, ...]]]] = {}

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            assert isinstance(module, nn.Conv2d)
            found.setdefault(name, (module, []))[1].append(tuple(inputs[0].shape))

        return note

    handles = [m.register_forward_pre_hook(hook(n)) for n, m in model.named_modules() if isinstance(m, nn.Conv2d)]
    try:
        if hasattr(model, "transform"):  # torchvision's detectors would resize the image
            run_stages(architecture_of(model).stages(model), {"images": images})
        else:
            model(images)
    finally:
        for handle in handles:
            handle.remove()
    return found


def columns_of(pattern: str) -> Columns:
    """What is timed for a pattern of sparsity."""
    grid = choice_grid(tuple(reversed(BITS)), SPARSITIES if pattern == "channels" else (0.0,))
    return {FLOAT32: None, **{timed_as(choice, pattern): choice for choice in grid}}


def _seconds(
    module: nn.Conv2d, shapes: Sequence[tuple[int, ...]], columns: Columns, threads: int, repeats: int
) -> dict[str, float]:
    """Of all calls, by column, without what calling onnxruntime itself takes: a network calls it once."""
    total = dict.fromkeys(columns, 0.0)
    for shape in sorted(set(shapes)):
        call = session(nothing_model(shape), threads, _input(shape, None))
        own = [_session(module, shape, choice, threads) for choice in columns.values()]
        calling, *found = medians([call, *own], repeats)
        for key, seconds in zip(total, found, strict=True):
            total[key] += max(seconds - calling, SHORTEST) * shapes.count(shape)
    return total


def _session(module: nn.Conv2d, shape: tuple[int, ...], choice: Choice | None, threads: int) -> Session:
    bits = None if choice is None else choice.bits
    small = without_inputs(module, 0 if choice is None else dropped_channels(module.weight.shape, choice.sparsity))
    shape = (shape[0], small.in_channels, *shape[2:])
    return session(conv_model(small, shape, bits), threads, _input(shape, bits))


@torch.no_grad()
def without_inputs(module: nn.Conv2d, count: int) -> nn.Conv2d:
    """The convolution without its last input channels; of a grouped one, without those of each group."""
    if count == 0:
        return module
    small = copy.deepcopy(module)
    small.weight = nn.Parameter(module.weight[:, :-count].clone(), requires_grad=False)
    small.in_channels = small.weight.shape[1] * small.groups
    return small


def _input(shape: tuple[int, ...], bits: int | None) -> NDArray[Any]:
    rng = np.random.default_rng(0)
    return rng.random(shape, np.float32) if bits is None else rng.integers(0, 256, shape, dtype=np.uint8)


def conv_model(module: nn.Conv2d, shape: tuple[int, ...], bits: int | None) -> bytes:
    """An ONNX file of one convolution, from "images" to "y": float32, or from 8 bits to 8 bits with such weights.

    :param shape: of the input, (1, C, H, W)
    :param bits: of the weights, 2, 4 or 8; None for float32
    """
    settings: dict[str, Any] = {
        "kernel_shape": list(module.kernel_size),
        "pads": [int(p) for p in module.padding] * 2,
        "strides": list(module.stride),
        "dilations": list(module.dilation),
        "group": module.groups,
    }
    kind = TensorProto.FLOAT if bits is None else TensorProto.UINT8
    value = helper.make_tensor_value_info
    inputs, outputs = [value("images", kind, shape)], [value("y", kind, [1, "c", "h", "w"])]
    weight = module.weight.detach().numpy()
    if bits is None:
        nodes = [helper.make_node("Conv", ["images", "w"], ["y"], **settings)]
        return _saved(nodes, inputs, outputs, [numpy_helper.from_array(weight, "w")], 21)
    largest = np.abs(weight).reshape(len(weight), -1).max(axis=1).clip(1e-9) / (2 ** (bits - 1) - 0.5)
    codes = np.round(weight / largest[:, None, None, None]).clip(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    stored = StoredWeight(codes.astype(np.int8), largest.astype(np.float32), bits, 0.0)
    spread = float(np.abs(weight).sum(axis=(1, 2, 3)).max())
    numbers = {"xs": np.float32(1 / 255), "xz": np.uint8(0), "ys": np.float32(spread / 255), "yz": np.uint8(128)}
    tensors = [helper.make_tensor("codes", SIGNED[bits], weight.shape, packed(stored), raw=True)]
    tensors += [numpy_helper.from_array(stored.scale, "ws")]
    tensors += [numpy_helper.from_array(np.asarray(number), name) for name, number in numbers.items()]
    widen = [] if bits == 8 else [helper.make_node("Cast", ["codes"], ["wide"], to=TensorProto.INT8)]
    nodes = [
        *widen,
        helper.make_node("DequantizeLinear", ["images", "xs", "xz"], ["x"]),
        helper.make_node("DequantizeLinear", ["wide" if widen else "codes", "ws"], ["w"], axis=0),
        helper.make_node("Conv", ["x", "w"], ["f"], **settings),
        helper.make_node("QuantizeLinear", ["f", "ys", "yz"], ["y"]),
    ]
    return _saved(nodes, inputs, outputs, tensors, OPSETS[bits])


def nothing_model(shape: tuple[int, ...]) -> bytes:
    """An ONNX file that takes "images" and computes nothing worth the name.

    :param shape: of the input, (1, C, H, W)
    """
    value = helper.make_tensor_value_info
    inputs, outputs = [value("images", TensorProto.FLOAT, shape)], [value("y", TensorProto.INT64, [4])]
    return _saved([helper.make_node("Shape", ["images"], ["y"])], inputs, outputs, [], 21)


def _saved(nodes: list[Any], inputs: list[Any], outputs: list[Any], tensors: list[Any], opset: int) -> bytes:
    opsets = [helper.make_opsetid("", opset)]
    graph = helper.make_graph(nodes, "layer", inputs, outputs, tensors)
    model = helper.make_model(graph, opset_imports=opsets, ir_version=helper.find_min_ir_version_for(opsets))
    onnx.checker.check_model(model)
    return model.SerializeToString()
