"""torchvision's Faster R-CNN (Ren et al. 2015, arXiv 1506.01497), cut into stages.

The second stage classifies boxes that the first proposes. A student proposes others than its teacher, so that their
outputs would have nothing in common. Therefore the second stage of every pass, the teacher's and the student's, also
runs on the teacher's best proposals; classes and boxes are distilled and learned there. Detections come from the
student's own proposals, which are run on where no gradients are wanted.
"""

import copy
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.weak import WeakTensorKeyDictionary
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import fastrcnn_loss
from torchvision.models.detection.rpn import RegionProposalNetwork

from detectors.architecture import Distillable, anchors_of, anchors_of_batch, per_place, places_of
from detectors.backbone import backbone_stages
from detectors.batches import Batch
from detectors.stages import Stage, State, per_anchor, run_stages, run_tower, without

TAUGHT = 128  # proposals of the teacher per image, at most, on which the second stage is distilled


def extents(images: Tensor) -> Tensor:
    """(height, width) of every image without its padding, (N, 2).

    Padding is zero, and no row or column of a normalized picture is: no 8-bit value equals an image mean.

    :param images: (N, 3, H, W), zero-padded at the right and at the bottom
    """
    shown = (images != 0).any(dim=1)
    rows, columns = shown.any(dim=2), shown.any(dim=1)
    return torch.stack([lines.shape[1] - lines.flip(1).int().argmax(dim=1) for lines in (rows, columns)], dim=1)


def _sizes(extent: Tensor) -> list[tuple[int, int]]:
    return [(height, width) for height, width in extent.tolist()]


def faster_rcnn_stages(model: FasterRCNN, taught: "TeacherProposals | None" = None) -> list[Stage]:
    """The forward pass from normalized images to raw outputs.

    The last stage returns ``objectness (N, L, 1)`` and ``rpn_deltas (N, L, 4)`` with all L anchors of all levels,
    ``features``, the list of maps, and of the teacher's proposals ``proposals (N, T, 4)``, their ``proposal_labels
    (N, T)``, ``cls_logits (N, T, classes)`` with the background first and ``bbox_regression (N, T, 4 * classes)``.
    Without gradients also ``own_proposals (N, P, 4)``, ``own_logits`` and ``own_deltas``, P the most of any image;
    boxes of no size fill up.

    :param taught: where the teacher's proposals come from; none when None
    """
    first = Stage("proposals", "proposals", frozenset({"images"}), partial(_run_first, taught))
    return [first, *backbone_stages(model.backbone), *_rpn_stages(model), *_roi_stages(model)]


def _run_first(taught: "TeacherProposals | None", state: State) -> State:
    images = state["images"]
    found = {} if taught is None else taught(images)
    return {**state, **_geometry(images), **found}


def _geometry(images: Tensor) -> dict[str, Tensor]:
    """``extent`` of the images and the ``padded`` (height, width) of the batch, (2,)."""
    return {"extent": extents(images), "padded": torch.tensor(images.shape[2:], device=images.device)}


def _rpn_stages(model: FasterRCNN) -> list[Stage]:
    head = model.rpn.head
    stages = []
    for i, module in enumerate(head.conv):
        reads = frozenset({"rpn" if i else "features"})
        stages.append(Stage(f"rpn.conv.{i}", "rpn", reads, partial(run_tower, [module], "rpn", i == 0)))
    return [*stages, Stage("rpn.out", "rpn", frozenset({"rpn"}), partial(_run_rpn_outputs, head))]


def _run_rpn_outputs(head: Any, state: State) -> State:
    maps = state["rpn"]
    objectness = torch.cat([per_anchor(head.cls_logits(x), 1) for x in maps], dim=1)
    deltas = torch.cat([per_anchor(head.bbox_pred(x), 4) for x in maps], dim=1)
    return {**without(state, "rpn"), "objectness": objectness, "rpn_deltas": deltas}


def _roi_stages(model: FasterRCNN) -> list[Stage]:
    reads = frozenset({"features", "objectness", "rpn_deltas", "extent", "padded", "proposals"})
    return [
        Stage("roi.pool", "roi", reads, partial(_run_pooling, model)),
        Stage("roi.head", "roi", frozenset({"rois"}), partial(_run_head, model.roi_heads.box_head)),
        Stage("roi.out", "roi", frozenset({"rois", "proposals", "own_proposals"}), partial(_run_roi_outputs, model)),
    ]


@torch.no_grad()
def own_proposals(model: FasterRCNN, state: State) -> list[Tensor]:
    """What the first stage proposes for every image, (P, 4) each, best first."""
    features, objectness, extent = state["features"], state["objectness"], state["extent"]
    height, width = state["padded"].tolist()
    anchors = anchors_of(model.rpn.anchor_generator, features, _sizes(extent), (height, width))
    decoded = model.rpn.box_coder.decode(state["rpn_deltas"].detach().reshape(-1, 4), anchors)
    per_location = objectness.shape[1] // sum(places_of(features))
    per_level = [places * per_location for places in places_of(features)]
    boxes, _ = model.rpn.filter_proposals(
        decoded.view(len(extent), -1, 4), objectness.reshape(-1, 1), _sizes(extent), per_level
    )
    found: list[Tensor] = boxes
    return found


