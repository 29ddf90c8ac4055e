"""FCOS with a ResNet-50-FPN from torchvision's own classes, at any width, and its forward pass cut into stages."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.detection import FCOS
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.fcos import FCOSClassificationHead, FCOSRegressionHead
from torchvision.models.resnet import Bottleneck, ResNet
from torchvision.ops.feature_pyramid_network import LastLevelP6P7
from torchvision.ops.misc import FrozenBatchNorm2d

BLOCKS = (3, 4, 6, 3)  # bottlenecks per ResNet-50 stage
PLANES = (64, 128, 256, 512)  # inner channels per stage at full width
EXPANSION = 4  # outer channels over inner channels
FPN_CHANNELS = 256  # at full width
BASE_ANCHOR = 8  # torchvision's anchor size, in pixels, on the finest level
CENTER_RADIUS = 1.5  # torchvision's, in strides
INITIAL_REACH = 3.0  # box sides start this many anchor sizes from a location: at 0 the ReLU behind them can die

State = dict[str, Any]


@dataclass(frozen=True)
class Stage:
    """One piece of a forward pass.

    ``run`` takes the state that the previous stage returned (tensors or lists of tensors by name) and returns a new
    one, leaving its argument as it was; ``reads`` names the keys that it looks at. Consecutive stages of one ``block``
    are fine-tuned together.
    """

    name: str
    block: str
    reads: frozenset[str] | None
    run: Callable[[State], State]


def resnet50(width: float = 1.0) -> ResNet:
    """torchvision's ResNet-50 with every channel count multiplied by ``width``; batch norm is trainable."""
    net = ResNet(Bottleneck, list(BLOCKS) if width == 1 else [1, 1, 1, 1])
    if width == 1:
        return net
    net.inplanes = round(PLANES[0] * width)
    net.conv1 = nn.Conv2d(3, net.inplanes, kernel_size=7, stride=2, padding=3, bias=False)
    net.bn1 = nn.BatchNorm2d(net.inplanes)
    for i, (planes, blocks) in enumerate(zip(PLANES, BLOCKS, strict=True)):
        stage = net._make_layer(Bottleneck, round(planes * width), blocks, stride=1 if i == 0 else 2)
        setattr(net, f"layer{i + 1}", stage)
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return net


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


def fold_batch_norm(model: nn.Module) -> nn.Module:
    """Fold every batch norm of a ResNet body into the convolution before it, in place; outputs in eval mode stay.

    :param model: holds ``(convN, bnN)`` siblings and ``downsample`` pairs, as torchvision's ResNet names them
    :return: ``model``
    """
    model.eval()
    for module in list(model.modules()):
        children = list(module.named_children())
        for (conv_name, conv), (norm_name, norm) in pairwise(children):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d | FrozenBatchNorm2d):
                if isinstance(norm, FrozenBatchNorm2d):
                    norm.requires_grad_(False)
                setattr(module, conv_name, fuse_conv_bn_eval(conv, norm))
                setattr(module, norm_name, nn.Identity())
    return model


