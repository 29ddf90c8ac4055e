"""A detector of one's own in HSQ: a network written from scratch, an adapter of sixty lines, and a search.

    python -m examples.own_detector --out runs/own

The network looks at an image once and says for every 8x8 cell what is there and how far its sides are. HSQ knows
nothing of it but what ``Adapter`` says; the data, mAP, batches and files around it are ``DetectionTask``'s.
"""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import batched_nms, generalized_box_iou_loss, sigmoid_focal_loss

from agents.explorer import Explorer
from agents.search import search
from agents.tables import print_table
from detectors.architecture import Distillable
from detectors.backbone import fold_batch_norm
from detectors.batches import Batch
from detectors.coco import CocoSplit
from detectors.folder import load_folder
from detectors.shapes import CLASS_NAMES
from detectors.stages import Stage, State, run_stages
from detectors.task import DetectionTask, shapes_folder
from detectors.teacher import DetectorSpec, freeze
from detectors.train import augmented_batch

STRIDE, SIDE = 8, 128  # pixels: of a cell, of an image
CHANNELS, STRIDES, DILATIONS = (3, 24, 48, 96, 96, 96, 96), (2, 2, 2, 1, 1, 1), (1, 1, 1, 1, 2, 4)
SCORE, OVERLAP, MOST = 0.05, 0.6, 100  # of detections: the least score, what counts as the same object, their number


class OneShot(nn.Module):
    """Six convolutions with batch norm and two heads."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.body = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, stride, dilation, dilation), nn.BatchNorm2d(b), nn.ReLU())
            for a, b, stride, dilation in zip(CHANNELS, CHANNELS[1:], STRIDES, DILATIONS, strict=False)
        )
        self.logits = nn.Conv2d(CHANNELS[-1], classes, 3, padding=1)
        self.sides = nn.Conv2d(CHANNELS[-1], 4, 3, padding=1)
        for head, start in ((self.logits, -4.0), (self.sides, 2.0)):  # objects are rare, and a few cells large
            assert head.bias is not None
            nn.init.constant_(head.bias, start)


# ---- the adapter: see detectors.architecture.Architecture


def run_layer(layer: nn.Module, state: State) -> State:
    """A piece of the body."""
    return {"x": layer(state["x"] if "x" in state else state["images"])}


def run_heads(model: OneShot, state: State) -> State:
    """``cls_logits`` (N, L, classes) and ``sides`` (N, L, 4), in cells: left, top, right, bottom."""
    logits, sides = (head(state["x"]).flatten(2).transpose(1, 2) for head in (model.logits, model.sides))
    return {"features": [state["x"]], "cls_logits": logits, "sides": F.softplus(sides)}


class Adapter:
    """What HSQ has to know of the network."""

    def stages(self, model: OneShot) -> list[Stage]:
        """The forward pass in pieces; ``reads=None`` is always right."""
        pieces = [Stage(f"body.{i}", f"body.{i}", None, partial(run_layer, x)) for i, x in enumerate(model.body)]
        return [*pieces, Stage("heads", "heads", None, partial(run_heads, model))]

    def assign(self, outputs: State, batch: Batch) -> dict[str, Tensor]:
        """The smallest object that covers a cell's middle is the cell's."""
        middles = centers(outputs["features"][0])
        classes, boxes = torch.zeros_like(outputs["cls_logits"]), torch.zeros_like(outputs["sides"])
        for image, target in enumerate(batch.targets):
            areas = (target["boxes"][:, 2:] - target["boxes"][:, :2]).prod(dim=1)
            for number in areas.argsort(descending=True).tolist():  # smaller ones overwrite larger ones
                x0, y0, x1, y1 = target["boxes"][number]
                inside = (middles[:, 0] > x0) & (middles[:, 0] < x1) & (middles[:, 1] > y0) & (middles[:, 1] < y1)
                boxes[image, inside] = target["boxes"][number]
                classes[image, inside] = F.one_hot(target["labels"][number], classes.shape[2]).float()
        return {"classes": classes, "boxes": boxes, "found": classes.amax(dim=2) > 0}

    def loss(self, outputs: State, assignment: dict[str, Tensor]) -> Tensor:
        """Focal loss and generalized IoU."""
        found = assignment["found"]
        count = found.sum().clamp(min=1)
        classification = sigmoid_focal_loss(outputs["cls_logits"], assignment["classes"], reduction="sum")
        boxes = decoded(outputs)[found]
        return (classification + generalized_box_iou_loss(boxes, assignment["boxes"][found], reduction="sum")) / count

    def errors(self, outputs: State, assignment: dict[str, Tensor]) -> Tensor:
        """Per cell, for SPARK's policy."""
        return sigmoid_focal_loss(outputs["cls_logits"], assignment["classes"], reduction="none").sum(dim=-1)

    def distilled(self, outputs: State) -> list[Distillable]:
        """What a student learns from its teacher."""
        named = (("cls_logits", "logits", outputs["cls_logits"]), ("sides", "boxes", outputs["sides"]))
        return [*(Distillable(*some) for some in named), Distillable("x", "features", outputs["features"][0])]

    def detect(
        self, outputs: State, image_sizes: Sequence[tuple[int, int]], padded: tuple[int, int]
    ) -> list[dict[str, Tensor]]:
        """The best cells, overlaps of one class suppressed."""
        found = []
        for scores, boxes in zip(outputs["cls_logits"].sigmoid(), decoded(outputs), strict=True):
            cells, labels = torch.where(scores > SCORE)
            kept = batched_nms(boxes[cells], scores[cells, labels], labels, OVERLAP)[:MOST]
            cells, labels = cells[kept], labels[kept]
            found.append({"boxes": boxes[cells], "scores": scores[cells, labels], "labels": labels})
        return found

    def training_losses(self, model: OneShot, batch: Batch) -> dict[str, Tensor]:
        """For ``fit`` below."""
        outputs = run_stages(self.stages(model), {"images": batch.images})
        return {"loss": self.loss(outputs, self.assign(outputs, batch))}


