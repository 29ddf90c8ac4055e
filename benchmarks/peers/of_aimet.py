"""aimet-torch: automatic mixed precision, 2, 4 or 8 bits a layer, activations of 8."""

import copy
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import aimet_torch.onnx
import torch
from aimet_torch.common.defs import CallbackFunc, QuantizationDataType
from aimet_torch.mixed_precision import choose_mixed_precision
from aimet_torch.model_preparer import prepare_model
from aimet_torch.quantsim import QuantizationSimModel

from benchmarks.peers.given import TARGET, Compressed, Given

WIDTHS = (8, 4, 2)
ROUNDS = 8  # of halving the mAP that may be lost


def compress(given: Given) -> Compressed:
    """Its plan whose weights take an eighth of float32, or 4 bits everywhere: whichever is better on the search split.

    It is told how much may be lost and not how many bytes may be kept, so that loss is found by halving.
    """
    weights = {name: layer.weight.numel() for name, layer in given.convolutions().items()}
    limit = sum(weights.values()) * 32 / TARGET
    whole = given.score(given.network, "search")
    best, bits = _simulation(given, 4), dict.fromkeys(weights, 4.0)
    score, chosen = given.score(best.model, "search"), False
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder, low, high = Path(name), 0.0, 2 * whole
        for turn in range(ROUNDS):
            drop = (low + high) / 2
            simulation = _mixed(given, folder, drop, fresh=turn == 0)
            widths = given.widths(simulation.model, _width)
            if sum(weights[layer] * widths[layer] for layer in weights) > limit:
                low = drop
                continue
            high, found = drop, given.score(simulation.model, "search")
            if found > score:
                best, bits, score, chosen = simulation, widths, found, True
        size, written = _written(best, given, folder)
    return Compressed(
        run=best.model,
        bytes=size,
        bits=bits,
        scales=given.channels(),
        note=f"{'its own plan' if chosen else '4 bits everywhere, which beat its own plans'}; a layer that runs on "
        f"five pyramid levels is five layers to it, of which the widest counts in nominal bytes; {written}",
    )


def _calibrate(network: Any, images: Sequence[torch.Tensor]) -> None:
    with torch.no_grad():
        for batch in images:
            network(batch)


def _simulation(given: Given, width: int = 8) -> Any:
    prepared = prepare_model(copy.deepcopy(given.network))
    simulation = QuantizationSimModel(prepared, given.images[0], default_param_bw=width, default_output_bw=8)
    simulation.compute_encodings(_calibrate, given.images)
    return simulation


def _mixed(given: Given, folder: Path, drop: float, fresh: bool) -> Any:
    """A simulation with bits chosen so that no more than ``drop`` mAP is lost on the search split.

    :param fresh: measure what each layer does alone, by signal-to-noise; else what ``folder`` has of that is used
    """
    simulation, integers = _simulation(given), QuantizationDataType.int
    candidates = [((8, integers), (width, integers)) for width in WIDTHS]
    choose_mixed_precision(
        simulation,
        given.images[0],
        candidates,
        CallbackFunc(lambda network, _: given.signal_to_noise(network)),
        CallbackFunc(lambda network, _: given.score(network, "search")),
        drop,
        str(folder),
        fresh,
        CallbackFunc(_calibrate, given.images),
    )
    return simulation


def _width(layer: Any) -> float:
    return float(layer.param_quantizers["weight"].bitwidth)


def _written(simulation: Any, given: Given, folder: Path) -> tuple[int, str]:
    """Bytes of its export, and what that is: its file of rounded weights knows no 2 bits."""
    one = given.images[0][:1]
    if any(_width(layer) == 2 for layer in simulation.model.modules() if isinstance(layer, torch.nn.Conv2d)):
        written = folder / "written"
        written.mkdir()
        simulation.export(str(written), "model", one)
        parts = (written / "model.onnx", written / "model.encodings")
        return sum(part.stat().st_size for part in parts), "its files are ONNX in float32 and ranges in JSON"
    file = folder / "model.onnx"
    aimet_torch.onnx.export(
        simulation.model, (one,), str(file), input_names=["images"], prequantize_constants=True, dynamo=False,
        opset_version=21,
    )  # fmt: skip
    return file.stat().st_size, "its file is ONNX with weights in integers"
