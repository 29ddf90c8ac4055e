"""Images as networks take them: resized, normalized, stacked."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

IMAGE_MEAN = (0.485, 0.456, 0.406)  # of ImageNet, as torchvision's detectors expect
IMAGE_STD = (0.229, 0.224, 0.225)
SIZE_DIVISOR = 32  # batches are padded to multiples of the deepest backbone stride


@dataclass(frozen=True)
class Preparation:
    """What becomes of an image besides its size.

    :param fixed: stretch to a square, whatever the shape was
    :param antialias: resize with antialiasing and keep 8 bits, as ``hsq teacher`` trains; False resizes as
        torchvision's detectors do
    :param mean: of the channels, taken off
    :param std: of the channels, divided by
    """

    fixed: bool = False
    antialias: bool = True
    mean: tuple[float, float, float] = IMAGE_MEAN
    std: tuple[float, float, float] = IMAGE_STD


USUAL = Preparation()


@dataclass(frozen=True)
class Batch:
    """Images ready for the network with their ground truth.

    ``images`` is (N, 3, H, W), normalized and zero-padded at the right and bottom; ``image_sizes`` the (height, width)
    before padding; ``targets`` one dictionary per image with ``boxes`` (K, 4) as (x0, y0, x1, y1) in resized pixels
    and ``labels`` (K,).
    """

    images: Tensor
    image_sizes: tuple[tuple[int, int], ...]
    image_ids: tuple[int, ...]
    targets: tuple[dict[str, Tensor], ...]

    def to(self, device: torch.device, layout: torch.memory_format = torch.contiguous_format) -> "Batch":
        """The same batch on a device, images in a memory layout."""
        targets = tuple({name: value.to(device) for name, value in target.items()} for target in self.targets)
        return Batch(self.images.to(device, memory_format=layout), self.image_sizes, self.image_ids, targets)


def layout_of(device: torch.device) -> torch.memory_format:
    """Of images and weights in a device's memory.

    Nothing keeps it as an attribute: pickles say it by a name that other processes may lack.
    """
    return torch.channels_last if device.type == "cuda" else torch.contiguous_format


def make_batch(
    pixels: Sequence[Tensor],
    targets: Sequence[dict[str, Tensor]],
    image_ids: Sequence[int],
    preparation: Preparation = USUAL,
) -> Batch:
    """Stack images (3, H, W) of any sizes, from 0 to 255, into one normalized, padded batch."""
    sizes = tuple((image.shape[1], image.shape[2]) for image in pixels)
    height = -(-max(h for h, _ in sizes) // SIZE_DIVISOR) * SIZE_DIVISOR
    width = -(-max(w for _, w in sizes) // SIZE_DIVISOR) * SIZE_DIVISOR
    mean, std = (torch.tensor(values)[:, None, None] for values in (preparation.mean, preparation.std))
    images = torch.zeros(len(pixels), 3, height, width)
    for i, (image, (h, w)) in enumerate(zip(pixels, sizes, strict=True)):
        images[i, :, :h, :w] = (image.float() / 255 - mean) / std
    return Batch(images, sizes, tuple(image_ids), tuple(targets))


def resize(image: Tensor, min_size: int, max_size: int, preparation: Preparation = USUAL) -> Tensor:
    """Bilinear, the shorter side to ``min_size`` unless the longer would exceed ``max_size``."""
    height, width = image.shape[1:]
    factor = min(min_size / min(height, width), max_size / max(height, width))
    scaled_by = (height * factor, width * factor)
    rounded = [max(1, round(side) if preparation.antialias else math.floor(side)) for side in scaled_by]
    size = (min_size, max_size) if preparation.fixed else (rounded[0], rounded[1])
    if size == (height, width):
        return image
    if not preparation.antialias:
        return F.interpolate(image[None].float(), size=size, mode="bilinear", align_corners=False)[0]
    scaled = F.interpolate(image[None].float(), size=size, mode="bilinear", antialias=True, align_corners=False)[0]
    return scaled.round().clamp(0, 255).to(torch.uint8)
