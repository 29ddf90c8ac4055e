"""COCO-layout folders: what is read, and how it is resized."""

from pathlib import Path

import numpy as np
import pytest
import torch
from coco_folder import HEIGHT, SPLITS, WIDTH, some_annotations, spoil, write_folder, write_split
from PIL import Image

from detectors.batches import IMAGE_MEAN, IMAGE_STD, make_batch
from detectors.folder import class_names, load_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "data")


# ---- what is read


@pytest.mark.parametrize("names", [SPLITS, ("train", "val", "test"), ("train", "valid", "test2017")])
def test_splits_are_found_by_both_kinds_of_names(tmp_path: Path, names: tuple[str, ...]) -> None:
    for i, name in enumerate(names):
        write_split(tmp_path, name, some_annotations(2, first_id=10 * i + 1))
    splits = load_folder(tmp_path)
    found = {role: (split.folder, split.image_ids) for role, split in splits.items()}
    assert found == {
        "train": (tmp_path / names[0], [1, 2]),
        "search": (tmp_path / names[1], [11, 12]),
        "test": (tmp_path / names[2], [21, 22]),
    }


def test_without_a_test_split_search_is_held_out_of_train(tmp_path: Path) -> None:
    write_split(tmp_path, "train", some_annotations(25))
    write_split(tmp_path, "val", some_annotations(4, first_id=101))
    splits = load_folder(tmp_path)
    assert splits["test"].image_ids == [101, 102, 103, 104]
    assert splits["search"].image_ids == [1, 11, 21]
    assert sorted(splits["search"].image_ids + splits["train"].image_ids) == list(range(1, 26))
    for role in ("search", "train"):
        annotations = splits[role].truth.dataset["annotations"]
        assert [a["image_id"] for a in annotations] == splits[role].image_ids


def test_category_ids_of_any_numbering(folder: Path) -> None:
    split = load_folder(folder)["train"]
    assert class_names(folder) == ["cell", "plate"]
    assert split.labels == {5: 0, 90: 1}
    assert [split.target(i)["labels"].tolist() for i in split.image_ids] == [[1], [0], [1]]


def test_classes_give_the_labels(folder: Path) -> None:
    split = load_folder(folder, classes=["plate", "other", "cell"])["train"]
    assert split.labels == {5: 2, 90: 0}
    assert split.target(1)["labels"].tolist() == [0]


def test_crowds_are_no_targets_but_stay_in_the_truth(folder: Path) -> None:
    spoil(folder, lambda data: data["annotations"][0].update(iscrowd=1))
    split = load_folder(folder)["train"]
    assert split.target(1)["boxes"].shape == (0, 4) and split.target(1)["labels"].tolist() == []
    assert [a["iscrowd"] for a in split.truth.dataset["annotations"]] == [1, 0, 0]


def test_areas_are_added(folder: Path) -> None:
    assert [a["area"] for a in load_folder(folder)["train"].truth.dataset["annotations"]] == [54.0, 60.0, 66.0]


def test_first_and_only(folder: Path) -> None:
    split = load_folder(folder)["train"]
    assert split.first(2).image_ids == [1, 2]
    assert split.only([3, 1]).image_ids == [1, 3]
    assert [a["id"] for a in split.only([3, 1]).truth.dataset["annotations"]] == [1, 3]
    assert split.image_ids == [1, 2, 3]


# ---- resizing and batches


@pytest.mark.parametrize(
    ("min_size", "max_size", "height", "width"),
    [(32, 100, 32, 48), (16, 100, 16, 24), (64, 100, 64, 96), (64, 72, 48, 72), (20, 100, 20, 30), (11, 100, 11, 16)],
)
def test_shorter_side_becomes_min_size_unless_the_longer_exceeds_max_size(
    folder: Path, min_size: int, max_size: int, height: int, width: int
) -> None:
    split = load_folder(folder, min_size=min_size, max_size=max_size)["train"]
    assert split.pixels(1).shape == (3, height, width)
    assert split.scale(1) == (width / WIDTH, height / HEIGHT)


