"""torchvision's detectors cut into stages: the same parameters, the same outputs, their COCO weights."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models.detection import _utils as torchvision_utils
from torchvision.models.detection import retinanet_resnet50_fpn
from torchvision.ops.misc import FrozenBatchNorm2d
from zoo_models import (
    NAMES,
    outputs_and_detections,
    pictures,
    prepared,
    random_detector,
    small_spec,
)

from detectors import zoo
from detectors.architecture import architecture_of
from detectors.backbone import fold_batch_norm
from detectors.errors import InputError
from detectors.folder import load_folder
from detectors.shapes import CLASS_NAMES
from detectors.task import detection_task
from detectors.teacher import coco_spec, coco_teacher, load_teacher, spec_from_json, teacher_bytes
from detectors.zoo import coco_classes, known


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
