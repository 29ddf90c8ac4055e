"""onnxruntime's static quantization: 8 bits everywhere, weights per channel, in QDQ form."""

import tempfile
from pathlib import Path

from agents.bench import medians, session
from benchmarks.artifacts import quantize_static_bytes
from benchmarks.peers.given import REPEATS, Compressed, Given
from benchmarks.peers.plain_onnx import plain_onnx


def compress(given: Given) -> Compressed:
    """See ``benchmarks.artifacts.quantize_static_bytes``."""
    import onnxruntime

    plain = plain_onnx(given)
    with tempfile.TemporaryDirectory() as folder:
        content = quantize_static_bytes(plain, [x.numpy() for x in given.images], Path(folder))
    own = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    one = given.images[0][:1].numpy()
    float32, seconds = medians([session(each, 1, one) for each in (plain, content)], REPEATS)
    return Compressed(
        run=lambda images: own.run(None, {"images": images.numpy()}),
        bytes=len(content),
        bits=dict.fromkeys(given.convolutions(), 8.0),
        scales=given.channels(),
        note="",
        latency_ms=1000 * seconds,
        float32_ms=1000 * float32,
    )
