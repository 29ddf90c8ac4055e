"""Lessons for SPARK's policy in the middle of a training; the student is left as it was."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hsq_env.distillation.policy import Draw
from hsq_env.distillation.spark import Lesson, Spark, cell_losses
from hsq_env.student import Student
from hsq_env.task import Batch, Distilled, ErrorMaps, State, Task


@torch.no_grad()
def error_maps(task: Task, outputs: State, batch: Batch) -> Sequence[Tensor]:
    """Where the student is wrong, see ``hsq_env.task.ErrorMaps``; zeros for a task that cannot tell."""
    if isinstance(task, ErrorMaps):
        return task.error_maps(outputs, batch)
    return [torch.zeros(len(batch.images), 1, 1, device=batch.images.device)]


@dataclass(frozen=True)
class Begun:
    """A lesson that still lacks the step down a held-back loss.

    :param draw: what the policy has drawn
    :param before: ``cell_losses`` as they are
    :param batch: whose places are weighed
    :param expected: the teacher's outputs
    """

    draw: Draw
    before: Tensor
    batch: Batch
    expected: Sequence[Distilled]


class LessonsInPassing:
    """Lessons that take from a training what it computes anyway.

    A batch's draw and losses are those of its own step. The next step's batch is the one held back: its gradient is
    there already, so that a lesson costs one forward pass.

    :param forward: a student's forward pass
    """

    def __init__(self, student: Student, spark: Spark, forward: Callable[[Batch], State]) -> None:
        self._student, self._spark, self._forward = student, spark, forward
        self._begun: Begun | None = None
        self._waiting: Begun | None = None  # of an earlier step

    def weigh(
        self, outputs: State, batch: Batch, distilled: Sequence[Distilled], expected: Sequence[Distilled]
    ) -> Tensor:
        """The policy's mean weights of the places; a lesson begins where one is due.

        A lesson says what a draw's weights would bring. The student need not follow them: draws that explore would only
        make its gradients noisier.

        :param outputs: the student's
        """
        signals = self._spark.signals(batch.images, error_maps(self._student.task, outputs, batch), distilled, expected)
        if self._spark.due():
            before = cell_losses(self._spark.criterion, distilled, expected, self._spark.grid)
            self._begun = Begun(self._spark.draw(signals), before, batch, expected)
        return self._spark.means(signals)

    def after_backward(self, optimizer: torch.optim.Optimizer) -> None:
        """End the lesson of the step before with this one's gradient, which the optimizer has not followed yet."""
        if self._waiting is not None:
            self._spark.learn(end(self._waiting, self._student, self._spark, optimizer, self._forward))
        self._waiting, self._begun = self._begun, None


@torch.no_grad()
def end(
    begun: Begun,
    student: Student,
    spark: Spark,
    optimizer: torch.optim.Optimizer,
    forward: Callable[[Batch], State],
    gradients: Sequence[Tensor | None] | None = None,
) -> Lesson:
    """Take a step down a held-back loss, look at what it does to every place, and take it back.

    :param optimizer: Adam, whose learning rates and second moments say what a step is
    :param gradients: of the held-back loss, for every parameter of the optimizer; by default what stands in ``grad``
    """
    pairs = [(group["lr"], p) for group in optimizer.param_groups for p in group["params"]]
    found = [p.grad for _, p in pairs] if gradients is None else gradients
    originals = [p.clone() for _, p in pairs]
    for (rate, p), gradient in zip(pairs, found, strict=True):
        if gradient is not None:
            p -= rate * _preconditioned(optimizer, p, gradient)
    outputs = student.task.distilled(forward(begun.batch))
    after = cell_losses(spark.criterion, outputs, begun.expected, spark.grid)
    for (_, p), original in zip(pairs, originals, strict=True):
        p.copy_(original)
    return Lesson(begun.draw, begun.before, after)


def lesson(
    student: Student,
    spark: Spark,
    optimizer: torch.optim.Optimizer,
    forward: Callable[[Batch], State],
    teacher: Callable[[Batch], Sequence[Distilled]],
    batch: Batch,
    held_back: Batch,
) -> Lesson:
    """A lesson by itself, with its own backward pass.

    :param forward: a student's forward pass
    :param teacher: what a batch's outputs are to be
    :param batch: whose places are weighed
    :param held_back: whose task loss is to fall
    """
    task = student.task
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    error = task.task_loss(forward(held_back), held_back)
    gradients = torch.autograd.grad(error, parameters, allow_unused=True)
    expected = teacher(batch)
    with torch.no_grad():
        outputs = forward(batch)
        distilled = task.distilled(outputs)
        draw = spark.draw(spark.signals(batch.images, error_maps(task, outputs, batch), distilled, expected))
    before = cell_losses(spark.criterion, distilled, expected, spark.grid)
    return end(Begun(draw, before, batch, expected), student, spark, optimizer, forward, gradients)


def _preconditioned(optimizer: torch.optim.Optimizer, parameter: Tensor, gradient: Tensor) -> Tensor:
    """A gradient over the root of Adam's second moment (Kingma and Ba 2015, arXiv 1412.6980, algorithm 1)."""
    state, group = optimizer.state.get(parameter, {}), optimizer.param_groups[0]
    if not state:
        return gradient.sign()  # Adam's first step
    corrected = state["exp_avg_sq"] / (1 - group["betas"][1] ** float(state["step"]))
    return gradient / (corrected.sqrt() + group["eps"])
