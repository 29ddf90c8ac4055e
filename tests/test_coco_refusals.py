"""COCO-layout folders: what is refused, and in which words; what looks odd and is not."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from coco_folder import HEIGHT, WIDTH, Data, some_annotations, spoil, write_folder, write_split
from PIL import Image

from detectors.coco import LazyBatches
from detectors.errors import InputError
from detectors.folder import class_names, load_folder
from detectors.metric import QuickMAP, mean_average_precision


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "data")


def refusal(folder: Path, **kwargs: Any) -> str:
    with pytest.raises(InputError) as error:
        load_folder(folder, **kwargs)
    text = str(error.value)
    assert "\n" not in text and text.endswith((".", "]."))
    return text


def test_missing_folder(tmp_path: Path) -> None:
    assert refusal(tmp_path / "nowhere") == (
        f"There is no data folder {tmp_path / 'nowhere'}: give the folder that holds 'annotations/' and the images."
    )


@pytest.mark.parametrize("ids", [(0, 1, 2), (7, 7, 7)], ids=["from 0", "all alike"])
def test_annotation_ids_do_not_matter(folder: Path, ids: tuple[int, ...]) -> None:
    """pycocotools takes a match with annotation 0 for none: a detector that finds all would score less than 1."""

    def renumber(data: Data) -> None:
        for annotation, number in zip(data["annotations"], ids, strict=True):
            annotation["id"] = number

    spoil(folder, renumber)
    split = load_folder(folder)["train"]
    found = [
        {**{key: a[key] for key in ("image_id", "category_id", "bbox")}, "score": 0.9}
        for a in split.truth.dataset["annotations"]
    ]
    assert mean_average_precision(split.truth, found, split.image_ids) == pytest.approx(1.0)
    assert QuickMAP(split.truth, split.image_ids)(found) == pytest.approx(1.0)


@pytest.mark.parametrize(("gone", "what"), [("train", "training"), ("val", "validation")])
def test_missing_annotation_file(folder: Path, gone: str, what: str) -> None:
    (folder / "annotations" / f"instances_{gone}2017.json").unlink()
    assert refusal(folder) == (
        f"{folder / 'annotations'} has no annotations for {what}: instances_{gone}.json or "
        f"instances_{gone}2017.json: add the file, or name your splits with --splits."
    )


def test_both_annotation_files_missing(tmp_path: Path) -> None:
    assert "for training: instances_train.json or instances_train2017.json, nor for validation: " in refusal(tmp_path)
    with pytest.raises(
        InputError, match=rf"no annotations/instances_train2017.json or annotations/instances_train.json in {tmp_path}"
    ):
        class_names(tmp_path)


def test_missing_image_folder(folder: Path) -> None:
    (folder / "test2017").rename(folder / "elsewhere")
    path = folder / "annotations" / "instances_test2017.json"
    said = refusal(folder)
    assert said.startswith(
        f"{path} has no image folder {folder / 'test2017'}: put the images there, or name other splits"
    )


def test_absent_image(folder: Path) -> None:
    (folder / "train2017" / "2.png").unlink()
    path = folder / "annotations" / "instances_train2017.json"
    assert refusal(folder) == (
        f"{path} lists 2.png, which is not in {folder / 'train2017'}: add it or remove its entry."
    )


def test_images_in_folders_of_their_own_are_found(folder: Path) -> None:
    (folder / "train2017" / "deep").mkdir()
    (folder / "train2017" / "2.png").rename(folder / "train2017" / "deep" / "2.png")
    spoil(folder, lambda data: data["images"][1].update(file_name="deep/2.png"))
    assert load_folder(folder, min_size=HEIGHT)["train"].pixels(2).shape == (3, HEIGHT, WIDTH)


def test_unreadable_image(folder: Path) -> None:
    image = folder / "train2017" / "2.png"
    image.write_bytes(image.read_bytes()[:200])
    split = load_folder(folder)["train"]
    with pytest.raises(InputError, match=rf"The image {image} cannot be read \(.*\): replace it or remove its entry"):
        split.pixels(2)


@pytest.mark.parametrize("part", ["images", "annotations"])
def test_empty_split(folder: Path, part: str) -> None:
    path = spoil(folder, lambda data: data.update({part: []}))
    assert refusal(folder) == f"{path} lists no {part}: a split needs both images and boxes."


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
    path = spoil(folder, change)
    assert refusal(folder) == f"{path}: {words}"


def test_boxes_rounded_outwards_by_a_pixel_are_taken(folder: Path) -> None:
    spoil(folder, _with_box([-1, -1, WIDTH + 2, HEIGHT + 2]))
    assert load_folder(folder, min_size=HEIGHT)["train"].target(2)["boxes"].tolist() == [[-1, -1, 49, 33]]


@pytest.mark.parametrize("area", [None, "30", float("nan"), True])
def test_areas_that_are_no_numbers_are_those_of_the_boxes(folder: Path, area: Any) -> None:
    spoil(folder, lambda data: [a.update(area=area) for a in data["annotations"]])
    for annotation in load_folder(folder)["train"].truth.dataset["annotations"]:
        assert annotation["area"] == annotation["bbox"][2] * annotation["bbox"][3]


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
        lambda data: data["images"][1].update(width=0),
        lambda data: data["images"][1].update(height=float("nan")),
        lambda data: data["images"][1].update(file_name=5),
        lambda data: data["categories"][1].update(name=["cell"]),
    ],
)
def test_annotations_of_another_format(folder: Path, change: Callable[[Data], object]) -> None:
    path = spoil(folder, change)
    text = refusal(folder)
    assert text.startswith(f"{path} is not in COCO's format (") and text.endswith("): export it again.")


@pytest.mark.parametrize("content", [b"", b'{"images": [', b"[]", b"\xff\xfe\x00", b"not json"])
def test_malformed_json(folder: Path, content: bytes) -> None:
    path = folder / "annotations" / "instances_val2017.json"
    path.write_bytes(content)
    assert refusal(folder).startswith(f"{path} is not in COCO's format (")


def test_classes_that_the_teacher_does_not_know(folder: Path) -> None:
    path = folder / "annotations" / "instances_train2017.json"
    assert refusal(folder, classes=["cell", "tissue"]) == (
        f"{path} has categories that the teacher does not know (plate): "
        "train a teacher on this data with 'hsq teacher', or keep only its classes (cell, tissue)."
    )


def test_too_few_images_to_hold_some_back(tmp_path: Path) -> None:
    write_split(tmp_path, "train", some_annotations(1))
    write_split(tmp_path, "val", some_annotations(1, first_id=11))
    assert refusal(tmp_path).startswith(f"{tmp_path} has too few annotated training images to hold some back")


def test_held_back_images_without_boxes(tmp_path: Path) -> None:
    data = some_annotations(9)
    data["annotations"] = data["annotations"][1:]  # the first, which is held back, has none
    write_split(tmp_path, "train", data)
    write_split(tmp_path, "val", some_annotations(1, first_id=11))
    assert refusal(tmp_path).startswith(f"{tmp_path} has too few annotated training images to hold some back")


def test_split_names_may_be_given(shapes_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "named"
    shutil.copytree(shapes_folder, folder)
    for old, new in (("train", "good"), ("val", "bad"), ("test", "ugly")):
        (folder / old).rename(folder / new)
        (folder / "annotations" / f"instances_{old}.json").rename(folder / "annotations" / f"instances_{new}.json")
    with pytest.raises(InputError, match="has no annotations for training"):
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
    lazy = LazyBatches(split, 3, torch.device("cpu"))
    kept = split.batches(3)
    assert len(lazy) == len(kept) == 3 and [len(b.image_ids) for b in lazy] == [3, 3, 2]
    for one, other in zip([*lazy[:2], lazy[-1]], kept, strict=True):
        assert torch.equal(one.images, other.images) and one.image_ids == other.image_ids
    with pytest.raises(IndexError):
        _ = lazy[3]
