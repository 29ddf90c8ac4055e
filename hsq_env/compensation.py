"""Rounding with compensation: what rounding one weight spoils, the weights that are not rounded yet make good.

Nearest rounding looks at the weights alone. What counts is what a layer puts out, ``w . x``: with the second moments of
its inputs, the error of a rounded weight can be spread over the others of the same output channel (Frantar et al. 2023,
GPTQ, arXiv 2210.17323, algorithm 1; pruned weights alike, Frantar and Alistarh 2023, SparseGPT, arXiv 2301.00774).
Layers are taken in the order in which they run. Each one sees what the rounded layers before it really give and aims at
what the teacher's layer put out, so that it also repairs part of their damage (Li et al. 2025, GPTAQ, arXiv
2504.02692).

No gradients, no ground truth: two forward passes of some images for each layer, and a factorization.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hsq_env.choices import Plan
from hsq_env.layers import CompressedLayer, Variant
from hsq_env.quantizers import Levels, best_scale, fitted_range, storable, weight_levels
from hsq_env.states import distilled_kinds
from hsq_env.student import Student
from hsq_env.task import Batch, State, Task

ROUNDINGS = ("nearest", "compensated")
IMAGES = 32  # at least
FIRST_BATCH = 1_000_000  # number of the training batch where they begin, far from those that are trained on
DAMPING = 0.02  # of the mean second moment, added to all
WIDE_BITS = 8  # of activations, from which on ranges stay as calibrated
RANGE_SAMPLES = 100_000
BLOCK = 128  # columns after which errors are handed on to all later ones


def columns_of(layer: nn.Module, x: Tensor) -> Tensor:
    """A layer's input as its weights meet it.

    :param x: (N, C, H, W) of a convolution, (..., features) of a linear layer
    :return: (groups, weights per output channel, samples)
    """
    if not isinstance(layer, nn.Conv2d):
        return x.flatten(0, -2).T[None]
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    padded = F.pad(x, layer._reversed_padding_repeated_twice, mode=mode)
    unfolded = F.unfold(padded, layer.kernel_size, layer.dilation, 0, layer.stride)  # (N, C * k * k, L)
    return unfolded.transpose(0, 1).flatten(1).unflatten(0, (layer.groups, -1))


def _rows_of(layer: nn.Module, y: Tensor) -> Tensor:
    """A layer's output, (groups, output channels of a group, samples)."""
    if not isinstance(layer, nn.Conv2d):
        return y.flatten(0, -2).T[None]
    return y.transpose(0, 1).flatten(1).unflatten(0, (layer.groups, -1))


