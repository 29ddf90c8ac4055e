"""onnxruntime's static quantization: 8 bits everywhere, weights per channel, in QDQ form."""

import tempfile
from pathlib import Path

from agents.bench import medians, session
from benchmarks.artifacts import quantize_static_bytes
from benchmarks.peers.given import Compressed, Given
from benchmarks.peers.plain_onnx import plain_onnx

REPEATS = 15


def compress(given: Given) -> Compressed:
    """See ``benchmarks.artifacts.quantize_static_bytes``."""
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        content = quantize_static_bytes(plain_onnx(given), [x.numpy() for x in given.images], Path(folder))
    own = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    seconds = medians([session(content, 1, given.images[0][:1].numpy())], REPEATS)[0]
    return Compressed(
        run=lambda images: own.run(None, {"images": images.numpy()}),
        bytes=len(content),
        bits=dict.fromkeys(given.convolutions(), 8.0),
        latency_ms=1000 * seconds,
        note="",
    )
