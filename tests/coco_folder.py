"""A small COCO-layout folder to read, to spoil and to be refused."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

Data = dict[str, Any]

WIDTH, HEIGHT = 48, 32  # pixels of every image written here
CATEGORIES = [{"id": 5, "name": "cell"}, {"id": 90, "name": "plate"}]
SPLITS = ("train2017", "val2017", "test2017")


def some_annotations(images: int, first_id: int = 1) -> Data:
    """``images`` images with one box each, of alternating categories."""
    ids = range(first_id, first_id + images)
    return {
        "images": [{"id": i, "file_name": f"{i}.png", "width": WIDTH, "height": HEIGHT} for i in ids],
        "annotations": [
            {"id": 100 + i, "image_id": i, "category_id": (5, 90)[i % 2], "bbox": [4.0, 2.0, 8.0 + i % 10, 6.0]}
            for i in ids
        ],
        "categories": copy.deepcopy(CATEGORIES),
    }


def write_split(folder: Path, split: str, data: Data) -> Path:
    """Write one split, with random images for all entries; returns the annotation file."""
    (folder / split).mkdir(parents=True, exist_ok=True)
    (folder / "annotations").mkdir(exist_ok=True)
    for image in data["images"]:
        pixels = np.random.default_rng(image["id"]).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / split / image["file_name"])
    path = folder / "annotations" / f"instances_{split}.json"
    path.write_text(json.dumps(data))
    return path


def write_folder(folder: Path) -> Path:
    """A sound folder with three splits."""
    for i, split in enumerate(SPLITS):
        write_split(folder, split, some_annotations(3, first_id=10 * i + 1))
    return folder


def spoil(folder: Path, change: Callable[[Data], object]) -> Path:
    """Change the training annotations after their images were written."""
    path = folder / "annotations" / "instances_train2017.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    return path
