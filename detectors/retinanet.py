"""torchvision's RetinaNet (Lin et al. 2017, arXiv 1708.02002), cut into stages."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torchvision.models.detection import RetinaNet
from torchvision.ops import sigmoid_focal_loss

from detectors.architecture import Distillable, Matches, anchors_of, in_training, matches_of, per_place, places_of
from detectors.backbone import backbone_stages
from detectors.batches import Batch
from detectors.stages import Stage, State, per_anchor, run_tower, without


def retinanet_stages(model: RetinaNet) -> list[Stage]:
    """The forward pass from normalized images to raw outputs.

    The last stage returns ``cls_logits (N, L, classes)`` and ``bbox_regression (N, L, 4)`` with all L anchors of all
    levels, and ``features``, the maps P3 to P7.
    """
    stages = backbone_stages(model.backbone)
    head = model.head
    for name, tower, last, output, columns in (
        ("classification", head.classification_head, "cls_logits", "cls_logits", head.classification_head.num_classes),
        ("regression", head.regression_head, "bbox_reg", "bbox_regression", 4),
    ):
        for i, module in enumerate(tower.conv):
            reads = frozenset({name if i else "features"})
            run = partial(run_tower, [module], name, i == 0)
            stages.append(Stage(f"head.{name}.{i}", f"head.{name}", reads, run))
        run = partial(run_outputs, getattr(tower, last), name, output, columns)
        stages.append(Stage(f"head.{name}.out", f"head.{name}", frozenset({name}), run))
    return stages


def run_outputs(module: nn.Module, source: str, output: str, columns: int, state: State) -> State:
    """A head's last layer on every map of its tower, (N, L, columns)."""
    found = torch.cat([per_anchor(module(x), columns) for x in state[source]], dim=1)
    return {**without(state, source), output: found}


class RetinaNetArchitecture:
    """See ``detectors.architecture.Architecture``."""

    def __init__(self, teacher: RetinaNet) -> None:
        self._teacher = teacher

    def stages(self, model: RetinaNet) -> list[Stage]:
        """See ``retinanet_stages``."""
        return retinanet_stages(model)

    def assign(self, outputs: State, batch: Batch) -> Matches:
        """Anchors matched to objects as torchvision does."""
        return matches_of(self._teacher, outputs["features"], batch)

    def loss(self, outputs: State, assignment: Matches) -> Tensor:
        """Focal loss and L1 loss of boxes."""
        given = {name: outputs[name] for name in ("cls_logits", "bbox_regression")}
        losses = self._teacher.head.compute_loss(
            list(assignment.targets), given, assignment.anchors, assignment.matches
        )
        return torch.stack(list(losses.values())).sum()

    def errors(self, outputs: State, assignment: Matches) -> Tensor:
        """The focal loss, summed over classes and anchors; of anchors that are to find something or nothing."""
        matches = torch.stack(assignment.matches)
        logits = outputs["cls_logits"]
        wanted = torch.zeros_like(logits)
        for image, (target, match) in enumerate(zip(assignment.targets, matches, strict=True)):
            anchors = torch.where(match >= 0)[0]
            wanted[image, anchors, target["labels"][match[anchors]]] = 1.0
        counts = matches != self._teacher.proposal_matcher.BETWEEN_THRESHOLDS
        error = sigmoid_focal_loss(logits, wanted, reduction="none").sum(dim=-1) * counts
        return per_place(error, outputs["features"])

    def distilled(self, outputs: State) -> list[Distillable]:
        """Class logits, boxes and the pyramid's maps."""
        return [
            Distillable("cls_logits", "logits", outputs["cls_logits"]),
            Distillable("bbox_regression", "boxes", outputs["bbox_regression"]),
            *(Distillable(f"p{level}", "features", x) for level, x in enumerate(outputs["features"], start=3)),
        ]

    @torch.no_grad()
    def detect(
        self, outputs: State, image_sizes: Sequence[tuple[int, int]], padded: tuple[int, int]
    ) -> list[dict[str, Tensor]]:
        """torchvision's post-processing."""
        model, features = self._teacher, outputs["features"]
        anchors = anchors_of(model.anchor_generator, features, image_sizes, padded)
        per_location = outputs["cls_logits"].shape[1] // sum(places_of(features))
        per_level = [places * per_location for places in places_of(features)]
        split = {name: list(outputs[name].split(per_level, dim=1)) for name in ("cls_logits", "bbox_regression")}
        found: list[dict[str, Tensor]] = model.postprocess_detections(
            split, [list(a.split(per_level)) for a in anchors], list(image_sizes)
        )
        return found

    def training_losses(self, model: RetinaNet, batch: Batch) -> dict[str, Tensor]:
        """torchvision's two losses."""
        _, outputs, anchors = in_training(model, batch)
        losses: dict[str, Tensor] = model.compute_loss(list(batch.targets), outputs, anchors)
        return losses
