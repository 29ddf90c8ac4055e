"""torchvision's detectors as tasks: the same losses, students, steps, files and searches."""

import copy
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import fastrcnn_loss
from zoo_models import (
    LONG,
    NAMES,
    QUICKEST,
    TWO_STAGES,
    random_detector,
    small_spec,
)

from detectors.architecture import architecture_of
from detectors.backbone import fold_batch_norm
from detectors.batches import Batch
from detectors.coco import CocoSplit
from detectors.folder import load_folder
from detectors.shapes import CLASS_NAMES
from detectors.stages import State, run_stages
from detectors.task import DetectionTask
from detectors.teacher import DetectorSpec, freeze, load_teacher, spec_from_json, teacher_bytes
from detectors.zoo import ZOO, known
from hsq_env.choices import Choice
from hsq_env.distillation import AKD
from hsq_env.env import HSQEnv
from hsq_env.file import load_hsq, student_bytes
from hsq_env.layer_info import trace_layers
from hsq_env.long_finetuning import finetune_all
from hsq_env.student import Student


class Sure(DetectionTask):
    """Random weights have an mAP of 0: here the figure that counts is how sure the detections are."""

    def metric(self, predictions: Any, split: str) -> float:
        """The mean score, which every detection changes."""
        scores = [d["scores"] for batch in predictions for d in batch]
        return float(torch.cat(scores).double().mean())

    def quick_predictions(self, outputs: Any, batch: Any) -> Any:
        """Detections, for FCOS too."""
        return self.predictions(outputs, batch)

    def quick_metric(self, predictions: Any) -> float:
        """The same."""
        return self.metric(predictions, "search")


_TASKS: dict[str, Sure] = {}


def task_of(name: str, folder: Path) -> Sure:
    """On few images; made once per detector."""
    if name not in _TASKS:
        spec = small_spec(name, CLASS_NAMES)
        splits: dict[str, CocoSplit] = load_folder(
            folder, spec.classes, spec.min_size, spec.max_size, None, spec.preparation
        )
        few = {"search_images": 2, "pool_images": 2, "calibration_images": 1, "batch_size": 2}
        _TASKS.clear()  # one at a time in memory
        teacher = freeze(fold_batch_norm(random_detector(name, CLASS_NAMES)))
        _TASKS[name] = Sure(name, teacher, spec, splits, **few)  # type: ignore[arg-type]
    return _TASKS[name]


@pytest.mark.parametrize("name", sorted(name for name, settings in ZOO.items() if not settings.fixed))
def test_detectors_for_small_images_have_smaller_anchors(name: str) -> None:
    spec = replace(small_spec(name) if known(name).torchvision else DetectorSpec(name, ("a",)), level_scale=0.25)
    sides = []
    for some in (spec, replace(spec, level_scale=1.0)):
        model: Any = some.build()
        generator = model.rpn.anchor_generator if hasattr(model, "rpn") else model.anchor_generator
        sides.append(torch.cat([cells[:, 2] - cells[:, 0] for cells in generator.cell_anchors]))
    assert sides[0].shape == sides[1].shape and abs((sides[0] / sides[1]).mean() - 0.25) < 0.03


