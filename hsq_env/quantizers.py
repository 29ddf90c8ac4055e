"""Weight and activation quantization as pure functions of tensors.

Weights are quantized symmetrically with one scale per output channel: ``value = (code + offset) * scale``. The offset
is 0, which puts a level on zero, or 1/2, which balances the four levels of 2 bits around zero (ParetoQ, Liu et al.
2025, arXiv 2502.02631, section 4.2). Scales minimize the squared error and may then be learned with the gradient of
LSQ (Esser et al. 2020, arXiv 1902.08153).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from hsq_env.choices import Choice

SCALE_CANDIDATES = {2: 24, 4: 16, 8: 8}  # tried per channel; fewer bits need a finer search
SMALLEST_CLIP = {2: 0.2, 4: 0.4, 8: 0.8}  # of the largest magnitude
RANGE_CANDIDATES = 46
TINY = 1e-12


@dataclass(frozen=True)
class Levels:
    """The codes ``low..high`` and the offset that turns them into multiples of the scale."""

    low: int
    high: int
    offset: float

    @property
    def reach(self) -> float:
        """The largest magnitude on the positive side, in scales."""
        return self.high + self.offset


def weight_levels(choice: Choice) -> Levels:
    """The levels of a choice.

    2-bit weights are balanced, {-1.5, -0.5, 0.5, 1.5} scales, where pruned weights have a mask of their own; at 25 %
    sparsity a mask costs more than the pruned weights save, so that one level must be zero and the codes are
    {-2, -1, 0, 1}. Without sparsity, balanced levels were measured to do a third of the damage
    (benchmarks/two_bit_levels.py).

    >>> levels = weight_levels(Choice(2))
    >>> [code + levels.offset for code in range(levels.low, levels.high + 1)]
    [-1.5, -0.5, 0.5, 1.5]
    >>> levels = weight_levels(Choice(2, 0.25))
    >>> [code + levels.offset for code in range(levels.low, levels.high + 1)]
    [-2.0, -1.0, 0.0, 1.0]
    """
    balanced = choice.bits == 2 and choice.sparsity != 0.25
    half = 2 ** (choice.bits - 1)
    return Levels(-half, half - 1, 0.5 if balanced else 0.0)


def quantize(weight: Tensor, scale: Tensor, levels: Levels) -> Tensor:
    """Nearest codes.

    :param weight: (C, ...) float32
    :param scale: (C,) positive
    :return: (C, ...) int8 in [levels.low, levels.high]
    """
    codes = torch.round(weight / _per_channel(scale, weight) - levels.offset)
    return codes.clamp(levels.low, levels.high).to(torch.int8)


def dequantize(codes: Tensor, scale: Tensor, levels: Levels) -> Tensor:
    """The weights that codes stand for, float32, exactly as a reloaded file has them.

    >>> weight, scale, levels = torch.tensor([[0.9, -0.2, 0.4]]), torch.tensor([0.25]), weight_levels(Choice(4))
    >>> codes = quantize(weight, scale, levels)
    >>> codes.tolist(), dequantize(codes, scale, levels).tolist()
    ([[4, -1, 2]], [[1.0, -0.25, 0.5]])
    """
    return (codes.float() + levels.offset) * _per_channel(scale, codes)


def storable(scale: Tensor) -> Tensor:
    """``scale`` rounded to what the file holds (bfloat16) and kept positive; the gradient passes straight through."""
    rounded = scale.detach().clamp_min(TINY).to(torch.bfloat16).float()
    return rounded + (scale - scale.detach())  # adds exactly zero


def storable_bias(bias: Tensor) -> Tensor:
    """``bias`` as the file holds it: float16, cut at its largest number."""
    most = torch.finfo(torch.float16).max
    return bias.detach().clamp(-most, most).half()


def best_scale(weight: Tensor, mask: Tensor | None, levels: Levels, bits: int) -> Tensor:
    """The scale per output channel with the least squared error over the surviving weights.

    :param weight: (C, ...)
    :param mask: (C, ...) bool, True where a weight survives; None for all
    :return: (C,) as the file can hold it
    """
    flat = (weight if mask is None else weight * mask).flatten(1)
    kept = None if mask is None else mask.flatten(1)
    largest = flat.abs().amax(dim=1).clamp_min(TINY) / levels.reach
    best, best_error = largest, torch.full_like(largest, math.inf)
    for factor in torch.linspace(SMALLEST_CLIP[bits], 1.0, SCALE_CANDIDATES[bits]).tolist():
        scale = storable(largest * factor)
        error = (dequantize(quantize(flat, scale, levels), scale, levels) - flat).square()
        error = (error if kept is None else error * kept).sum(dim=1)
        better = error < best_error
        best, best_error = torch.where(better, scale, best), torch.where(better, error, best_error)
    return storable(best)


def fake_quantize(weight: Tensor, scale: Tensor, levels: Levels) -> Tensor:
    """Quantize and dequantize with straight-through gradients to the weights and LSQ gradients to the scales.

    :param weight: (C, ...) latent weights
    :param scale: (C,) learned
    """
    scale = storable(scale)
    # LSQ, section 2.2: the scale's gradient shrinks with the number of weights that share it, the offset's part too
    gradient = 1.0 / math.sqrt(weight[0].numel() * levels.high) if levels.high else 1.0
    zero_points = torch.zeros_like(scale)

    def rounded(shifted: Tensor) -> Tensor:
        return torch._fake_quantize_learnable_per_channel_affine(
            shifted, scale, zero_points, 0, levels.low, levels.high, gradient
        )

    if not levels.offset:
        return rounded(weight)
    damped = scale.detach() + gradient * (scale - scale.detach())
    shift = _per_channel(damped, weight) * levels.offset
    return rounded(weight - shift) + shift


@dataclass(frozen=True)
class ActivationRange:
    """Affine per-tensor quantization of a layer's input: ``value = (code - zero_point) * scale``, codes from 0."""

    scale: float
    zero_point: int
    bits: int

    def __call__(self, x: Tensor) -> Tensor:
        """Fake-quantize ``x`` with straight-through gradients inside the range."""
        return torch.fake_quantize_per_tensor_affine(x, self.scale, self.zero_point, 0, 2**self.bits - 1)

    def scaled(self, factor: float) -> "ActivationRange":
        """A range that many times as wide, with the same zero point."""
        scale = torch.tensor(max(self.scale * factor, TINY), dtype=torch.float32).item()
        return ActivationRange(scale, self.zero_point, self.bits)

    def learned(self, x: Tensor, factor: Tensor) -> Tensor:
        """The same as ``scaled(factor)`` of ``x``, with a gradient to the factor too (LSQ, section 2.1).

        :param factor: scalar
        """
        scale = (factor * self.scale).clamp_min(TINY).reshape(1)
        highest = 2**self.bits - 1
        gradient = 1.0 / math.sqrt(x.numel() * highest)
        zero_point = torch.full_like(scale, float(self.zero_point))
        rounded: Tensor = torch._fake_quantize_learnable_per_tensor_affine(
            x.float(), scale, zero_point, 0, highest, gradient
        )
        return rounded


