"""The header of a ``.hsq`` file and its parts, as either version stores them."""

import json
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from detectors.errors import InputError
from hsq_env.choices import ACTIVATION_BITS, PATTERNS, Choice, Plan
from hsq_env.coding import restore

JOINED = {"scales": torch.bfloat16, "biases": torch.float16, "ranges": torch.float32, "floats": torch.float32}
LARGEST_HEADER = 64, 4096  # times its stored size, and bytes on top: text shrinks, but not without end
MOST_RANGES = 1024  # calls of one layer in a forward pass


@dataclass(frozen=True)
class LayerEntry:
    """One layer in the header.

    :param ranges: calls in a forward pass whose input is quantized
    :param stored: bytes that its mask and its codes take in the file; None in version 1
    """

    name: str
    shape: tuple[int, ...]
    has_bias: bool
    choice: Choice | None
    activation_bits: int | None
    ranges: int
    stored: tuple[int, int] | None = None


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


class Parts(Protocol):
    """What both versions can do."""

    def enter(self, layer: int, masked: bool) -> None:
        """Go on to a layer, counted from 0.

        :param masked: whether it has a mask
        :raises InputError: if it holds what it does not need
        """

    def take(self, name: str, count: int) -> Tensor:
        """The next so many elements of a part; of masks and codes those of the present layer, all at once.

        :raises InputError: if there are not as many
        """

    def end(self) -> None:
        """:raises InputError: if anything of the layers' parts was not taken"""

    def rest(self, own: dict[str, Tensor]) -> dict[str, Tensor]:
        """What belongs to no layer.

        :param own: of the model, by name
        :raises InputError: if the file has others
        """


def header_from(data: dict[str, Any]) -> HsqHeader:
    """The header, of types and ranges as they should be.

    :raises ValueError: or KeyError, TypeError, InputError, if it is not
    """
    model, pattern = data["model"], data["pattern"]
    if not isinstance(model, dict) or pattern not in PATTERNS:
        raise ValueError(f"model {type(model).__name__}, pattern {pattern!r}")
    return HsqHeader(model, pattern, tuple(_entry(*row) for row in data["layers"]))


def _entry(
    name: str,
    shape: list[int],
    has_bias: bool,
    bits: int | None,
    sparsity: float | None,
    activation_bits: int | None,
    ranges: int,
    *stored: int,
) -> LayerEntry:
    if not isinstance(name, str) or not isinstance(has_bias, bool):
        raise ValueError(f"layer {name!r}")
    if not 2 <= len(shape) <= 5 or any(_unfit(n, 1) for n in shape) or any(_unfit(n, 0) for n in stored):
        raise ValueError(f"sizes of layer '{name}'")
    rounded = not _unfit(activation_bits, 2) and activation_bits in ACTIVATION_BITS
    if _unfit(ranges, 0) or ranges > MOST_RANGES or not (rounded or (activation_bits is None and not ranges)):
        raise ValueError(f"activation ranges of layer '{name}'")
    if len(stored) not in (0, 2):
        raise ValueError(f"lengths of layer '{name}'")
    if (bits is None) != (sparsity is None) or (bits is not None and _unfit(bits, 1)):
        raise ValueError(f"choice of layer '{name}'")
    try:
        choice = None if bits is None or sparsity is None else Choice(bits, sparsity)
    except InputError as error:
        raise ValueError(str(error)) from error
    return LayerEntry(
        name, tuple(shape), has_bias, choice, activation_bits, ranges, (stored[0], stored[1]) if stored else None
    )


def _unfit(number: Any, least: int) -> bool:
    """Whether something is no whole number, or one below ``least``."""
    return not isinstance(number, int) or isinstance(number, bool) or number < least


class PlainParts:
    """Version 1: a tensor for each part, and one for each of the rest.

    :param tensors: of the file
    """

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.tensors, self.at = tensors, dict.fromkeys(("masks", "codes", *JOINED), 0)

    def enter(self, layer: int, masked: bool) -> None:
        """See ``Parts``."""

    def take(self, name: str, count: int) -> Tensor:
        """See ``Parts``."""
        start, dtype = self.at[name], JOINED.get(name, torch.uint8)
        found = self.tensors.get(name, torch.zeros(0, dtype=dtype))
        if found.dtype != dtype or found.dim() != 1 or start + count > found.numel():
            raise InputError(f"ends within '{name}'")
        self.at[name] = start + count
        return found[start : start + count]

    def end(self) -> None:
        """See ``Parts``."""
        for name, tensor in self.tensors.items():
            if not name.startswith("rest.") and (name not in self.at or tensor.numel() != self.at[name]):
                raise InputError(f"holds more '{name}' than its layers need")

    def rest(self, own: dict[str, Tensor]) -> dict[str, Tensor]:
        """See ``Parts``."""
        found = {name.removeprefix("rest."): t for name, t in self.tensors.items() if name.startswith("rest.")}
        if {name: (t.shape, t.dtype) for name, t in found.items()} != {n: (t.shape, t.dtype) for n, t in own.items()}:
            raise InputError("holds other uncompressed tensors than the model")
        return found


