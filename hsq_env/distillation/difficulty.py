"""How hard the places of an image are: the four signals that SPARK's policy looks at (arXiv 2606.15243).

Each is pooled to a grid: (N, grid, grid). They are pure functions of images or outputs, without gradients.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

SMALLEST_SPREAD = 1e-8


def pooled(values: Tensor, grid: int) -> Tensor:
    """Means over the cells of a grid, as ``torch.nn.functional.adaptive_avg_pool2d`` cuts it.

    :param values: (N, H, W)
    :return: (N, grid, grid)
    """
    return F.adaptive_avg_pool2d(values[:, None], grid)[:, 0]


def pooled_variance(values: Tensor, grid: int) -> Tensor:
    """Population variances within the cells, (N, H, W) to (N, grid, grid)."""
    centered = values - values.mean(dim=(1, 2), keepdim=True)  # large means would cancel
    return (pooled(centered.square(), grid) - pooled(centered, grid).square()).clamp_min(0)


def laplacian(images: Tensor) -> Tensor:
    """The 4-neighbour Laplacian of the mean over channels, edges reflected about the border pixel's edge.

    The same as ``scipy.ndimage.laplace(image, mode="nearest")``.

    :param images: (N, C, H, W)
    :return: (N, H, W)
    """
    padded = F.pad(images.mean(dim=1, keepdim=True), (1, 1, 1, 1), mode="replicate")[:, 0]
    middle = padded[:, 1:-1, 1:-1]
    return padded[:, :-2, 1:-1] + padded[:, 2:, 1:-1] + padded[:, 1:-1, :-2] + padded[:, 1:-1, 2:] - 4 * middle


@torch.no_grad()
def laplacian_variance(images: Tensor, grid: int) -> Tensor:
    """Where edges and fine texture are: the variance of the Laplacian within each cell.

    :param images: (N, C, H, W)
    """
    return pooled_variance(laplacian(images), grid)


@torch.no_grad()
def pixel_variance(images: Tensor, grid: int) -> Tensor:
    """Where contrast is: the variance of the mean over channels within each cell.

    :param images: (N, C, H, W)
    """
    return pooled_variance(images.mean(dim=1), grid)


@torch.no_grad()
def mean_over_maps(maps: Sequence[Tensor], grid: int) -> Tensor:
    """Errors or gaps per location, as one map: each pooled to the grid, then their mean.

    Maps that are smaller than the grid, as a detector's coarse levels are, count in every cell that they cover.

    :param maps: each (N, H, W)
    """
    return torch.stack([pooled(m.float(), grid) for m in maps]).mean(dim=0)


@torch.no_grad()
def normalized(signal: Tensor) -> Tensor:
    """Mean 0 and standard deviation 1 over the batch; all zeros where nothing differs.

    :param signal: (N, grid, grid)

    >>> normalized(torch.tensor([[[1.0, 3.0], [3.0, 1.0]]])).tolist()
    [[[-1.0, 1.0], [1.0, -1.0]]]
    """
    centered = signal - signal.mean()
    return centered / centered.std(correction=0).clamp_min(SMALLEST_SPREAD)


def difficulty(images: Tensor, errors: Sequence[Tensor], gaps: Sequence[Tensor], grid: int) -> Tensor:
    """The policy's input.

    :param images: (N, C, H, W), what the networks are given
    :param errors: of the student against the ground truth, per location: maps (N, H, W)
    :param gaps: between teacher and student, per location: maps (N, H, W)
    :return: (N, 4, grid, grid): Laplacian variance, pixel variance, student error, teacher-student gap, each
        ``normalized``
    """
    signals = (
        laplacian_variance(images, grid),
        pixel_variance(images, grid),
        mean_over_maps(errors, grid),
        mean_over_maps(gaps, grid),
    )
    return torch.stack([normalized(signal) for signal in signals], dim=1)
