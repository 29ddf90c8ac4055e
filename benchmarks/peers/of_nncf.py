"""nncf's post-training quantization for OpenVINO: 8 bits, with its bias correction."""

import tempfile
from pathlib import Path
from typing import Any

import nncf
import openvino

from agents.bench import medians
from benchmarks.peers.given import Compressed, Given

REPEATS = 15


def compress(given: Given) -> Compressed:
    """The file of weights and the graph as OpenVINO writes them, weights that stay in float in 16 bits as it does."""
    plain = openvino.convert_model(given.network, example_input=given.images[0])
    plain.reshape({plain.inputs[0].get_any_name(): [-1, 3, -1, -1]})
    images = [image[None] for batch in given.images for image in batch]
    made = nncf.quantize(plain, nncf.Dataset(images, lambda x: x.numpy()), subset_size=len(images))
    with tempfile.TemporaryDirectory() as name:
        graph, weights = Path(name) / "model.xml", Path(name) / "model.bin"
        openvino.save_model(made, graph)
        size = graph.stat().st_size + weights.stat().st_size
        own: Any = openvino.compile_model(graph, "CPU", {"INFERENCE_NUM_THREADS": 1})
    one = given.images[0][:1].numpy()
    seconds = medians([lambda: own(one)], REPEATS)[0]
    return Compressed(
        run=lambda images: list(own(images.numpy()).values()),
        bytes=size,
        bits=dict.fromkeys(given.convolutions(), 8.0),
        latency_ms=1000 * seconds,
        note="a graph in XML and a file of weights",
    )