def test_every_size_is_hit_exactly() -> None:
    from detectors.batches import resize

    for height in range(16, 300):
        assert resize(torch.zeros(3, height, 300, dtype=torch.uint8), 16, 10_000).shape[1] == 16
        assert resize(torch.zeros(3, height, 300, dtype=torch.uint8), 10_000, 31).shape[2] == 31


def test_unscaled_pixels_are_those_of_the_file(folder: Path) -> None:
    split = load_folder(folder, min_size=HEIGHT, max_size=WIDTH)["train"]
    pixels = np.asarray(Image.open(folder / "train2017" / "1.png"))
    assert torch.equal(split.pixels(1), torch.from_numpy(pixels.copy()).permute(2, 0, 1))


def test_grey_and_transparent_images_become_rgb(folder: Path) -> None:
    grey = np.arange(HEIGHT * WIDTH, dtype=np.uint8).reshape(HEIGHT, WIDTH)
    Image.fromarray(grey).save(folder / "train2017" / "1.png")
    Image.fromarray(grey).convert("RGBA").save(folder / "train2017" / "2.png")
    split = load_folder(folder, min_size=HEIGHT, max_size=WIDTH)["train"]
    for image_id in (1, 2):
        assert torch.equal(split.pixels(image_id), torch.from_numpy(grey).expand(3, -1, -1))


@pytest.mark.parametrize("min_size", [16, 32, 64])  # powers of two of the original: no rounding
def test_boxes_survive_the_round_trip_exactly(folder: Path, min_size: int) -> None:
    split = load_folder(folder, min_size=min_size, max_size=1000)["train"]
    for annotation in split.truth.dataset["annotations"]:
        target = split.target(annotation["image_id"])
        x, y, width, height = annotation["bbox"]
        factor = min_size / HEIGHT
        assert target["boxes"].tolist() == [[x * factor, y * factor, (x + width) * factor, (y + height) * factor]]
        detection = {**target, "scores": torch.tensor([0.5])}
        assert split.to_coco(annotation["image_id"], detection) == [
            {key: annotation[key] for key in ("image_id", "category_id", "bbox")} | {"score": 0.5}
        ]


def test_labels_without_a_category_here_are_not_reported(folder: Path) -> None:
    split = load_folder(folder, classes=["other", "cell", "plate"])["train"]
    boxes = torch.tensor([[0.0, 0.0, 8.0, 8.0]] * 3)
    rows = split.to_coco(1, {"boxes": boxes, "scores": torch.ones(3), "labels": torch.tensor([0, 1, 2])})
    assert [row["category_id"] for row in rows] == [5, 90]


def test_batches_are_normalized_and_padded_with_zeros() -> None:
    pixels = [torch.full((3, 20, 40), 255, dtype=torch.uint8), torch.full((3, 33, 10), 51, dtype=torch.uint8)]
    batch = make_batch(pixels, [{}, {}], [7, 8])
    expected = np.zeros((2, 3, 64, 64), dtype=np.float32)
    for channel, (mean, std) in enumerate(zip(IMAGE_MEAN, IMAGE_STD, strict=True)):
        expected[0, channel, :20, :40] = (np.float32(1.0) - np.float32(mean)) / np.float32(std)
        expected[1, channel, :33, :10] = (np.float32(51) / np.float32(255) - np.float32(mean)) / np.float32(std)
    assert np.array_equal(batch.images.numpy(), expected)
    assert batch.image_sizes == ((20, 40), (33, 10)) and batch.image_ids == (7, 8)


def test_batches_cover_the_split_in_order(folder: Path) -> None:
    split = load_folder(folder)["train"]
    assert [batch.image_ids for batch in split.batches(2)] == [(1, 2), (3,)]
