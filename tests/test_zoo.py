"""torchvision's detectors cut into stages: the same parameters, the same outputs, their COCO weights."""

import copy
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models.detection import _utils as torchvision_utils
from torchvision.models.detection import retinanet_resnet50_fpn
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import fastrcnn_loss
from torchvision.ops.misc import FrozenBatchNorm2d

from detectors import zoo
from detectors.architecture import architecture_of
from detectors.backbone import fold_batch_norm
from detectors.coco import Batch, CocoSplit, load_folder, make_batch
from detectors.errors import InputError
from detectors.shapes import CLASS_NAMES
from detectors.stages import State, run_stages
from detectors.task import DetectionTask, detection_task
from detectors.teacher import DetectorSpec, coco_spec, coco_teacher, freeze, load_teacher, spec_from_json, teacher_bytes
from detectors.zoo import BACKGROUND, ZOO, coco_classes, known
from hsq_env.choices import Choice
from hsq_env.distillation import AKD
from hsq_env.env import HSQEnv
from hsq_env.file import load_hsq, student_bytes
from hsq_env.finetuning import finetune_all
from hsq_env.student import Student, trace_layers

NAMES = sorted({settings.torchvision for settings in ZOO.values() if settings.torchvision})
TWO_STAGES = [name for name in NAMES if "rcnn" in name]
LONG = (pytest.mark.slow, pytest.mark.long)
QUICKEST = ("fcos_resnet50_fpn", "ssdlite320_mobilenet_v3_large")
SIZES = ((64, 96), (96, 64), (64, 64))  # of images that the small specs neither resize nor stretch, but for one


def small_spec(name: str, classes: tuple[str, ...] = ("a", "b", "c", "d")) -> DetectorSpec:
    """For small images, where the detector allows it; every detection counts."""
    sizes = (320, 320) if known(name).fixed else (64, 96)
    labels = (BACKGROUND, *classes) if known(name).background else classes
    few = 12 if name in TWO_STAGES else None
    return replace(
        coco_spec(name), classes=labels, min_size=sizes[0], max_size=sizes[1], score_thresh=0.0, proposals=few
    )


def random_detector(name: str, classes: tuple[str, ...] = ("a", "b", "c", "d")) -> nn.Module:
    """In evaluation mode, with batch norm that does something and activations that neither grow nor fade away."""
    torch.manual_seed(0)
    model: Any = small_spec(name, classes).build()
    for module in model.backbone.modules():
        if isinstance(module, nn.Conv2d) and "mobilenet" in name:
            nn.init.kaiming_normal_(module.weight)
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            nn.init.normal_(module.running_mean, 0, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.4, 0.6)
            nn.init.normal_(module.bias, 0, 0.1)
    evaluated: nn.Module = model.eval()
    return evaluated


def pictures(name: str) -> list[Tensor]:
    """uint8 images."""
    torch.manual_seed(1)
    sizes = ((320, 320),) * 2 if known(name).fixed else SIZES
    return [torch.randint(0, 256, (3, *size), dtype=torch.uint8) for size in sizes]


def prepared(name: str, images: list[Tensor]) -> Batch:
    """A batch without ground truth."""
    return make_batch(images, [{}] * len(images), list(range(len(images))), known(name).preparation(antialias=False))


@torch.no_grad()
def outputs_and_detections(model: nn.Module, batch: Batch) -> tuple[State, list[dict[str, Tensor]]]:
    """By our stages."""
    architecture = architecture_of(model)
    outputs = run_stages(architecture.stages(model), {"images": batch.images})
    return outputs, architecture.detect(outputs, batch.image_sizes, (batch.images.shape[2], batch.images.shape[3]))


@pytest.mark.parametrize("name", NAMES)
def test_parameters_are_torchvisions(name: str) -> None:
    model = coco_spec(name).build()
    counted = sum(p.numel() for p in model.parameters())
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    weights = models.get_model_weights(name).DEFAULT
    frozen = "v2" not in name and "ssdlite" not in name  # published with batch norm that is no parameter
    affine = sum(p.numel() for norm in norms for p in norm.parameters()) if frozen else 0
    assert counted - affine == weights.meta["num_params"]
    reference = getattr(models.detection, name)(weights=None, weights_backbone=None, num_classes=91)
    assert {k: v.shape for k, v in model.state_dict().items()} == {
        k: v.shape for k, v in reference.state_dict().items()
    }


