"""A .hsq file of a full-width detector in torchvision's own FCOS, without any of HSQ's code.

python examples/load_hsq.py model.hsq photograph.jpg

Written from docs/format.md alone.
"""

import itertools
import json
import math
import sys
from typing import Any

import numpy as np
import torch
import zstandard
from PIL import Image
from safetensors import safe_open
from torchvision.models.detection import FCOS, fcos_resnet50_fpn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.transforms.functional import to_tensor


def plain(stored: bytes, length: int, width: int = 1) -> bytes:
    """A part as it was before coding: itself, or a frame of planes of bytes."""
    if len(stored) == length:
        return stored
    planes = zstandard.ZstdDecompressor().decompress(stored, max_output_size=length)
    return np.frombuffer(planes, np.uint8).reshape(width, -1).T.tobytes()


def bits_of(packed: bytes, bits: int, count: int) -> np.ndarray:
    """So many unsigned numbers of so many bits."""
    spread = np.unpackbits(np.frombuffer(packed, np.uint8), count=count * bits).reshape(count, bits)
    return spread.astype(np.int64) @ (1 << np.arange(bits)[::-1])


def layer(row: list[Any], pattern: str, data: Any) -> np.ndarray:
    """Codes plus their offset, in the weight's shape; pruned weights are 0."""
    _, shape, _, bits, sparsity, _, _, mask_bytes, code_bytes = row
    count, half = math.prod(shape), 2 ** (bits - 1)
    pruned, mask, balanced = round(sparsity * count), np.ones(count, bool), bits == 2 and sparsity != 0.25
    if pattern == "channels":
        pruned = count // shape[1] * int(sparsity * shape[1])
    if mask_bytes and pattern == "n:m" and count // shape[0] % 4 == 0:
        ways = list(itertools.combinations(range(4), 4 - round(4 * sparsity)))
        width = math.ceil(math.log2(len(ways)))
        numbers = bits_of(plain(data(mask_bytes), -(-count // 4 * width // 8)), width, count // 4)
        mask = np.array([[i in way for i in range(4)] for way in ways])[numbers].reshape(-1)
    elif mask_bytes and pattern == "channels":
        read = bits_of(plain(data(mask_bytes), -(-shape[1] // 8)), 1, shape[1]).astype(bool)
        mask = np.broadcast_to(read.reshape(1, -1, *[1] * (len(shape) - 2)), shape).reshape(-1)
    elif mask_bytes:
        mask = bits_of(plain(data(mask_bytes), -(-count // 8)), 1, count).astype(bool)
    stored = count - pruned if mask_bytes else count
    values = np.zeros(count, np.float32)
    codes = bits_of(plain(data(code_bytes), -(-stored * bits // 8)), bits, stored)
    values[mask] = codes - half + (0.5 if balanced else 0.0)
    return values.reshape(shape)


def read(path: str) -> tuple[dict[str, Any], dict[str, torch.Tensor], torch.Tensor]:
    """The file's header, weights by name, and the scale and zero point of every rounded input, (calls, 2)."""
    with safe_open(path, "pt") as file:
        top = json.loads(file.metadata()["hsq"])
        if top["version"] != 2:
            raise SystemExit(f"{path} has format version {top['version']}; this example reads version 2.")
        stored, body = (file.get_tensor(name).numpy().tobytes() for name in ("header", "data"))
    header, at = json.loads(plain(stored, top["header_bytes"])), 0
    if header["model"].get("detector") != "fcos_resnet50":
        raise SystemExit(f"{path} holds no detector of full width: torchvision has no function that builds it.")

    def data(length: int) -> bytes:
        nonlocal at
        at += length
        return body[at - length : at]

    def joined(name: str, count: int, dtype: torch.dtype) -> torch.Tensor:
        found = plain(data(header["parts"].get(name, 0)), count * dtype.itemsize, dtype.itemsize)
        return torch.frombuffer(bytearray(found), dtype=dtype).float()

    layers, pattern = header["layers"], header["pattern"]
    values = [layer(row, pattern, data) for row in layers]
    scales = joined("scales", sum(row[1][0] for row in layers), torch.bfloat16).split([row[1][0] for row in layers])
    biased = [row for row in layers if row[2]]
    biases = joined("biases", sum(row[1][0] for row in biased), torch.float16).split([row[1][0] for row in biased])
    ranges = joined("ranges", sum(2 * row[6] for row in layers), torch.float32).reshape(-1, 2)
    weights = {
        f"{row[0]}.weight": torch.from_numpy(value) * scale.reshape(-1, *[1] * (value.ndim - 1))
        for row, value, scale in zip(layers, values, scales, strict=True)
    }
    weights |= {f"{row[0]}.bias": bias for row, bias in zip(biased, biases, strict=True)}
    for name, length in header["rest"].items():  # group norms of the head, 256 channels
        weights[name] = torch.frombuffer(bytearray(plain(data(length), 4 * 256, 4)), dtype=torch.float32)
    return header, weights, ranges


def round_inputs(model: FCOS, layers: list[Any], ranges: torch.Tensor) -> None:
    """Round what goes into each layer, with a range for each of its calls in a forward pass."""
    at = 0
    for name, *_, bits, calls, _, _ in layers:
        own = itertools.cycle(ranges[at : at + calls].tolist())
        at += calls

        def rounded(module: Any, inputs: Any, own: Any = own, bits: int = bits) -> Any:
            scale, zero_point = next(own)
            return torch.fake_quantize_per_tensor_affine(inputs[0], scale, round(zero_point), 0, 2**bits - 1)

        if calls:
            model.get_submodule(name).register_forward_pre_hook(rounded)


def detector(path: str) -> FCOS:
    """torchvision's FCOS with the file's weights."""
    header, weights, ranges = read(path)
    said = header["model"]
    scale = said["level_scale"]
    model = fcos_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=len(said["classes"]), min_size=said["min_size"],
        max_size=said["max_size"], score_thresh=said["score_thresh"],
        anchor_generator=AnchorGenerator(tuple((8 * scale * 2**i,) for i in range(5)), ((1.0,),) * 5),
    )  # fmt: skip
    for name, own in model.state_dict().items():  # batch norm was folded into the convolutions: it only adds their bias
        if name not in weights and name.endswith(("running_var", "running_mean", "weight")):
            weights[name] = torch.full_like(own, 0.0 if name.endswith("mean") else 1.0)
    for name in [name for name in weights if name.endswith(".bias") and name not in model.state_dict()]:
        start, _, last = name.removesuffix(".bias").rpartition(".")
        norm = f"{start}.{'1' if last == '0' else last.replace('conv', 'bn')}"
        weights[f"{norm}.bias"] = weights.pop(name)
        weights[f"{norm}.weight"] = (1 + model.get_submodule(norm).eps) ** 0.5 * torch.ones_like(
            weights[f"{norm}.bias"]
        )
    model.load_state_dict(weights, strict=False)
    round_inputs(model, header["layers"], ranges)
    return model.eval()


if __name__ == "__main__":
    found = detector(sys.argv[1])([to_tensor(Image.open(sys.argv[2]).convert("RGB"))])[0]
    names = read(sys.argv[1])[0]["model"]["classes"]
    for box, label, score in zip(found["boxes"], found["labels"], found["scores"], strict=True):
        print(f"{names[label]} {score:.2f} at {[round(x) for x in box.tolist()]}")
