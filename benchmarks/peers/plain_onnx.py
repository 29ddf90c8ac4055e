"""The plain network as an ONNX file in float32."""

import io
import warnings

import torch

from benchmarks.peers.given import Given


def plain_onnx(given: Given) -> bytes:
    """With the input "images", of any number and size."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter's age
        torch.onnx.export(
            given.network,
            (given.images[0],),
            file,  # type: ignore[arg-type]  # torch: takes any binary file
            dynamo=False,
            opset_version=17,
            input_names=["images"],
            dynamic_axes={"images": {0: "batch", 2: "height", 3: "width"}},
        )
    return file.getvalue()
