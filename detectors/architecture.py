"""What is particular to a kind of detector: stages, losses, what is distilled, and how outputs become detections."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.ssd import SSD
from torchvision.ops import box_iou

from detectors.batches import Batch
from detectors.errors import InputError
from detectors.stages import Stage, State


@dataclass(frozen=True)
class Distillable:
    """See ``hsq_env.task.Distilled``."""

    name: str
    kind: str
    tensor: Tensor


class Architecture(Protocol):
    """A detector's teacher, and what goes for every copy of it.

    Outputs are the last stage's state. ``assign`` depends on a batch's ground truth and not on what the student says,
    so that it may be kept for batches that come again.
    """

    def stages(self, model: Any) -> list[Stage]:
        """The forward pass of the teacher or of a copy; the first stage takes ``{"images": (N, 3, H, W)}``."""

    def assign(self, outputs: State, batch: Batch) -> Any:
        """What the outputs for a batch are to find."""

    def loss(self, outputs: State, assignment: Any) -> Tensor:
        """torchvision's losses, summed to a scalar."""

    def errors(self, outputs: State, assignment: Any) -> Tensor:
        """The classification loss per location of all pyramid maps one after the other, (N, L)."""

    def distilled(self, outputs: State) -> list[Distillable]:
        """See ``hsq_env.task.Task``."""

    def detect(
        self, outputs: State, image_sizes: Sequence[tuple[int, int]], padded: tuple[int, int]
    ) -> list[dict[str, Tensor]]:
        """torchvision's post-processing.

        :param image_sizes: (height, width) of each image without padding
        :param padded: (height, width) of the batch
        :return: per image ``boxes`` (K, 4) in resized pixels, ``scores`` (K,), ``labels`` (K,)
        """

    def training_losses(self, model: Any, batch: Batch) -> dict[str, Tensor]:
        """torchvision's losses of a detector in training mode on a prepared batch, whose images are on its device."""


def architecture_of(teacher: nn.Module) -> Architecture:
    """The architecture of one of torchvision's detectors.

    :raises InputError: if it is none that is known
    """
    # they import this module
    from detectors.faster_rcnn import FasterRCNNArchitecture
    from detectors.fcos import FCOSArchitecture
    from detectors.retinanet import RetinaNetArchitecture
    from detectors.ssd import SSDArchitecture

    kinds: dict[type[nn.Module], Any] = {
        FCOS: FCOSArchitecture,
        RetinaNet: RetinaNetArchitecture,
        SSD: SSDArchitecture,
        FasterRCNN: FasterRCNNArchitecture,
    }
    for kind, made in kinds.items():
        if isinstance(teacher, kind):
            architecture: Architecture = made(teacher)
            return architecture
    known = ", ".join(kind.__name__ for kind in kinds)
    raise InputError(f"A {type(teacher).__name__} is no detector that has stages here: known are {known}.")


def anchors_of(
    generator: nn.Module, features: Sequence[Tensor], image_sizes: Sequence[tuple[int, int]], padded: tuple[int, int]
) -> list[Tensor]:
    """torchvision's anchors of every image, (L, 4) each."""
    images = features[0].new_empty((len(image_sizes), 3, *padded))
    anchors: list[Tensor] = generator(ImageList(images, list(image_sizes)), list(features))
    return anchors


def anchors_of_batch(generator: nn.Module, features: Sequence[Tensor], batch: Batch) -> list[Tensor]:
    """The same for a batch."""
    return anchors_of(generator, features, batch.image_sizes, (batch.images.shape[2], batch.images.shape[3]))


def places_of(features: Sequence[Tensor]) -> list[int]:
    """How many places every map has."""
    return [x.shape[2] * x.shape[3] for x in features]


def per_place(values: Tensor, features: Sequence[Tensor]) -> Tensor:
    """Sums over the anchors of a place, (N, L * anchors) to (N, L); anchors are torchvision's fastest index."""
    return values.unflatten(1, (sum(places_of(features)), -1)).sum(dim=2)


@dataclass(frozen=True)
class Matches:
    """What the anchors of a batch are to find.

    :param targets: per image ``boxes`` (M, 4) and ``labels`` (M,)
    :param anchors: per image (L, 4)
    :param matches: per image the object of each anchor, (L,), negative for none
    """

    targets: tuple[dict[str, Tensor], ...]
    anchors: list[Tensor]
    matches: list[Tensor]


@torch.no_grad()
def matches_of(model: Any, features: Sequence[Tensor], batch: Batch) -> Matches:
    """Anchors matched to objects by a detector's own matcher."""
    anchors, matches = anchors_of_batch(model.anchor_generator, features, batch), []
    for target, own in zip(batch.targets, anchors, strict=True):
        if len(target["boxes"]):
            matches.append(model.proposal_matcher(box_iou(target["boxes"], own)))
        else:
            matches.append(torch.full((len(own),), -1, dtype=torch.int64, device=own.device))
    return Matches(batch.targets, anchors, matches)


def in_training(model: Any, batch: Batch) -> tuple[list[Tensor], dict[str, Tensor], list[Tensor]]:
    """Maps, the head's outputs in float32 and anchors of a detector with one stage in training mode."""
    features = list(model.backbone(batch.images).values())
    outputs = {name: value.float() for name, value in model.head(features).items()}
    return features, outputs, anchors_of_batch(model.anchor_generator, features, batch)