def _filled_up(boxes: Sequence[Tensor], count: int) -> Tensor:
    """Lists of boxes cut or filled up with boxes of no size, (N, count, 4)."""
    return torch.stack([F.pad(some[:count], (0, 0, 0, max(0, count - len(some)))) for some in boxes])


def _run_pooling(model: FasterRCNN, state: State) -> State:
    """Pieces of the maps under the teacher's proposals and, without gradients, the own ones."""
    asked = [state["proposals"]] if "proposals" in state else []
    found = {}
    if not torch.is_grad_enabled() or not asked:
        boxes = own_proposals(model, state)
        found["own_proposals"] = _filled_up(boxes, max(len(some) for some in boxes))
        asked = [*asked, found["own_proposals"]]
    levels = len(model.backbone.fpn.inner_blocks)  # pooled maps are for the first stage alone
    maps = OrderedDict((str(i), x) for i, x in enumerate(state["features"][:levels]))
    rois = model.roi_heads.box_roi_pool(maps, list(torch.cat(asked, dim=1)), _sizes(state["extent"]))
    return {**state, **found, "rois": rois}


def _run_head(head: Any, state: State) -> State:
    return {**state, "rois": head(state["rois"])}


def _run_roi_outputs(model: FasterRCNN, state: State) -> State:
    logits, deltas = model.roi_heads.box_predictor(state["rois"])
    given = [(key, state[key]) for key in ("proposals", "own_proposals") if key in state]
    images, counts = len(given[0][1]), [boxes.shape[1] for _, boxes in given]
    result = without(state, "rois", "x")
    for key, found in (("logits", logits), ("deltas", deltas)):
        parts = found.unflatten(0, (images, sum(counts))).split(counts, dim=1)
        names = {"logits": ("cls_logits", "own_logits"), "deltas": ("bbox_regression", "own_deltas")}[key]
        for (name, _), part in zip(given, parts, strict=True):
            result[names[0] if name == "proposals" else names[1]] = part
    return result


def _apart(model: FasterRCNN) -> FasterRCNN:
    """A model of its own with the very tensors of another: who watches one's modules does not see the other run."""
    tensors = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})


class TeacherProposals:
    """The teacher's best proposals for images, and the class that it gives each; kept while the images exist."""

    def __init__(self, teacher: FasterRCNN) -> None:
        self._teacher = _apart(teacher)
        self._kept = WeakTensorKeyDictionary()

    def __getstate__(self) -> dict[str, Any]:
        return {"_teacher": self._teacher}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["_teacher"])  # type: ignore[misc]

    @torch.no_grad()
    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """``proposals`` (N, T, 4) and ``proposal_labels`` (N, T)."""
        if images not in self._kept:
            with torch.autocast(images.device.type, enabled=False):
                self._kept[images] = self._make(images)
        found: dict[str, Tensor] = self._kept[images]
        return found

    def _make(self, images: Tensor) -> dict[str, Tensor]:
        model, given = self._teacher, {"images": images, **_geometry(images)}
        state = run_stages([*backbone_stages(model.backbone), *_rpn_stages(model)], given)
        state["proposals"] = _filled_up(own_proposals(model, state), min(TAUGHT, model.rpn.post_nms_top_n()))
        with torch.enable_grad():  # for the proposals given alone
            found = run_stages(_roi_stages(model), state)
        return {"proposals": state["proposals"], "proposal_labels": found["cls_logits"].detach().argmax(dim=2)}


@dataclass(frozen=True)
class Sought:
    """What both stages are to find.

    :param labels: of anchors per image, (L,): 1 object, 0 background, -1 neither
    :param deltas: from the anchors to the objects, per image (L, 4)
    :param sampled: masks (L,) per image of the anchors that count: those with and those without an object
    :param roi_labels: classes of the teacher's proposals per image, (T,), 0 for background
    :param roi_deltas: from the proposals to the objects, per image (T, 4)
    """

    labels: list[Tensor]
    deltas: Sequence[Tensor]
    sampled: tuple[list[Tensor], list[Tensor]]
    roi_labels: list[Tensor]
    roi_deltas: Sequence[Tensor]


