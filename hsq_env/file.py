"""The ``.hsq`` file: a safetensors file with packed codes and masks and a JSON header.

Layer after layer, in the order of the header's list, each of these one-dimensional tensors holds its part:

========== ======== =====================================================================
tensor     type     per layer
========== ======== =====================================================================
codes      uint8    codes minus their smallest value, ``bits`` each, most significant bit
                    first, padded to a whole byte
masks      uint8    "bitmask": one bit per weight; "n:m": the index of each group's
                    combination; padded to a whole byte
scales     bfloat16 one per output channel
biases     float16  one per output channel, where the layer has a bias
ranges     float32  scale and zero point of the input, for each call in a forward pass
floats     float32  weights and bias of a layer without a choice
========== ======== =====================================================================

Everything else that the model holds (group norms) stands under ``rest.<name>`` as it is. The metadata entry ``hsq`` is
the JSON header.
"""

import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from detectors.errors import InputError
from detectors.teacher import write_atomically
from hsq_env.choices import Choice, Plan
from hsq_env.layers import CompressedLayer, make_compressible
from hsq_env.pruning import GROUP
from hsq_env.quantizers import ActivationRange, weight_levels
from hsq_env.size import Encoding, encoding, index_bits
from hsq_env.student import Student

VERSION = 1
Bytes = NDArray[np.uint8]
LAYER_STATE = ("weight", "bias")  # entries of a layer's state_dict that its part of the joined tensors holds
CHOICE_STATE = ("scale_factor", "base_scale")  # those that only a choice gives a meaning


@dataclass(frozen=True)
class LayerEntry:
    """One layer in the header."""

    name: str
    shape: tuple[int, ...]
    has_bias: bool
    choice: Choice | None
    activation_bits: int | None
    ranges: int  # calls in a forward pass whose input is quantized


@dataclass(frozen=True)
class HsqHeader:
    """What a ``.hsq`` file says of itself."""

    model: dict[str, Any]  # Task.describe()
    pattern: str
    layers: tuple[LayerEntry, ...]

    def plan(self) -> Plan:
        """The choices; a file with unchosen layers has no plan.

        :raises InputError: if a layer has no choice
        """
        if any(entry.choice is None for entry in self.layers):
            raise InputError("This file holds layers without a choice, so that it has no plan.")
        return Plan(tuple(e.name for e in self.layers), tuple(e.choice for e in self.layers if e.choice is not None))


def pack(values: NDArray[Any], bits: int) -> Bytes:
    """Non-negative integers below ``2**bits`` to bytes, most significant bit first."""
    spread = (values.astype(np.uint8)[:, None] >> np.arange(bits - 1, -1, -1, dtype=np.uint8)) & 1
    return np.packbits(spread.reshape(-1))


def unpack(packed: Bytes, bits: int, count: int) -> NDArray[np.int64]:
    """The inverse of ``pack``."""
    spread = np.unpackbits(packed, count=count * bits).reshape(count, bits).astype(np.int64)
    return spread @ (1 << np.arange(bits - 1, -1, -1))


def _combinations(sparsity: float) -> NDArray[np.bool_]:
    """All ways in which a group of four keeps its survivors, (ways, 4)."""
    kept = GROUP - round(sparsity * GROUP)
    return np.array([[i in c for i in range(GROUP)] for c in itertools.combinations(range(GROUP), kept)])


def _encode_mask(mask: NDArray[np.bool_], coded: Encoding, sparsity: float) -> Bytes:
    if coded.kind == "dense":
        return np.zeros(0, np.uint8)
    if coded.kind == "bitmask":
        return np.packbits(mask)
    ways = _combinations(sparsity)
    weights = 1 << np.arange(GROUP)
    number_of = np.zeros(1 << GROUP, np.int64)
    number_of[ways @ weights] = np.arange(len(ways))
    return pack(number_of[mask.reshape(-1, GROUP) @ weights], index_bits(sparsity))


