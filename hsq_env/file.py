"""The ``.hsq`` file: what a student is, in as few bytes as it takes. Byte by byte in docs/format.md.

Layer after layer, in the order of the header's list, each of these parts holds what belongs to it:

========== ======== =====================================================================
part       type     per layer
========== ======== =====================================================================
masks      uint8    "bitmask": one bit per weight; "n:m": the index of each group's
                    combination; "channels": one bit per input channel; padded to a
                    whole byte
codes      uint8    codes minus their smallest value, ``bits`` each, most significant bit
                    first, padded to a whole byte
scales     bfloat16 one per output channel
biases     float16  one per output channel, where the layer has a bias
ranges     float32  scale and zero point of the input, for each call in a forward pass
floats     float32  weights and bias of a layer without a choice
========== ======== =====================================================================

Everything else that the model holds (group norms) is its rest, as it is.

Version 1 is a safetensors file of these parts as they are, with the header in its metadata. It is what budgets count,
since its size follows from the plan alone. Version 2, which is written wherever it is smaller, codes every part that
gets smaller by it (``hsq_env.coding``), header included, and has a checksum. Both hold the same student bit for bit.
"""

import json
import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from detectors.errors import InputError
from detectors.files import write_atomically
from hsq_env.channels import dead_outputs
from hsq_env.choices import Choice, Plan
from hsq_env.coding import Bytes, decode_mask, encode_mask, pack, shrink, unpack
from hsq_env.layers import CompressedLayer, make_compressible
from hsq_env.parts import JOINED, CodedParts, HsqHeader, LayerEntry, Parts, PlainParts, header_from
from hsq_env.quantizers import ActivationRange, storable_bias, weight_levels
from hsq_env.size import encoding, survivors
from hsq_env.student import Student

VERSION = 2
LAYER_STATE = ("weight", "bias")  # entries of a layer's state_dict that its part of the joined tensors holds
CHOICE_STATE = ("scale_factor", "base_scale")  # those that only a choice gives a meaning


@dataclass
class _Content:
    """A student taken apart."""

    header: dict[str, Any]  # without a version
    layers: list[tuple[Bytes, Bytes]]  # mask and codes; of layers without a choice empty ones
    joined: dict[str, Tensor]
    rest: dict[str, Tensor]


def student_bytes(student: Student, coded: bool = True) -> bytes:
    """The content of a ``.hsq`` file.

    :param coded: in the smaller of both versions; otherwise in version 1, whose parts are packed and nothing else
    """
    content = _content(student)
    plain = _plain(content)
    return plain if not coded else min(plain, _coded(content), key=len)


def _content(student: Student) -> _Content:
    parts: dict[str, list[Any]] = {name: [] for name in JOINED}
    entries, layers = [], []
    dead = dead_outputs(student.model, student.channel_groups)
    empty = np.zeros(0, np.uint8)
    for info, layer in zip(student.infos, student.layers, strict=True):
        choice = layer.choice
        entries.append([info.name, list(info.shape), info.has_bias, *_choice_fields(layer)])
        if choice is None:
            parts["floats"] += [layer.weight.detach().flatten()]
            parts["floats"] += [layer.bias.detach()] if layer.bias is not None else []
            layers.append((empty, empty))
            continue
        coded, packed = encoding(info.shape, choice, student.pattern), empty
        assert layer.codes is not None
        own = layer.codes.cpu().numpy().astype(np.int16) - weight_levels(choice).low
        scale = layer.scale().detach().to(torch.bfloat16)
        bias = None if layer.bias is None else storable_bias(layer.bias)
        unread = dead.get(info.name, [])
        own[unread] = -weight_levels(choice).low  # nobody reads them, and what is always the same takes no bytes
        scale[unread] = 1.0
        if bias is not None:
            bias[unread] = 0.0
        codes = own.reshape(-1)
        if layer.mask is not None:
            packed = encode_mask(layer.mask.cpu().numpy(), coded, choice.sparsity)
            mask = layer.mask.cpu().numpy().reshape(-1)
            zero = -weight_levels(choice).low
            codes = np.where(mask, codes, zero) if coded.kind == "dense" else codes[mask]
        layers.append((packed, pack(codes, choice.bits)))
        parts["scales"].append(scale)
        if bias is not None:
            parts["biases"].append(bias)
        parts["ranges"] += [torch.tensor([r.scale, float(r.zero_point)]) for r in layer.activations]
    header = {"model": student.task.describe(), "pattern": student.pattern, "layers": entries}
    joined = {name: torch.cat([v.cpu() for v in values]) for name, values in parts.items() if values}
    return _Content(header, layers, joined, _rest(student.model, [info.name for info in student.infos]))