class CodedParts:
    """Version 2: every part as it is or, where it is shorter, as a Zstandard frame; one after the other.

    :param data: all parts
    :param header: says where masks and codes end
    :param lengths: bytes of the joined parts and of the rest, in their order
    """

    def __init__(self, data: bytes, header: HsqHeader, lengths: tuple[dict[str, int], dict[str, int]]) -> None:
        self.header, self.joined, self.own = header, lengths[0], lengths[1]
        stored = [n for entry in header.layers for n in entry.stored or ()]
        everything = [*stored, *self.joined.values(), *self.own.values()]
        if sum(everything) != len(data):
            raise InputError(f"has {len(data)} bytes of parts, not {sum(everything)}")
        streams, at = [], 0
        for length in everything:
            streams.append(data[at : at + length])
            at += length
        layers, rest = streams[: len(stored)], streams[len(stored) :]
        self.queues = {"masks": layers[::2], "codes": layers[1::2]}
        self.layer = 0
        self.streams = dict(zip([*self.joined, *("rest." + name for name in self.own)], rest, strict=True))
        self.decoded: dict[str, Tensor] = {}
        self.at = dict.fromkeys(JOINED, 0)

    @classmethod
    def open(cls, top: dict[str, Any], tensors: dict[str, Tensor]) -> tuple[HsqHeader, "CodedParts"]:
        """A file's header and its parts, which are not decoded yet.

        :param top: the metadata entry
        :raises InputError: if the file is damaged; ValueError, KeyError, TypeError for a wrong header
        """
        if set(tensors) != {"header", "data"} or any(t.dtype != torch.uint8 or t.dim() != 1 for t in tensors.values()):
            raise InputError(f"holds other tensors ({', '.join(sorted(tensors))})")
        described, data = (tensors[name].numpy().tobytes() for name in ("header", "data"))
        length, (factor, extra) = top["header_bytes"], LARGEST_HEADER
        if _unfit(length, 0) or length > factor * len(described) + extra:
            raise ValueError(f"a header of {length} bytes")
        if zlib.crc32(data, zlib.crc32(described)) != top["crc32"]:
            raise InputError("has another checksum than when it was written")
        content = json.loads(restore(described, length))
        header = header_from(content)
        if any(entry.stored is None for entry in header.layers):
            raise ValueError("a layer without lengths")
        lengths = content["parts"], content["rest"]
        if any(_unfit(n, 0) for part in lengths for n in part.values()) or set(lengths[0]) - set(JOINED):
            raise ValueError("lengths of parts")
        return header, cls(data, header, lengths)

    def enter(self, layer: int, masked: bool) -> None:
        """See ``Parts``."""
        self.layer = layer
        chosen = self.header.layers[layer].choice is not None
        if (self.queues["masks"][layer] and not masked) or (self.queues["codes"][layer] and not chosen):
            raise InputError(f"holds more of layer '{self.header.layers[layer].name}' than it needs")

    def take(self, name: str, count: int) -> Tensor:
        """See ``Parts``."""
        if name in self.queues:
            return _tensor(restore(self.queues[name][self.layer], count), torch.uint8)
        if name not in self.decoded:
            self.decoded[name] = self._decode(name, (_needed(self.header.layers, name),), JOINED[name])
        start = self.at[name]
        self.at[name] = start + count
        return self.decoded[name][start : start + count]

    def _decode(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        plain = restore(self.streams.get(name, b""), math.prod(shape) * dtype.itemsize, dtype.itemsize)
        return _tensor(plain, dtype).reshape(shape)

    def end(self) -> None:
        """See ``Parts``."""
        unread = [name for name in self.joined if not _needed(self.header.layers, name)]
        if unread:
            raise InputError(f"holds more '{unread[0]}' than its layers need")

    def rest(self, own: dict[str, Tensor]) -> dict[str, Tensor]:
        """See ``Parts``."""
        if list(self.own) != list(own):
            raise InputError("holds other uncompressed tensors than the model")
        return {name: self._decode("rest." + name, tuple(t.shape), t.dtype) for name, t in own.items()}


def _needed(layers: Sequence[LayerEntry], name: str) -> int:
    """Elements of a joined part."""
    total = 0
    for entry in layers:
        channels = entry.shape[0]
        counts = {
            "scales": channels,
            "biases": channels * entry.has_bias,
            "ranges": 2 * entry.ranges,
            "floats": 0,
        }
        if entry.choice is None:
            counts = {"floats": math.prod(entry.shape) + channels * entry.has_bias}
        total += counts.get(name, 0)
    return total


def _tensor(content: bytes, dtype: torch.dtype) -> Tensor:
    return torch.frombuffer(bytearray(content), dtype=dtype) if content else torch.zeros(0, dtype=dtype)
