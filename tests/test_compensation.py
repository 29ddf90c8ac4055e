"""Rounding with compensation: against brute force, in every kind of layer, and on whole plans."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from helpers import random_plan
from test_restoration_task import DENOISING, ENLARGING, make
from tiny_task import TinyTask
from torch import Tensor, nn
from torch.nn import functional as F

from hsq_env.choices import Choice, Plan
from hsq_env.compensation import Moments, apply_plan, columns_of, compensated, usual_rounding
from hsq_env.layer_info import trace_layers
from hsq_env.layers import CompressedLayer, make_compressible
from hsq_env.quantizers import dequantize, quantize, weight_levels
from hsq_env.student import Student


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def correlated(features: int, samples: int, seed: int = 0) -> Tensor:
    """(features, samples): a few directions dominate, as in a network."""
    return noise(features, 3, seed=seed) @ noise(3, samples, seed=seed + 1) + 0.1 * noise(features, samples, seed=2)


def linear(features: int, outputs: int, choice: Choice, bias: bool = False) -> CompressedLayer:
    torch.manual_seed(0)
    layer = make_compressible(nn.Linear(features, outputs, bias=bias))
    assert isinstance(layer, CompressedLayer)
    layer.compress(choice, (), "unstructured")
    return layer


LAYERS: dict[str, Any] = {
    "plain": (lambda: nn.Conv2d(3, 4, 3, padding=1), (2, 3, 6, 7)),
    "strided": (lambda: nn.Conv2d(3, 4, 3, stride=2, padding=1, bias=False), (2, 3, 7, 7)),
    "dilated": (lambda: nn.Conv2d(2, 4, 3, dilation=2), (1, 2, 9, 9)),
    "same": (lambda: nn.Conv2d(2, 4, 3, padding="same"), (1, 2, 5, 5)),
    "reflecting": (lambda: nn.Conv2d(2, 4, 3, padding=1, padding_mode="reflect"), (1, 2, 5, 5)),
    "grouped": (lambda: nn.Conv2d(4, 6, 3, groups=2), (2, 4, 6, 6)),
    "depthwise": (lambda: nn.Conv2d(4, 4, 3, groups=4), (2, 4, 6, 6)),
    "linear": (lambda: nn.Linear(5, 3), (2, 7, 5)),
}


@pytest.mark.parametrize("kind", LAYERS)
@torch.no_grad()
def test_columns_times_weights_are_what_the_layer_puts_out(kind: str) -> None:
    make_layer, shape = LAYERS[kind]
    layer, x = make_layer(), noise(*shape)
    columns = columns_of(layer, x)
    weight = layer.weight.reshape(len(columns), -1, columns.shape[1])
    rows = weight @ columns
    expected = layer(x) if layer.bias is None else layer(x) - layer.bias.reshape(-1, *[1] * (x.dim() == 4) * 2)
    flat = expected.transpose(0, 1).flatten(1) if x.dim() == 4 else expected.flatten(0, -2).T
    torch.testing.assert_close(rows.flatten(0, 1), flat, atol=1e-5, rtol=1e-5)


def moments_of(layer: CompressedLayer, x: Tensor, y: Tensor) -> Moments:
    found = Moments()
    found.add(x[None], y[None])
    return found


def test_moments_are_numpys() -> None:
    x, y = noise(4, 50), noise(2, 50, seed=1)
    found = Moments()
    found.add(x[None, :, :20], y[None, :, :20])
    found.add(x[None, :, 20:], y[None, :, 20:])
    mean_x, mean_y, xx, yx = (m[0].numpy() for m in found.centered(True))
    joint = np.cov(np.vstack([x, y]), bias=True)
    np.testing.assert_allclose(mean_x, x.mean(1), atol=1e-6)
    np.testing.assert_allclose(mean_y, y.mean(1), atol=1e-6)
    np.testing.assert_allclose(xx, joint[:4, :4], atol=1e-5)
    np.testing.assert_allclose(yx, joint[4:, :4], atol=1e-5)
    np.testing.assert_allclose(found.centered(False)[2][0], x @ x.T / 50, atol=1e-5)


@torch.no_grad()
def error_of(weight: Tensor, x: Tensor, y: Tensor) -> float:
    return float((weight @ x - y).square().sum())


@pytest.mark.parametrize("choice", [Choice(2, 0.0), Choice(2, 0.5), Choice(4, 0.25), Choice(4, 0.75), Choice(8, 0.0)])
@torch.no_grad()
def test_outputs_come_nearer_than_with_nearest_codes(choice: Choice) -> None:
    x = correlated(24, 400)
    layer = linear(24, 8, choice)
    y = layer.weight @ x
    assert layer.stored_weight is not None
    nearest = error_of(layer.stored_weight, x, y)
    found = compensated(layer, "unstructured", moments_of(layer, x, y))
    layer.weight.copy_(found.weight)
    layer.compress(choice, (), "unstructured", found.variant)
    assert error_of(layer.stored_weight, x, y) < 0.7 * nearest
    if choice.sparsity:
        assert found.variant.mask is not None
        assert int((~found.variant.mask).sum()) == round(choice.sparsity * layer.weight.numel())


@torch.no_grad()
def test_near_the_best_of_all_codes() -> None:
    """Five weights at 2 bits: all 4**5 codes can be tried."""
    x = correlated(5, 200)
    choice = Choice(2, 0.0)
    layer = linear(5, 3, choice)
    y = layer.weight @ x
    found = compensated(layer, "unstructured", moments_of(layer, x, y))
    levels, scale = weight_levels(choice), found.variant.scale
    codes = torch.tensor(list(itertools.product(range(levels.low, levels.high + 1), repeat=5)), dtype=torch.int8)
    for row in range(3):
        own = quantize(found.weight[row : row + 1], scale[row : row + 1], levels)
        error = error_of(dequantize(own, scale[row : row + 1], levels), x, y[row : row + 1])
        candidates = (codes.float() + levels.offset) * scale[row]
        errors = (candidates @ x - y[row]).square().sum(dim=1)
        assert (errors < error).float().mean() < 0.05


@torch.no_grad()
def test_the_bias_takes_the_mean_error() -> None:
    x = correlated(12, 300) + 2.0
    choice = Choice(2, 0.0)
    layer = linear(12, 4, choice, bias=True)
    y = F.linear(x.T, layer.weight, layer.bias).T
    found = compensated(layer, "unstructured", moments_of(layer, x, y))
    rounded = dequantize(
        quantize(found.weight, found.variant.scale, weight_levels(choice)), found.variant.scale, weight_levels(choice)
    )
    assert found.bias is not None
    off = (rounded @ x + found.bias[:, None] - y).mean(dim=1)
    assert off.abs().max() < 1e-3


@torch.no_grad()
def test_it_aims_at_what_the_teacher_put_out() -> None:
    """Where the input is damaged in a way that a layer can undo, it does."""
    clean = noise(6, 500)
    mixing = torch.eye(6) + 0.3 * noise(6, 6, seed=3)
    choice = Choice(8, 0.0)
    layer = linear(6, 4, choice)
    y = layer.weight @ clean
    assert layer.stored_weight is not None
    before = error_of(layer.stored_weight, mixing @ clean, y)
    found = compensated(layer, "unstructured", moments_of(layer, mixing @ clean, y))
    assert error_of(found.weight, mixing @ clean, y) < 0.05 * before


@pytest.mark.parametrize("spec", [DENOISING, ENLARGING], ids=lambda spec: str(spec.restorer))
@torch.no_grad()
def test_a_restorers_plan_is_far_nearer_to_the_teacher(spec: Any) -> None:
    task = make(spec, pool_images=16)
    infos = trace_layers(task)
    plan = Plan(tuple(i.name for i in infos), (Choice(2, 0.0),) * len(infos))
    errors = {}
    assert usual_rounding(task) == "compensated"
    for rounding in ("nearest", None):
        student = Student(task, infos)
        apply_plan(student, plan, rounding)
        assert student.plan() == plan
        errors[rounding] = [
            float((student.outputs(b)["restored"] - teacher_output(task, b)).square().mean())
            for b in task.evaluation("test")
        ]
    assert sum(errors[None]) < 0.5 * sum(errors["nearest"])


def teacher_output(task: Any, batch: Any) -> Tensor:
    state: dict[str, Any] = {"images": batch.images}
    for stage in task.stages(task.teacher):
        state = stage.run(state)
    restored: Tensor = state["restored"]
    return restored


@torch.no_grad()
def test_a_plan_of_all_kinds_of_choices_holds_what_it_says(tiny: TinyTask) -> None:
    """Counts of masks, codes within levels, and the same again from the same images."""
    infos = trace_layers(tiny)
    plan = random_plan(infos, seed=3)
    assert usual_rounding(tiny) == "nearest"
    students = [Student(tiny, infos), Student(tiny, infos)]
    for student in students:
        apply_plan(student, plan, "compensated")
    for layer, other, choice in zip(students[0].layers, students[1].layers, plan.choices, strict=True):
        levels = weight_levels(choice)
        assert layer.codes is not None and other.codes is not None
        assert int(layer.codes.min()) >= levels.low and int(layer.codes.max()) <= levels.high
        assert torch.equal(layer.codes, other.codes)
        removed = 0 if layer.mask is None else int((~layer.mask).sum())
        assert removed == round(choice.sparsity * layer.weight.numel())
    students[0].reset()
    assert all(layer.choice is None for layer in students[0].layers)