@pytest.mark.parametrize("name", NAMES)
def test_detections_are_torchvisions(name: str) -> None:
    """To the last bit before folding; nothing depends on what the batch is padded with."""
    model, images = random_detector(name), pictures(name)
    with torch.no_grad():
        expected = model([image.float() / 255 for image in images])
    _, found = outputs_and_detections(model, prepared(name, images))
    for own, other in zip(found, expected, strict=True):
        assert len(other["scores"]) > 5 and own.keys() == other.keys()
        assert all(torch.equal(own[key], other[key]) for key in own)


@pytest.mark.parametrize("name", NAMES)
def test_folding_keeps_the_outputs(name: str) -> None:
    model, images = random_detector(name), pictures(name)
    batch = prepared(name, images)
    expected, _ = outputs_and_detections(model, batch)
    folded = fold_batch_norm(copy.deepcopy(model))
    assert not any(isinstance(m, nn.BatchNorm2d | FrozenBatchNorm2d) for m in folded.modules())
    found, _ = outputs_and_detections(folded, batch)
    compared = [key for key, value in expected.items() if isinstance(value, Tensor) and value.is_floating_point()]
    assert "bbox_regression" in compared
    for key in compared:
        if key.startswith("own_"):
            continue  # the order of proposals that score alike may change
        assert (found[key] - expected[key]).abs().max() <= 1e-4 * expected[key].abs().max().clamp(min=1.0), key


def test_images_are_resized_as_torchvision_does(shapes_folder: Path) -> None:
    """A detector of torchvision's with its own transform sees the same numbers, up to rounding."""
    for name, sizes in (("retinanet_resnet50_fpn", (100, 170)), ("ssdlite320_mobilenet_v3_large", (320, 320))):
        spec = replace(small_spec(name, CLASS_NAMES), min_size=sizes[0], max_size=sizes[1])
        splits = load_folder(shapes_folder, spec.classes, spec.min_size, spec.max_size, None, spec.preparation)
        split = splits["test"]
        model: Any = spec.build()
        original = load_folder(shapes_folder, spec.classes, 128, 128)["test"]  # as they lie on the disk
        images, _ = model.transform([original.pixels(i).float() / 255 for i in original.image_ids])
        batch = split.batch(split.image_ids)
        assert [tuple(size) for size in images.image_sizes] == list(batch.image_sizes)
        torch.testing.assert_close(batch.images, images.tensors, rtol=0, atol=1e-5)


# ---- COCO weights


@pytest.mark.parametrize("name", ["retinanet_resnet50_fpn", "ssdlite320_mobilenet_v3_large"])
def test_a_file_of_coco_weights_is_loaded_as_torchvision_loads_it(name: str, tmp_path: Path) -> None:
    torch.manual_seed(3)
    published: Any = getattr(models.detection, name)(weights=None, weights_backbone=None, num_classes=91)
    for norm in (m for m in published.modules() if isinstance(m, nn.BatchNorm2d)):
        assert norm.running_var is not None
        nn.init.uniform_(norm.running_var, 1e-4, 2e-4)  # so small that the constant in batch norm shows
        nn.init.constant_(norm.weight, 0.005)
    path = tmp_path / "weights.pth"
    torch.save(published.state_dict(), path)
    if known(name).exact_norm:
        torchvision_utils.overwrite_eps(published, 0.0)  # says nothing to trainable norms, hence by hand
        for norm in (m for m in published.modules() if isinstance(m, nn.BatchNorm2d)):
            norm.eps = 0.0
    model, spec = load_teacher(path, name)
    assert spec.classes == coco_classes(name) and len(spec.classes) == 91 and spec.classes[1] == "person"
    assert spec.antialias is False and spec_from_json(spec.as_json()) == spec
    batch = prepared(name, pictures(name))
    expected, _ = outputs_and_detections(published.eval(), batch)
    found, _ = outputs_and_detections(model, batch)
    scale = expected["cls_logits"].abs().max()
    assert (found["cls_logits"] - expected["cls_logits"]).abs().max() < 1e-4 * scale


