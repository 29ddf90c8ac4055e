"""The long fine-tuning after a search, or without one: everything is trained."""

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hsq_env.distillation import AKD
from hsq_env.distillation.spark import Spark, check_places
from hsq_env.finetuning import GRADIENT_CLIP, LearningRates, akd_loss_and_divergence, float32_outputs, training
from hsq_env.kept_training import KeptTraining
from hsq_env.layers import CompressedLayer, learned_ranges
from hsq_env.lessons import LessonsInPassing
from hsq_env.states import distilled_example, run
from hsq_env.student import Student
from hsq_env.task import Batch, Distilled, Stage, State

WARMUP = 0.05  # share of the long fine-tuning with a rising learning rate
LONG_RATES = LearningRates(weights=0.006, scales=2e-3, biases=6e-4)  # where the distillation loss is 4 or more
IMAGE_RATES = LearningRates(weights=0.006, scales=2e-3, biases=6e-4, ranges=2e-2)  # of students that put out images
LONG_PACE, SMALLEST_LONG_PACE = 0.5, 0.3
LONG_ALPHA = 0.3
FROZEN_SHARE = 0.15  # of the steps, at the end, in which codes stay as they are
FROZEN_PACE = 0.3  # of them
FEWEST_FROZEN = 5  # of the usual share; fewer could not rise and fall, and there are none then


@dataclass(frozen=True)
class Schedule:
    """Learning rates over a long fine-tuning.

    :param steps: all of them
    :param frozen: of these, at the end, in which codes stay as they are
    :param pace: factor of the learning rates before
    :param frozen_pace: and in those
    """

    steps: int
    frozen: int
    pace: float
    frozen_pace: float

    @property
    def freeze_at(self) -> int:
        """The first step with frozen codes."""
        return self.steps - self.frozen

    def factor(self, step: int) -> float:
        """Of the learning rates at a step: twice up and down where codes are frozen."""
        if step < self.freeze_at:
            return self.pace * rise_and_fall(step, self.freeze_at)
        return self.frozen_pace * rise_and_fall(step - self.freeze_at, self.frozen)


def rise_and_fall(step: int, steps: int) -> float:
    """Up in a straight line for the first ``WARMUP``, then down along a cosine.

    >>> [round(rise_and_fall(step, 40), 2) for step in (0, 1, 21, 39)]
    [0.5, 1.0, 0.5, 0.0]
    """
    warmup = max(1, round(WARMUP * steps))
    falling = 0.5 * (1 + math.cos(math.pi * max(0, step - warmup) / max(1, steps - warmup)))
    return min(1.0, (step + 1) / warmup) * falling


def _frozen_steps(steps: int, share: float | None, images: bool) -> int:
    """How many of the steps have frozen codes; of the usual share for what the student puts out when None."""
    if share is None:
        usual = round(FROZEN_SHARE * steps) if images else 0
        return usual if usual >= FEWEST_FROZEN else 0
    if not 0 <= share <= 1:
        raise ValueError(f"frozen_share is {share}: give a share of the steps, in [0, 1].")
    return round(share * steps)


