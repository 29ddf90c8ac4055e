"""A real detector in the environment: a few steps on a few images."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import outputs, random_plan
from torch import Tensor
from torchvision.models.detection import FCOS
from torchvision.models.detection.image_list import ImageList

from detectors.coco import CocoSplit, LazyBatches
from detectors.errors import InputError
from detectors.fcos_detections import detections as quick_detections
from detectors.fcos_loss import assign
from detectors.folder import load_folder
from detectors.shapes import CLASS_NAMES
from detectors.task import DetectionTask, detection_task
from detectors.teacher import SHIPPED_TEACHER, DetectorSpec, freeze, load_teacher, teacher_bytes
from hsq_env.choices import Choice
from hsq_env.env import HSQEnv
from hsq_env.file import load_hsq, save_hsq
from hsq_env.judge import quick_form
from hsq_env.layer_info import trace_layers
from hsq_env.shortcuts import Shortcuts
from hsq_env.states import run
from hsq_env.student import Student, predictions_of
from hsq_env.task import QuickMetric

SPEC = DetectorSpec("fcos_resnet50_quarter", CLASS_NAMES, level_scale=0.25, min_size=64, max_size=107)
ACTIONS = [8, 2, 6, 1, 11]


class Sure(DetectionTask):
    """Random weights have an mAP of 0: here the figure that counts is how sure the detections are."""

    def metric(self, predictions: Any, split: str) -> float:
        """The mean score, which every detection changes."""
        return float(torch.cat([d["scores"] for batch in predictions for d in batch]).double().mean())


def random_detector() -> FCOS:
    torch.manual_seed(0)
    model = SPEC.build_folded()
    with torch.no_grad():
        model.head.classification_head.cls_logits.bias.zero_()  # else no score passes the threshold
    freeze(model)
    return model


@pytest.fixture(scope="module")
def splits(shapes_folder: Path) -> dict[str, CocoSplit]:
    return load_folder(shapes_folder, SPEC.classes, SPEC.min_size, SPEC.max_size)


@pytest.fixture(scope="module")
def task(splits: dict[str, CocoSplit]) -> Sure:
    return Sure("shapes", random_detector(), SPEC, splits, calibration_images=2, pool_images=4, batch_size=2)


def detections(task: DetectionTask, model: torch.nn.Module, split: str) -> Iterator[dict[str, Tensor]]:
    for batch in task.evaluation(split):
        yield from task.predictions(outputs(task, model, batch.images), batch)


# ---- the task itself


def test_splits_and_batches(task: Sure) -> None:
    assert [len(batch.image_ids) for batch in task.finetuning()] == [2, 2]
    assert [len(batch.image_ids) for batch in task.calibration()] == [2]
    assert [batch.image_ids for batch in task.evaluation("test")] == [(1, 2), (3, 4)]
    assert task.evaluation("search") is task.evaluation("search")
    assert not torch.equal(task.evaluation("search")[0].images, task.evaluation("test")[0].images)


def test_fewer_images_are_the_first(splits: dict[str, CocoSplit]) -> None:
    task = DetectionTask("shapes", random_detector(), SPEC, splits, search_images=3, test_images=2)
    assert [batch.image_ids for batch in task.evaluation("search")] == [(1, 2, 3)]
    assert [batch.image_ids for batch in task.evaluation("test")] == [(1, 2)]


def test_long_fine_tuning_follows_the_seed(task: Sure, splits: dict[str, CocoSplit]) -> None:
    same = DetectionTask("shapes", task.teacher, SPEC, splits, batch_size=2)
    other = DetectionTask("shapes", task.teacher, SPEC, splits, batch_size=2, seed=1)
    first = task.long_finetuning(5)
    assert torch.equal(first.images, same.long_finetuning(5).images)
    assert first.image_ids != other.long_finetuning(5).image_ids
    assert {task.long_finetuning(step).image_ids for step in range(5)} != {first.image_ids}


def test_the_task_loss_is_torchvisions(task: Sure) -> None:
    """The model in training mode sums the same three losses from images of its own resizing."""
    (batch, _) = task.evaluation("test")
    state = outputs(task, task.teacher, batch.images)
    features = list(task.teacher.backbone(batch.images).values())
    heads = task.teacher.head(features)
    anchors = task.teacher.anchor_generator(ImageList(batch.images, list(batch.image_sizes)), features)
    per_level = [f.shape[2] * f.shape[3] for f in features]
    losses = task.teacher.compute_loss(list(batch.targets), heads, anchors, per_level)
    assert task.task_loss(state, batch).item() == pytest.approx(sum(x.item() for x in losses.values()), rel=1e-6)


def test_error_maps_are_the_focal_loss_by_place(task: Sure) -> None:
    """torchvision's classification loss is their sum over the number of locations that are to find something."""
    (batch, _) = task.evaluation("test")
    state = outputs(task, task.teacher, batch.images)
    maps = task.error_maps(state, batch)
    assert [m.shape for m in maps] == [(2, *f.shape[2:]) for f in state["features"]]
    anchors = task.teacher.anchor_generator(ImageList(batch.images, list(batch.image_sizes)), state["features"])
    found = assign(task.teacher, batch.targets, anchors, [m[0].numel() for m in maps])
    features = list(task.teacher.backbone(batch.images).values())
    losses = task.teacher.compute_loss(
        list(batch.targets), task.teacher.head(features), anchors, [m[0].numel() for m in maps]
    )
    total = sum(m.sum() for m in maps) / max(1, len(found.locations))
    assert float(total) == pytest.approx(losses["classification"].item(), rel=1e-5)


