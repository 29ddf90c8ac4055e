"""torchvision's post-processing of FCOS in a form that can be traced for ONNX, sizes of images and all."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection import FCOS, FasterRCNN
from torchvision.models.detection._utils import _topk_min
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import nms

from detectors.errors import InputError
from detectors.stages import State

MULTIPLE = 32  # of sides, as torchvision's transform pads images; strides of locations follow from the padded sides


def check_exportable(model: nn.Module, post_processing: bool) -> None:
    """Refuse what cannot be written as ONNX.

    :raises InputError: for a detector with two stages, or for post-processing of any but FCOS
    """
    if isinstance(model, FasterRCNN):
        raise InputError(
            "A Faster R-CNN runs its second stage on boxes of the first, which no ONNX file holds: use the .hsq file."
        )
    if post_processing and not isinstance(model, FCOS):
        raise InputError("Post-processing is written for FCOS alone: leave --post-processing out.")


class TraceableDetection:
    """Padding before FCOS and its post-processing behind, see ``hsq_env.raw_outputs.PostProcessing``."""

    def prepare(self, images: Tensor) -> Tensor:
        """Padded with zeros at the right and at the bottom.

        :param images: (1, 3, H, W), normalized
        """
        height, width = images.shape[-2], images.shape[-1]
        return F.pad(images, (0, -width % MULTIPLE, 0, -height % MULTIPLE))

    def finish(self, model: FCOS, state: State, images: Tensor) -> dict[str, Tensor]:
        """See ``traceable_detections``."""
        return traceable_detections(model, state, images, self.prepare(images))


def traceable_detections(model: FCOS, state: State, images: Tensor, padded: Tensor) -> dict[str, Tensor]:
    """``FCOSArchitecture.detect`` of one image.

    :param state: of the last stage of ``fcos_stages``
    :param images: (1, 3, H, W), to which boxes are clipped
    :param padded: that the state came from
    :return: ``boxes`` (K, 4) in pixels of ``images``, ``scores`` (K,), ``labels`` (K,), best first
    """
    height, width = images.shape[-2], images.shape[-1]
    features, classes = state["features"], state["cls_logits"].shape[-1]
    anchors = model.anchor_generator(ImageList(padded, [(height, width)]), features)[0]
    scores = torch.sqrt(state["cls_logits"][0].sigmoid() * state["bbox_ctrness"][0].sigmoid())  # (L, classes)
    boxes = model.box_coder.decode(state["bbox_regression"][0], anchors)
    x, y = (boxes[:, i::2].clamp(min=0) for i in (0, 1))
    boxes = torch.stack((x.clamp(max=width), y.clamp(max=height)), dim=-1).flatten(1)
    start, places = 0, []
    for level in features:  # the best of every level alone
        end = start + level.shape[2] * level.shape[3]
        flat = scores[start:end].flatten()
        places.append(flat.topk(_topk_min(flat, model.topk_candidates, 0)).indices + start * classes)
        start = end
    place = torch.cat(places)
    kept = scores.flatten()[place]
    sure = torch.where(kept > model.score_thresh)[0]
    place, kept = place[sure], kept[sure]
    labels = place % classes
    boxes = boxes[torch.div(place, classes, rounding_mode="floor")]
    apart = labels[:, None] * (torch.maximum(*_sides(images)) + 1)  # boxes of different classes never meet
    keep = nms(boxes + apart, kept, model.nms_thresh)[: model.detections_per_img]
    return {"boxes": boxes[keep], "scores": kept[keep], "labels": labels[keep]}


def _sides(images: Tensor) -> tuple[Tensor, Tensor]:
    shape = torch._shape_as_tensor(images).to(images)
    return shape[-2], shape[-1]