def _decode_mask(packed: Bytes, coded: Encoding, sparsity: float, count: int) -> NDArray[np.bool_]:
    if coded.kind == "bitmask":
        return np.unpackbits(packed, count=count).astype(bool)
    ways = _combinations(sparsity)
    numbers = unpack(packed, index_bits(sparsity), count // GROUP)
    if numbers.max(initial=0) >= len(ways):
        raise InputError("holds an impossible N:M index")
    return ways[numbers].reshape(-1)


def student_bytes(student: Student) -> bytes:
    """The content of a ``.hsq`` file."""
    parts: dict[str, list[Any]] = {name: [] for name in ("codes", "masks", "scales", "biases", "ranges", "floats")}
    parts["masks"].append(np.zeros(0, np.uint8))  # its entry in the header is there without masks too: sizes add up
    entries = []
    for info, layer in zip(student.infos, student.layers, strict=True):
        choice = layer.choice
        entries.append([info.name, list(info.shape), info.has_bias, *_choice_fields(layer)])
        if choice is None:
            parts["floats"] += [layer.weight.detach().flatten()]
            parts["floats"] += [layer.bias.detach()] if layer.bias is not None else []
            continue
        coded = encoding(info.shape, choice, student.pattern)
        assert layer.codes is not None
        codes = layer.codes.cpu().numpy().reshape(-1).astype(np.int16) - weight_levels(choice).low
        if layer.mask is not None:
            mask = layer.mask.cpu().numpy().reshape(-1)
            parts["masks"].append(_encode_mask(mask, coded, choice.sparsity))
            zero = -weight_levels(choice).low
            codes = np.where(mask, codes, zero) if coded.kind == "dense" else codes[mask]
        parts["codes"].append(pack(codes, choice.bits))
        parts["scales"].append(layer.scale().detach().to(torch.bfloat16))
        if layer.bias is not None:
            parts["biases"].append(layer.bias.detach().half())
        parts["ranges"] += [torch.tensor([r.scale, float(r.zero_point)]) for r in layer.activations]
    header = {"version": VERSION, "model": student.task.describe(), "pattern": student.pattern, "layers": entries}
    tensors = {name: _joined(values) for name, values in parts.items() if values}
    names = [info.name for info in student.infos]
    tensors |= {f"rest.{name}": tensor for name, tensor in _rest(student.model, names).items()}
    return save(tensors, {"hsq": json.dumps(header, separators=(",", ":"))})


def fixed_bytes(student: Student, choices: Sequence[Choice], sizes: NDArray[np.int64]) -> int:
    """Bytes of a file apart from the layers: the plan with the longest header is packed once and weighed.

    Other plans take some bytes less, so that the ratio of a file is never below the one that is reported.

    :param student: of any plan; it is left as it is
    :param sizes: bytes, (layers, choices)
    """
    longest = max(range(len(choices)), key=lambda i: (len(str(choices[i].sparsity)), choices[i].bits))
    packed = student.copy()
    packed.apply(Plan(tuple(i.name for i in student.infos), (choices[longest],) * len(student.infos)))
    return len(student_bytes(packed)) - int(sizes[:, longest].sum())


def _choice_fields(layer: CompressedLayer) -> list[Any]:
    if layer.choice is None:
        return [None, None, None, 0]
    bits = layer.activations[0].bits if layer.activations else None
    return [layer.choice.bits, layer.choice.sparsity, bits, len(layer.activations)]


def _joined(values: Sequence[Any]) -> Tensor:
    tensors = [torch.from_numpy(v) if isinstance(v, np.ndarray) else v.cpu() for v in values]
    return torch.cat(tensors).contiguous()


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


def _read(path: Path) -> tuple[dict[str, Tensor], HsqHeader]:
    if not path.is_file():
        raise InputError(f"There is no file {path}: give the model.hsq of a search.")
    try:
        content = path.read_bytes()
        tensors = load(content)
        size = int.from_bytes(content[:8], "little")
        metadata = json.loads(content[8 : 8 + size]).get("__metadata__", {})
    except (SafetensorError, ValueError, OSError) as error:
        raise InputError(
            f"{path} is not a complete .hsq file ({error}): copy it again or repeat the search."
        ) from error
    if "hsq" not in metadata:
        raise InputError(f"{path} is a safetensors file but not a .hsq file: its header lacks the entry 'hsq'.")
    try:
        data = json.loads(metadata["hsq"])
        header = _header(data) if data["version"] <= VERSION else None
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} has a damaged header ({type(error).__name__}: {error}): copy it again.") from error
    if header is None:
        version = data["version"]
        raise InputError(f"{path} has format version {version}, this release reads up to {VERSION}: update hsq.")
    return tensors, header