def test_weights_with_frozen_norms_under_their_old_names_fit() -> None:
    """As torchvision published the first versions: no count of batches, convolutions of the pyramid not in a block."""
    torch.manual_seed(3)
    model = retinanet_resnet50_fpn(weights=None, weights_backbone=None, num_classes=91)
    state = {name: value for name, value in model.state_dict().items() if not name.endswith("num_batches_tracked")}
    old = {}
    for name, value in state.items():
        for part in ("inner_blocks", "layer_blocks"):
            if f"fpn.{part}" in name:
                name = name.replace(".0.weight", ".weight").replace(".0.bias", ".bias")
        if "head.conv" in name or "_head.conv." in name:
            stem, number, inner, kind = name.rsplit(".", 3)
            name = f"{stem}.{2 * int(number)}.{kind}" if inner == "0" else name
        old[name] = value
    assert set(old) != set(state)
    fresh = coco_spec("retinanet_resnet50_fpn").build()
    zoo.load_coco_weights(fresh, "retinanet_resnet50_fpn", old, "here")
    assert all(torch.equal(fresh.state_dict()[name], value) for name, value in state.items())


def test_weights_that_do_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    with pytest.raises(InputError, match="does not say which detector it is of: name it"):
        load_teacher(path)
    with pytest.raises(InputError, match=r"There is no file .*weights.pth"):
        load_teacher(path, "retinanet_resnet50_fpn")
    torch.save(nn.Linear(2, 2).state_dict(), path)
    with pytest.raises(InputError, match=r"weights.pth does not fit 'retinanet_resnet50_fpn' with COCO's 91 classes: "):
        load_teacher(path, "retinanet_resnet50_fpn")
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(InputError, match="is no complete file of weights: download or copy it again"):
        load_teacher(path, "retinanet_resnet50_fpn")
    path.write_bytes(teacher_bytes(nn.Linear(2, 2), small_spec("retinanet_resnet50_fpn")))
    with pytest.raises(InputError, match="is no complete file of weights: download or copy it again"):
        load_teacher(path, "retinanet_resnet50_fpn")
    torch.save({1: torch.zeros(1)}, path)
    with pytest.raises(InputError, match="holds something else than weights"):
        load_teacher(path, "retinanet_resnet50_fpn")
    torch.save([1, 2], path)
    with pytest.raises(InputError, match="holds something else than weights"):
        load_teacher(path, "retinanet_resnet50_fpn")
    with pytest.raises(InputError, match="torchvision has no COCO weights for 'fcos_resnet50_quarter'"):
        coco_teacher("fcos_resnet50_quarter")


def test_without_a_network_a_sentence_says_so(monkeypatch: pytest.MonkeyPatch, shapes_folder: Path) -> None:
    def offline(*args: Any, **kwargs: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(InputError, match=r"cannot be downloaded \(no route to host\): give a file .* --teacher FILE"):
        detection_task(shapes_folder, "retinanet_resnet50_fpn_v2")


def test_the_embedded_data_has_one_teacher() -> None:
    with pytest.raises(InputError, match="embedded data has no teacher 'fasterrcnn_resnet50_fpn': give --dataset and"):
        detection_task(detector="fasterrcnn_resnet50_fpn")


def test_other_detectors_are_refused() -> None:
    with pytest.raises(
        InputError, match="A Linear is no detector that has stages here: known are FCOS, RetinaNet, SSD"
    ):
        architecture_of(nn.Linear(1, 1))
    with pytest.raises(InputError, match="320 x 320"):
        replace(small_spec("ssdlite320_mobilenet_v3_large"), min_size=300).build()


# ---- as tasks


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
    """On eight images; made once per detector."""
    if name not in _TASKS:
        spec = small_spec(name, CLASS_NAMES)
        splits: dict[str, CocoSplit] = load_folder(
            folder, spec.classes, spec.min_size, spec.max_size, None, spec.preparation
        )
        few = {"search_images": 4, "pool_images": 2, "calibration_images": 1, "batch_size": 2}
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
    env = HSQEnv(task, finetune_steps=1)
    env.reset(seed=0)
    for action in (8, 2, 6):
        _, reward, _, _, info = env.step(action)
        assert reward == pytest.approx(reward) and not info.get("diverged", False)
    infos = trace_layers(task)
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
    """A search by chance on eight images: every layer of every detector takes choices, and the size is kept."""
    env = HSQEnv(task_of(name, shapes_folder), bits=(2, 8), sparsities=(0.0,), finetune_steps=1, target_ratio=6.0)
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