def test_a_second_stage_trains_on_boxes_that_are_not_rounded(
    shapes_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under bfloat16, with torchvision's four losses, and on no more boxes than the spec's 12."""
    name = "fasterrcnn_mobilenet_v3_large_320_fpn"
    task = task_of(name, shapes_folder)
    model: Any = copy.deepcopy(task.teacher).train()
    kinds: list[torch.dtype] = []
    sampled: list[int] = []
    select = model.roi_heads.select_training_samples

    def note(proposals: Any, targets: Any) -> Any:
        found = select(proposals, targets)
        kinds.extend([found[0][0].dtype, found[3][0].dtype])
        sampled.extend(len(boxes) for boxes in found[0])
        return found

    monkeypatch.setattr(model.roi_heads, "select_training_samples", note)
    with torch.autocast("cpu", torch.bfloat16):
        losses = architecture_of(model).training_losses(model, task.finetuning()[0])
    assert set(losses) == {"loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg"}
    assert all(loss.isfinite() for loss in losses.values()) and set(kinds) == {torch.float32}
    assert len(sampled) == len(task.finetuning()[0].image_ids) and max(sampled) == 12
    student = Student(task, trace_layers(task))
    assert finetune_all(student, 1, bfloat16=True)  # labels and sizes stay integers


def two_stage_loss(model: Any, outputs: State, batch: Batch) -> Tensor:
    """By torchvision's modules themselves: its sample of anchors drawn with seed 0, all proposals behind."""
    images, targets = ImageList(batch.images, list(batch.image_sizes)), list(batch.targets)
    anchors = model.rpn.anchor_generator(images, outputs["features"])
    labels, objects = model.rpn.assign_targets_to_anchors(anchors, targets)
    deltas = model.rpn.box_coder.encode(objects, anchors)
    torch.manual_seed(0)
    first = model.rpn.compute_loss(
        outputs["objectness"].reshape(-1, 1), outputs["rpn_deltas"].reshape(-1, 4), labels, deltas
    )
    heads, proposals = model.roi_heads, list(outputs["proposals"])
    maps = OrderedDict((str(i), x) for i, x in enumerate(outputs["features"]))
    logits, boxes = heads.box_predictor(heads.box_head(heads.box_roi_pool(maps, proposals, images.image_sizes)))
    given = [target["boxes"] for target in targets]
    matches, classes = heads.assign_targets_to_proposals(proposals, given, [target["labels"] for target in targets])
    sought = heads.box_coder.encode([b[m] for b, m in zip(given, matches, strict=True)], proposals)
    return torch.stack([*first, *fastrcnn_loss(logits, boxes, classes, list(sought))]).sum()


@pytest.mark.parametrize("name", NAMES)
def test_losses_are_torchvisions(name: str, shapes_folder: Path) -> None:
    """Of the same outputs; the second stage's are those of its losses on the teacher's proposals."""
    task = task_of(name, shapes_folder)
    model: Any = copy.deepcopy(task.teacher)
    batch = task.finetuning()[0]
    outputs = run_stages(task.stages(model), {"images": batch.images})
    found = task.task_loss(outputs, batch)
    assert torch.equal(found, task.task_loss(outputs, batch)) and found.isfinite()
    if name in TWO_STAGES:
        torch.testing.assert_close(found, two_stage_loss(model, outputs, batch), rtol=1e-5, atol=1e-6)
        return
    losses = architecture_of(model).training_losses(model.train(), batch)
    torch.testing.assert_close(found, torch.stack(list(losses.values())).sum(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_a_student_equals_its_teacher_until_it_is_compressed(name: str, shapes_folder: Path) -> None:
    task = task_of(name, shapes_folder)
    infos = trace_layers(task)
    wanted = [n for n, m in task.teacher.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert sorted(info.name for info in infos) == sorted(wanted)
    assert len({info.block for info in infos}) > 15 and "proposals" not in {info.block for info in infos}
    student, batch, criterion = Student(task, infos), task.evaluation("search")[0], AKD()
    with torch.no_grad():
        teacher = task.distilled(run_stages(task.stages(task.teacher), {"images": batch.images}))
        same = criterion.loss(task.distilled(student.outputs(batch)), teacher)
        assert abs(same.item()) < 1e-4
        student.compress(len(infos) - 1, Choice(2, 0.5))
        outputs = student.outputs(batch)
        terms = criterion.terms(task.distilled(outputs), teacher)
        assert all(value >= -1e-4 for value in terms.values()) and max(terms.values()) > 10 * abs(same.item())
        assert ("categories" in terms) is known(name).background
    assert all(m.shape[0] == len(batch.images) for m in task.error_maps(outputs, batch))
    assert all(torch.isfinite(m).all() and (m >= 0).all() for m in task.error_maps(outputs, batch))


@pytest.mark.parametrize(
    "name",
    [pytest.param("fasterrcnn_mobilenet_v3_large_320_fpn", marks=LONG), "ssdlite320_mobilenet_v3_large"],
)
def test_a_step_and_a_file(name: str, shapes_folder: Path, tmp_path: Path) -> None:
    """Depthwise convolutions, squeeze and excitation, linear layers: choices, fine-tuning and the file."""
    task = task_of(name, shapes_folder)
    infos = trace_layers(task)
    env = HSQEnv(task, step_minibatches=1, sensitivities=np.zeros((len(infos), 12)))  # not measured
    env.reset(seed=0)
    for action in (8, 2, 6):
        _, reward, _, _, info = env.step(action)
        assert reward == pytest.approx(reward) and not info.get("diverged", False)
    student = Student(task, infos)
    for n in range(len(infos)):
        student.compress(n, Choice((2, 4, 8)[n % 3], 0.25 * (n % 4)))
    path = tmp_path / "model.hsq"
    path.write_bytes(student_bytes(student))
    loaded: Any = spec_from_json(task.describe()).build_folded()
    load_hsq(path, loaded)
    batch = task.evaluation("test")[0]
    with torch.no_grad():
        expected = student.outputs(batch)
        found = run_stages(task.stages(freeze(loaded)), {"images": batch.images})
    assert all(torch.equal(found[k], v) for k, v in expected.items() if isinstance(v, Tensor))


@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in QUICKEST else LONG) for n in NAMES])
def test_two_episodes(name: str, shapes_folder: Path) -> None:
    """A search by chance on few images: every layer of every detector takes choices, and the size is kept."""
    env = HSQEnv(task_of(name, shapes_folder), bits=(2, 8), sparsities=(0.0,), step_minibatches=1, target_ratio=6.0)
    env.action_space.seed(0)
    for episode in range(2):
        env.reset(seed=episode)
        done = False
        while not done:
            _, reward, done, _, info = env.step(env.action_space.sample())
            assert reward == reward
        assert info["ratio"] > 5.9


def test_a_teacher_file_keeps_how_images_are_prepared(tmp_path: Path) -> None:
    spec = small_spec("ssdlite320_mobilenet_v3_large")
    path = tmp_path / "teacher.safetensors"
    path.write_bytes(teacher_bytes(spec.build_folded(), spec))
    _, loaded = load_teacher(path)
    assert loaded == spec and loaded.preparation.fixed and not loaded.preparation.antialias
    usual = DetectorSpec("fcos_resnet50_quarter", ("a",))
    assert set(usual.as_json()) == {"detector", "classes", "level_scale", "min_size", "max_size", "score_thresh"}
