"""Gradient steps on a student, and the brief fine-tuning of one block inside a step."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hsq_env.distillation import AKD
from hsq_env.layers import CompressedLayer, tuning
from hsq_env.student import Student
from hsq_env.task import Batch, Distilled, State, Task

Weigh = Callable[[State, Batch, Sequence[Distilled], Sequence[Distilled]], Tensor]  # of student and teacher
GRADIENT_CLIP = 5.0  # norm over everything trained


@dataclass(frozen=True)
class LearningRates:
    """Adam's, per kind of parameter.

    :param weights: in standard deviations of the layer's weights, since folded batch norms and widths spread the
        weights of layers over orders of magnitude
    :param scales: in multiples of a scale's starting value
    :param biases: absolute; biases and group norms
    :param ranges: of activations, in multiples of what they were; 0 leaves them alone. The long fine-tuning alone
        learns them
    """

    weights: float
    scales: float
    biases: float
    ranges: float = 0.0

    def groups(self, modules: Iterable[nn.Module]) -> list[dict[str, Any]]:
        """Adam's parameter groups of all parameters that the modules own."""
        weights, scales, biases, ranges = [], [], [], []
        for module in modules:
            chosen = isinstance(module, CompressedLayer) and module.choice is not None
            for name, parameter in module.named_parameters(recurse=False):
                if name == "scale_factor":
                    scales += [parameter] if chosen else []
                elif name == "range_factor":
                    ranges += [parameter] if self.ranges else []
                elif parameter.dim() > 1:
                    weights.append({"params": [parameter], "lr": self.weights * _spread(module, parameter)})
                else:
                    biases.append(parameter)
        groups = [*weights, {"params": scales, "lr": self.scales}, {"params": biases, "lr": self.biases}]
        groups.append({"params": ranges, "lr": self.ranges})
        return [group for group in groups if group["params"]]


def _spread(module: nn.Module, parameter: Tensor) -> float:
    """The standard deviation of a weight, a layer's as the teacher has it."""
    return module.spread if isinstance(module, CompressedLayer) else parameter.detach().std(correction=0).item()


BRIEF_RATES = LearningRates(weights=0.0035, scales=2.1e-3, biases=7e-4)  # where the distillation loss is 1
LARGEST_PACE = 2.0


def akd_loss(
    task: Task, criterion: AKD, alpha: float, outputs: State, batch: Batch, teacher: Sequence[Distilled]
) -> Tensor:
    """``alpha * task loss + (1 - alpha) * KL``, a scalar; the task loss is skipped where alpha is 0."""
    return akd_loss_and_divergence(task, criterion, alpha, outputs, batch, teacher)[0]


def akd_loss_and_divergence(
    task: Task,
    criterion: AKD,
    alpha: float,
    outputs: State,
    batch: Batch,
    teacher: Sequence[Distilled],
    weigh: Weigh | None = None,
) -> tuple[Tensor, Tensor]:
    """The same and its KL part without weights.

    Weights say where to look and not how much to distill: the weighted KL part is brought to the size of the other.

    :param weigh: gives the weights of the places in the KL part, see ``AKD.terms``; all alike when None
    """
    distilled = task.distilled(outputs)
    weights = None if weigh is None else weigh(outputs, batch, distilled, teacher)
    divergence, weighted = criterion.losses(distilled, teacher, weights)
    loss = (1 - alpha) * (divergence if weights is None else _as_large(weighted, divergence))
    return (loss + alpha * task.task_loss(outputs, batch) if alpha else loss), divergence.detach()


def _as_large(loss: Tensor, other: Tensor) -> Tensor:
    """``loss`` with the value of ``other`` and a gradient in proportion; as it is where one of them is 0."""
    factor = (other / loss).detach()
    return loss * torch.where(factor.isfinite() & (factor > 0), factor, torch.ones_like(factor))


def float32_outputs(forward: Callable[[], State], device: torch.device, bfloat16: bool) -> State:
    """What a forward pass gives, in float32, computed under bfloat16 autocast where asked for."""
    if not bfloat16:
        return forward()
    with torch.autocast(device.type, torch.bfloat16):
        outputs = forward()
    return {k: [_float32(t) for t in v] if isinstance(v, list) else _float32(v) for k, v in outputs.items()}


def _float32(tensor: Tensor) -> Tensor:
    """Numbers; labels and sizes stay integers."""
    return tensor.float() if tensor.is_floating_point() else tensor


@contextmanager
def training(student: Student, modules: Sequence[nn.Module], parameters: Sequence[Tensor]) -> Iterator[None]:
    """Gradients for ``parameters``, fake-quantized weights in ``modules``; rounded, stored ones again after."""
    student.touch(modules)
    for parameter in parameters:
        parameter.requires_grad_(True)
    try:
        with tuning([layer for layer in student.layers if layer in set(modules)]), torch.enable_grad():
            yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(False)
            parameter.grad = None


def everything_computed_with(student: Student) -> list[Tensor]:
    """All tensors that a forward pass multiplies or adds: parameters, and what decided layers have made of them."""
    stored = [t for layer in student.layers for t in (layer.stored_weight, layer.stored_bias) if t is not None]
    return [*student.model.parameters(), *stored]


def finetune_block(
    student: Student,
    modules: Sequence[nn.Module],
    losses: Sequence[Callable[[], tuple[Tensor, Tensor]]],
    rates: LearningRates = BRIEF_RATES,
    stop_at_block: bool = True,
    afterwards: Callable[[torch.optim.Optimizer], object] = lambda optimizer: None,
) -> Tensor:
    """One gradient step per loss on ``modules`` alone.

    Adam's first steps are as long as the learning rate says, however small the gradient, so that they would harm a
    student that is hardly damaged. The divergence is about quadratic in the distance to the teacher; its root therefore
    paces the steps. Where a loss, or a parameter afterwards, is no number, the modules get back what they had before.
    Nothing here waits for an accelerator.

    :param losses: each runs a forward pass and gives a scalar and its part that is the distillation loss
    :param rates: for a distillation loss of 1
    :param stop_at_block: False lets the backward pass go through everything that the forward pass computed with
    :param afterwards: called with the optimizer after the steps, which must leave the student as it was
    :return: bool scalar, whether everything stayed finite
    """
    groups = rates.groups(modules)
    parameters = [p for group in groups for p in group["params"]]
    if not parameters:
        return torch.tensor(True)
    before = [p.detach().clone() for p in parameters]
    optimizer = torch.optim.Adam(groups)
    wanted = parameters if stop_at_block else [*parameters, *everything_computed_with(student)]
    finite = torch.ones((), dtype=torch.bool, device=parameters[0].device)
    with training(student, modules, wanted):
        for loss_of in losses:
            loss, divergence = loss_of()
            finite = finite & loss.detach().isfinite()
            if finite.device.type == "cpu" and not finite:
                break  # looking costs nothing here
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, GRADIENT_CLIP)
            _paced_step(optimizer, parameters, divergence.clamp_min(0).sqrt().clamp_max(LARGEST_PACE))
        afterwards(optimizer)
        with torch.no_grad():
            for parameter in parameters:
                finite = finite & parameter.isfinite().all()
            for parameter, value in zip(parameters, before, strict=True):
                parameter.copy_(torch.where(finite, parameter, value))
    return finite


@torch.no_grad()
def _paced_step(optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor], pace: Tensor) -> None:
    """A step that is ``pace`` times as long; nothing is read back from an accelerator."""
    start = [p.detach().clone() for p in parameters]
    optimizer.step()
    for parameter, before in zip(parameters, start, strict=True):
        parameter.copy_(before + pace * (parameter - before))
