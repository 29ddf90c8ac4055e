"""The generated ``shapes`` data: twelve classes of drawn objects, written to disk in COCO layout.

Four classes are discs that differ only in fine texture, five are plain figures that differ only in outline, and three
are outlines made of a few distant dots, which can be told apart only by looking at all of them together. Objects span a
tenth of the image to nearly all of it, on cluttered backgrounds, some at low contrast, some partly hidden.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from detectors.checks import check_counts
from detectors.errors import InputError
from detectors.progress import each

SHAPES_VERSION = 1  # raised whenever the same seed would draw another picture
IMAGE_SIZE = 128  # pixels, both sides
SUPERSAMPLING = 2  # figures are drawn this much larger and averaged down
SPLITS = ("train", "val", "test")  # "val" is the search split
DEFAULT_IMAGES = {"train": 1024, "val": 128, "test": 400}

Array = NDArray[Any]
Points = list[tuple[float, float]]


@dataclass(frozen=True)
class ShapeClass:
    """How one class of objects is drawn: an outline, filled with a texture or marked by dots."""

    name: str
    outline: str
    texture: str  # a key of TEXTURES, or "dots" for an outline made of dots
    min_size: float = 13.0  # pixels; a tenth of the image


CLASSES = (
    ShapeClass("disc_horizontal", "disc", "horizontal"),
    ShapeClass("disc_vertical", "disc", "vertical"),
    ShapeClass("disc_diagonal", "disc", "diagonal"),
    ShapeClass("disc_checker", "disc", "checker"),
    ShapeClass("triangle", "triangle", "plain"),
    ShapeClass("square", "square", "plain"),
    ShapeClass("hexagon", "hexagon", "plain"),
    ShapeClass("star", "star", "plain"),
    ShapeClass("cross", "cross", "plain"),
    ShapeClass("dotted_circle", "disc", "dots", min_size=36.0),
    ShapeClass("dotted_square", "square", "dots", min_size=36.0),
    ShapeClass("dotted_triangle", "triangle", "dots", min_size=36.0),
)
CLASS_NAMES = tuple(shape.name for shape in CLASSES)


def _regular_polygon(corners: int, inner: float = 1.0) -> Points:
    """A polygon on the unit circle; ``inner`` < 1 pulls every second of ``corners`` points in."""
    angles = 2 * np.pi * np.arange(corners) / corners - np.pi / 2
    radii = np.where(np.arange(corners) % 2, inner, 1.0)
    return [(float(r * np.cos(a)), float(r * np.sin(a))) for r, a in zip(radii, angles, strict=True)]


OUTLINES: dict[str, Points] = {
    "disc": _regular_polygon(48),
    "triangle": _regular_polygon(3),
    "square": [(-0.72, -0.72), (0.72, -0.72), (0.72, 0.72), (-0.72, 0.72)],
    "hexagon": _regular_polygon(6),
    "star": _regular_polygon(10, inner=0.45),
    "cross": [
        *[(-0.3, -0.9), (0.3, -0.9), (0.3, -0.3), (0.9, -0.3), (0.9, 0.3), (0.3, 0.3)],
        *[(0.3, 0.9), (-0.3, 0.9), (-0.3, 0.3), (-0.9, 0.3), (-0.9, -0.3), (-0.3, -0.3)],
    ],
}

TEXTURES: dict[str, Callable[[Array, Array], Array]] = {
    "plain": lambda x, y: np.ones_like(x),
    "horizontal": lambda x, y: np.sign(np.sin(y)),
    "vertical": lambda x, y: np.sign(np.sin(x)),
    "diagonal": lambda x, y: np.sign(np.sin((x + y) / np.sqrt(2))),
    "checker": lambda x, y: np.sign(np.sin(x) * np.sin(y)),
}


def _placed_outline(shape: ShapeClass, box: Array, rng: np.random.Generator) -> Points:
    """The outline, turned by at most 15 degrees and stretched to fill ``box`` (x0, y0, x1, y1) exactly."""
    points = np.array(OUTLINES[shape.outline])
    angle = rng.uniform(-np.pi / 12, np.pi / 12)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    points = points @ turn.T
    low, high = points.min(axis=0), points.max(axis=0)
    points = (points - low) / (high - low) * (box[2:] - box[:2]) + box[:2]
    return [(float(x), float(y)) for x, y in points]


def _dots_along(points: Points, count: int) -> Points:
    """``count`` points spread evenly along the closed outline."""
    corners = np.array([*points, points[0]])
    lengths = np.r_[0.0, np.cumsum(np.linalg.norm(np.diff(corners, axis=0), axis=1))]
    at = np.linspace(0, lengths[-1], count, endpoint=False)
    return [(float(np.interp(a, lengths, corners[:, 0])), float(np.interp(a, lengths, corners[:, 1]))) for a in at]


def _background(rng: np.random.Generator) -> Array:
    """A coloured gradient with soft blotches on the supersampled canvas, float32 in [0, 255]."""
    ramp = np.linspace(-1, 1, IMAGE_SIZE, dtype=np.float32)
    base, slope = rng.uniform(60, 195, 3), rng.uniform(-30, 30, (2, 3)).astype(np.float32)
    size = (IMAGE_SIZE, IMAGE_SIZE)
    blotches = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    soft = (np.asarray(blotches, dtype=np.float32) - 128) * np.float32(rng.uniform(0.05, 0.25))
    small = base.astype(np.float32) + ramp[None, :, None] * slope[0] + ramp[:, None, None] * slope[1] + soft
    return small.clip(0, 255).repeat(SUPERSAMPLING, axis=0).repeat(SUPERSAMPLING, axis=1)


def _draw_clutter(canvas: Array, rng: np.random.Generator, count: int, lines_only: bool = False) -> Array:
    """Lines, dots and scraps that belong to no class; a later call with ``lines_only`` hides parts of objects."""
    size = canvas.shape[0]
    image = Image.fromarray(canvas.astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(count):
        color = tuple(int(c) for c in rng.integers(20, 236, 3))
        x, y = rng.uniform(0, size, 2)
        kind = 0 if lines_only else rng.integers(0, 3)
        if kind == 0:
            reach = rng.uniform(-0.35, 0.35, 2) * size
            width = int(rng.integers(2, 9 if lines_only else 5))
            draw.line((x, y, x + reach[0], y + reach[1]), fill=color, width=width)
        elif kind == 1:
            radius = rng.uniform(1.5, 5)
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=color)
        else:
            draw.polygon([(x + a, y + b) for a, b in rng.uniform(-9, 9, (3, 2))], fill=color)
    return np.array(image, dtype=np.float32)


def _object_mask(shape: ShapeClass, box: Array, extent: tuple[int, int], rng: np.random.Generator) -> Array:
    """Which pixels of a patch (height, width) the object covers; ``box`` is relative to the patch."""
    points = _placed_outline(shape, box, rng)
    mask = Image.new("L", (extent[1], extent[0]))
    draw = ImageDraw.Draw(mask)
    if shape.texture == "dots":
        radius = max(1.6 * SUPERSAMPLING, float(box[2] - box[0]) / 26)
        for x, y in _dots_along(points, count=int(rng.integers(12, 16))):
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=1)
    else:
        draw.polygon(points, fill=1)
    return np.asarray(mask).astype(bool)


def _fill_colors(around: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """Two colours (3,) that differ from the mean colour ``around``, sometimes only a little."""
    direction = rng.choice([-1.0, 1.0], 3) if rng.random() < 0.5 else np.full(3, rng.choice([-1.0, 1.0]))
    contrast = np.exp(rng.uniform(np.log(22), np.log(100))) * direction * rng.uniform(0.6, 1.0, 3)
    color = np.where((around + contrast > 250) | (around + contrast < 5), around - contrast, around + contrast)
    return color, around + (around - color) * rng.uniform(0.2, 0.8)


def _draw_object(canvas: Array, shape: ShapeClass, box: Array, rng: np.random.Generator) -> None:
    """Draw one object onto the supersampled ``canvas`` in place; ``box`` is in image pixels."""
    margin = 8  # room for the dots, whose centres lie on the outline
    large = box * SUPERSAMPLING
    x0, y0 = np.maximum(large[:2] - margin, 0).astype(int)
    x1, y1 = np.minimum(large[2:] + margin, canvas.shape[0]).astype(int)
    patch = canvas[y0:y1, x0:x1]
    mask = _object_mask(shape, large - np.array([x0, y0, x0, y0]), patch.shape[:2], rng)
    step = 2 * np.pi / (rng.uniform(3.2, 5.0) * SUPERSAMPLING)  # stripes are as fine on large objects as on small ones
    across, down = (np.arange(length) * step + rng.uniform(0, 6.28) for length in (x1 - x0, y1 - y0))
    x, y = np.meshgrid(across, down)
    pattern = TEXTURES.get(shape.texture, TEXTURES["plain"])(x, y)[..., None]
    color, other = _fill_colors(patch[mask].mean(axis=0), rng)
    fill = np.where(pattern > 0, color, other).clip(0, 255)
    patch[mask] = fill[mask]


def _overlap(a: Array, b: Array) -> float:
    """Intersection over the area of the smaller box."""
    inter = np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None).prod()
    return float(inter / min((a[2:] - a[:2]).prod(), (b[2:] - b[:2]).prod()))


def _place_objects(rng: np.random.Generator) -> list[tuple[int, Array]]:
    """Class indices with boxes (x0, y0, x1, y1) in pixels, large ones first, hidden by at most a third."""
    placed: list[tuple[int, Array]] = []
    for _ in range(int(rng.integers(2, 7))):
        label = int(rng.integers(0, len(CLASSES)))
        largest = 0.95 * IMAGE_SIZE
        side = float(np.exp(rng.uniform(np.log(CLASSES[label].min_size), np.log(largest))))
        extent = np.minimum(side * np.exp(rng.uniform(-0.15, 0.15, 2)), largest)
        corner = rng.uniform(1, IMAGE_SIZE - 1 - extent)
        box = np.r_[corner, corner + extent]
        hollow_ok = 0.34
        if all(_overlap(box, other) < hollow_ok for _, other in placed):
            placed.append((label, box))
    return sorted(placed, key=lambda item: -float((item[1][2:] - item[1][:2]).prod()))


def draw_image(seed: int, split: str, index: int) -> tuple[Array, list[int], Array]:
    """Draw picture ``index`` of a split; it depends on nothing but the three arguments.

    :return: the image (128, 128, 3) uint8, class indices from 0, boxes (K, 4) as (x0, y0, x1, y1) in pixels
    """
    rng = np.random.default_rng([SHAPES_VERSION, seed, SPLITS.index(split), index])
    canvas = _background(rng)
    canvas = _draw_clutter(canvas, rng, int(rng.integers(4, 16)))
    objects = _place_objects(rng)
    for label, box in objects:
        _draw_object(canvas, CLASSES[label], box, rng)
    canvas = _draw_clutter(canvas, rng, int(rng.integers(0, 4)), lines_only=True)
    s = SUPERSAMPLING
    image = canvas.reshape(IMAGE_SIZE, s, IMAGE_SIZE, s, 3).mean(axis=(1, 3))
    image = image + rng.normal(0, rng.uniform(2, 9), image.shape)
    boxes = np.array([box for _, box in objects]).reshape(-1, 4)
    return np.clip(image, 0, 255).round().astype(np.uint8), [label for label, _ in objects], boxes


def _write_split(folder: Path, split: str, count: int, seed: int) -> None:
    (folder / split).mkdir(parents=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in each(range(count), f"drawing {split} image"):
        pixels, labels, boxes = draw_image(seed, split, index)
        name = f"{index:06d}.png"
        Image.fromarray(pixels).save(folder / split / name, compress_level=1)
        images.append({"id": index + 1, "file_name": name, "width": IMAGE_SIZE, "height": IMAGE_SIZE})
        for label, (x0, y0, x1, y1) in zip(labels, boxes.round(2).tolist(), strict=True):
            width, height = round(x1 - x0, 2), round(y1 - y0, 2)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": index + 1,
                    "category_id": label + 1,
                    "bbox": [x0, y0, width, height],
                    "area": round(width * height, 2),
                    "iscrowd": 0,
                }
            )
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(CLASS_NAMES)]
    data = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations").mkdir(exist_ok=True)
    (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(data))


def write_shapes(out: str | Path, images: dict[str, int] | None = None, seed: int = 0) -> Path:
    """Write the ``shapes`` data as a COCO-layout folder.

    :param out: the folder to make; it must not exist yet
    :param images: number of images per split, ``DEFAULT_IMAGES`` where not given
    :param seed: of all pictures; more images with the same seed begin with the same images
    :return: ``out``
    :raises InputError: if ``out`` exists
    """
    out = Path(out)
    if out.exists():
        raise InputError(f"The folder {out} exists already: remove it or give another with --out.")
    check_counts(seed, **(images or {}))
    out.parent.mkdir(parents=True, exist_ok=True)
    beside = out.with_name(f".{out.name}.partial-{np.random.default_rng().integers(1 << 32):08x}")
    try:
        for split, count in {**DEFAULT_IMAGES, **(images or {})}.items():
            _write_split(beside, split, count, seed)
        if not out.exists():  # another process may have written the same data meanwhile
            beside.rename(out)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return out