def fitted_range(x: Tensor, bits: int) -> ActivationRange:
    """The range with the least squared error on a sample: the whole span, or a part of it that rounds more finely.

    :param x: any shape
    """
    low, high = float(x.min()), float(x.max())
    candidates = [
        activation_range(low * f, high * f, bits) for f in torch.linspace(0.1, 1.0, RANGE_CANDIDATES).tolist()
    ]
    errors = [float((candidate(x) - x).square().mean()) for candidate in candidates]
    return candidates[int(torch.tensor(errors).argmin())]


def activation_range(low: float, high: float, bits: int) -> ActivationRange:
    """The range that covers [low, high] up to half a step, and holds zero exactly.

    >>> found = activation_range(-1.0, 3.0, bits=2)
    >>> found.zero_point, found(torch.tensor([-5.0, 0.0, 1.4, 9.0])).tolist()
    (1, [-1.3333333730697632, 0.0, 1.3333333730697632, 2.6666667461395264])
    """
    low, high = min(low, 0.0), max(high, 0.0)
    codes = 2**bits - 1
    scale = torch.tensor(max((high - low) / codes, TINY), dtype=torch.float32).item()
    return ActivationRange(scale, min(codes, max(0, round(-low / scale))), bits)


def _per_channel(scale: Tensor, like: Tensor) -> Tensor:
    return scale.reshape(-1, *[1] * (like.dim() - 1))
