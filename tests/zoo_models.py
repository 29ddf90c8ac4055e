"""torchvision's detectors with random weights that do something, and small images for them."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from detectors.architecture import architecture_of
from detectors.batches import Batch, make_batch
from detectors.stages import State, run_stages
from detectors.teacher import DetectorSpec, coco_spec
from detectors.zoo import BACKGROUND, ZOO, known

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
