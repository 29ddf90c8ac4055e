"""Wavelet distillation against PyWavelets."""

import numpy as np
import pytest
import pywt
import torch
from tiny_task import Distilled
from torch import Tensor

from hsq_env.distillation import AKD
from hsq_env.distillation.wavelet import LEVELS, WaveletAKD, haar, wavelet_divergence


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_haar_is_pywavelets() -> None:
    images = noise(2, 3, 8, 12)
    low, high = haar(images)
    for image in range(2):
        for channel in range(3):
            expected, bands = pywt.dwt2(images[image, channel].numpy(), "haar")
            np.testing.assert_allclose(low[image, channel], expected, atol=1e-12)
            for band, other in zip(high[image, :, channel], (bands[1], bands[0], bands[2]), strict=True):
                np.testing.assert_allclose(band, other, atol=1e-12)


def test_wavelets_look_at_fine_structure_alone() -> None:
    teacher = noise(1, 1, 16, 16)
    assert wavelet_divergence(teacher + 5, teacher).abs().max() < 1e-12
    assert (wavelet_divergence(teacher + noise(1, 1, 16, 16, seed=1), teacher) > 0).all()


def test_the_divergence_is_the_sum_of_high_bands() -> None:
    student, teacher = noise(1, 2, 16, 24), noise(1, 2, 16, 24, seed=1)
    expected = 0.0
    for channel in (student - teacher)[0].numpy():
        for details in pywt.wavedec2(channel, "haar", level=LEVELS)[1:]:
            expected += sum(np.abs(band).mean() for band in details) / 2  # two channels
    assert wavelet_divergence(student, teacher).mean().item() == pytest.approx(expected)


def test_odd_sides_have_places_too() -> None:
    found = wavelet_divergence(noise(2, 1, 13, 9), noise(2, 1, 13, 9, seed=1))
    assert found.shape == (2, 13, 9) and torch.isfinite(found).all()


def test_other_kinds_are_compared_as_akd_does() -> None:
    pixels, logits = (
        [Distilled("x", kind, noise(1, 3, 8, 8, seed=s)) for s in (0, 1)] for kind in ("pixels", "logits")
    )
    assert WaveletAKD().terms([logits[0]], [logits[1]])["logits"] == AKD().terms([logits[0]], [logits[1]])["logits"]
    assert WaveletAKD().terms([pixels[0]], [pixels[1]])["pixels"] != AKD().terms([pixels[0]], [pixels[1]])["pixels"]


def test_places_are_those_that_a_band_covers() -> None:
    """One pixel differs by 8: each level's three bands have half of what the level before has, on twice the side."""
    student = torch.zeros(1, 1, 16, 24)
    student[0, 0, 5, 14] = 8.0
    found = wavelet_divergence(student, torch.zeros(1, 1, 16, 24))[0]
    expected = torch.zeros(16, 24)
    for level in (1, 2, 3):
        side = 2**level
        top, left = 5 // side * side, 14 // side * side
        expected[top : top + side, left : left + side] += 3 * 8.0 / side
    assert torch.equal(found, expected)


@pytest.mark.parametrize(("height", "width"), [(5, 4), (4, 5), (5, 5)])
def test_odd_sides_go_on_with_their_last_row_or_column(height: int, width: int) -> None:
    images = noise(1, 1, height, width)
    padded = np.pad(images[0, 0].numpy(), ((0, height % 2), (0, width % 2)), mode="edge")
    low, high = haar(images)
    expected, bands = pywt.dwt2(padded, "haar")
    np.testing.assert_allclose(low[0, 0], expected, atol=1e-12)
    np.testing.assert_allclose(high[0, 0, 0], bands[1], atol=1e-12)


def test_channels_count_alike() -> None:
    student, teacher = noise(2, 3, 8, 8), noise(2, 3, 8, 8, seed=1)
    apart = [wavelet_divergence(student[:, [c]], teacher[:, [c]]) for c in range(3)]
    np.testing.assert_allclose(wavelet_divergence(student, teacher), sum(apart) / 3, atol=1e-12)
