"""torchao: weights of 4 bits, a scale per output channel and place of the kernel; activations stay in float32."""

import copy
import io
import math

import torch
from torch import nn
from torchao.quantization import IntxWeightOnlyConfig, PerAxis, quantize_

from benchmarks.peers.given import Compressed, Given


def compress(given: Given) -> Compressed:
    """Its form of few bits for any device, which takes convolutions and keeps a weight per byte."""
    network, file = copy.deepcopy(given.network), io.BytesIO()
    settings = IntxWeightOnlyConfig(
        weight_dtype=torch.int4,  # type: ignore[attr-defined]  # torch: its stubs lack it
        granularity=PerAxis(0),
    )
    quantize_(network, settings, filter_fn=lambda module, name: isinstance(module, nn.Conv2d))
    torch.save(network.state_dict(), file)
    return Compressed(
        run=network,
        bytes=len(file.getvalue()),
        bits=dict.fromkeys(given.convolutions(), 4.0),
        scales=sum(m.out_channels * math.prod(m.kernel_size) for m in given.convolutions().values()),
        note="activations in float32; weights of 4 bits in a byte each; scales for every place of the kernel",
    )
