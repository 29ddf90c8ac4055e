"""Pruning to an exact count: single weights or N:M groups by magnitude, whole input channels in a given order."""

from collections.abc import Sequence

import torch
from torch import Tensor

GROUP = 4  # weights per group of an N:M pattern


def magnitude_mask(weight: Tensor, sparsity: float, pattern: str = "unstructured") -> Tensor | None:
    """Which weights survive.

    :param weight: (C, ...)
    :param sparsity: share of weights to remove; exactly ``round(sparsity * numel)`` are removed
    :param pattern: "unstructured", or "n:m" to remove the same number from each four neighbours of the flattened
        weight of an output channel (3:4, 2:4, 1:4); layers whose fan-in is no multiple of four stay unstructured
    :return: bool mask of ``weight``'s shape, True where a weight survives, or None if all do

    >>> weight = torch.tensor([[3.0, -1.0, 2.0, -4.0, 0.3, 0.2, 0.1, 0.4]])
    >>> magnitude_mask(weight, 0.5).int().tolist()
    [[1, 1, 1, 1, 0, 0, 0, 0]]
    >>> magnitude_mask(weight, 0.5, "n:m").int().tolist()
    [[1, 0, 0, 1, 1, 0, 0, 1]]
    """
    if sparsity == 0:
        return None
    magnitude = weight.detach().abs()
    if follows_pattern(weight.shape, pattern):
        groups = magnitude.reshape(-1, GROUP)
        removed = groups.argsort(dim=1, stable=True)[:, : round(sparsity * GROUP)]
        return torch.ones_like(groups, dtype=torch.bool).scatter_(1, removed, False).reshape(weight.shape)
    order = magnitude.flatten().argsort(stable=True)
    mask = torch.ones(weight.numel(), dtype=torch.bool, device=weight.device)
    mask[order[: round(sparsity * weight.numel())]] = False
    return mask.reshape(weight.shape)


def dropped_channels(shape: Sequence[int], sparsity: float) -> int:
    """How many input channels a layer drops: ``sparsity`` of them, rounded down.

    :param shape: of the weight, (out, in, ...)

    >>> dropped_channels((64, 3, 7, 7), 0.5)
    1
    """
    return int(sparsity * shape[1])


def channel_mask(weight: Tensor, sparsity: float, order: Sequence[int] | None) -> Tensor | None:
    """Which weights survive where whole input channels are dropped.

    :param weight: (out, in, ...)
    :param order: of the input channels, the first to go first; those with the smallest weights when None
    :return: bool mask of ``weight``'s shape, True where a weight survives, or None if all do
    """
    count = dropped_channels(weight.shape, sparsity)
    if count == 0:
        return None
    if order is None:
        energy = weight.detach().transpose(0, 1).flatten(1).square().sum(dim=1)
        order = energy.argsort(stable=True).tolist()
    mask = torch.ones_like(weight, dtype=torch.bool)
    mask[:, list(order[:count])] = False
    return mask


def follows_pattern(shape: tuple[int, ...] | torch.Size, pattern: str) -> bool:
    """Whether a layer of this weight shape is pruned in N:M groups."""
    fan_in = 1
    for size in shape[1:]:
        fan_in *= size
    return pattern == "n:m" and fan_in % GROUP == 0
