"""PSNR and SSIM as the papers measure them, from scikit-image."""

import numpy as np
from numpy.typing import NDArray
from skimage.color import rgb2ycbcr
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

Image = NDArray[np.float64]  # (H, W) or (H, W, 3), in [0, 1]
MOST_DB = 100.0  # of PSNR: two equal images have infinitely many, which no mean over images survives


def luminance(image: Image) -> Image:
    """The Y of ITU-R BT.601 in [16, 235] / 255, (H, W, 3) to (H, W); a grey image as it is."""
    return image if image.ndim == 2 else np.asarray(rgb2ycbcr(image)[..., 0] / 255)


def comparable(restored: Image, clean: Image, shave: int = 0, y_only: bool = False) -> tuple[Image, Image]:
    """What is compared: clipped to [0, 1], the border off, Y alone where asked for.

    :param shave: pixels off each side
    """
    pair = [np.clip(image, 0.0, 1.0).astype(np.float64) for image in (restored, clean)]
    if y_only:
        pair = [luminance(image) for image in pair]
    if shave:
        pair = [image[shave:-shave, shave:-shave] for image in pair]
    return pair[0], pair[1]


def psnr(restored: Image, clean: Image, shave: int = 0, y_only: bool = False) -> float:
    """Peak signal to noise ratio in dB, the peak being 1, at most ``MOST_DB``; see ``comparable``."""
    found, expected = comparable(restored, clean, shave, y_only)
    if np.array_equal(found, expected):
        return MOST_DB
    return min(MOST_DB, float(peak_signal_noise_ratio(expected, found, data_range=1.0)))


def ssim(restored: Image, clean: Image, shave: int = 0, y_only: bool = False) -> float:
    """Structural similarity (Wang et al. 2004) with their Gaussian window of 1.5 pixels; see ``comparable``."""
    found, expected = comparable(restored, clean, shave, y_only)
    return float(
        structural_similarity(
            expected,
            found,
            data_range=1.0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            channel_axis=2 if expected.ndim == 3 else None,
        )
    )
