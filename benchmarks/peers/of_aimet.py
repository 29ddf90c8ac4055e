"""aimet-torch: automatic mixed precision, 2, 4 or 8 bits a layer, activations of 8."""

import copy
import math
import tempfile
import warnings
from pathlib import Path
from typing import Any

import aimet_torch.onnx
import torch
from aimet_torch.common.defs import CallbackFunc, QuantizationDataType
from aimet_torch.mixed_precision import choose_mixed_precision
from aimet_torch.model_preparer import prepare_model
from aimet_torch.quantsim import QuantizationSimModel

from benchmarks.peers.given import CLEAREST, TARGET, Compressed, Given

WIDTHS = (8, 4, 2)
ROUNDS = 8  # of halving the accuracy that may be lost


def compress(given: Given) -> Compressed:
    """The plan with the highest signal-to-noise ratio among those whose weights take an eighth of float32.

    It is told how much may be lost, not how many bytes may be kept, so that loss is found by halving.
    """
    weights = {name: layer.weight.numel() for name, layer in given.convolutions().items()}
    limit = sum(weights.values()) * 32 / TARGET
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = Path(name)
        low, high = 0.0, CLEAREST
        best: tuple[Any, dict[str, float]] | None = None
        for turn in range(ROUNDS):
            drop = (low + high) / 2 if turn else high  # everything that can be lost comes first
            simulation = _mixed(given, folder, drop, turn == 0)
            bits = _bits(simulation.model, weights)
            if sum(weights[layer] * bits[layer] for layer in weights) <= limit:
                best, high = (simulation, bits), drop
            else:
                low = drop
        if best is None:
            raise RuntimeError(f"aimet found no plan with weights at {TARGET} times fewer bytes")
        simulation, bits = best
        file = folder / "model.onnx"
        aimet_torch.onnx.export(
            simulation.model, (given.images[0][:1],), str(file), input_names=["images"], prequantize_constants=True,
            dynamo=False, opset_version=21,
        )  # fmt: skip
        size = file.stat().st_size
    return Compressed(
        run=simulation.model,
        bytes=size,
        bits=bits,
        latency_ms=None,
        note="a layer that runs on five pyramid levels is five layers to it, which may get different bits",
    )


def _calibrate(network: Any, given: Any) -> None:
    with torch.no_grad():
        for images in given:
            network(images)


def _simulation(given: Given) -> Any:
    prepared = prepare_model(copy.deepcopy(given.network))
    simulation = QuantizationSimModel(prepared, given.images[0], default_param_bw=8, default_output_bw=8)
    simulation.compute_encodings(_calibrate, given.images)
    return simulation


def _mixed(given: Given, folder: Path, drop: float, fresh: bool) -> Any:
    """A simulation with bits chosen so that no more than ``drop`` dB are lost.

    :param fresh: measure what each layer does alone; else what ``folder`` has of that is used
    """
    simulation, integers = _simulation(given), QuantizationDataType.int
    candidates = [((8, integers), (width, integers)) for width in WIDTHS]
    judge = CallbackFunc(lambda network, _: given.signal_to_noise(network))
    choose_mixed_precision(
        simulation, given.images[0], candidates, judge, judge, drop, str(folder), fresh,
        CallbackFunc(_calibrate, given.images),
    )  # fmt: skip
    return simulation


def _bits(network: Any, weights: dict[str, int]) -> dict[str, float]:
    """Bits of each weight; copies of one with different bits are added up."""
    widths: dict[str, set[float]] = {name: set() for name in weights}
    stored = {name: dict(network.named_modules())[name].weight for name in weights}
    for module in network.modules():
        if not isinstance(module, torch.nn.Conv2d):
            continue
        quantizers: Any = module.param_quantizers
        for name, weight in stored.items():
            if weight.shape == module.weight.shape and torch.equal(weight, module.weight):
                widths[name].add(float(quantizers["weight"].bitwidth))
    assert all(widths.values())
    return {name: math.fsum(found) for name, found in widths.items()}
