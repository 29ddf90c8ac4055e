"""Gradient steps on a student: briefly on one block inside a step, at length on everything after the search."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hsq_env.distillation import AKD
from hsq_env.layers import CompressedLayer, tuning
from hsq_env.states import run
from hsq_env.student import Student
from hsq_env.task import Batch, Distilled, Stage, State, Task

GRADIENT_CLIP = 5.0  # norm over everything trained
WARMUP = 0.05  # share of the long fine-tuning with a rising learning rate


@dataclass(frozen=True)
class LearningRates:
    """Adam's, per kind of parameter.

    :param weights: in standard deviations of the layer's weights, since folded batch norms and widths spread the
        weights of layers over orders of magnitude
    :param scales: in multiples of a scale's starting value
    :param biases: absolute; biases and group norms
    """

    weights: float
    scales: float
    biases: float

    def groups(self, modules: Iterable[nn.Module]) -> list[dict[str, Any]]:
        """Adam's parameter groups of all parameters that the modules own."""
        weights, scales, biases = [], [], []
        for module in modules:
            chosen = isinstance(module, CompressedLayer) and module.choice is not None
            for name, parameter in module.named_parameters(recurse=False):
                if name == "scale_factor":
                    scales += [parameter] if chosen else []
                elif parameter.dim() > 1:
                    spread = parameter.detach().std(correction=0).item()
                    weights.append({"params": [parameter], "lr": self.weights * spread})
                else:
                    biases.append(parameter)
        groups = [*weights, {"params": scales, "lr": self.scales}, {"params": biases, "lr": self.biases}]
        return [group for group in groups if group["params"]]


BRIEF_RATES = LearningRates(weights=0.005, scales=3e-3, biases=1e-3)
LONG_RATES = LearningRates(weights=0.003, scales=1e-3, biases=3e-4)


def akd_loss(
    task: Task, criterion: AKD, alpha: float, outputs: State, batch: Batch, teacher: Sequence[Distilled]
) -> Tensor:
    """``alpha * task loss + (1 - alpha) * KL``, a scalar; the task loss is skipped where alpha is 0."""
    loss = (1 - alpha) * criterion.loss(task.distilled(outputs), teacher)
    return loss + alpha * task.task_loss(outputs, batch) if alpha else loss


def _outputs(stages: Sequence[Stage], state: State, start: int, bfloat16: bool) -> State:
    """The last stage's state in float32, computed in bfloat16 where asked for."""
    if not bfloat16:
        return run(stages, state, start)
    device = next(t for t in _tensors(state)).device.type
    with torch.autocast(device, torch.bfloat16):
        outputs = run(stages, state, start)
    return {k: [t.float() for t in v] if isinstance(v, list) else v.float() for k, v in outputs.items()}


def _tensors(state: State) -> Iterator[Tensor]:
    for value in state.values():
        yield from value if isinstance(value, list) else [value]


def _take_steps(
    student: Student,
    modules: Sequence[nn.Module],
    rates: LearningRates,
    steps: int,
    loss_of: Callable[[int], Tensor],
    factor: Callable[[int], float] = lambda step: 1.0,
) -> bool:
    """Adam steps on the parameters of ``modules``; stops at the first loss that is no number.

    :param factor: of the learning rates at a step
    :return: whether all losses were finite
    """
    groups = rates.groups(modules)
    parameters = [p for group in groups for p in group["params"]]
    optimizer = torch.optim.Adam(groups)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    for parameter in parameters:
        parameter.requires_grad_(True)
    try:
        with tuning([layer for layer in student.layers if layer in set(modules)]), torch.enable_grad():
            for step in range(steps):
                loss = loss_of(step)
                if not math.isfinite(loss.item()):
                    return False
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                nn.utils.clip_grad_norm_(parameters, GRADIENT_CLIP)
                optimizer.step()
                schedule.step()
    finally:
        for parameter in parameters:
            parameter.requires_grad_(False)
            parameter.grad = None
    return True


def finetune_block(
    student: Student,
    stages: Sequence[Stage],
    modules: Sequence[nn.Module],
    start: int,
    inputs: Sequence[tuple[Batch, State, Sequence[Distilled]]],
    criterion: AKD,
    alpha: float,
    rates: LearningRates = BRIEF_RATES,
    bfloat16: bool = False,
) -> bool:
    """One gradient step per input on ``modules`` alone, the forward pass starting at stage ``start``.

    :param inputs: per step a batch, its state before ``start`` and what the teacher gives for it
    :param bfloat16: run the forward and backward passes under autocast; weights stay float32
    :return: whether the losses stayed finite; the student is as the last finite step left it
    """

    def loss_of(step: int) -> Tensor:
        batch, state, teacher = inputs[step]
        outputs = _outputs(stages, state, start, bfloat16)
        return akd_loss(student.task, criterion, alpha, outputs, batch, teacher)

    return _take_steps(student, modules, rates, len(inputs), loss_of)


def finetune_all(
    student: Student,
    steps: int,
    criterion: AKD | None = None,
    alpha: float = 0.7,
    rates: LearningRates = LONG_RATES,
    on_step: Callable[[int], object] = lambda step: None,
    bfloat16: bool = False,
) -> bool:
    """The long fine-tuning after the search: everything is trained, the learning rate rises briefly and falls to zero.

    :param steps: gradient steps, each on ``task.long_finetuning(step)``
    :param alpha: share of the task loss
    :param on_step: called before each step, for progress
    :param bfloat16: see ``finetune_block``
    :return: whether the losses stayed finite
    """
    task, criterion = student.task, criterion or AKD()
    teacher_stages = task.stages(task.teacher)
    warmup = max(1, round(WARMUP * steps))

    def factor(step: int) -> float:
        falling = 0.5 * (1 + math.cos(math.pi * max(0, step - warmup) / max(1, steps - warmup)))
        return min(1.0, (step + 1) / warmup) * falling

    def loss_of(step: int) -> Tensor:
        batch = task.long_finetuning(step)
        with torch.no_grad():
            teacher = task.distilled(_outputs(teacher_stages, {"images": batch.images}, 0, bfloat16))
        on_step(step)
        outputs = _outputs(student.stages, {"images": batch.images}, 0, bfloat16)
        return akd_loss(task, criterion, alpha, outputs, batch, teacher)

    return _take_steps(student, student.modules_of("all", 0), rates, steps, loss_of, factor)