def _take_steps(
    student: Student,
    modules: Sequence[nn.Module],
    rates: LearningRates,
    schedule: Schedule,
    loss_of: Callable[[int], Tensor],
    lessons: LessonsInPassing | None = None,
    kept: KeptTraining | None = None,
) -> bool:
    """Adam steps on the parameters of ``modules``; stops at the first loss or gradient that is no number.

    :param lessons: of a policy that learns beside it
    :param kept: where an interrupted training stands
    :return: whether all losses and gradients were finite
    """
    groups = rates.groups(modules)
    parameters = [p for group in groups for p in group["params"]]
    layers = [module for module in modules if isinstance(module, CompressedLayer)]
    state = [*parameters, *(layer.base_scale for layer in layers)]
    optimizer = torch.optim.Adam(groups)
    learning_rates = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule.factor)
    with training(student, modules, parameters):
        start = 0 if kept is None else kept.restore(state, optimizer, learning_rates)
        if start > schedule.freeze_at:  # frozen before it was interrupted
            for layer in layers:
                layer.freeze_codes()
        for step in range(start, schedule.steps):
            if step == schedule.freeze_at:
                for layer in layers:
                    layer.rebase()
                    layer.freeze_codes()
                optimizer.state.clear()  # gradients of scales are others from here on
                if lessons is not None:
                    lessons.break_off()
            loss = loss_of(step)
            if not math.isfinite(loss.item()):
                return False
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            if not math.isfinite(nn.utils.clip_grad_norm_(parameters, GRADIENT_CLIP).item()):
                return False
            if lessons is not None:
                lessons.after_backward(optimizer)
            optimizer.step()
            learning_rates.step()
            if kept is not None:
                kept.keep(step + 1, state, optimizer)
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
    return min(1.0, max(SMALLEST_LONG_PACE, LONG_PACE * damage)) if math.isfinite(damage) else 1.0


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
    frozen_share: float | None = None,
    frozen_pace: float = FROZEN_PACE,
) -> bool:
    """The long fine-tuning after the search: everything is trained, the learning rate rises briefly and falls to zero.

    Badly damaged students need long steps, which would harm slightly damaged ones (see ``long_pace``). Latent weights
    go back and forth over the thresholds between codes until the end (Nagel et al. 2022, arXiv 2203.11086), and what
    surrounds them cannot follow. So the last steps leave the codes alone and train the rest, with learning rates that
    rise and fall once more.

    :param steps: gradient steps, each on ``task.long_finetuning(step)``
    :param alpha: share of the task loss; at 1, without ``spark``, the teacher is not asked
    :param rates: the usual ones of what the student puts out when None
    :param on_step: called before each step, for progress
    :param bfloat16: run forward and backward passes under autocast until codes are frozen; weights stay float32
    :param pace: factor of the learning rates before codes are frozen; by the student's damage when None
    :param spark: weighs the distillation place by place, and learns to, until codes are frozen; its criterion takes
        the other's place
    :param kept: where an interrupted training stands, which must have had the same arguments and no ``spark``
    :param frozen_share: of the steps, at the end, in which codes stay as they are; the usual one of what the student
        puts out when None
    :param frozen_pace: factor of the learning rates in those
    :return: whether the losses stayed finite
    :raises ValueError: for a ``frozen_share`` outside of [0, 1]
    :raises InputError: for ``spark`` where nothing that is distilled has places
    """
    task = student.task
    criterion = spark.criterion if spark is not None else criterion or AKD()
    teacher_stages = task.stages(task.teacher)
    pace = long_pace(student, criterion) if pace is None else pace
    example = distilled_example(task)
    if spark is not None:
        check_places(criterion, example)
    images = any(item.kind == "pixels" for item in example)
    schedule = Schedule(steps, _frozen_steps(steps, frozen_share, images), pace, frozen_pace)

    half = bfloat16

    def through(stages: Sequence[Stage], batch: Batch) -> State:
        return float32_outputs(lambda: run(stages, {"images": batch.images}), batch.images.device, half)

    @torch.no_grad()
    def teacher(batch: Batch) -> Sequence[Distilled]:
        return task.distilled(through(teacher_stages, batch))

    def forward(batch: Batch) -> State:
        return through(student.stages, batch)

    lessons = None if spark is None else LessonsInPassing(student, spark, forward)

    def loss_of(step: int) -> Tensor:
        nonlocal half
        frozen = step >= schedule.freeze_at  # what is fitted last is fitted to what will be computed, in all places
        half = bfloat16 and not frozen
        weigh = None if lessons is None or frozen else lessons.weigh
        batch = task.long_finetuning(step)
        on_step(step)
        if alpha == 1 and lessons is None:
            return task.task_loss(forward(batch), batch)
        expected, outputs = teacher(batch), forward(batch)
        return akd_loss_and_divergence(task, criterion, alpha, outputs, batch, expected, weigh)[0]

    rates = rates or (IMAGE_RATES if images else LONG_RATES)
    with learned_ranges(student.layers) if rates.ranges else nullcontext():
        modules = student.modules_of("all", 0)
        return _take_steps(student, modules, rates, schedule, loss_of, lessons, kept)
