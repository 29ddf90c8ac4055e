"""How fast a compressed network runs, beside the same network in float32, in onnxruntime on this machine's CPU."""

import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from agents.model_task import load_model
from detectors.architecture import architecture_of
from detectors.errors import InputError
from detectors.export import check_exportable
from detectors.progress import each
from detectors.teacher import DetectorSpec
from hsq_env.layers import CompressedLayer
from hsq_env.onnx_file import onnx_bytes
from hsq_env.onnx_integer import integer_form
from hsq_env.raw_outputs import Stages
from restorers.teacher import RestorerSpec, restorer_stages

RESTORED_SIDE = 96  # pixels of a restorer's input, which has no size of its own
SMALLEST_SIDE = 16
Session = Callable[[], object]


@dataclass(frozen=True)
class Speed:
    """Medians of one number of threads.

    :param float32: seconds of the network in float32
    :param compressed: seconds of the compressed one
    """

    threads: int
    float32: float
    compressed: float

    @property
    def times(self) -> float:
        """How many times faster the compressed one is."""
        return self.float32 / self.compressed


@dataclass(frozen=True)
class Bench:
    """What was measured.

    :param image: (height, width) in pixels
    :param bytes: of the ONNX files: float32, compressed
    :param integer: convolutions that onnxruntime computes in integers, and all
    """

    file: str
    image: tuple[int, int]
    repeats: int
    bytes: tuple[int, int]
    integer: tuple[int, int]
    speeds: tuple[Speed, ...]

    def to_json(self) -> dict[str, Any]:
        """For a script."""
        return {**asdict(self), "speeds": [{**asdict(speed), "times": speed.times} for speed in self.speeds]}


def bench(file: Path, size: tuple[int, int] | None = None, threads: Sequence[int] = (1, 2), repeats: int = 20) -> Bench:
    """Time a ``.hsq`` file's network and the same one in float32, in turn, on a random image.

    :param size: (height, width) of the image in pixels; a detector's own when None
    :param repeats: of which the median counts
    :raises InputError: if the file cannot be used, or for a number that cannot be
    """
    if repeats < 1 or any(n < 1 for n in threads) or not threads:
        raise InputError("Nothing can be timed: give --repeats and --threads of 1 or more.")
    model, spec = load_model(file)
    height, width = size or size_of(spec)
    if min(height, width) < SMALLEST_SIDE:
        raise InputError(f"An image of {height}x{width} pixels is too small: give {SMALLEST_SIDE} or more (--size).")
    stages: Stages = restorer_stages
    if isinstance(spec, DetectorSpec):
        check_exportable(model, post_processing=False)
        stages = architecture_of(model).stages
    channels = 3 if isinstance(spec, DetectorSpec) else spec.channels
    images = torch.rand(1, channels, height, width, generator=torch.Generator().manual_seed(0))
    plain = onnx_bytes(_in_float32(model, spec), stages, images)
    small = integer_form(onnx_bytes(model, stages, images, widen=True), [images.numpy()])
    speeds = []
    for count in each(threads, "number of threads"):
        runs = [session(content, count, images.numpy()) for content in (plain, small)]
        speeds.append(Speed(count, *medians(runs, repeats)))
    return Bench(
        str(file), (height, width), repeats, (len(plain), len(small)), integer_convolutions(small), tuple(speeds)
    )


def size_of(spec: DetectorSpec | RestorerSpec) -> tuple[int, int]:
    """(height, width) of the image that a network is timed with."""
    side = spec.min_size if isinstance(spec, DetectorSpec) else RESTORED_SIDE
    return side, side


def _in_float32(model: nn.Module, spec: DetectorSpec | RestorerSpec) -> nn.Module:
    """The same network with the weights that its codes stand for, nothing rounded."""
    plain = spec.build_folded()
    weights: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        if isinstance(module, CompressedLayer):
            weight, bias = module.weight_and_bias()
            weights |= {f"{name}.weight": weight} | ({} if bias is None else {f"{name}.bias": bias})
    rest = {name: tensor for name, tensor in model.state_dict().items() if name in plain.state_dict()}
    plain.load_state_dict({**rest, **weights})
    return plain.eval().requires_grad_(False)


def _options(threads: int) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    return options


def session(content: bytes, threads: int, images: np.ndarray[Any, Any]) -> Session:
    """Runs a file on an image, its input "images"."""
    session = onnxruntime.InferenceSession(content, _options(threads), providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"images": images})


def medians(runs: Sequence[Session], repeats: int) -> list[float]:
    """Seconds, all in turn so that what else the machine does meets all alike; the first round does not count."""
    seconds: list[list[float]] = [[] for _ in runs]
    for turn in range(repeats + 1):
        for run, own in zip(runs, seconds, strict=True):
            started = time.perf_counter()
            run()
            if turn:
                own.append(time.perf_counter() - started)
    return [statistics.median(own) for own in seconds]


def integer_convolutions(content: bytes) -> tuple[int, int]:
    """How many convolutions onnxruntime computes in integers, and how many there are, from the graph that it makes."""
    with tempfile.TemporaryDirectory() as folder:
        options = _options(1)
        options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
        onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        kinds = Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)
    integer = kinds["QLinearConv"]
    return integer, integer + kinds["Conv"] + kinds["FusedConv"] + kinds["ConvTranspose"]
