"""How images are made worse: noise of a given level, and bicubic reduction as super-resolution papers do it."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]  # (H, W) or (H, W, 3)


def add_noise(clean: NDArray[np.float32], level: float, seed: tuple[int, ...]) -> NDArray[np.float32]:
    """White Gaussian noise; not clipped, as denoising papers have it.

    :param clean: any shape, in [0, 1]
    :param level: standard deviation, of 255
    :param seed: same seed, same noise
    """
    noise = np.random.default_rng(seed).standard_normal(clean.shape)
    return (clean + level / 255 * noise).astype(np.float32)


def crop_to_multiple(pixels: Pixels, scale: int) -> Pixels:
    """The upper left part whose sides are multiples of ``scale``."""
    height, width = (side - side % scale for side in pixels.shape[:2])
    return pixels[:height, :width]


def reduce(pixels: Pixels, scale: int) -> Pixels:
    """Bicubic reduction with antialiasing (Keys 1981 with a = -0.5, stretched by the scale), rounded to 8 bits.

    It is Pillow's filter, which is MATLAB's ``imresize`` except within a few pixels of the border, where MATLAB
    mirrors the image.

    :param pixels: sides multiples of ``scale``
    """
    height, width = pixels.shape[0] // scale, pixels.shape[1] // scale
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC))


def enlarge(pixels: Pixels, scale: int) -> Pixels:
    """Bicubic enlargement by the same filter: what super-resolution is compared with."""
    size = (pixels.shape[1] * scale, pixels.shape[0] * scale)
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))
