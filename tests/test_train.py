"""Teacher training: torchvision's losses, matching augmentation, resuming without a trace."""

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from detectors import train
from detectors.architecture import architecture_of
from detectors.batches import Batch
from detectors.checkpoint import save_checkpoint
from detectors.coco import CocoSplit
from detectors.detection import evaluate_detector
from detectors.errors import InputError
from detectors.fcos import FCOSArchitecture
from detectors.files import write_atomically
from detectors.folder import load_folder
from detectors.metric import quiet_coco
from detectors.shapes import CLASS_NAMES
from detectors.teacher import DetectorSpec, load_teacher
from detectors.train import augmented_batch, train_teacher

SPEC = DetectorSpec("fcos_resnet50_quarter", CLASS_NAMES, level_scale=0.25, min_size=64, max_size=64)


@pytest.fixture(scope="module")
def splits(shapes_folder: Path) -> dict[str, CocoSplit]:
    return load_folder(shapes_folder, CLASS_NAMES, SPEC.min_size, SPEC.max_size)


def _train(splits: dict[str, CocoSplit], out: Path, epochs: int = 2, **kwargs: Any) -> dict[str, Any]:
    return train_teacher(splits, SPEC, out, epochs, batch_size=4, **kwargs)


def _interrupt_in_epoch(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on, training is stopped as by Ctrl-C when epoch ``number`` begins."""
    train_epoch, calls = train._train_epoch, []

    def interrupted(*args: Any) -> float:
        calls.append(args)
        if len(calls) == number:
            raise KeyboardInterrupt
        return train_epoch(*args)

    monkeypatch.setattr(train, "_train_epoch", interrupted)


def _weights(path: Path) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in load_file(path).items()}


def test_losses_equal_torchvisions(splits: dict[str, CocoSplit]) -> None:
    torch.manual_seed(0)
    model = SPEC.build().train()
    split = splits["train"]
    image_ids = split.image_ids[:3]
    losses = architecture_of(model).training_losses(model, split.batch(image_ids))
    images = [split.pixels(i).float() / 255 for i in image_ids]  # 64 x 64: torchvision neither resizes nor pads them
    expected = model(images, [split.target(i) for i in image_ids])
    assert losses.keys() == expected.keys() == {"classification", "bbox_regression", "bbox_ctrness"}
    assert all(torch.equal(losses[name], expected[name]) for name in expected)


def test_augmentation_moves_boxes_with_their_pixels() -> None:
    """A white rectangle on black must fill its box whatever was flipped."""
    image = {"id": 1, "file_name": "", "width": 48, "height": 32}
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [5, 3, 20, 10], "area": 200, "iscrowd": 0}
    truth = quiet_coco({"images": [image], "annotations": [box], "categories": [{"id": 1, "name": "white"}]})
    split = CocoSplit(Path(), truth, {1: 0}, min_size=32, max_size=48)
    split._pixels[1] = torch.zeros(3, 32, 48, dtype=torch.uint8)
    split._pixels[1][:, 3:13, 5:25] = 255
    corners = set()
    rng = np.random.default_rng(0)
    for _ in range(30):
        batch = augmented_batch(split, [1], rng, vertical_flip=True)
        x0, y0, x1, y1 = batch.targets[0]["boxes"][0].int().tolist()
        rows, columns = np.nonzero(batch.images[0, 0, :32, :48].numpy() > 0)
        assert (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) == (x0, y0, x1, y1)
        corners.add((x0, y0))
    assert corners == {(5, 3), (23, 3), (5, 19), (23, 19)}
    assert split.target(1)["boxes"].tolist() == [[5, 3, 25, 13]]
    assert split.pixels(1)[0].unique().tolist() == [0, 255]


def test_training_writes_the_teacher_that_it_reports(splits: dict[str, CocoSplit], tmp_path: Path) -> None:
    out = tmp_path / "teacher.safetensors"
    result = _train(splits, out)
    model, spec = load_teacher(out)
    assert spec == SPEC
    assert result.keys() == {"map", "epoch", "seconds"}
    assert result["map"] == evaluate_detector(model, splits["search"])
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


def test_best_epoch_is_kept(splits: dict[str, CocoSplit], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = iter([0.2, 0.4, 0.3])
    monkeypatch.setattr(train, "evaluate_detector", lambda model, split: next(scores))
    written: list[bytes] = []

    def write_and_keep(path: Path, content: bytes) -> None:
        written.append(content)
        write_atomically(path, content)

    monkeypatch.setattr(train, "write_atomically", write_and_keep)
    out = tmp_path / "teacher.safetensors"
    result = _train(splits, out, epochs=3)
    assert (result["map"], result["epoch"]) == (0.4, 2)
    assert len(written) == 2 and out.read_bytes() == written[1] != written[0]


def test_interrupted_training_goes_on_as_if_nothing_happened(
    splits: dict[str, CocoSplit], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Evaluating only at the end makes the files hold the last weights."""
    _train(splits, tmp_path / "through", evaluate_every=2)
    out = tmp_path / "folder" / "resumed"
    with monkeypatch.context() as patch:
        _interrupt_in_epoch(2, patch)
        with pytest.raises(KeyboardInterrupt, match=f"the same command again goes on .* from {out}.checkpoint"):
            _train(splits, out, evaluate_every=2)
    assert [path.name for path in out.parent.iterdir()] == ["resumed.checkpoint"]
    result = _train(splits, out, evaluate_every=2)
    assert result["epoch"] == 2
    assert _weights(out) == _weights(tmp_path / "through")
    assert [path.name for path in out.parent.iterdir()] == ["resumed"]


def test_weights_depend_on_the_seed_alone(splits: dict[str, CocoSplit], tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        _train(splits, tmp_path / name, epochs=1, seed=seed)
    a, b, c = (_weights(tmp_path / name) for name in "abc")
    assert a == b != c


def test_existing_file_is_refused(splits: dict[str, CocoSplit], tmp_path: Path) -> None:
    out = tmp_path / "teacher.safetensors"
    out.write_bytes(b"mine")
    with pytest.raises(InputError, match=f"{out} exists already: remove it or give another file with --out"):
        _train(splits, out)
    assert out.read_bytes() == b"mine"


def test_too_few_images_for_a_batch(splits: dict[str, CocoSplit], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="The training split has 8 images, fewer than one batch of 16"):
        train_teacher(splits, SPEC, tmp_path / "teacher", batch_size=16)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"batch_size": 0}, "batch_size is 0: give 1 or more"),
        ({"batch_size": -2}, "batch_size is -2: give 1 or more"),
        ({"evaluate_every": 0}, "evaluate_every is 0: give 1 or more"),
        ({"cycles": 0}, "cycles is 0: give 1 or more"),
        ({"seed": -1}, "The seed is -1: give 0 or more"),
        ({"learning_rate": -1.0}, r"The learning rate is -1\.0: give a number above 0"),
    ],
)
def test_numbers_that_do_not_go(splits: dict[str, CocoSplit], tmp_path: Path, given: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        train_teacher(splits, SPEC, tmp_path / "teacher", **{"batch_size": 4, **given})
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_no_part_of_a_checkpoint(
    splits: dict[str, CocoSplit], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            save_checkpoint(tmp_path / "c", SPEC.build(), *[torch.optim.SGD([torch.zeros(1)], lr=1.0)] * 2, {})
    assert not list(tmp_path.iterdir())


def test_training_that_is_interrupted_too_early(
    splits: dict[str, CocoSplit], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _interrupt_in_epoch(1, monkeypatch)
    with pytest.raises(KeyboardInterrupt, match="before the first epoch had ended: nothing is kept"):
        _train(splits, tmp_path / "teacher")
    assert not list(tmp_path.iterdir())


def test_an_interruption_between_the_first_file_and_the_first_checkpoint(
    splits: dict[str, CocoSplit], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*args: Any) -> None:
        assert (tmp_path / "teacher").exists()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(train, "save_checkpoint", interrupt)
        with pytest.raises(KeyboardInterrupt, match="nothing is kept"):
            _train(splits, tmp_path / "teacher", epochs=1)
    assert not list(tmp_path.iterdir())
    _train(splits, tmp_path / "teacher", epochs=1)


def test_checkpoint_of_other_arguments_is_refused(
    splits: dict[str, CocoSplit], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "teacher"
    with monkeypatch.context() as patch:
        _interrupt_in_epoch(2, patch)
        with pytest.raises(KeyboardInterrupt):
            _train(splits, out)
    words = f"{out}.checkpoint does not fit these arguments or is damaged: remove it"
    with pytest.raises(InputError, match=words):
        _train(splits, out, epochs=3)
    other = DetectorSpec(SPEC.detector, (*CLASS_NAMES, "more"), SPEC.level_scale, SPEC.min_size, SPEC.max_size)
    with pytest.raises(InputError, match=words):
        train_teacher(splits, other, out, 2, batch_size=4)


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04 cut short"])
def test_damaged_checkpoint_is_refused(splits: dict[str, CocoSplit], tmp_path: Path, content: bytes) -> None:
    checkpoint = tmp_path / "teacher.checkpoint"
    checkpoint.write_bytes(content)
    with pytest.raises(InputError, match=f"{checkpoint} does not fit these arguments or is damaged: remove it"):
        _train(splits, tmp_path / "teacher")
    assert checkpoint.read_bytes() == content


def test_diverged_training_is_told(
    splits: dict[str, CocoSplit], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def infinite(self: FCOSArchitecture, model: torch.nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        return {"classification": torch.tensor(float("inf"))}

    monkeypatch.setattr(FCOSArchitecture, "training_losses", infinite)
    with pytest.raises(InputError, match="became infinite or NaN: lower --learning-rate"):
        _train(splits, tmp_path / "teacher")
    assert list(tmp_path.iterdir()) == []
