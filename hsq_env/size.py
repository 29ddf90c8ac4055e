"""How many bytes a layer takes in the file under each choice, computed and not estimated.

Per layer the file holds the codes of the surviving weights, a mask or index that says which survive, one bfloat16
scale per output channel, a float16 bias and the activation ranges. A layer without a choice is stored in float32.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hsq_env.choices import Choice
from hsq_env.layer_info import LayerInfo
from hsq_env.pruning import GROUP, dropped_channels, follows_pattern
from hsq_env.quantizers import weight_levels

SCALE_BYTES = 2  # bfloat16
BIAS_BYTES = 2  # float16
RANGE_BYTES = 8  # float32 scale and zero point, per call in a forward pass
FLOAT_BYTES = 4


@dataclass(frozen=True)
class Encoding:
    """How the zeros of a layer are stored, and in how many bytes.

    ``kind`` is "dense" (a code for every weight, pruned ones hold the code of zero), "bitmask" (one bit per weight,
    codes for survivors), "n:m" (an index per group of four, codes for survivors) or "channels" (one bit per input
    channel, codes for survivors).
    """

    kind: str
    code_bytes: int
    mask_bytes: int


def index_bits(sparsity: float) -> int:
    """Bits that say which of four neighbours survive.

    >>> index_bits(0.5), index_bits(0.25)
    (3, 2)
    """
    return math.ceil(math.log2(math.comb(GROUP, round(sparsity * GROUP))))


def survivors(shape: Sequence[int], sparsity: float, pattern: str) -> int:
    """How many weights a layer keeps.

    :param shape: of the weight
    """
    count = math.prod(shape)
    if pattern == "channels":
        return count // shape[1] * (shape[1] - dropped_channels(shape, sparsity))
    return count - round(sparsity * count)


def encoding(shape: Sequence[int], choice: Choice, pattern: str = "unstructured") -> Encoding:
    """The smallest encoding of a layer's weights; ties go to "dense", which reads fastest.

    :param shape: of the weight

    >>> encoding((64, 64, 3, 3), Choice(8, 0.5))
    Encoding(kind='bitmask', code_bytes=18432, mask_bytes=4608)
    >>> encoding((64, 64, 3, 3), Choice(2, 0.25)).kind
    'dense'
    """
    count = math.prod(shape)
    dense = _bytes(count * choice.bits)
    kept = survivors(shape, choice.sparsity, pattern)
    if kept == count:
        return Encoding("dense", dense, 0)
    codes = _bytes(kept * choice.bits)
    if pattern == "channels":
        sparse = Encoding("channels", codes, _bytes(shape[1]))
    elif follows_pattern(tuple(shape), pattern):
        sparse = Encoding("n:m", codes, _bytes(count // GROUP * index_bits(choice.sparsity)))
    else:
        sparse = Encoding("bitmask", codes, _bytes(count))
    has_zero = weight_levels(choice).offset == 0
    return Encoding("dense", dense, 0) if has_zero and dense <= codes + sparse.mask_bytes else sparse


def layer_bytes(
    info: LayerInfo, choice: Choice | None, pattern: str = "unstructured", quantized_input: bool = True
) -> int:
    """Bytes of one layer in the file, without its share of the header.

    :param quantized_input: whether activation ranges are stored
    """
    count, channels = math.prod(info.shape), info.shape[0]
    if choice is None:
        return FLOAT_BYTES * (count + channels * info.has_bias)
    coded = encoding(info.shape, choice, pattern)
    per_channel = channels * (SCALE_BYTES + BIAS_BYTES * info.has_bias)
    return coded.code_bytes + coded.mask_bytes + per_channel + RANGE_BYTES * info.calls * quantized_input


def size_table(
    infos: Sequence[LayerInfo],
    choices: Sequence[Choice],
    pattern: str = "unstructured",
    quantized_input: bool = True,
) -> NDArray[np.int64]:
    """``layer_bytes`` of every layer (rows) under every choice (columns)."""
    return np.array(
        [[layer_bytes(info, c, pattern, quantized_input) for c in choices] for info in infos], dtype=np.int64
    )


def _bytes(bits: int) -> int:
    return -(-bits // 8)
