"""The long fine-tuning after a search, or without one: everything is trained."""

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from hsq_env.distillation import AKD
from hsq_env.distillation.spark import Spark
from hsq_env.finetuning import GRADIENT_CLIP, LearningRates, akd_loss_and_divergence, float32_outputs, training
from hsq_env.kept_training import KeptTraining
from hsq_env.layers import learned_ranges
from hsq_env.lessons import LessonsInPassing
from hsq_env.states import distilled_kinds, run
from hsq_env.student import Student
from hsq_env.task import Batch, Distilled, Stage, State

WARMUP = 0.05  # share of the long fine-tuning with a rising learning rate
LONG_RATES = LearningRates(weights=0.006, scales=2e-3, biases=6e-4)  # where the distillation loss is 4 or more
IMAGE_RATES = LearningRates(weights=0.006, scales=2e-3, biases=6e-4, ranges=2e-2)  # of students that put out images
LONG_PACE, SMALLEST_LONG_PACE = 0.5, 0.3
SMALLEST_IMAGE_PACE = 0.05  # of students that put out images
LONG_ALPHA = 0.3


def _take_steps(
    student: Student,
    modules: Sequence[nn.Module],
    rates: LearningRates,
    steps: int,
    loss_of: Callable[[int], Tensor],
    factor: Callable[[int], float],
    after_backward: Callable[[torch.optim.Optimizer], object] | None = None,
    kept: KeptTraining | None = None,
) -> bool:
    """Adam steps on the parameters of ``modules``; stops at the first loss or gradient that is no number.

    :param factor: of the learning rates at a step
    :param after_backward: called at each step, before the optimizer follows the gradient
    :param kept: where an interrupted training stands
    :return: whether all losses and gradients were finite
    """
    groups = rates.groups(modules)
    parameters = [p for group in groups for p in group["params"]]
    optimizer = torch.optim.Adam(groups)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    with training(student, modules, parameters):
        start = 0 if kept is None else kept.restore(parameters, optimizer, schedule)
        for step in range(start, steps):
            loss = loss_of(step)
            if not math.isfinite(loss.item()):
                return False
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            if not math.isfinite(nn.utils.clip_grad_norm_(parameters, GRADIENT_CLIP).item()):
                return False
            if after_backward is not None:
                after_backward(optimizer)
            optimizer.step()
            schedule.step()
            if kept is not None:
                kept.keep(step + 1, parameters, optimizer)
    return True


@torch.no_grad()
def long_pace(student: Student, criterion: AKD) -> float:
    """``LONG_PACE`` times the root of the distillation loss on the calibration images, within bounds."""
    task, losses = student.task, []
    teacher_stages = task.stages(task.teacher)
    for batch in task.calibration():
        teacher = task.distilled(run(teacher_stages, {"images": batch.images}))
        losses.append(criterion.loss(task.distilled(student.outputs(batch)), teacher))
    damage = torch.stack(losses).mean().clamp_min(0).sqrt().item()
    smallest = SMALLEST_IMAGE_PACE if "pixels" in distilled_kinds(task) else SMALLEST_LONG_PACE
    return min(1.0, max(smallest, LONG_PACE * damage)) if math.isfinite(damage) else 1.0


def finetune_all(
    student: Student,
    steps: int,
    criterion: AKD | None = None,
    alpha: float = LONG_ALPHA,
    rates: LearningRates | None = None,
    on_step: Callable[[int], object] = lambda step: None,
    bfloat16: bool = False,
    pace: float | None = None,
    spark: Spark | None = None,
    kept: KeptTraining | None = None,
) -> bool:
    """The long fine-tuning after the search: everything is trained, the learning rate rises briefly and falls to zero.

    Badly damaged students need long steps, which would harm slightly damaged ones (see ``long_pace``).

    :param steps: gradient steps, each on ``task.long_finetuning(step)``
    :param alpha: share of the task loss
    :param rates: the usual ones of what the student puts out when None
    :param on_step: called before each step, for progress
    :param bfloat16: run forward and backward passes under autocast; weights stay float32
    :param pace: factor of the learning rates; by the student's damage when None
    :param spark: weighs the distillation place by place, and learns to; its criterion then takes the other's place
    :param kept: where an interrupted training stands, which must have had the same arguments and no ``spark``
    :return: whether the losses stayed finite
    """
    task = student.task
    criterion = spark.criterion if spark is not None else criterion or AKD()
    teacher_stages = task.stages(task.teacher)
    pace = long_pace(student, criterion) if pace is None else pace
    warmup = max(1, round(WARMUP * steps))

    def factor(step: int) -> float:
        falling = 0.5 * (1 + math.cos(math.pi * max(0, step - warmup) / max(1, steps - warmup)))
        return pace * min(1.0, (step + 1) / warmup) * falling

    def through(stages: Sequence[Stage], batch: Batch) -> State:
        return float32_outputs(lambda: run(stages, {"images": batch.images}), batch.images.device, bfloat16)

    @torch.no_grad()
    def teacher(batch: Batch) -> Sequence[Distilled]:
        return task.distilled(through(teacher_stages, batch))

    def forward(batch: Batch) -> State:
        return through(student.stages, batch)

    lessons = None if spark is None else LessonsInPassing(student, spark, forward)
    weigh, after_backward = (None, None) if lessons is None else (lessons.weigh, lessons.after_backward)

    def loss_of(step: int) -> Tensor:
        batch = task.long_finetuning(step)
        expected = teacher(batch)
        on_step(step)
        outputs = forward(batch)
        return akd_loss_and_divergence(task, criterion, alpha, outputs, batch, expected, weigh)[0]

    rates = rates or (IMAGE_RATES if "pixels" in distilled_kinds(task) else LONG_RATES)
    with learned_ranges(student.layers) if rates.ranges else nullcontext():
        modules = student.modules_of("all", 0)
        return _take_steps(student, modules, rates, steps, loss_of, factor, after_backward, kept)
