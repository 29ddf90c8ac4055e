"""A split of COCO's: its images and boxes, and what was detected in COCO's words."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from PIL import Image
from pycocotools.coco import COCO
from torch import Tensor

from detectors.batches import USUAL, Batch, Preparation, layout_of, make_batch, resize
from detectors.errors import InputError
from detectors.metric import quiet_coco

MOST_KEPT = 4 << 30  # bytes of decoded images of a split


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
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            raise InputError(f"The image {path} cannot be read ({error}): replace it or remove its entry.") from error
        original = torch.from_numpy(array.copy()).permute(2, 0, 1)
        resized = resize(original, self.min_size, self.max_size, self.preparation)
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