def _plain(content: _Content) -> bytes:
    """Version 1."""
    tensors = dict(content.joined)
    choices = [entry[3] for entry in content.header["layers"]]
    if any(bits is not None for bits in choices):
        tensors["codes"] = torch.from_numpy(np.concatenate([codes for _, codes in content.layers]))
    # an entry in the header without masks too: sizes add up
    tensors["masks"] = torch.from_numpy(np.concatenate([np.zeros(0, np.uint8), *(mask for mask, _ in content.layers)]))
    tensors |= {f"rest.{name}": tensor for name, tensor in content.rest.items()}
    return save(tensors, {"hsq": _json({"version": 1, **content.header})})


def _coded(content: _Content) -> bytes:
    """Version 2."""
    header = dict(content.header)
    streams = [(shrink(mask.tobytes()), shrink(codes.tobytes())) for mask, codes in content.layers]
    header["layers"] = [
        [*entry, len(mask), len(codes)] for entry, (mask, codes) in zip(header["layers"], streams, strict=True)
    ]
    data = [stream for pair in streams for stream in pair]
    for key, tensors in (("parts", content.joined), ("rest", content.rest)):
        shrunk = {name: _shrunk(tensor) for name, tensor in tensors.items()}
        header[key] = {name: len(stream) for name, stream in shrunk.items()}
        data += shrunk.values()
    described = _json(header).encode()
    top, body = shrink(described), b"".join(data)
    metadata = {"version": 2, "header_bytes": len(described), "crc32": zlib.crc32(body, zlib.crc32(top))}
    return save({"header": _tensor(top), "data": _tensor(body)}, {"hsq": _json(metadata)})


def _shrunk(tensor: Tensor) -> bytes:
    return shrink(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes(), tensor.element_size())


def _tensor(content: bytes) -> Tensor:
    return torch.from_numpy(np.frombuffer(content, np.uint8).copy())


def _json(data: dict[str, Any]) -> str:
    return json.dumps(data, separators=(",", ":"))


def fixed_bytes(student: Student, choices: Sequence[Choice], sizes: Any) -> int:
    """Bytes of a file of version 1 apart from the layers: the plan with the longest header is packed once and weighed.

    Other plans take some bytes less, and version 2 is written where it is smaller, so that the ratio of a file is never
    below the one that is reported.

    :param student: of any plan; it is left as it is
    :param sizes: bytes, (layers, choices)
    """
    longest = max(range(len(choices)), key=lambda i: (len(str(choices[i].sparsity)), choices[i].bits))
    packed = student.copy()
    packed.apply(Plan(tuple(i.name for i in student.infos), (choices[longest],) * len(student.infos)))
    return len(student_bytes(packed, coded=False)) - int(sizes[:, longest].sum())


def _choice_fields(layer: CompressedLayer) -> list[Any]:
    if layer.choice is None:
        return [None, None, None, 0]
    bits = layer.activations[0].bits if layer.activations else None
    return [layer.choice.bits, layer.choice.sparsity, bits, len(layer.activations)]


def _rest(model: nn.Module, layers: Sequence[str]) -> dict[str, Tensor]:
    """State that belongs to none of the named layers; of layers that never run, their weights and biases."""
    owned = {f"{name}.{key}" for name in layers for key in LAYER_STATE}
    for name, module in model.named_modules():
        if isinstance(module, CompressedLayer):
            owned |= {f"{name}.{key}" for key in CHOICE_STATE}
    return {name: t.detach().cpu().contiguous() for name, t in model.state_dict().items() if name not in owned}


def save_hsq(student: Student, path: str | Path) -> int:
    """Write the student; the file appears whole or not at all.

    :return: its size in bytes
    """
    content = student_bytes(student)
    write_atomically(Path(path), content)
    return len(content)


def _read(path: Path) -> tuple[HsqHeader, Parts]:
    if not path.is_file():
        raise InputError(f"There is no file {path}: give the model.hsq of a search.")
    try:
        content = path.read_bytes()
        tensors = load(content)
        size = int.from_bytes(content[:8], "little")
        metadata = json.loads(content[8 : 8 + size]).get("__metadata__") or {}
    except (SafetensorError, ValueError, KeyError, TypeError, OSError) as error:
        raise InputError(
            f"{path} is not a complete .hsq file ({error}): copy it again or repeat the search."
        ) from error
    if "hsq" not in metadata:
        raise InputError(f"{path} is a safetensors file but not a .hsq file: its header lacks the entry 'hsq'.")
    try:
        top = json.loads(metadata["hsq"])
        version = top["version"]
        if not isinstance(version, int) or version < 1:
            raise ValueError(f"version {version!r}")
        if version == 1:
            return header_from(top), PlainParts(tensors)
        if version == VERSION:
            return CodedParts.open(top, tensors)
    except InputError as error:
        raise InputError(f"{path} is damaged: it {error}. Copy it again.") from error
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError, OverflowError) as error:
        raise InputError(f"{path} has a damaged header ({type(error).__name__}: {error}): copy it again.") from error
    raise InputError(f"{path} has format version {version}, this release reads up to {VERSION}: update hsq.")


