"""The four signals against SciPy and NumPy."""

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from hsq_env.distillation.difficulty import (
    difficulty,
    laplacian,
    laplacian_variance,
    mean_over_maps,
    normalized,
    pixel_variance,
    pooled,
    pooled_variance,
)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cells(image: np.ndarray, grid: int) -> list[list[np.ndarray]]:
    """What adaptive pooling averages: cell i reaches from floor(i H / grid) to ceil((i + 1) H / grid)."""
    height, width = image.shape
    rows = [(i * height // grid, -(-(i + 1) * height // grid)) for i in range(grid)]
    columns = [(i * width // grid, -(-(i + 1) * width // grid)) for i in range(grid)]
    return [[image[a:b, c:d] for c, d in columns] for a, b in rows]


@pytest.mark.parametrize("shape", [(2, 3, 16, 16), (1, 1, 13, 9)])
def test_laplacian_is_scipys(shape: tuple[int, ...]) -> None:
    images = draw(*shape)
    expected = [ndimage.laplace(image.mean(axis=0), mode="nearest") for image in images.numpy()]
    np.testing.assert_allclose(laplacian(images).numpy(), expected, atol=1e-12)


@pytest.mark.parametrize(("size", "grid"), [(16, 4), (13, 4), (8, 8), (3, 4)])
def test_pooling_is_numpys_over_cells(size: int, grid: int) -> None:
    values = draw(2, size, size + 1)
    for found, image in zip(pooled(values, grid), values.numpy(), strict=True):
        np.testing.assert_allclose(found.numpy(), [[c.mean() for c in row] for row in cells(image, grid)], atol=1e-12)
    for found, image in zip(pooled_variance(values + 1000, grid), values.numpy(), strict=True):
        np.testing.assert_allclose(found.numpy(), [[c.var() for c in row] for row in cells(image, grid)], atol=1e-9)


def test_variances_of_images() -> None:
    images = draw(2, 3, 16, 24)
    for found, image in zip(laplacian_variance(images, 4), images.numpy(), strict=True):
        filtered = ndimage.laplace(image.mean(axis=0), mode="nearest")
        np.testing.assert_allclose(found.numpy(), [[c.var() for c in row] for row in cells(filtered, 4)], atol=1e-12)
    for found, image in zip(pixel_variance(images, 4), images.numpy(), strict=True):
        np.testing.assert_allclose(
            found.numpy(), [[c.var() for c in row] for row in cells(image.mean(axis=0), 4)], atol=1e-12
        )


def test_a_flat_half_is_easy_and_a_noisy_one_is_hard() -> None:
    images = torch.zeros(1, 1, 16, 16, dtype=torch.float64)
    images[..., 8:] = draw(1, 1, 16, 8)
    for signal in (laplacian_variance, pixel_variance):
        found = signal(images, 8)[0]
        assert (found[:, :3] == 0).all() and (found[:, 4:] > 0).all()


def test_errors_count_wherever_a_coarse_map_covers() -> None:
    """A map of one location lies over all cells."""
    fine, coarse = draw(1, 4, 4), draw(1, 1, 1, seed=1)
    np.testing.assert_allclose(mean_over_maps([fine, coarse], 2), ((pooled(fine.float(), 2) + coarse) / 2).numpy())


def test_normalized_has_mean_0_and_deviation_1_over_the_batch() -> None:
    found = normalized(5 + 3 * draw(4, 8, 8))
    assert found.mean().item() == pytest.approx(0, abs=1e-12)
    assert found.std(correction=0).item() == pytest.approx(1, rel=1e-12)
    assert (normalized(torch.full((2, 8, 8), 7.0)) == 0).all()


def test_difficulty_stacks_the_signals_in_order() -> None:
    images, error, gap = draw(2, 3, 16, 16).float(), draw(2, 8, 8).float(), draw(2, 16, 16, seed=2).float()
    found = difficulty(images, [error], [gap], 8)
    assert found.shape == (2, 4, 8, 8)
    for index, signal in enumerate((laplacian_variance(images, 8), pixel_variance(images, 8), error, pooled(gap, 8))):
        assert torch.equal(found[:, index], normalized(signal))


def test_variances_beside_large_means_are_exact_enough() -> None:
    """In float32, and with another mean in every image."""
    values = draw(2, 16, 16)
    shifted = (values + torch.tensor([3000.0, -3000.0])[:, None, None]).float()
    expected = pooled_variance(values, 4)
    np.testing.assert_allclose(pooled_variance(shifted, 4).numpy(), expected.numpy(), rtol=1e-2)