def _header(data: dict[str, Any]) -> HsqHeader:
    entries = []
    for name, shape, has_bias, bits, sparsity, activation_bits, ranges in data["layers"]:
        choice = None if bits is None else Choice(bits, sparsity)
        entries.append(LayerEntry(name, tuple(shape), has_bias, choice, activation_bits, ranges))
    return HsqHeader(data["model"], data["pattern"], tuple(entries))


def read_header(path: str | Path) -> HsqHeader:
    """The header of a ``.hsq`` file.

    :raises InputError: if the file is missing, truncated, foreign or newer than this release
    """
    return _read(Path(path))[1]


class _Reader:
    """Takes the next so many elements from each joined tensor."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.tensors, self.at = tensors, dict.fromkeys(tensors, 0)

    def take(self, name: str, count: int) -> Tensor:
        start = self.at.get(name, 0)
        if name not in self.tensors or start + count > self.tensors[name].numel():
            raise InputError(f"ends within '{name}'")
        self.at[name] = start + count
        return self.tensors[name][start : start + count]


def load_hsq(path: str | Path, model: nn.Module) -> HsqHeader:
    """Load a ``.hsq`` file into a model of the right shape, in place.

    :param model: built from the header's ``model`` entry, with any weights; its layers become compressible and
        compute with exactly the weights that the student had in memory
    :raises InputError: if the file is damaged or does not fit ``model``
    """
    path = Path(path)
    tensors, header = _read(path)
    make_compressible(model)
    modules = dict(model.named_modules())
    reader = _Reader({name: t for name, t in tensors.items() if not name.startswith("rest.")})
    try:
        for entry in header.layers:
            layer = modules.get(entry.name)
            if not isinstance(layer, CompressedLayer) or tuple(layer.weight.shape) != entry.shape:
                raise InputError(f"has a layer '{entry.name}' {entry.shape} that the model lacks")
            _load_layer(layer, entry, header.pattern, reader)
        rest = {name.removeprefix("rest."): t for name, t in tensors.items() if name.startswith("rest.")}
        own = _rest(model, [entry.name for entry in header.layers])
        if {name: t.shape for name, t in rest.items()} != {name: t.shape for name, t in own.items()}:
            raise InputError("holds other uncompressed tensors than the model")
        model.load_state_dict(rest, strict=False)
    except InputError as error:
        raise InputError(f"{path} {error}: it belongs to another model or is damaged.") from error
    return header


@torch.no_grad()
def _load_layer(layer: CompressedLayer, entry: LayerEntry, pattern: str, reader: _Reader) -> None:
    count, channels = math.prod(entry.shape), entry.shape[0]
    if entry.choice is None:
        layer.choice, layer.mask, layer.activations = None, None, ()  # the model may have carried another plan
        layer.weight.copy_(reader.take("floats", count).reshape(entry.shape))
        if layer.bias is not None:
            layer.bias.copy_(reader.take("floats", channels))
        return
    choice, coded = entry.choice, encoding(entry.shape, entry.choice, pattern)
    levels = weight_levels(choice)
    mask = None
    if choice.sparsity and coded.kind != "dense":
        packed = reader.take("masks", coded.mask_bytes).numpy()
        mask = _decode_mask(packed, coded, choice.sparsity, count)
    stored = count if mask is None else count - round(choice.sparsity * count)
    codes = unpack(reader.take("codes", coded.code_bytes).numpy(), choice.bits, stored) + levels.low
    if mask is not None:
        if int(mask.sum()) != stored:
            raise InputError("holds a mask with a wrong number of survivors")
        full = np.zeros(count, np.int64)
        full[mask] = codes
        codes = full
    scale = reader.take("scales", channels).float()
    if layer.bias is not None:
        layer.bias.copy_(reader.take("biases", channels).float())
    activations = []
    for _ in range(entry.ranges):
        assert entry.activation_bits is not None
        factor, zero_point = reader.take("ranges", 2).tolist()
        activations.append(ActivationRange(factor, round(zero_point), entry.activation_bits))
    mask_tensor = None if mask is None else torch.from_numpy(mask.reshape(entry.shape))
    layer.load_stored(
        choice, tuple(activations), torch.from_numpy(codes.astype(np.int8).reshape(entry.shape)), mask_tensor, scale
    )