def read_header(path: str | Path) -> HsqHeader:
    """The header of a ``.hsq`` file.

    :raises InputError: if the file is missing, truncated, foreign or newer than this release
    """
    return _read(Path(path))[0]


def load_hsq(path: str | Path, model: nn.Module) -> HsqHeader:
    """Load a ``.hsq`` file into a model of the right shape, in place.

    Nothing is decoded before the header's layers were found in the model, whose own sizes bound what is allocated. If
    the file is refused, the model is left in an undefined state.

    :param model: built from the header's ``model`` entry, with any weights; its layers become compressible and
        compute with exactly the weights that the student had in memory
    :raises InputError: if the file is damaged or does not fit ``model``
    """
    path = Path(path)
    header, parts = _read(path)
    make_compressible(model)
    try:
        layers = list(_layers_of(model, header))
        for module in model.modules():
            if isinstance(module, CompressedLayer):
                module.forget()  # the model may have carried another plan
        for index, (layer, entry) in enumerate(zip(layers, header.layers, strict=True)):
            parts.enter(index, _is_masked(entry, header.pattern))
            _load_layer(layer, entry, header.pattern, parts)
        parts.end()
        own = _rest(model, [entry.name for entry in header.layers])
        model.load_state_dict(parts.rest(own), strict=False)
    except InputError as error:
        raise InputError(f"{path} {error}: it belongs to another model or is damaged.") from error
    return header


def _layers_of(model: nn.Module, header: HsqHeader) -> Iterator[CompressedLayer]:
    """The model's layers, in the order of the header.

    :raises InputError: if one is not there or is another
    """
    modules, seen = dict(model.named_modules()), set()
    for entry in header.layers:
        layer = modules.get(entry.name)
        if (
            not isinstance(layer, CompressedLayer)
            or tuple(layer.weight.shape) != entry.shape
            or (layer.bias is not None) != entry.has_bias
        ):
            raise InputError(f"has a layer '{entry.name}' {entry.shape} that the model lacks")
        if entry.name in seen:
            raise InputError(f"has the layer '{entry.name}' twice")
        seen.add(entry.name)
        yield layer


def _is_masked(entry: LayerEntry, pattern: str) -> bool:
    """Whether a layer has a mask of its own."""
    choice = entry.choice
    return choice is not None and encoding(entry.shape, choice, pattern).kind != "dense"


def _finite(values: Tensor, kind: str, entry: LayerEntry) -> Tensor:
    """:raises InputError: if one is no number"""
    if not bool(values.isfinite().all()):
        raise InputError(f"has impossible {kind} in '{entry.name}'")
    return values


@torch.no_grad()
def _load_layer(layer: CompressedLayer, entry: LayerEntry, pattern: str, parts: Parts) -> None:
    count, channels = math.prod(entry.shape), entry.shape[0]
    if entry.choice is None:
        layer.weight.copy_(_finite(parts.take("floats", count), "weights", entry).reshape(entry.shape))
        if layer.bias is not None:
            layer.bias.copy_(_finite(parts.take("floats", channels), "biases", entry))
        return
    choice, coded = entry.choice, encoding(entry.shape, entry.choice, pattern)
    levels = weight_levels(choice)
    mask, stored = None, count
    if _is_masked(entry, pattern):
        packed = parts.take("masks", coded.mask_bytes).numpy()
        mask = decode_mask(packed, coded, choice.sparsity, entry.shape)
        stored = survivors(entry.shape, choice.sparsity, pattern)
        if int(mask.sum()) != stored:
            raise InputError("holds a mask with a wrong number of survivors")
    codes = unpack(parts.take("codes", coded.code_bytes).numpy(), choice.bits, stored) + levels.low
    if mask is not None:
        full = np.zeros(count, np.int64)
        full[mask] = codes
        codes = full
    scale = _finite(parts.take("scales", channels).float(), "scales", entry)
    if not bool((scale > 0).all()):
        raise InputError(f"has impossible scales in '{entry.name}'")
    if layer.bias is not None:
        layer.bias.copy_(_finite(parts.take("biases", channels).float(), "biases", entry))
    activations = []
    for factor, zero_point in parts.take("ranges", 2 * entry.ranges).reshape(-1, 2).tolist():
        assert entry.activation_bits is not None
        if not 0 < factor < math.inf or zero_point not in range(2**entry.activation_bits):
            raise InputError(f"has an impossible activation range in '{entry.name}'")
        activations.append(ActivationRange(factor, round(zero_point), entry.activation_bits))
    mask_tensor = None if mask is None else torch.from_numpy(mask.reshape(entry.shape))
    layer.load_stored(
        choice, tuple(activations), torch.from_numpy(codes.astype(np.int8).reshape(entry.shape)), mask_tensor, scale
    )
