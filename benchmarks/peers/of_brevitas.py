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
    settings = {
        "weight_quant": Int8WeightPerChannelFloatMSE.let(bit_width=4),
        "input_quant": Int8ActPerTensorFloat,
        "bias_quant": None,
        "return_quant_tensor": False,
    }
    layers = {nn.Conv2d: (brevitas.nn.QuantConv2d, settings)}
    network = layerwise_quantize(copy.deepcopy(given.network), compute_layer_map=layers).eval()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with calibration_mode(network):
            _see(network, given)
        corrected = copy.deepcopy(network)
        with bias_correction_mode(corrected):
            _see(corrected, given)
        better = given.score(corrected, "search") > given.score(network, "search")
        network = corrected if better else network
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "model.onnx"
            export_onnx_qcdq(network, given.images[0][:1], export_path=str(file), dynamo=False)
            size = file.stat().st_size
    correction = "with" if better else "without"
    return Compressed(
        run=network,
        bytes=size,
        bits=dict.fromkeys(given.convolutions(), 4.0),
        latency_ms=None,
        note=f"{correction} bias correction; its ONNX file holds weights of 4 bits in a byte each",
    )


def _see(network: nn.Module, given: Given) -> None:
    for images in given.images:
        network(images)
