"""torchvision's SSDLite with MobileNetV3 (Liu et al. 2016, arXiv 1512.02325; Howard et al. 2019), cut into stages."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.ssd import SSD

from detectors.architecture import Distillable, Matches, anchors_of, in_training, matches_of, per_place
from detectors.backbone import run_module
from detectors.batches import Batch
from detectors.stages import Stage, State, per_anchor, without

HEADS = {"classification": "cls_logits", "regression": "bbox_regression"}  # of torchvision, and what they put out


def ssd_stages(model: SSD) -> list[Stage]:
    """The forward pass from normalized images to raw outputs.

    The last stage returns ``cls_logits (N, L, classes)`` with the background first and ``bbox_regression (N, L, 4)``
    with all L default boxes of all levels, and ``features``, the list of maps, finest first.
    """
    stages: list[Stage] = []

    def add(name: str, module: nn.Module, last: bool) -> None:
        source = "x" if stages else "images"
        run = partial(_run_and_collect, module, source) if last else partial(run_module, module, source, None)
        reads = frozenset({source, *(["features"] if last and len(stages) > 1 else [])})
        stages.append(Stage(name, name, reads, run))

    for number, part in enumerate(model.backbone.features):
        for i, module in enumerate(part):
            add(f"features.{number}.{i}", module, i == len(part) - 1)
    for number, module in enumerate(model.backbone.extra):
        add(f"extra.{number}", module, True)
    for name, output in HEADS.items():
        levels = getattr(model.head, f"{name}_head").module_list
        columns = getattr(model.head, f"{name}_head").num_columns
        for level, module in enumerate(levels):
            reads = frozenset({"features", *([output] if level else [])})
            run = partial(_run_prediction, module, level, len(levels), output, columns)
            stages.append(Stage(f"head.{name}.{level}", f"head.{name}.{level}", reads, run))
    return stages


def _run_and_collect(module: nn.Module, source: str, state: State) -> State:
    """Apply a module whose output is one of the maps that heads look at."""
    after = run_module(module, source, None, state)
    return {**after, "features": [*state.get("features", []), after["x"]]}


def _run_prediction(module: nn.Module, level: int, levels: int, output: str, columns: int, state: State) -> State:
    """One level of a head; the last one joins all."""
    found = [*state.get(output, []), per_anchor(module(state["features"][level]), columns)]
    return {**without(state, "x"), output: found if level < levels - 1 else torch.cat(found, dim=1)}


class SSDArchitecture:
    """See ``detectors.architecture.Architecture``."""

    def __init__(self, teacher: SSD) -> None:
        self._teacher = teacher

    def stages(self, model: SSD) -> list[Stage]:
        """See ``ssd_stages``."""
        return ssd_stages(model)

    def assign(self, outputs: State, batch: Batch) -> Matches:
        """Default boxes matched to objects as torchvision does."""
        return matches_of(self._teacher, outputs["features"], batch)

    def loss(self, outputs: State, assignment: Matches) -> Tensor:
        """Cross entropy with hard negatives and the smooth L1 loss of boxes."""
        return torch.stack(list(_losses(self._teacher, _raw(outputs), assignment).values())).sum()

    def errors(self, outputs: State, assignment: Matches) -> Tensor:
        """The cross entropy, summed over the boxes of a place."""
        wanted = torch.zeros(outputs["cls_logits"].shape[:2], dtype=torch.int64, device=outputs["cls_logits"].device)
        for image, (target, match) in enumerate(zip(assignment.targets, assignment.matches, strict=True)):
            boxes = torch.where(match >= 0)[0]
            wanted[image, boxes] = target["labels"][match[boxes]]
        error = F.cross_entropy(outputs["cls_logits"].transpose(1, 2), wanted, reduction="none")
        return per_place(error, outputs["features"])

    def distilled(self, outputs: State) -> list[Distillable]:
        """Class logits, boxes in units of the default boxes' sides, and the maps that heads look at."""
        units = outputs["bbox_regression"].new_tensor(self._teacher.box_coder.weights)
        return [
            Distillable("cls_logits", "categories", outputs["cls_logits"]),
            Distillable("bbox_regression", "boxes", outputs["bbox_regression"] / units),
            *(Distillable(f"map{level}", "features", x) for level, x in enumerate(outputs["features"])),
        ]

    @torch.no_grad()
    def detect(
        self, outputs: State, image_sizes: Sequence[tuple[int, int]], padded: tuple[int, int]
    ) -> list[dict[str, Tensor]]:
        """torchvision's post-processing."""
        anchors = anchors_of(self._teacher.anchor_generator, outputs["features"], image_sizes, padded)
        found: list[dict[str, Tensor]] = self._teacher.postprocess_detections(_raw(outputs), anchors, list(image_sizes))
        return found

    def training_losses(self, model: SSD, batch: Batch) -> dict[str, Tensor]:
        """torchvision's two losses."""
        features, outputs, _ = in_training(model, batch)
        return _losses(model, outputs, matches_of(model, features, batch))


def _raw(outputs: State) -> dict[str, Tensor]:
    return {name: outputs[name] for name in HEADS.values()}


def _losses(model: SSD, outputs: dict[str, Tensor], matches: Matches) -> dict[str, Tensor]:
    found: dict[str, Tensor] = model.compute_loss(list(matches.targets), outputs, matches.anchors, matches.matches)
    return found
