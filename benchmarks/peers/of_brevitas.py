"""brevitas: weights of 4 bits with scales of least squared error, activations of 8, calibrated."""

import copy
import tempfile
import warnings
from pathlib import Path

import brevitas.nn
import torch
from brevitas.export import export_onnx_qcdq
from brevitas.graph.calibrate import bias_correction_mode, calibration_mode
from brevitas.graph.quantize import layerwise_quantize
from brevitas.quant import Int8ActPerTensorFloat, Int8WeightPerChannelFloatMSE
from torch import nn

from benchmarks.peers.given import Compressed, Given


def compress(given: Given) -> Compressed:
    """With and without its bias correction, of which the better on the search split counts."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = {way: _quantized(given, way == "with") for way in ("with", "without")}
        way = max(found, key=lambda way: given.score(found[way], "search"))
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "model.onnx"
            export_onnx_qcdq(found[way], given.images[0][:1], export_path=str(file), dynamo=False)
            size = file.stat().st_size
    return Compressed(
        run=found[way],
        bytes=size,
        bits=dict.fromkeys(given.convolutions(), 4.0),
        scales=given.channels(),
        note=f"{way} bias correction; its ONNX file holds weights of 4 bits in a byte each",
    )


@torch.no_grad()
def _quantized(given: Given, corrected: bool) -> nn.Module:
    settings = {
        "weight_quant": Int8WeightPerChannelFloatMSE.let(bit_width=4),
        "input_quant": Int8ActPerTensorFloat,
        "bias_quant": None,
        "return_quant_tensor": False,
    }
    layers = {nn.Conv2d: (brevitas.nn.QuantConv2d, settings)}
    network: nn.Module = layerwise_quantize(copy.deepcopy(given.network), compute_layer_map=layers).eval()
    with calibration_mode(network):
        _see(network, given)
    if corrected:
        with bias_correction_mode(network):
            _see(network, given)
    return network


def _see(network: nn.Module, given: Given) -> None:
    for images in given.images:
        network(images)
