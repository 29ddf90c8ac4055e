"""The generated data: a function of its arguments, valid COCO, all or nothing on disk."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from detectors import shapes
from detectors.errors import InputError
from detectors.folder import class_names, load_folder
from detectors.shapes import CLASS_NAMES, CLASSES, IMAGE_SIZE, SPLITS, draw_image, write_shapes


@pytest.mark.parametrize("split", SPLITS)
def test_same_arguments_draw_the_same_picture(split: str) -> None:
    pixels, labels, boxes = draw_image(3, split, 5)
    draw_image(0, "train", 0)  # whatever is drawn in between must not matter
    again_pixels, again_labels, again_boxes = draw_image(3, split, 5)
    assert np.array_equal(pixels, again_pixels)
    assert labels == again_labels
    assert np.array_equal(boxes, again_boxes)


@pytest.mark.parametrize("other", [(1, "train", 0), (0, "val", 0), (0, "test", 0), (0, "train", 1)])
def test_every_argument_changes_the_picture(other: tuple[int, str, int]) -> None:
    pixels, _, boxes = draw_image(0, "train", 0)
    other_pixels, _, other_boxes = draw_image(*other)
    assert not np.array_equal(pixels, other_pixels)
    assert not np.array_equal(boxes, other_boxes)


def test_boxes_lie_in_the_image_and_keep_their_class_size() -> None:
    seen = set()
    for index in range(60):
        pixels, labels, boxes = draw_image(0, "train", index)
        assert pixels.shape == (IMAGE_SIZE, IMAGE_SIZE, 3) and pixels.dtype == np.uint8
        assert len(labels) == len(boxes) > 0
        assert (boxes[:, :2] >= 0).all() and (boxes[:, 2:] <= IMAGE_SIZE).all()
        sides = boxes[:, 2:] - boxes[:, :2]
        least = np.array([CLASSES[label].min_size for label in labels]) * np.exp(-0.15)
        assert (sides >= least[:, None]).all()
        seen.update(labels)
    assert seen == set(range(len(CLASSES)))


def test_an_object_changes_pixels_only_around_its_box() -> None:
    box = np.array([40.0, 30.0, 90.0, 80.0])
    for shape in CLASSES:
        before = np.full((2 * IMAGE_SIZE, 2 * IMAGE_SIZE, 3), 128, dtype=np.float32)
        after = before.copy()
        shapes._draw_object(after, shape, box, np.random.default_rng(0))
        rows, columns = np.nonzero((before != after).any(axis=2))
        margin = 8 if shape.texture == "dots" else 1  # dots are centred on the outline
        for axis, low, high in ((columns, 40, 90), (rows, 30, 80)):
            assert abs(axis.min() - 2 * low) <= margin and abs(axis.max() - 2 * high) <= margin


def test_written_folder_loads_back(shapes_folder: Path) -> None:
    assert class_names(shapes_folder) == list(CLASS_NAMES)
    splits = load_folder(shapes_folder, CLASS_NAMES, IMAGE_SIZE, IMAGE_SIZE)
    for role, name, count in (("train", "train", 8), ("search", "val", 4), ("test", "test", 4)):
        split = splits[role]
        assert split.image_ids == list(range(1, count + 1))
        for index in range(count):
            pixels, labels, boxes = draw_image(0, name, index)
            x0, y0, x1, y1 = torch.from_numpy(boxes.round(2)).T
            corner, extent = torch.stack([x0, y0], dim=1), torch.stack([x1 - x0, y1 - y0], dim=1)
            sides = torch.from_numpy(extent.numpy().round(2))  # files hold two decimals
            target = split.target(index + 1)
            assert torch.equal(target["boxes"], torch.cat([corner.float(), corner.float() + sides.float()], dim=1))
            assert target["labels"].tolist() == labels
            assert torch.equal(split.pixels(index + 1), torch.from_numpy(pixels).permute(2, 0, 1))


def test_more_images_begin_with_the_same_images(shapes_folder: Path, tmp_path: Path) -> None:
    fewer = write_shapes(tmp_path / "fewer", {"train": 3, "val": 1, "test": 1})
    few, many = load_folder(fewer)["train"], load_folder(shapes_folder)["train"].first(3)
    assert few.truth.dataset == many.truth.dataset
    for path in sorted((fewer / "train").iterdir()):
        assert path.read_bytes() == (shapes_folder / "train" / path.name).read_bytes()


def test_existing_folder_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    out = tmp_path / "data"
    out.mkdir()
    (out / "mine.txt").write_text("keep")
    with pytest.raises(InputError, match=rf"{out} exists already: .*--out"):
        write_shapes(out, {"train": 1, "val": 1, "test": 1})
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    assert (out / "mine.txt").read_text() == "keep"


@pytest.mark.parametrize("given", [{"seed": -1}, {"images": {"train": 0}}, {"images": {"val": -3}}])
def test_numbers_that_do_not_go(tmp_path: Path, given: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"is -?\d: give \d or more"):
        write_shapes(tmp_path / "data", **given)
    assert not list(tmp_path.iterdir())


def test_failure_half_way_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_split = shapes._write_split

    def full_disk(folder: Path, split: str, *args: Any) -> None:
        if split == "val":
            raise OSError(28, "No space left on device")
        write_split(folder, split, *args)

    monkeypatch.setattr(shapes, "_write_split", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_shapes(tmp_path / "data", {"train": 1, "val": 1, "test": 1})
    assert list(tmp_path.iterdir()) == []
