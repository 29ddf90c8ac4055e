"""FCOS with a ResNet-50-FPN from torchvision's own classes, at any width, and its forward pass cut into stages."""

from collections import OrderedDict
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.detection import FCOS
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.fcos import FCOSClassificationHead, FCOSRegressionHead
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from detectors.architecture import Distillable, anchors_of, anchors_of_batch, in_training, places_of
from detectors.backbone import PLANES, backbone_stages, resnet50
from detectors.batches import Batch
from detectors.fcos_loss import Assignment, assign, assigned_loss, classification_error
from detectors.stages import Stage, State, per_anchor, run_tower, without

EXPANSION = 4  # outer channels over inner channels
FPN_CHANNELS = 256  # at full width
BASE_ANCHOR = 8  # torchvision's anchor size, in pixels, on the finest level
CENTER_RADIUS = 1.5  # torchvision's, in strides
INITIAL_REACH = 3.0  # box sides start this many anchor sizes from a location: at 0 the ReLU behind them can die


def build_fcos(
    num_classes: int,
    width: float = 1.0,
    level_scale: float = 1.0,  # object sizes of each pyramid level over torchvision's, which suit 800-pixel images
    min_size: int = 800,  # pixels, the shorter side after resizing
    max_size: int = 1333,  # pixels, the longer side at most
    score_thresh: float = 0.05,  # detections below are dropped; mAP wants the low ones too
    detections_per_img: int = 100,
) -> FCOS:
    """FCOS-ResNet50-FPN; at ``width`` 1 its parameters have torchvision's names and shapes.

    :param num_classes: number of labels, counted from 0
    :param width: multiplies all channel counts; 0.25 gives 2.0 M parameters in the same 72 convolutions
    :param level_scale: with 0.25 the finest level takes objects reaching up to 16 pixels from a location, not 64,
        so that small images use the deep levels as well
    """
    features = round(FPN_CHANNELS * width)
    body = resnet50(width)
    channels = [round(p * width) * EXPANSION for p in PLANES[1:]]
    returned = {"layer2": "0", "layer3": "1", "layer4": "2"}
    backbone = BackboneWithFPN(body, returned, channels, features, extra_blocks=LastLevelP6P7(features, features))
    assert isinstance(backbone.body, IntermediateLayerGetter)
    sizes = tuple((BASE_ANCHOR * level_scale * 2**level,) for level in range(5))
    model = FCOS(
        backbone,
        num_classes,
        min_size=min_size,
        max_size=max_size,
        anchor_generator=AnchorGenerator(sizes, ((1.0,),) * len(sizes)),
        center_sampling_radius=CENTER_RADIUS / level_scale,
        score_thresh=score_thresh,
        detections_per_img=detections_per_img,
    )
    nn.init.constant_(model.head.regression_head.bbox_reg.bias, INITIAL_REACH)
    return model


def fcos_stages(model: FCOS) -> list[Stage]:
    """The forward pass of ``model`` from normalized images to raw outputs, in 31 stages.

    The first stage expects ``{"images": (N, 3, H, W)}``, sides multiples of 32. The last returns the head's outputs
    under torchvision's names, ``cls_logits (N, L, classes)``, ``bbox_regression (N, L, 4)``,
    ``bbox_ctrness (N, L, 1)`` with all L locations of all levels, and ``features``, the list of pyramid maps
    P3 to P7, each ``(N, channels, h, w)``.
    """
    stages = backbone_stages(model.backbone)
    head = model.head
    towers = (("classification", head.classification_head), ("regression", head.regression_head))
    for name, tower in towers:
        convs = list(tower.conv)
        for i in range(0, len(convs), 3):  # convolution, group norm, ReLU
            run = partial(run_tower, convs[i : i + 3], name, i == 0)
            reads = frozenset({"features" if i == 0 else name})
            stages.append(Stage(f"head.{name}.{i // 3}", f"head.{name}", reads, run))
        last = _run_class_logits if name == "classification" else _run_boxes
        stages.append(Stage(f"head.{name}.out", f"head.{name}", frozenset({name}), partial(last, tower)))
    return stages


def _run_class_logits(tower: FCOSClassificationHead, state: State) -> State:
    logits = torch.cat([per_anchor(tower.cls_logits(x), tower.num_classes) for x in state["classification"]], dim=1)
    return {**without(state, "classification"), "cls_logits": logits}


def _run_boxes(tower: FCOSRegressionHead, state: State) -> State:
    maps = state["regression"]
    boxes = torch.cat([per_anchor(F.relu(tower.bbox_reg(x)), 4) for x in maps], dim=1)
    centerness = torch.cat([per_anchor(tower.bbox_ctrness(x), 1) for x in maps], dim=1)
    return {**without(state, "regression"), "bbox_regression": boxes, "bbox_ctrness": centerness}


def head_outputs(state: State) -> "OrderedDict[str, Tensor]":
    """The three outputs that torchvision's loss and post-processing expect, from a final state."""
    return OrderedDict((key, state[key]) for key in ("cls_logits", "bbox_regression", "bbox_ctrness"))


class FCOSArchitecture:
    """See ``detectors.architecture.Architecture``."""

    def __init__(self, teacher: FCOS) -> None:
        self._teacher = teacher

    def stages(self, model: FCOS) -> list[Stage]:
        """See ``fcos_stages``."""
        return fcos_stages(model)

    def assign(self, outputs: State, batch: Batch) -> Assignment:
        """See ``detectors.fcos_loss.assign``."""
        features = outputs["features"]
        anchors = anchors_of_batch(self._teacher.anchor_generator, features, batch)
        return assign(self._teacher, batch.targets, anchors, places_of(features))

    def loss(self, outputs: State, assignment: Assignment) -> Tensor:
        """The sum of torchvision's three losses."""
        return assigned_loss(self._teacher, head_outputs(outputs), assignment)

    def errors(self, outputs: State, assignment: Assignment) -> Tensor:
        """The focal loss, summed over classes."""
        return classification_error(head_outputs(outputs), assignment)

    def distilled(self, outputs: State) -> list[Distillable]:
        """Class logits, boxes, centerness and the five pyramid maps."""
        return [
            Distillable("cls_logits", "logits", outputs["cls_logits"]),
            Distillable("bbox_regression", "boxes", outputs["bbox_regression"]),
            Distillable("bbox_ctrness", "centerness", outputs["bbox_ctrness"]),
            *(Distillable(f"p{level}", "features", x) for level, x in enumerate(outputs["features"], start=3)),
        ]

    @torch.no_grad()
    def detect(
        self, outputs: State, image_sizes: Sequence[tuple[int, int]], padded: tuple[int, int]
    ) -> list[dict[str, Tensor]]:
        """torchvision's post-processing."""
        features = outputs["features"]
        anchors = anchors_of(self._teacher.anchor_generator, features, image_sizes, padded)
        per_level = places_of(features)
        given = {name: list(value.split(per_level, dim=1)) for name, value in head_outputs(outputs).items()}
        found: list[dict[str, Tensor]] = self._teacher.postprocess_detections(
            given, [list(a.split(per_level)) for a in anchors], list(image_sizes)
        )
        return found

    def training_losses(self, model: FCOS, batch: Batch) -> dict[str, Tensor]:
        """torchvision's three losses."""
        features, outputs, anchors = in_training(model, batch)
        return model.compute_loss(list(batch.targets), outputs, anchors, places_of(features))