def centers(features: Tensor) -> Tensor:
    """The middles of all cells, (L, 2), in pixels."""
    y, x = (torch.arange(side) * STRIDE + STRIDE / 2 for side in features.shape[2:])
    return torch.stack([x.repeat(len(y)), y.repeat_interleave(len(x))], dim=1).to(features.device)


def decoded(outputs: State) -> Tensor:
    """Boxes (N, L, 4) in pixels."""
    middles, sides = centers(outputs["features"][0]), STRIDE * outputs["sides"]
    return torch.cat([middles - sides[..., :2], middles + sides[..., 2:]], dim=2)


# ---- a teacher, and a search


def fit(model: OneShot, split: CocoSplit, steps: int) -> None:
    """Train from random weights."""
    adapter, optimizer = Adapter(), torch.optim.AdamW(model.parameters(), 4e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    for step in range(steps):
        rng = np.random.default_rng(step)
        picked = [split.image_ids[i] for i in rng.integers(len(split), size=16)]
        loss = adapter.training_losses(model, augmented_batch(split, picked, rng))["loss"]
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        schedule.step()


def own_task(steps: int, splits: dict[str, CocoSplit], **settings: Any) -> DetectionTask:
    """A trained ``OneShot`` with data."""
    torch.manual_seed(0)
    model = OneShot(len(CLASS_NAMES))
    fit(model, splits["train"], steps)
    spec = DetectorSpec("one_shot", CLASS_NAMES, min_size=SIDE, max_size=SIDE)  # what its files say of it
    return DetectionTask("shapes", freeze(fold_batch_norm(model)), spec, splits, architecture=Adapter(), **settings)


def main() -> None:
    """Train, search, print."""
    parser = argparse.ArgumentParser(description="Make a detector of one's own small.")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1500, help="of the teacher's training")
    parser.add_argument("--algo", default="ilp_repaired")
    parser.add_argument("--target-ratio", type=float, default=8.0)
    arguments = parser.parse_args()
    splits = load_folder(shapes_folder(), CLASS_NAMES, SIDE, SIDE)
    task = own_task(arguments.steps, splits)
    explorer = Explorer(arguments.algo, episodes=20)
    print_table(search(task, arguments.out, explorer, arguments.target_ratio), arguments.out)


if __name__ == "__main__":
    main()
