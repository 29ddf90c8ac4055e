"""Bit operations: what a layer costs an accelerator whose multipliers are as wide as they need to be."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hsq_env.choices import Choice, input_bits
from hsq_env.layer_info import LayerInfo
from hsq_env.pruning import dropped_channels

FLOAT_BITS = 32


def bit_operations(info: LayerInfo, choice: Choice | None, inputs: int | None, pattern: str = "unstructured") -> float:
    """Multiply-accumulates per image times the bits of weight and activation, pruned weights left out.

    The usual proxy for energy (BOPs, e.g. Baskin et al. 2018, arXiv 1804.10969; HAQ counts alike): a multiplication of
    a by b bits takes about a * b full adders.

    :param choice: None for float32
    :param inputs: bits of the layer's input, see ``hsq_env.choices.input_bits``; None for float32
    :param pattern: of sparsity; "channels" drops a whole number of them
    """
    if choice is None:
        return float(info.macs * FLOAT_BITS**2)
    pruned = dropped_channels(info.shape, choice.sparsity) / info.shape[1] if pattern == "channels" else choice.sparsity
    return info.macs * (1 - pruned) * choice.bits * (inputs or FLOAT_BITS)


def operation_shares(
    infos: Sequence[LayerInfo],
    choices: Sequence[Choice],
    activation_bits: int | str | None,
    pattern: str = "unstructured",
) -> NDArray[np.float64]:
    """Bit operations of every layer under every choice over those of all layers in float32, times their number.

    :param activation_bits: of the inputs, see ``hsq_env.choices.input_bits``
    """
    every = sum(bit_operations(info, None, None) for info in infos)
    table = [
        [bit_operations(info, choice, input_bits(index, choice, activation_bits), pattern) for choice in choices]
        for index, info in enumerate(infos)
    ]
    return np.array(table) * len(infos) / every
