"""From codes and masks to bytes and back: packing, and entropy coding where it saves bytes.

Quantized weights are not spread evenly over their levels, so that packed codes hold less than they take. Zstandard
(RFC 8878) finds that with one Huffman table per part; it was measured beside the asymmetric numeral systems of
``constriction`` with a table per part, which save no more (benchmarks/artifacts.py).
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import zstandard
from numpy.typing import NDArray

from detectors.errors import InputError
from hsq_env.pruning import GROUP
from hsq_env.size import Encoding, index_bits

Bytes = NDArray[np.uint8]
LEVEL = 3  # there are no repetitions to be looked for at length: higher levels gave no smaller files


def pack(values: NDArray[Any], bits: int) -> Bytes:
    """Non-negative integers below ``2**bits`` to bytes, most significant bit first."""
    spread = (values.astype(np.uint8)[:, None] >> np.arange(bits - 1, -1, -1, dtype=np.uint8)) & 1
    return np.packbits(spread.reshape(-1))


def unpack(packed: Bytes, bits: int, count: int) -> NDArray[np.int64]:
    """The inverse of ``pack``.

    >>> packed = pack(np.array([1, 2, 3, 0]), bits=2)
    >>> packed.tolist(), unpack(packed, bits=2, count=4).tolist()
    ([108], [1, 2, 3, 0])
    """
    spread = np.unpackbits(packed, count=count * bits).reshape(count, bits).astype(np.int64)
    return spread @ (1 << np.arange(bits - 1, -1, -1))


def _combinations(sparsity: float) -> NDArray[np.bool_]:
    """All ways in which a group of four keeps its survivors, (ways, 4)."""
    kept = GROUP - round(sparsity * GROUP)
    return np.array([[i in c for i in range(GROUP)] for c in itertools.combinations(range(GROUP), kept)])


def encode_mask(mask: NDArray[np.bool_], coded: Encoding, sparsity: float) -> Bytes:
    """A layer's mask (true survives) as its encoding has it; nothing where zeros have a code of their own.

    :param mask: of the weight's shape
    """
    if coded.kind == "dense":
        return np.zeros(0, np.uint8)
    if coded.kind == "channels":
        return np.packbits(mask.reshape(*mask.shape[:2], -1)[0, :, 0])
    if coded.kind == "bitmask":
        return np.packbits(mask)
    ways = _combinations(sparsity)
    weights = 1 << np.arange(GROUP)
    number_of = np.zeros(1 << GROUP, np.int64)
    number_of[ways @ weights] = np.arange(len(ways))
    return pack(number_of[mask.reshape(-1, GROUP) @ weights], index_bits(sparsity))


def decode_mask(packed: Bytes, coded: Encoding, sparsity: float, shape: Sequence[int]) -> NDArray[np.bool_]:
    """The inverse of ``encode_mask``, flat.

    :raises InputError: for the index of a group that there is not
    """
    count = math.prod(shape)
    if coded.kind == "bitmask":
        return np.unpackbits(packed, count=count).astype(bool)
    if coded.kind == "channels":
        kept = np.unpackbits(packed, count=shape[1]).astype(bool).reshape(1, -1, *[1] * (len(shape) - 2))
        return np.array(np.broadcast_to(kept, shape)).reshape(-1)
    ways = _combinations(sparsity)
    numbers = unpack(packed, index_bits(sparsity), count // GROUP)
    if numbers.max(initial=0) >= len(ways):
        raise InputError("holds an impossible N:M index")
    return ways[numbers].reshape(-1)


def shrink(plain: bytes, width: int = 1) -> bytes:
    """A Zstandard frame, or what was given where that is as short.

    :param width: bytes of an element: their first bytes come first, then their second ones, and so on, since exponents
        resemble each other and mantissas do not
    """
    frame = zstandard.ZstdCompressor(level=LEVEL).compress(_planes(plain, width))
    return frame if len(frame) < len(plain) else plain


def restore(stored: bytes, length: int, width: int = 1) -> bytes:
    """The inverse of ``shrink``.

    :param length: of the result, in bytes; nothing larger is ever allocated
    :raises InputError: if ``stored`` is not that many bytes and no frame of that many either

    >>> stored = shrink(bytes(1000))
    >>> len(stored) < 30, restore(stored, 1000) == bytes(1000)
    (True, True)
    """
    if len(stored) == length:
        return stored
    if len(stored) > length or length % width:
        raise InputError("holds a part of a wrong length")
    try:
        if zstandard.get_frame_parameters(stored).content_size != length:
            raise InputError("holds a part of a wrong length")
        planes = zstandard.ZstdDecompressor().decompress(stored, max_output_size=length, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise InputError(f"holds a part that cannot be decoded ({error})") from error
    return np.frombuffer(planes, np.uint8).reshape(width, -1).T.tobytes()


def _planes(plain: bytes, width: int) -> bytes:
    return np.frombuffer(plain, np.uint8).reshape(-1, width).T.tobytes()