class FasterRCNNArchitecture:
    """See ``detectors.architecture.Architecture``."""

    def __init__(self, teacher: FasterRCNN) -> None:
        self._teacher = teacher
        self._taught = TeacherProposals(teacher)

    def stages(self, model: FasterRCNN) -> list[Stage]:
        """See ``faster_rcnn_stages``."""
        return faster_rcnn_stages(model, self._taught)

    @torch.no_grad()
    def assign(self, outputs: State, batch: Batch) -> Sought:
        """Anchors and proposals matched to objects as torchvision does; the sample of anchors is always the same."""
        rpn, heads = self._teacher.rpn, self._teacher.roi_heads
        anchors = anchors_of_batch(rpn.anchor_generator, outputs["features"], batch)
        labels, objects = rpn.assign_targets_to_anchors(anchors, list(batch.targets))
        with torch.random.fork_rng():
            torch.manual_seed(0)
            sampled = rpn.fg_bg_sampler(labels)
        proposals = list(outputs["proposals"])
        boxes = [target["boxes"] for target in batch.targets]
        matches, roi_labels = heads.assign_targets_to_proposals(
            proposals, boxes, [target["labels"] for target in batch.targets]
        )
        found = [b[m] if len(b) else torch.zeros_like(p) for b, m, p in zip(boxes, matches, proposals, strict=True)]
        kept = [_with_size(p) for p in proposals]
        roi_deltas = heads.box_coder.encode(found, kept)
        return Sought(labels, rpn.box_coder.encode(objects, anchors), sampled, roi_labels, roi_deltas)

    def loss(self, outputs: State, assignment: Sought) -> Tensor:
        """The two losses of each stage."""
        sampler: Any = SimpleNamespace(fg_bg_sampler=lambda labels: assignment.sampled)
        first = RegionProposalNetwork.compute_loss(
            sampler,
            outputs["objectness"].reshape(-1, 1),
            outputs["rpn_deltas"].reshape(-1, 4),
            assignment.labels,
            list(assignment.deltas),
        )
        second = fastrcnn_loss(
            outputs["cls_logits"].flatten(0, 1),
            outputs["bbox_regression"].flatten(0, 1),
            assignment.roi_labels,
            list(assignment.roi_deltas),
        )
        return torch.stack([*first, *second]).sum()

    def errors(self, outputs: State, assignment: Sought) -> Tensor:
        """The first stage's cross entropy, summed over the anchors of a place."""
        labels = torch.stack(assignment.labels)
        objectness = outputs["objectness"].squeeze(2)
        error = F.binary_cross_entropy_with_logits(objectness, labels.clamp(min=0), reduction="none")
        return per_place(error * (labels >= 0), outputs["features"])

    def distilled(self, outputs: State) -> list[Distillable]:
        """Both stages and the maps. A proposal is an item of its own, at one place; of its boxes, its class's counts.

        Boxes are in units of the proposals' sides.
        """
        logits, labels = outputs["cls_logits"], outputs["proposal_labels"]
        deltas = outputs["bbox_regression"].unflatten(2, (-1, 4))
        own = deltas.gather(2, labels[..., None, None].expand(-1, -1, 1, 4))
        units = own.new_tensor(self._teacher.roi_heads.box_coder.weights)
        return [
            Distillable("objectness", "logits", outputs["objectness"]),
            Distillable("rpn_deltas", "boxes", outputs["rpn_deltas"]),
            Distillable("cls_logits", "categories", logits.flatten(0, 1)[:, None]),
            Distillable("bbox_regression", "boxes", own.flatten(0, 1) / units),
            *(Distillable(f"map{level}", "features", x) for level, x in enumerate(outputs["features"])),
        ]

    @torch.no_grad()
    def detect(
        self, outputs: State, image_sizes: Sequence[tuple[int, int]], padded: tuple[int, int]
    ) -> list[dict[str, Tensor]]:
        """torchvision's post-processing of the own proposals."""
        boxes, scores, labels = self._teacher.roi_heads.postprocess_detections(
            outputs["own_logits"].flatten(0, 1),
            outputs["own_deltas"].flatten(0, 1),
            list(outputs["own_proposals"]),
            list(image_sizes),
        )
        found = zip(boxes, scores, labels, strict=True)
        return [{"boxes": b, "scores": s, "labels": each} for b, s, each in found]

    def training_losses(self, model: FasterRCNN, batch: Batch) -> dict[str, Tensor]:
        """torchvision's four losses."""
        features = OrderedDict((name, x.float()) for name, x in model.backbone(batch.images).items())
        images, targets = ImageList(batch.images, list(batch.image_sizes)), list(batch.targets)
        with torch.autocast(batch.images.device.type, enabled=False):  # boxes would be rounded to whole pixels
            proposals, first = model.rpn(images, features, targets)
            _, second = model.roi_heads(features, proposals, images.image_sizes, targets)
        return {**first, **second}


def _with_size(boxes: Tensor) -> Tensor:
    """Boxes of no size made one pixel large, so that deltas from them are finite; they are background anyway."""
    empty = (boxes[:, 2:] <= boxes[:, :2]).any(dim=1, keepdim=True)
    return torch.where(empty, boxes.new_tensor([0.0, 0.0, 1.0, 1.0]), boxes)