class Moments:
    """Sums over samples of what a layer is given and of what it should put out."""

    def __init__(self) -> None:
        self.count = 0
        self._sums: list[Tensor] = []

    def add(self, columns: Tensor, rows: Tensor) -> None:
        """Take note of samples.

        :param columns: (groups, F, samples)
        :param rows: (groups, R, samples)
        """
        turned = columns.transpose(1, 2)
        new = [columns.sum(-1), rows.sum(-1), columns @ turned, rows @ turned]
        self._sums = [a + b for a, b in zip(self._sums, new, strict=True)] if self._sums else [s.double() for s in new]
        self.count += columns.shape[-1]

    def centered(self, center: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Means (groups, F) and (groups, R), second moments (groups, F, F) and (groups, R, F), about the means or 0."""
        x, y, xx, yx = (s / self.count for s in self._sums)
        if not center:
            return torch.zeros_like(x), torch.zeros_like(y), xx, yx
        return x, y, xx - x[:, :, None] * x[:, None], yx - y[:, :, None] * x[:, None]


@dataclass(frozen=True)
class Compensated:
    """What becomes of a layer.

    :param weight: latent weights whose nearest codes are the compensated ones
    :param variant: mask and scales
    :param bias: None if the layer has none
    """

    weight: Tensor
    variant: Variant
    bias: Tensor | None


@torch.no_grad()
def compensated(layer: CompressedLayer, pattern: str, moments: Moments) -> Compensated:
    """Prune and round a layer's weights so that its outputs come near what ``moments`` say that they should be.

    :param layer: with a choice, and the weights to start from
    :param pattern: of sparsity
    """
    assert layer.choice is not None
    choice, levels = layer.choice, weight_levels(layer.choice)
    x, y, xx, yx = moments.centered(layer.bias is not None)
    groups, size = xx.shape[:2]
    start = layer.weight.double().reshape(groups, -1, size)
    scale_of_x = xx.diagonal(dim1=1, dim2=2).mean(dim=1).clamp_min(1e-30)[:, None, None]
    identity = torch.eye(size, dtype=xx.dtype, device=xx.device)
    # few samples say little of many weights: the fewer there are, the nearer the layer stays to where it was
    damped = xx + scale_of_x * (DAMPING + size / moments.count) * identity
    aim = start + torch.linalg.solve(damped, (yx - start @ xx).transpose(1, 2)).transpose(1, 2)
    shaped = aim.float().reshape(layer.weight.shape)
    mask = layer.pruning_mask(shaped, choice.sparsity, pattern)
    scale = best_scale(shaped, mask, levels, choice.bits)
    kept = torch.ones_like(aim) if mask is None else mask.reshape(aim.shape).double()
    per_row = scale.double().reshape(groups, -1)
    latent, rounded = _rounded(aim, kept, per_row, levels, damped)
    factor = _refit(aim, rounded, xx)
    fitted = storable((per_row * factor).flatten().float())
    factor = fitted.double().reshape(groups, -1) / per_row
    latent, rounded = latent * factor[..., None], rounded * factor[..., None]
    bias = None if layer.bias is None else (y - (rounded @ x[..., None])[..., 0]).flatten().float()
    return Compensated(latent.float().reshape(layer.weight.shape), Variant(mask, fitted), bias)


def _rounded(aim: Tensor, kept: Tensor, scale: Tensor, levels: Levels, moments: Tensor) -> tuple[Tensor, Tensor]:
    """GPTQ's loop over columns, those with the largest inputs first.

    :param aim: (groups, R, F)
    :param kept: the same shape, 0 where a weight is pruned
    :param scale: (groups, R)
    :param moments: (groups, F, F), positive definite
    :return: weights before and after rounding, (groups, R, F)
    """
    order = moments.diagonal(dim1=1, dim2=2).argsort(dim=1, descending=True)
    back = order.argsort(dim=1)
    row = order[:, None].expand(-1, aim.shape[1], -1)
    sorted_moments = moments.gather(1, order[:, :, None].expand_as(moments))
    sorted_moments = sorted_moments.gather(2, order[:, None].expand_as(moments))
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(sorted_moments))
    upper = torch.linalg.cholesky(inverse, upper=True)
    weight, keep = aim.gather(2, row), kept.gather(2, row)
    latent, rounded = torch.empty_like(weight), torch.empty_like(weight)
    for start in range(0, weight.shape[2], BLOCK):
        stop = min(start + BLOCK, weight.shape[2])
        errors = torch.zeros_like(weight[:, :, start:stop])
        for j in range(start, stop):
            column = weight[:, :, j]
            codes = torch.round(column / scale - levels.offset).clamp(levels.low, levels.high)
            nearest = (codes + levels.offset) * scale * keep[:, :, j]
            latent[:, :, j], rounded[:, :, j] = column, nearest
            error = (column - nearest) / upper[:, j, j, None]
            errors[:, :, j - start] = error
            weight[:, :, j + 1 : stop] -= error[..., None] * upper[:, None, j, j + 1 : stop]
        weight[:, :, stop:] -= errors @ upper[:, start:stop, stop:]
    row = back[:, None].expand(-1, aim.shape[1], -1)
    return latent.gather(2, row), rounded.gather(2, row)


def _refit(aim: Tensor, rounded: Tensor, moments: Tensor) -> Tensor:
    """The factor of each output channel's scale that brings it nearest to its aim, (groups, R)."""
    seen = rounded @ moments
    factor = (seen * aim).sum(-1) / (seen * rounded).sum(-1).clamp_min(1e-30)
    return torch.where((factor > 0.5) & (factor < 2), factor, torch.ones_like(factor))


def usual_rounding(task: Task) -> str:
    """What measured better: "compensated" for restorers; detectors train better from "nearest" codes."""
    return "compensated" if "pixels" in distilled_kinds(task) else "nearest"


def apply_plan(student: Student, plan: Plan, rounding: str | None = None) -> None:
    """Compress every layer of a plan from the teacher's weights, without gradients.

    :param rounding: "nearest" codes as they are, or "compensated" on some training batches; None for the usual one
    """
    if (rounding or usual_rounding(student.task)) == "nearest":
        student.apply(plan)
        return
    batches: list[Batch] = []
    while sum(len(batch.images) for batch in batches) < IMAGES:
        batches.append(student.task.long_finetuning(FIRST_BATCH + len(batches)))
    apply_compensated(student, plan, batches)


@torch.no_grad()
def apply_compensated(student: Student, plan: Plan, batches: Sequence[Batch]) -> None:
    """Compress every layer of a plan from the teacher's weights, each with compensation, in the order of the layers.

    :param batches: images to look at; no ground truth is used
    """
    student.apply(plan)
    teacher_stages = student.task.stages(student.task.teacher)
    teacher = dict(student.task.teacher.named_modules())
    expected: list[State] = [{"images": batch.images} for batch in batches]
    states: list[State] = [dict(state) for state in expected]
    for number, (own, other) in enumerate(zip(student.stages, teacher_stages, strict=True)):
        inside = [i for i, info in enumerate(student.infos) if info.stage == number]
        outputs = {i: _Recorder(teacher[student.infos[i].name]) for i in inside}
        expected = [other.run(state) for state in expected]
        for recorder in outputs.values():
            recorder.stop()
        for index in inside:
            layer = student.layers[index]
            inputs = _Recorder(layer, of_inputs=True)
            for state in states:
                own.run(state)
            inputs.stop()
            _fit_ranges(layer, inputs)
            moments = Moments()
            for x, y in zip(inputs.rounded(layer), outputs.pop(index).seen, strict=True):
                for one_x, one_y in zip(x.split(1), y.split(1), strict=True):  # the columns of one image at a time
                    moments.add(columns_of(layer, one_x), _rows_of(layer, one_y))
            _take(student, layer, compensated(layer, student.pattern, moments))
        states = [own.run(state) for state in states]


def _take(student: Student, layer: CompressedLayer, found: Compensated) -> None:
    """Put compensated weights into a layer that has a choice."""
    assert layer.choice is not None
    student.touch([layer])
    layer.weight.copy_(found.weight)
    if layer.bias is not None and found.bias is not None:
        layer.bias.copy_(found.bias)
    layer.compress(layer.choice, layer.activations, student.pattern, found.variant)


def _fit_ranges(layer: CompressedLayer, inputs: "_Recorder") -> None:
    """Give coarse activation ranges what rounds the layer's inputs best; with 8 bits the whole span measured better."""
    calls = len(layer.activations)
    if any(r.bits < WIDE_BITS for r in layer.activations):
        seen = [torch.cat([x.flatten() for x in inputs.seen[call::calls]]) for call in range(calls)]
        samples = [x[:: max(1, len(x) // RANGE_SAMPLES)] for x in seen]
        pairs = zip(samples, layer.activations, strict=True)
        layer.activations = tuple(fitted_range(x, r.bits) for x, r in pairs)


class _Recorder:
    """Keeps what a module is given or puts out."""

    def __init__(self, module: nn.Module, of_inputs: bool = False) -> None:
        self.seen: list[Tensor] = []

        def hook(layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            self.seen.append(inputs[0] if of_inputs else output)

        self._handle = module.register_forward_hook(hook)

    def rounded(self, layer: CompressedLayer) -> list[Tensor]:
        """Inputs as the layer rounds them."""
        ranges = layer.activations
        return [ranges[call % len(ranges)](x) for call, x in enumerate(self.seen)] if ranges else self.seen

    def stop(self) -> None:
        """Keep nothing more."""
        self._handle.remove()
