"""FCOS's loss in two halves against torchvision's in one."""

import pytest
import torch
from torch import Tensor
from torchvision.models.detection import FCOS
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import generalized_box_iou_loss

from detectors.fcos import build_fcos
from detectors.fcos_loss import Assignment, assign, assigned_loss, generalized_iou

PADDED = (96, 128)
SIDES = [(12, 16), (6, 8), (3, 4), (2, 2), (1, 1)]
PER_LEVEL = [h * w for h, w in SIDES]
CLASSES = 5


@pytest.fixture(scope="module")
def model() -> FCOS:
    return build_fcos(CLASSES, width=0.25, level_scale=0.25, min_size=96, max_size=128)


def random_targets(counts: list[int], seed: int) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    targets = []
    for count in counts:
        corner = torch.rand(count, 2, generator=generator) * torch.tensor([90.0, 60.0])
        size = torch.rand(count, 2, generator=generator) * 60 + 2
        labels = torch.randint(0, CLASSES, (count,), generator=generator)
        targets.append({"boxes": torch.cat([corner, corner + size], dim=1), "labels": labels})
    return targets


def random_outputs(images: int, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"cls_logits": CLASSES, "bbox_regression": 4, "bbox_ctrness": 1}
    made = {k: torch.randn(images, sum(PER_LEVEL), d, generator=generator) for k, d in shapes.items()}
    made["bbox_regression"] = made["bbox_regression"].relu()
    return {name: value.requires_grad_(True) for name, value in made.items()}


def anchors_of(model: FCOS, images: int) -> list[Tensor]:
    batch = ImageList(torch.zeros(images, 3, *PADDED), [PADDED] * images)
    anchors: list[Tensor] = model.anchor_generator(batch, [torch.zeros(images, 1, h, w) for h, w in SIDES])
    return anchors


@pytest.mark.parametrize("counts", [[3], [1, 0, 7, 2], [0, 0], [30, 1]], ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_value_and_gradients_are_torchvisions(model: FCOS, counts: list[int], seed: int) -> None:
    targets, anchors = random_targets(counts, seed), anchors_of(model, len(counts))
    one, other = random_outputs(len(counts), seed), random_outputs(len(counts), seed)
    made = assign(model, targets, anchors, PER_LEVEL)
    found = assigned_loss(model, one, made)
    expected = torch.stack(list(model.compute_loss(targets, other, anchors, PER_LEVEL).values())).sum()
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    found.backward()
    expected.backward()
    for name in one:
        (mine, theirs) = one[name].grad, other[name].grad
        assert mine is not None and theirs is not None
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-8)
    assert (len(made.locations) > 0) == (sum(counts) > 0)


def test_the_second_half_reads_nothing_back(model: FCOS) -> None:
    """The meta device has no values to read."""
    made = assign(model, random_targets([4, 2], 0), anchors_of(model, 2), PER_LEVEL)
    on_meta = Assignment(**{name: value.to("meta") for name, value in vars(made).items()})
    outputs = {name: value.detach().to("meta").requires_grad_(True) for name, value in random_outputs(2, 0).items()}
    loss = assigned_loss(model, outputs, on_meta)
    loss.backward()
    assert loss.device.type == "meta" and all(value.grad is not None for value in outputs.values())


def test_overlap_is_torchvisions() -> None:
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(2, 500, 2, generator=generator) * 20
    one, other = torch.cat([corners, corners + torch.rand(2, 500, 2, generator=generator) * 15], dim=2)
    expected = 1 - generalized_box_iou_loss(one, other)
    torch.testing.assert_close(generalized_iou(one, other), expected, rtol=1e-5, atol=1e-6)
    assert expected.min() < -0.5 and expected.max() > 0.5


def test_what_is_matched(model: FCOS) -> None:
    """One box around the middle of a location of the finest level, and nothing else in the image."""
    target = {"boxes": torch.tensor([[12.0, 12.0, 22.0, 22.0]]), "labels": torch.tensor([3])}
    made = assign(model, [target], anchors_of(model, 1), PER_LEVEL)
    assert made.classes.sum() == len(made.locations) > 0
    assert (made.classes[0, made.locations, 3] == 1).all()
    assert (made.boxes == target["boxes"]).all() and made.anchors.shape == made.boxes.shape
    assert ((made.centerness > 0) & (made.centerness <= 1)).all()