def fcos_stages(model: FCOS) -> list[Stage]:
    """The forward pass of ``model`` from normalized images to raw outputs, in 31 stages.

    The first stage expects ``{"images": (N, 3, H, W)}``, sides multiples of 32. The last returns the head's outputs
    under torchvision's names, ``cls_logits (N, L, classes)``, ``bbox_regression (N, L, 4)``,
    ``bbox_ctrness (N, L, 1)`` with all L locations of all levels, and ``features``, the list of pyramid maps
    P3 to P7, each ``(N, channels, h, w)``.
    """
    body, fpn = model.backbone.body, model.backbone.fpn
    stages = [Stage("stem", "stem", frozenset({"images"}), partial(_run_stem, body))]
    for number in range(1, 5):
        for i, bottleneck in enumerate(body[f"layer{number}"]):
            kept = f"c{number + 1}" if number > 1 and i == BLOCKS[number - 1] - 1 else None
            name = f"layer{number}.{i}"
            stages.append(Stage(name, name, frozenset({"x"}), partial(_run_bottleneck, bottleneck, kept)))
    for level in (5, 4, 3):
        inner, outer = fpn.inner_blocks[level - 3], fpn.layer_blocks[level - 3]
        reads = frozenset({f"c{level}"} if level == 5 else {f"c{level}", "top_down", "features"})
        stages.append(Stage(f"fpn.p{level}", f"fpn.p{level}", reads, partial(_run_pyramid, inner, outer, level)))
    extra = partial(_run_extra_levels, fpn.extra_blocks)
    stages.append(Stage("fpn.p6p7", "fpn.p6p7", frozenset({"features"}), extra))
    head = model.head
    towers = (("classification", head.classification_head), ("regression", head.regression_head))
    for name, tower in towers:
        convs = list(tower.conv)
        for i in range(0, len(convs), 3):  # convolution, group norm, ReLU
            run = partial(_run_tower, convs[i : i + 3], name, i == 0)
            reads = frozenset({"features" if i == 0 else name})
            stages.append(Stage(f"head.{name}.{i // 3}", f"head.{name}", reads, run))
        last = _run_class_logits if name == "classification" else _run_boxes
        stages.append(Stage(f"head.{name}.out", f"head.{name}", frozenset({name}), partial(last, tower)))
    return stages


def _without(state: State, *names: str) -> State:
    return {key: value for key, value in state.items() if key not in names}


def _run_stem(body: nn.ModuleDict, state: State) -> State:
    x = body["relu"](body["bn1"](body["conv1"](state["images"])))
    return {"x": body["maxpool"](x)}


def _run_bottleneck(bottleneck: nn.Module, kept: str | None, state: State) -> State:
    x = bottleneck(state["x"])
    return {**state, "x": x, **({kept: x} if kept else {})}


def _run_pyramid(inner: nn.Module, outer: nn.Module, level: int, state: State) -> State:
    lateral = inner(state[f"c{level}"])
    if level < 5:
        lateral = lateral + F.interpolate(state["top_down"], size=lateral.shape[-2:], mode="nearest")
    kept = _without(state, "x", f"c{level}", "top_down")
    features = [outer(lateral), *state.get("features", [])]
    return {**kept, "features": features, **({"top_down": lateral} if level > 3 else {})}


def _run_extra_levels(extra: nn.Module, state: State) -> State:
    features, _ = extra(list(state["features"]), list(state["features"]), [])  # P6 and P7 come from P5
    return {"features": features}


def _run_tower(modules: Sequence[nn.Module], name: str, first: bool, state: State) -> State:
    maps = state["features"] if first else state[name]
    for module in modules:
        maps = [module(x) for x in maps]
    return {**state, name: maps}


def _per_location(x: Tensor, columns: int) -> Tensor:
    """(N, columns, H, W) to (N, H * W, columns); FCOS has one anchor per location."""
    return x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, columns)


def _run_class_logits(tower: FCOSClassificationHead, state: State) -> State:
    logits = torch.cat([_per_location(tower.cls_logits(x), tower.num_classes) for x in state["classification"]], dim=1)
    return {**_without(state, "classification"), "cls_logits": logits}


def _run_boxes(tower: FCOSRegressionHead, state: State) -> State:
    maps = state["regression"]
    boxes = torch.cat([_per_location(F.relu(tower.bbox_reg(x)), 4) for x in maps], dim=1)
    centerness = torch.cat([_per_location(tower.bbox_ctrness(x), 1) for x in maps], dim=1)
    return {**_without(state, "regression"), "bbox_regression": boxes, "bbox_ctrness": centerness}


def run_stages(stages: Sequence[Stage], state: State) -> State:
    """Run consecutive stages."""
    for stage in stages:
        state = stage.run(state)
    return state


def head_outputs(state: State) -> "OrderedDict[str, Tensor]":
    """The three outputs that torchvision's loss and post-processing expect, from a final state."""
    return OrderedDict((key, state[key]) for key in ("cls_logits", "bbox_regression", "bbox_ctrness"))
