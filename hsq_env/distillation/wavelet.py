"""Wavelet distillation: only what is fine in an image is taken from the teacher (Zhang et al. 2022, arXiv 2203.06321).

The published rival that SPARK is compared with: aware of frequencies, but the same rule everywhere.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from hsq_env.distillation.akd import AKD

LEVELS = 3


def haar(images: Tensor) -> tuple[Tensor, Tensor]:
    """One level of the orthonormal Haar transform; odd sides are continued by their last row or column.

    :param images: (N, C, H, W)
    :return: the low band (N, C, h, w) and the three high ones (N, 3, C, h, w): across columns, across rows, across both
    """
    height, width = images.shape[2:]
    x = F.pad(images, (0, width % 2, 0, height % 2), mode="replicate")
    a, b, c, d = x[..., ::2, ::2], x[..., ::2, 1::2], x[..., 1::2, ::2], x[..., 1::2, 1::2]
    high = torch.stack([a - b + c - d, a + b - c - d, a - b - c + d], dim=1) / 2
    return (a + b + c + d) / 2, high


def wavelet_divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """The absolute difference of the high bands, summed over levels and bands, at the places that they cover.

    :param student: images (N, C, H, W)
    :param teacher: the same shape
    :return: (N, H, W), mean over channels
    """
    size, low = student.shape[2:], student - teacher  # the transform is linear
    total = torch.zeros_like(low[:, 0])
    for _ in range(LEVELS):
        low, high = haar(low)
        total = total + F.interpolate(high.abs().mean(dim=2).sum(dim=1)[:, None], size, mode="nearest")[:, 0]
    return total


@dataclass(frozen=True)
class WaveletAKD(AKD):
    """AKD whose images are compared by their high bands alone."""

    def _divergence(self, kind: str) -> Callable[[Tensor, Tensor], Tensor]:
        return wavelet_divergence if kind == "pixels" else super()._divergence(kind)
