"""Lessons for SPARK's policy in the middle of a training; the student is left as it was."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from hsq_env.distillation.spark import Lesson, Spark, cell_losses
from hsq_env.student import Student
from hsq_env.task import Batch, Distilled, ErrorMaps, State, Task


@torch.no_grad()
def error_maps(task: Task, outputs: State, batch: Batch) -> Sequence[Tensor]:
    """Where the student is wrong, see ``hsq_env.task.ErrorMaps``; zeros for a task that cannot tell."""
    if isinstance(task, ErrorMaps):
        return task.error_maps(outputs, batch)
    return [torch.zeros(len(batch.images), 1, 1, device=batch.images.device)]


def lesson(
    student: Student,
    spark: Spark,
    optimizer: torch.optim.Optimizer,
    forward: Callable[[Batch], State],
    teacher: Callable[[Batch], Sequence[Distilled]],
    batch: Batch,
    held_back: Batch,
) -> Lesson:
    """What SPARK's policy is to learn from; the student is left as it was. See ``hsq_env.distillation.spark``.

    :param optimizer: Adam, whose learning rates and second moments say what a step is
    :param forward: a student's forward pass
    :param teacher: what a batch's outputs are to be
    :param batch: whose places are weighed
    :param held_back: whose error is to fall
    """
    task = student.task
    pairs = [(group["lr"], p) for group in optimizer.param_groups for p in group["params"]]
    parameters = [p for _, p in pairs]
    error = task.task_loss(forward(held_back), held_back)
    gradients = torch.autograd.grad(error, parameters, allow_unused=True)
    expected = teacher(batch)
    with torch.no_grad():
        outputs = forward(batch)
        distilled = task.distilled(outputs)
        draw = spark.draw(batch.images, error_maps(task, outputs, batch), distilled, expected)
        before = cell_losses(spark.criterion, distilled, expected, spark.grid)
        originals = [p.clone() for p in parameters]
        for (rate, p), gradient in zip(pairs, gradients, strict=True):
            if gradient is not None:
                p -= rate * _preconditioned(optimizer, p, gradient)
        after = cell_losses(spark.criterion, task.distilled(forward(batch)), expected, spark.grid)
        for p, original in zip(parameters, originals, strict=True):
            p.copy_(original)
    return Lesson(draw, before, after)


def _preconditioned(optimizer: torch.optim.Optimizer, parameter: Tensor, gradient: Tensor) -> Tensor:
    """A gradient over the root of Adam's second moment (Kingma and Ba 2015, arXiv 1412.6980, algorithm 1)."""
    state, group = optimizer.state.get(parameter, {}), optimizer.param_groups[0]
    if not state:
        return gradient.sign()  # Adam's first step
    corrected = state["exp_avg_sq"] / (1 - group["betas"][1] ** float(state["step"]))
    return gradient / (corrected.sqrt() + group["eps"])
