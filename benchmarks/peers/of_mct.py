"""model-compression-toolkit: mixed precision by an integer program, 2, 4 or 8 bits a layer, activations of 8."""

import contextlib
import io
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import model_compression_toolkit as mct
import torch

from benchmarks.peers.given import TARGET, Compressed, Given


def compress(given: Given) -> Compressed:
    """Weights may take an eighth of their float32 bytes. Its names of layers have underscores for dots."""
    convolutions = given.convolutions()
    limit = sum(layer.weight.numel() for layer in convolutions.values()) * 4 / TARGET

    def images() -> Iterator[list[Any]]:
        for batch in given.images:
            yield [batch]

    count = sum(len(batch) for batch in given.images)
    mixed = mct.core.MixedPrecisionQuantizationConfig(num_of_images=count)
    with contextlib.redirect_stdout(io.StringIO()):  # of its solver
        network, _ = mct.ptq.pytorch_post_training_quantization(
            given.network,
            images,
            target_resource_utilization=mct.core.ResourceUtilization(weights_memory=limit),
            core_config=mct.core.CoreConfig(mixed_precision_config=mixed),
        )
    bits = {name: _bits(network, name.replace(".", "_")) for name in convolutions}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        with patch.object(torch.onnx, "export", partial(torch.onnx.export, dynamo=False)):
            mct.exporter.pytorch_export_model(
                network, str(file), images, serialization_format=mct.exporter.PytorchExportSerializationFormat.ONNX
            )
        size = sum(part.stat().st_size for part in Path(folder).iterdir())
    return Compressed(
        run=network,
        bytes=size,
        bits=bits,
        scales=given.channels(),
        note="for its default platform, whose activations have ranges of powers of two; its ONNX file holds what "
        "rounded weights stand for in float32",
    )


def _bits(network: Any, name: str) -> float:
    return float(network.get_submodule(name).weights_quantizers["weight"].num_bits)
