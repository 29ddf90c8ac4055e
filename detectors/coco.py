"""Images and boxes from a COCO-layout folder, checked at the door."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from PIL import Image
from pycocotools.coco import COCO
from torch import Tensor
from torch.nn import functional as F

from detectors.errors import InputError
from detectors.metric import quiet_coco

IMAGE_MEAN = (0.485, 0.456, 0.406)  # of ImageNet, as torchvision's detectors expect
IMAGE_STD = (0.229, 0.224, 0.225)
SIZE_DIVISOR = 32  # batches are padded to multiples of the deepest backbone stride
SPLIT_NAMES = {
    "train": ("train2017", "train"),
    "search": ("val2017", "val", "valid", "validation"),
    "test": ("test2017", "test"),
}
MOST_KEPT = 4 << 30  # bytes of decoded images of a split
HOLD_OUT = 10  # every tenth training image serves as search split where only train and val exist


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


class CocoSplit:
    """One split of a folder: annotations in memory, images decoded and resized when first asked for.

    Images are kept until they take ``MOST_KEPT`` bytes; those that come later are decoded whenever they are asked for.

    :param folder: where the images lie
    :param truth: the annotations of exactly the images that count
    :param labels: label of each category id
    :param min_size: pixels of the shorter side after resizing
    :param max_size: pixels of the longer side at most
    :param preparation: what else is done to images
    """

    def __init__(
        self,
        folder: Path,
        truth: COCO,
        labels: dict[int, int],
        min_size: int,
        max_size: int,
        preparation: Preparation = USUAL,
    ) -> None:
        self.folder, self.truth, self.labels = folder, truth, labels
        self.min_size, self.max_size, self.preparation = min_size, max_size, preparation
        self.image_ids: list[int] = sorted(truth.imgs)
        self.category_of_label = {label: category for category, label in labels.items()}
        self._pixels: dict[int, Tensor] = {}
        self._kept = 0  # bytes of them
        self._sides: dict[int, tuple[int, int]] = {}  # height and width of all that were ever looked at

    def __len__(self) -> int:
        return len(self.image_ids)

    def first(self, count: int) -> "CocoSplit":
        """The first ``count`` images by id as a split of their own."""
        return self.only(self.image_ids[:count])

    def only(self, image_ids: Sequence[int]) -> "CocoSplit":
        """The given images as a split of their own."""
        wanted = set(image_ids)
        data = self.truth.dataset
        kept = {
            "images": [image for image in data["images"] if image["id"] in wanted],
            "annotations": [a for a in data["annotations"] if a["image_id"] in wanted],
            "categories": data["categories"],
        }
        return CocoSplit(self.folder, quiet_coco(kept), self.labels, self.min_size, self.max_size, self.preparation)

    def pixels(self, image_id: int) -> Tensor:
        """The resized image, (3, H, W), from 0 to 255: uint8, or float32 where torchvision's resizing made it."""
        if image_id in self._pixels:
            return self._pixels[image_id]
        path = self.folder / self.truth.imgs[image_id]["file_name"]
        try:
            with Image.open(path) as image:
                array = np.asarray(image.convert("RGB"))
        except (OSError, ValueError) as error:
            raise InputError(f"The image {path} cannot be read ({error}): replace it or remove its entry.") from error
        original = torch.from_numpy(array.copy()).permute(2, 0, 1)
        resized = _resized(original, self.min_size, self.max_size, self.preparation)
        self._sides[image_id] = resized.shape[1], resized.shape[2]
        if self._kept + resized.nbytes <= MOST_KEPT:
            self._pixels[image_id] = resized
            self._kept += resized.nbytes
        return resized

    def scale(self, image_id: int) -> tuple[float, float]:
        """Resized over original (width, height)."""
        info = self.truth.imgs[image_id]
        height, width = self._sides[image_id] if image_id in self._sides else self.pixels(image_id).shape[1:]
        return width / info["width"], height / info["height"]

    def target(self, image_id: int) -> dict[str, Tensor]:
        """Ground truth of one image without crowd regions, in resized pixels."""
        annotations = [a for a in self.truth.imgToAnns[image_id] if not a.get("iscrowd", 0)]
        boxes = torch.tensor([a["bbox"] for a in annotations], dtype=torch.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        width, height = self.scale(image_id)
        labels = torch.tensor([self.labels[a["category_id"]] for a in annotations], dtype=torch.int64)
        return {"boxes": boxes * torch.tensor([width, height, width, height]), "labels": labels}

    def batch(self, image_ids: Sequence[int]) -> Batch:
        """Normalize, pad and stack the given images."""
        pixels = [self.pixels(i) for i in image_ids]
        return make_batch(pixels, [self.target(i) for i in image_ids], image_ids, self.preparation)

    def chunks(self, batch_size: int) -> list[list[int]]:
        """All image ids in order, in lists as long as a batch."""
        return [self.image_ids[i : i + batch_size] for i in range(0, len(self), batch_size)]

    def batches(self, batch_size: int) -> list[Batch]:
        """The whole split in order of image id."""
        return [self.batch(ids) for ids in self.chunks(batch_size)]

    def to_coco(self, image_id: int, detection: dict[str, Tensor]) -> list[dict[str, Any]]:
        """torchvision's detections of one image, in resized pixels, as COCO results in original pixels."""
        width, height = self.scale(image_id)
        boxes = detection["boxes"].detach().double().cpu() / torch.tensor([width, height, width, height]).double()
        boxes[:, 2:] -= boxes[:, :2]
        rows = zip(boxes.tolist(), detection["scores"].tolist(), detection["labels"].tolist(), strict=True)
        return [
            {"image_id": image_id, "category_id": self.category_of_label[label], "bbox": box, "score": score}
            for box, score, label in rows
            if label in self.category_of_label
        ]


def layout_of(device: torch.device) -> torch.memory_format:
    """Of images and weights in a device's memory.

    Nothing keeps it as an attribute: pickles say it by a name that other processes may lack.
    """
    return torch.channels_last if device.type == "cuda" else torch.contiguous_format


class LazyBatches(Sequence[Batch]):
    """A split's batches, made whenever they are asked for: for splits that memory does not hold.

    :param device: where they are put
    """

    def __init__(self, split: CocoSplit, batch_size: int, device: torch.device) -> None:
        self._split, self._chunks, self._device = split, split.chunks(batch_size), device

    def __len__(self) -> int:
        return len(self._chunks)

    @overload
    def __getitem__(self, index: int) -> Batch: ...

    @overload
    def __getitem__(self, index: slice) -> list[Batch]: ...

    def __getitem__(self, index: int | slice) -> Batch | list[Batch]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self._split.batch(self._chunks[index]).to(self._device, layout_of(self._device))


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


def _resized(image: Tensor, min_size: int, max_size: int, preparation: Preparation = USUAL) -> Tensor:
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


def load_folder(
    folder: str | Path,
    classes: Sequence[str] | None = None,
    min_size: int = 800,
    max_size: int = 1333,
    split_names: Sequence[str] | None = None,
    preparation: Preparation = USUAL,
) -> dict[str, CocoSplit]:
    """Read a COCO-layout folder: ``annotations/instances_<split>.json`` beside ``<split>/`` with the images.

    Splits are found by COCO's or the plain names. Without a test split, the validation images become the test split
    and every tenth training image becomes the search split, which then is not trained on.

    :param folder: the data
    :param classes: class names by label; the categories of the annotations, in order of id, when None
    :param min_size: pixels of the shorter side after resizing
    :param max_size: pixels of the longer side at most
    :param split_names: of the training, the search and, if there is one, the test split; found when None
    :param preparation: what else is done to images
    :return: ``CocoSplit`` by "train", "search", "test"
    :raises InputError: for anything missing or malformed, naming the file and the entry
    """
    folder = Path(folder)
    check_folder(folder)
    wanted = SPLIT_NAMES if split_names is None else _given_splits(folder, split_names)
    found = {role: _find_split(folder, names) for role, names in wanted.items()}
    if found["train"] is None or found["search"] is None:
        missing = [
            f"{what}: instances_{SPLIT_NAMES[role][1]}.json or instances_{SPLIT_NAMES[role][0]}.json"
            for role, what in (("train", "training"), ("search", "validation"))
            if found[role] is None
        ]
        raise InputError(
            f"{folder / 'annotations'} has no annotations for {', nor for '.join(missing)}: add the file, or name your "
            "splits with --splits."
        )
    splits = {}
    for role, name in found.items():
        if name is not None:
            data = _checked_annotations(folder, name)
            labels = _labels(data["categories"], classes, folder / "annotations" / f"instances_{name}.json")
            splits[role] = CocoSplit(folder / name, quiet_coco(data), labels, min_size, max_size, preparation)
    if "test" not in splits:
        train = splits["train"]
        held = set(train.image_ids[::HOLD_OUT])
        search, kept = train.only(sorted(held)), train.only([i for i in train.image_ids if i not in held])
        if not search.truth.anns or not kept.truth.anns:
            raise InputError(
                f"{folder} has too few annotated training images to hold some back: add images or a test split."
            )
        splits = {"test": splits["search"], "search": search, "train": kept}
    return splits


def check_folder(folder: Path) -> None:
    """Refuse a data folder that does not exist.

    :raises InputError: if so
    """
    if not folder.is_dir():
        raise InputError(f"There is no data folder {folder}: give the folder that holds 'annotations/' and the images.")


def _given_splits(folder: Path, names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Names by role, each checked to have annotations."""
    if not 2 <= len(names) <= 3:
        raise InputError(f"{len(names)} split names were given: give those of the training, search and test split.")
    for name in names:
        if _find_split(folder, [name]) is None:
            raise InputError(f"There is no {folder / 'annotations'}/instances_{name}.json: check the split's name.")
    return dict(zip(SPLIT_NAMES, [*((name,) for name in names), ()], strict=False))


def class_names(folder: str | Path, split_names: Sequence[str] | None = None) -> list[str]:
    """The category names of a folder's training annotations in order of id.

    :param split_names: see ``load_folder``
    :raises InputError: if there are no training annotations
    """
    folder = Path(folder)
    wanted = SPLIT_NAMES["train"] if split_names is None else split_names[:1]
    found = _find_split(folder, wanted) if folder.is_dir() else None
    if found is None:
        files = " or ".join(f"annotations/instances_{name}.json" for name in wanted)
        raise InputError(f"There is no {files} in {folder}: add it.")
    data = _checked_annotations(folder, found)
    return [c["name"] for c in sorted(data["categories"], key=lambda c: c["id"])]


def _find_split(folder: Path, names: Sequence[str]) -> str | None:
    for name in names:
        if (folder / "annotations" / f"instances_{name}.json").is_file():
            return name
    return None


def _labels(categories: list[dict[str, Any]], classes: Sequence[str] | None, path: Path) -> dict[int, int]:
    names = list(classes) if classes is not None else [c["name"] for c in sorted(categories, key=lambda c: c["id"])]
    unknown = [c["name"] for c in categories if c["name"] not in names]
    if unknown:
        raise InputError(
            f"{path} has categories that the teacher does not know ({', '.join(unknown[:5])}): "
            f"train a teacher on this data with 'hsq teacher', or keep only its classes ({', '.join(names[:8])})."
        )
    return {c["id"]: names.index(c["name"]) for c in categories}


def _checked_annotations(folder: Path, name: str) -> dict[str, Any]:
    """Annotations in COCO's format, or one sentence about the first thing wrong with them."""
    path = folder / "annotations" / f"instances_{name}.json"
    try:
        data = json.loads(path.read_text())
        images, annotations, categories = data["images"], data["annotations"], data["categories"]
        by_id = {image["id"]: image for image in images}
        known = {category["id"]: category["name"] for category in categories}
        for image in images:
            _ = image["file_name"], image["width"] + 0, image["height"] + 0  # adding refuses strings
        for a in annotations:
            _ = a["id"], a["image_id"], a["category_id"], [v + 0 for v in a["bbox"]]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} is not in COCO's format ({type(error).__name__}: {error}): export it again."
        ) from error
    if not (folder / name).is_dir():
        raise InputError(f"{path} has no image folder {folder / name}: put the images there.")
    if not images or not annotations:
        what = "images" if not images else "annotations"
        raise InputError(f"{path} lists no {what}: a split needs both images and boxes.")
    present = {entry.name for entry in (folder / name).iterdir()}
    for image in images:
        if image["file_name"] not in present and not (folder / name / image["file_name"]).is_file():
            raise InputError(
                f"{path} lists {image['file_name']}, which is not in {folder / name}: add it or remove its entry."
            )
    for number, a in enumerate(annotations):
        _check_box(a, by_id, known, path)
        a["id"] = number + 1  # the evaluations take id 0 for "unmatched", and equal ids for one box
        a.setdefault("iscrowd", 0)
        a.setdefault("area", a["bbox"][2] * a["bbox"][3])
    return {"images": images, "annotations": annotations, "categories": categories}


def _check_box(annotation: dict[str, Any], images: dict[int, Any], categories: dict[int, str], path: Path) -> None:
    where = f"{path}: annotation {annotation['id']}"
    if annotation["image_id"] not in images:
        raise InputError(
            f"{where} belongs to image {annotation['image_id']}, which is not listed: remove it or list the image."
        )
    if annotation["category_id"] not in categories:
        raise InputError(f"{where} has the unknown category {annotation['category_id']}: add it to 'categories'.")
    if len(annotation["bbox"]) != 4 or not np.isfinite(annotation["bbox"]).all():
        raise InputError(f"{where} has the box {annotation['bbox']}: a box is four finite numbers x, y, width, height.")
    x, y, width, height = annotation["bbox"]
    if width <= 0 or height <= 0:
        raise InputError(f"{where} has a box of zero area ({width} x {height}): remove it.")
    image = images[annotation["image_id"]]
    slack = 1.0  # pixels; annotation tools round outwards
    if x < -slack or y < -slack or x + width > image["width"] + slack or y + height > image["height"] + slack:
        raise InputError(
            f"{where} has a box outside its image ({image['file_name']}, {image['width']} x {image['height']}): "
            f"clip or remove [{x}, {y}, {width}, {height}]."
        )
