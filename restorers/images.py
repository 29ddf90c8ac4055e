"""Photographs from folders or from scikit-image, checked at the door and split by image."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from detectors.errors import InputError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
PHOTOS = "photos"  # the name of the embedded data
# scikit-image's photographs that come with its wheel; a search or a test image is never trained on
EMBEDDED = {
    "train": ("astronaut.png", "rocket.jpg", "motorcycle_left.png", "retina.jpg", "brick.png", "grass.png",
              "gravel.png", "coins.png", "moon.png"),
    "search": ("coffee.png",),
    "test": ("chelsea.png", "camera.png"),
}  # fmt: skip
EMBEDDED_COLOUR = ("astronaut.png", "rocket.jpg", "motorcycle_left.png", "retina.jpg", "coffee.png", "chelsea.png")
SEARCH_SHARE = 0.1  # of the training images, where a folder has no split for searches
MODES = {1: "L", 3: "RGB"}


@dataclass(frozen=True)
class Photos:
    """Images of one split, 8 bits per channel.

    :param names: for messages
    :param pixels: each (H, W) or (H, W, 3)
    """

    names: tuple[str, ...]
    pixels: tuple[NDArray[np.uint8], ...]

    def __len__(self) -> int:
        return len(self.names)

    def first(self, count: int | None) -> "Photos":
        """The first images; all for None."""
        return Photos(self.names[:count], self.pixels[:count])


def read_image(path: Path, channels: int) -> NDArray[np.uint8]:
    """An image file in grey or colour.

    Colour becomes grey by ITU-R 601, as Pillow does it; palettes are looked up; 16-bit grey loses its lower 8 bits.

    :param channels: 1 or 3
    :return: (H, W) or (H, W, 3)
    :raises InputError: if it cannot be read, has an alpha channel with transparent places, or is grey where colour is
        needed
    """
    try:
        with Image.open(path) as image:
            image.load()
            return _converted(image, path, channels)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{path} cannot be read as an image ({error}): remove it or save it again.") from error


def _converted(image: Image.Image, path: Path, channels: int) -> NDArray[np.uint8]:
    if image.mode == "P":
        image = image.convert("RGBA" if "transparency" in image.info else "RGB")
    if image.mode in ("RGBA", "LA", "PA"):
        if image.getchannel("A").getextrema() != (255, 255):
            raise InputError(f"{path} has transparent places: flatten it onto a background first.")
        image = image.convert("RGB" if image.mode == "RGBA" else "L")
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise InputError(f"{path} has values outside 16 bits: save it with 8 or 16 bits per channel.")
        if image.mode == "I" and values.max() < 256:  # as 16 bits it would be black
            raise InputError(f"{path} has 32 bits per pixel and none above 255: save it with 8 bits per channel.")
        image = Image.fromarray((values >> 8).astype(np.uint8))
    if image.mode == "F":
        raise InputError(f"{path} has floating-point values: save it with 8 or 16 bits per channel.")
    if channels == 3 and image.mode in ("L", "1"):
        raise InputError(f"{path} is grey, but the network restores colour: give colour images or a grey teacher.")
    return np.array(image.convert(MODES[channels]), dtype=np.uint8)


def load_photos(
    folder: str | Path, channels: int, smallest_side: int, splits: Sequence[str] | None = None
) -> dict[str, Photos]:
    """The images of a folder as "train", "search" and "test".

    Subfolders ``train``, ``search`` and ``test`` are used where they exist; ``val`` stands in for ``test``, or beside
    ``test`` for ``search``. Without either the last tenth of the training images by name serves searches. A folder
    without subfolders is divided by name: eight tenths, one tenth, one tenth.

    :param folder: or ``"photos"``, scikit-image's
    :param channels: 1 for grey, 3 for colour
    :param smallest_side: pixels that every image must have
    :param splits: names of the subfolders for training, search and test, in place of the usual ones
    :raises InputError: for a missing or empty folder, or an image that cannot be used
    """
    if str(folder) == PHOTOS:
        return _embedded(channels)
    root = Path(folder)
    if not root.is_dir():
        raise InputError(f"There is no folder {root}: give one with images, or '{PHOTOS}' for the embedded ones.")
    paths = _named_splits(root, splits) if splits else _found_splits(root)
    return {role: _read(some, root, role, channels, smallest_side) for role, some in paths.items()}


def _images_in(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))


def _named_splits(root: Path, names: Sequence[str]) -> dict[str, list[Path]]:
    if len(names) != 3:
        raise InputError(f"{len(names)} names of splits were given: give three folders, for training, search and test.")
    for name in names:
        if not (root / name).is_dir():
            raise InputError(f"There is no folder {root / name}: check the names of the splits.")
    return {role: _images_in(root / name) for role, name in zip(("train", "search", "test"), names, strict=True)}


def _found_splits(root: Path) -> dict[str, list[Path]]:
    folders = {name: _images_in(root / name) for name in ("train", "search", "val", "test") if (root / name).is_dir()}
    if "train" not in folders:
        return _divided(_images_in(root), root)
    test = folders.get("test", folders.get("val"))
    if test is None:
        raise InputError(f"{root} has a folder 'train' but neither 'test' nor 'val': add one with other images.")
    train, search = folders["train"], folders.get("search")
    if search is None and "test" in folders and "val" in folders:
        search = folders["val"]
    if search is None:
        count = max(1, round(SEARCH_SHARE * len(train)))
        train, search = train[:-count], train[-count:]
    return {"train": train, "search": search, "test": test}


def _divided(paths: list[Path], root: Path) -> dict[str, list[Path]]:
    if len(paths) < 3:
        raise InputError(f"{root} has {len(paths)} images ({', '.join(SUFFIXES)}): three are needed at least.")
    tenth = max(1, round(SEARCH_SHARE * len(paths)))
    return {"train": paths[: -2 * tenth], "search": paths[-2 * tenth : -tenth], "test": paths[-tenth:]}


def _read(paths: list[Path], root: Path, role: str, channels: int, smallest_side: int) -> Photos:
    if not paths:
        raise InputError(f"The {role} split of {root} has no images ({', '.join(SUFFIXES)}): add some.")
    pixels = [read_image(path, channels) for path in paths]
    for path, image in zip(paths, pixels, strict=True):
        if min(image.shape[:2]) < smallest_side:
            raise InputError(
                f"{path} is {image.shape[1]}x{image.shape[0]}, but sides of {smallest_side} pixels are needed: "
                "remove it or choose a smaller patch."
            )
    return Photos(tuple(path.name for path in paths), tuple(pixels))


def _embedded(channels: int) -> dict[str, Photos]:
    import skimage

    root = Path(skimage.__file__).parent / "data"
    usable = {role: [n for n in names if channels == 1 or n in EMBEDDED_COLOUR] for role, names in EMBEDDED.items()}
    return {
        role: Photos(tuple(names), tuple(read_image(root / name, channels) for name in names))
        for role, names in usable.items()
    }