def test_what_the_pool_is_to_find_is_made_once(task: Sure, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []

    def note(*arguments: Any) -> Any:
        made.append(assign(*arguments))
        return made[-1]

    monkeypatch.setattr("detectors.fcos.assign", note)
    monkeypatch.setattr(task, "_assignments", {})
    losses = []
    for _ in range(2):
        for batch in (*task.finetuning(), task.long_finetuning(0)):
            losses.append(task.task_loss(outputs(task, task.teacher, batch.images), batch).item())
    assert len(made) == 2 + 1 + 1  # the pool's two batches once, the others each time
    assert losses[:3] == losses[3:] and len(set(losses)) == 3


def test_what_is_distilled(task: Sure) -> None:
    (batch, _) = task.evaluation("test")
    found = task.distilled(outputs(task, task.teacher, batch.images))
    kinds = ["logits", "boxes", "centerness", *["features"] * 5]
    assert [item.kind for item in found] == kinds
    assert [item.name for item in found[3:]] == ["p3", "p4", "p5", "p6", "p7"]
    locations = sum(item.tensor.shape[2] * item.tensor.shape[3] for item in found[3:])
    widths = (len(CLASS_NAMES), 4, 1)
    assert [item.tensor.shape for item in found[:3]] == [(2, locations, width) for width in widths]
    assert (found[1].tensor >= 0).all()


def test_the_layers_of_a_detector(task: Sure) -> None:
    infos = trace_layers(task)
    assert len(infos) == 72
    calls = {info.name: info.calls for info in infos}
    assert {n for name, n in calls.items() if name.startswith("head.")} == {5}  # once per pyramid level
    assert {n for name, n in calls.items() if name.startswith("backbone.")} == {1}
    assert infos[0].name == "backbone.body.conv1" and infos[0].shape == (16, 3, 7, 7)


def test_counts_below_one_are_refused(splits: dict[str, CocoSplit]) -> None:
    wrong = {"seed": -1, "pool_images": 0, "calibration_images": 0, "batch_size": 0, "search_images": -3}
    for name, value in wrong.items():
        with pytest.raises(InputError, match=f"{name} is {value}"):
            DetectionTask("shapes", random_detector(), SPEC, splits, **{name: value})


def test_an_empty_split_is_refused(splits: dict[str, CocoSplit]) -> None:
    empty = {**splits, "search": splits["search"].first(0)}
    with pytest.raises(InputError, match="The search split of 'shapes' has no images"):
        DetectionTask("shapes", random_detector(), SPEC, empty)


def test_a_task_from_files(shapes_folder: Path, tmp_path: Path) -> None:
    path, model = tmp_path / "teacher.safetensors", random_detector()
    path.write_bytes(teacher_bytes(model, SPEC))
    task = detection_task(shapes_folder, SPEC.detector, path, search_images=2)
    assert (task.name, task.spec) == (shapes_folder.name, SPEC)
    again = tmp_path / "again.safetensors"
    again.write_bytes(task.teacher_file())  # safetensors orders its metadata anew each time
    assert again.stat().st_size == path.stat().st_size
    weights, expected = (load_teacher(p)[0].state_dict() for p in (again, path))
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert [len(batch.image_ids) for batch in task.evaluation("search")] == [2]
    with pytest.raises(InputError, match=r"is a fcos_resnet50_quarter, not a fcos_resnet50: drop --detector"):
        detection_task(shapes_folder, "fcos_resnet50", path)


# ---- in the environment


@pytest.mark.parametrize("pattern", ["unstructured", "n:m", "channels"])
def test_a_reloaded_file_gives_bit_identical_detections(task: Sure, tmp_path: Path, pattern: str) -> None:
    infos = trace_layers(task)
    student = Student(task, infos, pattern=pattern)
    student.apply(random_plan(infos, 1))
    save_hsq(student, tmp_path / "model.hsq")
    torch.manual_seed(1)
    model = SPEC.build_folded()
    freeze(model)
    assert load_hsq(tmp_path / "model.hsq", model).plan() == student.plan()
    model.to(task.device)
    for split in ("search", "test"):
        pairs = list(zip(detections(task, model, split), detections(task, student.model, split), strict=True))
        assert len(pairs) == 4
        for found, expected in pairs:
            assert len(expected["scores"]) > 0
            assert all(torch.equal(found[name], expected[name]) for name in ("boxes", "scores", "labels"))


@pytest.mark.slow
def test_steps_with_and_without_kept_states(task: Sure) -> None:
    """The first five layers are the stem and the first bottleneck with its shortcut."""
    sensitivities = np.zeros((72, 12))
    kept = HSQEnv(task, sensitivities=sensitivities)
    recomputed = HSQEnv(task, shortcuts=Shortcuts.none(), sensitivities=sensitivities)
    for env in (kept, recomputed):
        observation, info = env.reset()
        assert info["layer"] == "backbone.body.conv1" and env.observation_space.contains(observation)
    accuracies = []
    for layer, action in enumerate(ACTIONS):
        (one, reward, ended, _, info), (other, same, _, _, told) = kept.step(action), recomputed.step(action)
        assert reward == same and np.array_equal(one, other) and info["accuracy"] == told["accuracy"]
        assert kept.index == layer + 1 and not ended and not info["diverged"]
        accuracies.append(info["accuracy"])
    assert len(set(accuracies)) == len(ACTIONS)
    assert [layer.choice for layer in kept.student.layers[:5]] == [kept.choices[action] for action in ACTIONS]
    kept.reset()
    assert [kept.step(action)[4]["accuracy"] for action in ACTIONS[:2]] == accuracies[:2]


def test_the_quick_metric_is_the_metric(shapes_folder: Path) -> None:
    """Of the shipped teacher, and of a student that is damaged in one layer."""
    task = detection_task(shapes_folder, teacher=SHIPPED_TEACHER, calibration_images=2, pool_images=2, batch_size=2)
    assert isinstance(task, QuickMetric) and quick_form(task) is task
    student = Student(task, trace_layers(task))
    student.compress(20, Choice(2, 0.75))
    maps = []
    for stages in (task.stages(task.teacher), student.stages):
        with torch.no_grad():
            made = [run(stages, {"images": batch.images}) for batch in task.evaluation("search")]
        pairs = list(zip(made, task.evaluation("search"), strict=True))
        plain, quick = [task.predictions(*pair) for pair in pairs], [task.quick_predictions(*pair) for pair in pairs]
        maps.append(task.metric(plain, "search"))
        assert task.quick_metric(quick) == pytest.approx(maps[-1], rel=0, abs=1e-15)
        boxes = zip(plain, [quick_detections(task.teacher, some) for some in quick], strict=True)
        assert all(torch.equal(a[k], b[k]) for one, other in boxes for a, b in zip(one, other, strict=True) for k in a)
    assert maps[0] > 0.5 and maps[0] != maps[1] > 0


def test_a_metric_of_ones_own_is_not_replaced_by_the_quick_form(task: Sure) -> None:
    assert isinstance(task, QuickMetric) and quick_form(task) is None

    class Both(Sure):
        def quick_metric(self, predictions: Any) -> float:
            return 0.0

    class Quicker(DetectionTask):
        def quick_metric(self, predictions: Any) -> float:
            return 0.0

    for kind, taken in ((Both, True), (Quicker, True), (type("Later", (Both,), {"metric": Sure.metric}), False)):
        made = kind.__new__(kind)
        assert (quick_form(made) is made) == taken


def test_a_split_that_memory_does_not_hold_scores_the_same(
    splits: dict[str, CocoSplit], task: Sure, monkeypatch: pytest.MonkeyPatch
) -> None:
    few: dict[str, Any] = {"calibration_images": 2, "pool_images": 4, "batch_size": 2}
    usual = DetectionTask("shapes", task.teacher, SPEC, splits, **few)
    assert isinstance(usual.evaluation("test"), list)
    monkeypatch.setattr("detectors.task.MOST_KEPT", 0)
    small = DetectionTask("shapes", task.teacher, SPEC, splits, **few)
    assert isinstance(small.evaluation("test"), LazyBatches)
    found = [predictions_of(t, t.stages(t.teacher), "test") for t in (usual, small)]
    for one, other in zip(*found, strict=True):
        assert all(torch.equal(a[key], b[key]) for a, b in zip(one, other, strict=True) for key in a)
    assert usual.metric(found[0], "test") == small.metric(found[1], "test")
