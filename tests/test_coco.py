"""COCO-layout folders: what is read, how it is resized, and what is refused in which words."""

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from detectors.coco import IMAGE_MEAN, IMAGE_STD, LazyBatches, class_names, load_folder, make_batch
from detectors.errors import InputError
from detectors.metric import QuickMAP, mean_average_precision

Data = dict[str, Any]

WIDTH, HEIGHT = 48, 32  # pixels of every image written here
CATEGORIES = [{"id": 5, "name": "cell"}, {"id": 90, "name": "plate"}]
SPLITS = ("train2017", "val2017", "test2017")


def _annotations(images: int, first_id: int = 1) -> Data:
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


def _write(folder: Path, split: str, data: Data) -> Path:
    """Write one split, with random images for all entries; returns the annotation file."""
    (folder / split).mkdir(parents=True, exist_ok=True)
    (folder / "annotations").mkdir(exist_ok=True)
    for image in data["images"]:
        pixels = np.random.default_rng(image["id"]).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / split / image["file_name"])
    path = folder / "annotations" / f"instances_{split}.json"
    path.write_text(json.dumps(data))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sound folder with three splits."""
    for i, split in enumerate(SPLITS):
        _write(tmp_path / "data", split, _annotations(3, first_id=10 * i + 1))
    return tmp_path / "data"


def _spoil(folder: Path, change: Callable[[Data], object]) -> Path:
    """Change the training annotations after their images were written."""
    path = folder / "annotations" / "instances_train2017.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    return path


def _refusal(folder: Path, **kwargs: Any) -> str:
    with pytest.raises(InputError) as error:
        load_folder(folder, **kwargs)
    text = str(error.value)
    assert "\n" not in text and text.endswith((".", "]."))
    return text


# ---- what is read


@pytest.mark.parametrize("names", [SPLITS, ("train", "val", "test"), ("train", "valid", "test2017")])
def test_splits_are_found_by_both_kinds_of_names(tmp_path: Path, names: tuple[str, ...]) -> None:
    for i, name in enumerate(names):
        _write(tmp_path, name, _annotations(2, first_id=10 * i + 1))
    splits = load_folder(tmp_path)
    found = {role: (split.folder, split.image_ids) for role, split in splits.items()}
    assert found == {
        "train": (tmp_path / names[0], [1, 2]),
        "search": (tmp_path / names[1], [11, 12]),
        "test": (tmp_path / names[2], [21, 22]),
    }


def test_without_a_test_split_search_is_held_out_of_train(tmp_path: Path) -> None:
    _write(tmp_path, "train", _annotations(25))
    _write(tmp_path, "val", _annotations(4, first_id=101))
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
    _spoil(folder, lambda data: data["annotations"][0].update(iscrowd=1))
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
    from detectors.coco import _resized

    for height in range(16, 300):
        assert _resized(torch.zeros(3, height, 300, dtype=torch.uint8), 16, 10_000).shape[1] == 16
        assert _resized(torch.zeros(3, height, 300, dtype=torch.uint8), 10_000, 31).shape[2] == 31


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


# ---- what is refused


def test_missing_folder(tmp_path: Path) -> None:
    assert _refusal(tmp_path / "nowhere") == (
        f"There is no data folder {tmp_path / 'nowhere'}: give the folder that holds 'annotations/' and the images."
    )


@pytest.mark.parametrize("ids", [(0, 1, 2), (7, 7, 7)], ids=["from 0", "all alike"])
def test_annotation_ids_do_not_matter(folder: Path, ids: tuple[int, ...]) -> None:
    """pycocotools takes a match with annotation 0 for none: a detector that finds all would score less than 1."""

    def renumber(data: Data) -> None:
        for annotation, number in zip(data["annotations"], ids, strict=True):
            annotation["id"] = number

    _spoil(folder, renumber)
    split = load_folder(folder)["train"]
    found = [
        {**{key: a[key] for key in ("image_id", "category_id", "bbox")}, "score": 0.9}
        for a in split.truth.dataset["annotations"]
    ]
    assert mean_average_precision(split.truth, found, split.image_ids) == pytest.approx(1.0)
    assert QuickMAP(split.truth, split.image_ids)(found) == pytest.approx(1.0)


@pytest.mark.parametrize(("gone", "file"), [("train2017", "instances_train2017"), ("val2017", "instances_val2017")])
def test_missing_annotation_file(folder: Path, gone: str, file: str) -> None:
    (folder / "annotations" / f"instances_{gone}.json").unlink()
    text = _refusal(folder)
    assert text.startswith(f"{folder / 'annotations'} lacks {file}.json (or the plain-named form)")


def test_both_annotation_files_missing(tmp_path: Path) -> None:
    assert "lacks instances_train2017.json and instances_val2017.json" in _refusal(tmp_path)
    with pytest.raises(
        InputError, match=rf"no annotations/instances_train2017.json or annotations/instances_train.json in {tmp_path}"
    ):
        class_names(tmp_path)


def test_missing_image_folder(folder: Path) -> None:
    (folder / "test2017").rename(folder / "elsewhere")
    path = folder / "annotations" / "instances_test2017.json"
    assert _refusal(folder) == f"{path} has no image folder {folder / 'test2017'}: put the images there."


def test_absent_image(folder: Path) -> None:
    (folder / "train2017" / "2.png").unlink()
    path = folder / "annotations" / "instances_train2017.json"
    assert _refusal(folder) == (
        f"{path} lists 2.png, which is not in {folder / 'train2017'}: add it or remove its entry."
    )


def test_images_in_folders_of_their_own_are_found(folder: Path) -> None:
    (folder / "train2017" / "deep").mkdir()
    (folder / "train2017" / "2.png").rename(folder / "train2017" / "deep" / "2.png")
    _spoil(folder, lambda data: data["images"][1].update(file_name="deep/2.png"))
    assert load_folder(folder, min_size=HEIGHT)["train"].pixels(2).shape == (3, HEIGHT, WIDTH)


def test_unreadable_image(folder: Path) -> None:
    image = folder / "train2017" / "2.png"
    image.write_bytes(image.read_bytes()[:200])
    split = load_folder(folder)["train"]
    with pytest.raises(InputError, match=rf"The image {image} cannot be read \(.*\): replace it or remove its entry"):
        split.pixels(2)


@pytest.mark.parametrize("part", ["images", "annotations"])
def test_empty_split(folder: Path, part: str) -> None:
    path = _spoil(folder, lambda data: data.update({part: []}))
    assert _refusal(folder) == f"{path} lists no {part}: a split needs both images and boxes."


def _with_box(box: list[Any]) -> Callable[[Data], object]:
    return lambda data: data["annotations"][1].update(bbox=box)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda data: data["annotations"][1].update(image_id=77),
            "annotation 102 belongs to image 77, which is not listed: remove it or list the image.",
        ),
        (
            lambda data: data["annotations"][1].update(category_id=6),
            "annotation 102 has the unknown category 6: add it to 'categories'.",
        ),
        (_with_box([4, 2, 0, 6]), "annotation 102 has a box of zero area (0 x 6): remove it."),
        (_with_box([4, 2, 5, -1]), "annotation 102 has a box of zero area (5 x -1): remove it."),
        (
            _with_box([44, 2, 9, 6]),
            "annotation 102 has a box outside its image (2.png, 48 x 32): clip or remove [44, 2, 9, 6].",
        ),
        (
            _with_box([-3, 2, 9, 6]),
            "annotation 102 has a box outside its image (2.png, 48 x 32): clip or remove [-3, 2, 9, 6].",
        ),
        (
            _with_box([4, 2, 5]),
            "annotation 102 has the box [4, 2, 5]: a box is four finite numbers x, y, width, height.",
        ),
        (
            _with_box([4, 2, 5, float("nan")]),
            "annotation 102 has the box [4, 2, 5, nan]: a box is four finite numbers x, y, width, height.",
        ),
    ],
)
def test_unusable_annotation(folder: Path, change: Callable[[Data], object], words: str) -> None:
    path = _spoil(folder, change)
    assert _refusal(folder) == f"{path}: {words}"


def test_boxes_rounded_outwards_by_a_pixel_are_taken(folder: Path) -> None:
    _spoil(folder, _with_box([-1, -1, WIDTH + 2, HEIGHT + 2]))
    assert load_folder(folder, min_size=HEIGHT)["train"].target(2)["boxes"].tolist() == [[-1, -1, 49, 33]]


def _dropped(part: str, key: str) -> Callable[[Data], object]:
    return lambda data: data[part][1].pop(key)


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.pop("categories"),
        lambda data: data.update(images=None),
        lambda data: data.update(annotations=[1, 2]),
        _dropped("images", "id"),
        _dropped("images", "file_name"),
        _dropped("images", "width"),
        _dropped("annotations", "id"),
        _dropped("annotations", "bbox"),
        _dropped("annotations", "category_id"),
        _dropped("categories", "id"),
        _dropped("categories", "name"),
        lambda data: data["annotations"][1].update(bbox=None),
        lambda data: data["annotations"][1].update(bbox=["4", "2", "5", "6"]),
        lambda data: data["images"][1].update(width="48"),
    ],
)
def test_annotations_of_another_format(folder: Path, change: Callable[[Data], object]) -> None:
    path = _spoil(folder, change)
    text = _refusal(folder)
    assert text.startswith(f"{path} is not in COCO's format (") and text.endswith("): export it again.")


@pytest.mark.parametrize("content", [b"", b'{"images": [', b"[]", b"\xff\xfe\x00", b"not json"])
def test_malformed_json(folder: Path, content: bytes) -> None:
    path = folder / "annotations" / "instances_val2017.json"
    path.write_bytes(content)
    assert _refusal(folder).startswith(f"{path} is not in COCO's format (")


def test_classes_that_the_teacher_does_not_know(folder: Path) -> None:
    path = folder / "annotations" / "instances_train2017.json"
    assert _refusal(folder, classes=["cell", "tissue"]) == (
        f"{path} has categories that the teacher does not know (plate): "
        "train a teacher on this data with 'hsq teacher', or keep only its classes (cell, tissue)."
    )


def test_too_few_images_to_hold_some_back(tmp_path: Path) -> None:
    _write(tmp_path, "train", _annotations(1))
    _write(tmp_path, "val", _annotations(1, first_id=11))
    assert _refusal(tmp_path).startswith(f"{tmp_path} has too few annotated training images to hold some back")


def test_held_back_images_without_boxes(tmp_path: Path) -> None:
    data = _annotations(9)
    data["annotations"] = data["annotations"][1:]  # the first, which is held back, has none
    _write(tmp_path, "train", data)
    _write(tmp_path, "val", _annotations(1, first_id=11))
    assert _refusal(tmp_path).startswith(f"{tmp_path} has too few annotated training images to hold some back")


def test_split_names_may_be_given(shapes_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "named"
    shutil.copytree(shapes_folder, folder)
    for old, new in (("train", "good"), ("val", "bad"), ("test", "ugly")):
        (folder / old).rename(folder / new)
        (folder / "annotations" / f"instances_{old}.json").rename(folder / "annotations" / f"instances_{new}.json")
    with pytest.raises(InputError, match=r"lacks instances_train2017\.json"):
        load_folder(folder)
    found, named = load_folder(shapes_folder), load_folder(folder, split_names=["good", "bad", "ugly"])
    for role in ("train", "search", "test"):
        ids = found[role].image_ids
        assert named[role].image_ids == ids
        assert torch.equal(named[role].batch(ids).images, found[role].batch(ids).images)
    assert class_names(folder, ["good"]) == class_names(shapes_folder)
    assert set(load_folder(folder, split_names=["good", "bad"])) == {"train", "search", "test"}


@pytest.mark.parametrize(
    ("names", "told"), [(["train"], "1 split names"), (["train", "nope"], r"instances_nope\.json")]
)
def test_given_split_names_are_checked(shapes_folder: Path, names: list[str], told: str) -> None:
    with pytest.raises(InputError, match=told):
        load_folder(shapes_folder, split_names=names)


def test_images_beyond_what_is_kept_are_decoded_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sides of all stay known: boxes are turned back into original pixels without another look."""
    opened: list[str] = []
    opens = Image.open

    def note(path: Path) -> Image.Image:
        opened.append(Path(path).name)
        return opens(path)

    monkeypatch.setattr("detectors.coco.Image.open", note)
    split = load_folder(folder, min_size=HEIGHT)["train"]
    first, second = split.image_ids[:2]
    monkeypatch.setattr("detectors.coco.MOST_KEPT", split.pixels(first).nbytes)
    assert torch.equal(split.pixels(second), split.pixels(second))
    split.pixels(first)
    split.scale(second)
    assert len(opened) == 3  # the first once, the second twice


def test_batches_that_are_made_when_asked_for_equal_those_that_are_kept(shapes_folder: Path) -> None:
    split = load_folder(shapes_folder, min_size=64, max_size=96)["train"]
    lazy = LazyBatches(split, 3, torch.device("cpu"), torch.contiguous_format)
    kept = split.batches(3)
    assert len(lazy) == len(kept) == 3 and [len(b.image_ids) for b in lazy] == [3, 3, 2]
    for one, other in zip([*lazy[:2], lazy[-1]], kept, strict=True):
        assert torch.equal(one.images, other.images) and one.image_ids == other.image_ids
    with pytest.raises(IndexError):
        _ = lazy[3]
