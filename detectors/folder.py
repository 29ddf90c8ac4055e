"""COCO-layout folders: their splits are found, and their annotations checked at the door."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from detectors.batches import USUAL, Preparation
from detectors.coco import CocoSplit
from detectors.errors import InputError
from detectors.metric import quiet_coco

SPLIT_NAMES = {
    "train": ("train2017", "train"),
    "search": ("val2017", "val", "valid", "validation"),
    "test": ("test2017", "test"),
}
HOLD_OUT = 10  # every tenth training image serves as search split where only train and val exist


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
            _check_image(image)
        if not all(isinstance(name, str) for name in known.values()):
            raise TypeError("a category whose name is no text")
        for a in annotations:
            _ = a["id"], a["image_id"], a["category_id"], [v + 0 for v in a["bbox"]]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} is not in COCO's format ({type(error).__name__}: {error}): export it again."
        ) from error
    if not (folder / name).is_dir():
        raise InputError(
            f"{path} has no image folder {folder / name}: put the images there, or name other splits with --splits."
        )
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
        area = a.get("area")
        if isinstance(area, bool) or not isinstance(area, int | float) or not math.isfinite(area):
            a["area"] = a["bbox"][2] * a["bbox"][3]
    return {"images": images, "annotations": annotations, "categories": categories}


def _check_image(image: dict[str, Any]) -> None:
    """:raises TypeError: for a file name that is no text, or sides that are no lengths"""
    if not isinstance(image["file_name"], str):
        raise TypeError(f"image {image['id']} has the file name {image['file_name']}")
    for side in (image["width"], image["height"]):
        if not 0 < side + 0 < math.inf:  # adding refuses strings
            raise TypeError(f"image {image['id']} has {image['width']}x{image['height']} pixels")


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
