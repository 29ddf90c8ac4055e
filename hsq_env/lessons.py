"""Lessons for SPARK's policy in the middle of a training; the student is left as it was."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

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


Gradients = Sequence[Tensor | None]  # of all parameters of an optimizer, in its order


@dataclass(frozen=True)
class Begun:
    """A lesson that still lacks the gradient of a held-back loss.

    :param draw: what the policy has drawn
    :param before: ``cell_losses`` as they are
    :param batch: whose places are weighed
    :param expected: the teacher's outputs
    :param own: gradients of the batch's loss
    :param weights: of all parameters, with which ``before`` was found; as they are when empty
    """

    draw: Draw
    before: Tensor
    batch: Batch
    expected: Sequence[Distilled]
    own: Gradients = ()
    weights: Sequence[Tensor] = ()


def parameters_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """All that it trains."""
    return [p for group in optimizer.param_groups for p in group["params"]]


def gradients_of(optimizer: torch.optim.Optimizer) -> Gradients:
    """Copies of what stands in ``grad``."""
    return [None if p.grad is None else p.grad.clone() for p in parameters_of(optimizer)]


class LessonsInPassing:
    """Lessons that take from a training what it computes anyway.

    A batch's draw, losses and gradient are those of its own step. The next step's batch is the one held back: its
    gradient is there already, so that a lesson costs one forward pass.

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
            held_back = [p.grad for p in parameters_of(optimizer)]
            self._spark.learn(end(self._waiting, self._student, self._spark, optimizer, self._forward, held_back))
        self._waiting = None
        if self._begun is not None:
            weights = [p.detach().clone() for p in parameters_of(optimizer)]
            self._waiting = replace(self._begun, own=gradients_of(optimizer), weights=weights)
        self._begun = None

    def break_off(self) -> None:
        """Leave unfinished what has begun: the steps that follow are of another kind."""
        self._begun = self._waiting = None


@torch.no_grad()
def end(
    begun: Begun,
    student: Student,
    spark: Spark,
    optimizer: torch.optim.Optimizer,
    forward: Callable[[Batch], State],
    held_back: Gradients,
) -> Lesson:
    """Take a step along ``grad(h) - r u``, see ``hsq_env.distillation.spark``, look at every place, and take it back.

    The step begins where ``before`` was found: what the optimizer has done since is no merit of any place.

    :param optimizer: Adam, whose learning rates and second moments say what a step is
    :param held_back: gradients of the held-back loss h
    """
    parameters = parameters_of(optimizer)
    paces = _paces(optimizer)
    directions = _apart(held_back, begun.own or [None] * len(parameters), paces, spark)
    originals = [p.clone() for p in parameters]
    for p, start, direction, pace in zip(parameters, begun.weights or originals, directions, paces, strict=True):
        p.copy_(start if direction is None else start - pace * direction)
    outputs = student.task.distilled(forward(begun.batch))
    after = cell_losses(spark.criterion, outputs, begun.expected, spark.grid)
    for p, original in zip(parameters, originals, strict=True):
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

    :param optimizer: just after its step on ``batch``, whose gradients are still in place
    :param forward: a student's forward pass
    :param teacher: what a batch's outputs are to be
    :param batch: whose places are weighed
    :param held_back: whose task loss is to fall
    """
    task = student.task
    error = task.task_loss(forward(held_back), held_back)
    gradients = torch.autograd.grad(error, parameters_of(optimizer), allow_unused=True)
    expected = teacher(batch)
    with torch.no_grad():
        outputs = forward(batch)
        distilled = task.distilled(outputs)
        draw = spark.draw(spark.signals(batch.images, error_maps(task, outputs, batch), distilled, expected))
    before = cell_losses(spark.criterion, distilled, expected, spark.grid)
    begun = Begun(draw, before, batch, expected, gradients_of(optimizer))
    return end(begun, student, spark, optimizer, forward, gradients)


def _apart(held_back: Gradients, own: Gradients, paces: Sequence[Tensor | float], spark: Spark) -> Gradients:
    """The held-back gradient less the batch's own times the running share that both have in common."""
    pairs = [(h, u, pace) for h, u, pace in zip(held_back, own, paces, strict=True) if h is not None and u is not None]
    if not pairs:
        return held_back
    common = torch.stack([(pace * h * u).sum() for h, u, pace in pairs]).sum()
    whole = torch.stack([(pace * u * u).sum() for _, u, pace in pairs]).sum()
    share = spark.common_share((common / whole).item())
    return [h if h is None or u is None else h - share * u for h, u in zip(held_back, own, strict=True)]


def _paces(optimizer: torch.optim.Optimizer) -> list[Tensor | float]:
    """Learning rates over the root of Adam's second moment (Kingma and Ba 2015, arXiv 1412.6980, algorithm 1).

    :return: for every parameter what its gradient is multiplied by; the learning rate alone before Adam's first step
    """
    found: list[Tensor | float] = []
    for group in optimizer.param_groups:
        for p in group["params"]:
            state = optimizer.state.get(p, {})
            if state:
                corrected = state["exp_avg_sq"] / (1 - group["betas"][1] ** float(state["step"]))
                found.append(group["lr"] / (corrected.sqrt() + group["eps"]))
            else:
                found.append(group["lr"])
    return found
