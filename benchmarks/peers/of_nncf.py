"""nncf's post-training quantization for OpenVINO: 8 bits, with its bias correction."""

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import nncf
import openvino

from agents.bench import medians
from benchmarks.peers.given import REPEATS, Compressed, Given

ONE_THREAD = {"INFERENCE_NUM_THREADS": 1}


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
        own: Any = openvino.compile_model(graph, "CPU", ONE_THREAD)
        saved = openvino.Core().read_model(graph)
    one = given.images[0][:1].numpy()
    timed = []
    for model in (plain, saved):
        model.reshape({model.inputs[0].get_any_name(): list(one.shape)})  # twice as fast as with free sizes
        timed.append(partial(openvino.compile_model(model, "CPU", ONE_THREAD), one))
    float32, seconds = medians(timed, REPEATS)
    return Compressed(
        run=lambda images: list(own(images.numpy()).values()),
        bytes=size,
        bits=dict.fromkeys(given.convolutions(), 8.0),
        scales=given.channels(),
        note="a graph in XML and a file of weights",
        latency_ms=1000 * seconds,
        float32_ms=1000 * float32,
    )
