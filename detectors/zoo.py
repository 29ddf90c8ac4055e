"""The detectors that are known by name: torchvision's own, FCOS at a quarter of its width, and their COCO weights."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models import detection
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops.misc import FrozenBatchNorm2d

from detectors.batches import IMAGE_MEAN, IMAGE_STD, Preparation
from detectors.errors import InputError
from detectors.fcos import build_fcos

BACKGROUND = "__background__"  # torchvision's name of label 0 where it stands for nothing
RATIOS = (0.5, 1.0, 2.0)  # of the anchors' sides
MOST_SAMPLED = 512  # proposals per image in training, torchvision's


@dataclass(frozen=True)
class Wanted:
    """What is asked of a detector.

    :param classes: labels, counted from 0, the background's among them where there is one
    :param level_scale: object sizes over those that torchvision's anchors suit
    :param min_size: pixels of the shorter image side
    :param max_size: pixels of the longer image side at most
    :param score_thresh: detections below are dropped
    :param proposals: boxes per image that a second stage classifies, of which training samples no more either;
        torchvision's number when None
    """

    classes: int
    level_scale: float
    min_size: int
    max_size: int
    score_thresh: float
    proposals: int | None


@dataclass(frozen=True)
class Known:
    """A detector.

    :param build: makes it with random weights and trainable batch norm
    :param torchvision: whose weights fit it, by torchvision's name; None if none do
    :param background: whether label 0 is the background
    :param min_size: and the next three: torchvision's settings for its COCO weights
    :param fixed: whether images are stretched to a square
    :param mean: and ``std``: of images, channel by channel
    :param exact_norm: whether the COCO weights want batch norm without its small constant, as torchvision gives it them
    """

    build: Callable[[Wanted], nn.Module]
    torchvision: str | None
    background: bool = False
    min_size: int = 800
    max_size: int = 1333
    score_thresh: float = 0.05
    fixed: bool = False
    mean: tuple[float, float, float] = IMAGE_MEAN
    std: tuple[float, float, float] = IMAGE_STD
    exact_norm: bool = False

    def preparation(self, antialias: bool) -> Preparation:
        """How images are made ready."""
        return Preparation(self.fixed, antialias, self.mean, self.std)


def _fcos(width: float) -> Callable[[Wanted], nn.Module]:
    def build(wanted: Wanted) -> nn.Module:
        return build_fcos(
            wanted.classes,
            width,
            level_scale=wanted.level_scale,
            min_size=wanted.min_size,
            max_size=wanted.max_size,
            score_thresh=wanted.score_thresh,
        )

    return build


def _common(wanted: Wanted) -> dict[str, Any]:
    return {
        "weights": None,
        "weights_backbone": None,
        "num_classes": wanted.classes,
        "min_size": wanted.min_size,
        "max_size": wanted.max_size,
    }


def _retinanet(factory: Callable[..., nn.Module]) -> Callable[[Wanted], nn.Module]:
    def build(wanted: Wanted) -> nn.Module:
        model = factory(**_common(wanted), score_thresh=wanted.score_thresh)
        if wanted.level_scale != 1:
            thirds = [2 ** (i / 3) for i in range(3)]
            sizes = tuple(tuple(wanted.level_scale * 2**level * t for t in thirds) for level in range(5, 10))
            model.anchor_generator = AnchorGenerator(sizes, (RATIOS,) * len(sizes))
        return model

    return build


def _faster_rcnn(factory: Callable[..., nn.Module], per_map: bool) -> Callable[[Wanted], nn.Module]:
    """A builder.

    :param per_map: whether each map has one size of anchors, or every map all
    """

    def build(wanted: Wanted) -> nn.Module:
        arguments: dict[str, Any] = {**_common(wanted), "box_score_thresh": wanted.score_thresh}
        if wanted.proposals is not None:
            arguments["rpn_post_nms_top_n_test"] = wanted.proposals
            arguments["box_batch_size_per_image"] = min(MOST_SAMPLED, wanted.proposals)
        model: Any = factory(**arguments)
        if wanted.level_scale != 1:
            every = [wanted.level_scale * 2**level for level in range(5, 10)]
            sizes = tuple((size,) for size in every) if per_map else (tuple(every),) * 3
            model.rpn.anchor_generator = AnchorGenerator(sizes, (RATIOS,) * len(sizes))
        return model

    return build


def _ssdlite(wanted: Wanted) -> nn.Module:
    if wanted.level_scale != 1 or (wanted.min_size, wanted.max_size) != (320, 320):
        raise InputError("ssdlite320_mobilenet_v3_large takes images of 320 x 320 at a level scale of 1: drop others.")
    return detection.ssdlite320_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=wanted.classes, score_thresh=wanted.score_thresh
    )


_FULL_FCOS = Known(_fcos(1.0), "fcos_resnet50_fpn")
_HALF = (0.5, 0.5, 0.5)
ZOO: dict[str, Known] = {
    "fcos_resnet50": _FULL_FCOS,
    "fcos_resnet50_quarter": Known(_fcos(0.25), None),
    "fcos_resnet50_fpn": _FULL_FCOS,
    "retinanet_resnet50_fpn": Known(
        _retinanet(detection.retinanet_resnet50_fpn), "retinanet_resnet50_fpn", exact_norm=True
    ),
    "retinanet_resnet50_fpn_v2": Known(_retinanet(detection.retinanet_resnet50_fpn_v2), "retinanet_resnet50_fpn_v2"),
    "fasterrcnn_resnet50_fpn": Known(
        _faster_rcnn(detection.fasterrcnn_resnet50_fpn, True), "fasterrcnn_resnet50_fpn", True, exact_norm=True
    ),
    "fasterrcnn_resnet50_fpn_v2": Known(
        _faster_rcnn(detection.fasterrcnn_resnet50_fpn_v2, True), "fasterrcnn_resnet50_fpn_v2", True
    ),
    "fasterrcnn_mobilenet_v3_large_320_fpn": Known(
        _faster_rcnn(detection.fasterrcnn_mobilenet_v3_large_320_fpn, False),
        "fasterrcnn_mobilenet_v3_large_320_fpn",
        True,
        320,
        640,
    ),
    "ssdlite320_mobilenet_v3_large": Known(
        _ssdlite, "ssdlite320_mobilenet_v3_large", True, 320, 320, 0.001, True, _HALF, _HALF
    ),
}


def known(name: str) -> Known:
    """A detector by name.

    :raises InputError: if there is none of that name
    """
    if name not in ZOO:
        raise InputError(f"Unknown detector '{name}': known are {', '.join(ZOO)}.")
    return ZOO[name]


def coco_classes(name: str) -> tuple[str, ...]:
    """The labels of a detector's COCO weights.

    :raises InputError: if it has none
    """
    fits = known(name).torchvision
    if fits is None:
        raise InputError(f"torchvision has no COCO weights for '{name}': train a teacher with 'hsq teacher'.")
    return tuple(models.get_model_weights(fits).DEFAULT.meta["categories"])


def coco_weights(name: str, file: str | Path | None = None) -> dict[str, Tensor]:
    """torchvision's COCO weights of a detector.

    :param file: a state dict that torchvision published; downloaded into torch's cache when None
    :raises InputError: if the file is missing, damaged or none, or nothing can be downloaded
    """
    coco_classes(name)
    if file is None:
        try:
            weights = models.get_model_weights(str(known(name).torchvision)).DEFAULT
            return dict(weights.get_state_dict(progress=sys.stderr.isatty(), check_hash=True))
        except (URLError, OSError, RuntimeError) as error:
            raise InputError(
                f"The COCO weights of '{name}' cannot be downloaded ({error}): give a file of them with --teacher FILE."
            ) from error
    path = Path(file)
    if not path.is_file():
        raise InputError(f"There is no file {path}: give torchvision's weights of '{name}' with --teacher FILE.")
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever torch stumbles over in what is no file of its own
        raise InputError(f"{path} is no complete file of weights: download or copy it again.") from error
    if not isinstance(found, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in found.items()):
        raise InputError(f"{path} holds something else than weights: give torchvision's weights of '{name}'.")
    return found


def load_coco_weights(model: nn.Module, name: str, weights: dict[str, Tensor], source: str) -> None:
    """Put COCO weights into a detector that is not folded yet, as torchvision does.

    :param source: for the message
    :raises InputError: if they are another network's
    """
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        lines = str(error).splitlines()
        first = lines[1].strip() if len(lines) > 1 else str(error)
        raise InputError(
            f"{source} does not fit '{name}' with COCO's {len(coco_classes(name))} classes: {first}"
        ) from error
    if known(name).exact_norm:
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d | FrozenBatchNorm2d):
                module.eps = 0.0
