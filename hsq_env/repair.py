"""The repair in a step: a few minibatches of distillation on the block of the layer that was compressed."""

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from detectors.errors import InputError
from hsq_env.distillation import AKD
from hsq_env.distillation.spark import check_places
from hsq_env.finetuning import LearningRates, akd_loss_and_divergence, finetune_block, float32_outputs
from hsq_env.lessons import lesson
from hsq_env.shortcuts import Shortcuts
from hsq_env.states import KeptStates, run
from hsq_env.step_policy import StepPolicy
from hsq_env.student import Student
from hsq_env.task import Batch, Distilled, State
from hsq_env.teacher import Teacher

FINETUNE_SCOPES = ("layer", "block", "all")
DISTILLATIONS = ("akd", "spark", "akd+spark")


class Repair:
    """The pool of training images, what the teacher makes of them, and the states of a student on them.

    Which minibatches are taken depends on the layer alone, so that equal choices give equal students.

    :param teacher: with its task
    :param shortcuts: what may be reused; none of them changes a result
    :param steps: minibatches per layer; 0 for none
    :param scope: what they train, "layer", "block" or "all"
    :param rates: learning rates
    :param criterion: the distillation loss
    :param bfloat16: run forward and backward passes under autocast
    :param distillation: "akd"; "akd+spark", in which a policy weighs its places; "spark", the same without a task loss
    :param policy_episodes: in which that policy learns
    :raises InputError: for less than 0 steps, or if there is nothing that a policy could weigh or hold back
    """

    def __init__(
        self,
        teacher: Teacher,
        shortcuts: Shortcuts,
        steps: int,
        scope: str,
        rates: LearningRates,
        criterion: AKD,
        bfloat16: bool,
        distillation: str,
        policy_episodes: int,
    ) -> None:
        if steps < 0:
            raise InputError(f"There are no {steps} minibatches in a step: give 0 or more (--step-minibatches).")
        self.teacher, self.shortcuts, self.steps, self.scope, self.rates = teacher, shortcuts, steps, scope, rates
        self.criterion, self.bfloat16, self.distillation = criterion, bfloat16, distillation
        self.policy = StepPolicy(criterion, policy_episodes) if distillation != "akd" and steps else None
        self.kept = KeptStates(teacher.task.finetuning(), shortcuts.resume, tuning=True, bfloat16=bfloat16)
        self.expected = [teacher.outputs(batch) for batch in self.kept.batches] if steps else []
        if self.policy is not None:
            check_places(criterion, self.expected[0])
            if len(self.expected) <= steps:
                raise InputError(
                    f"SPARK holds a minibatch back from each step, and of {steps} minibatches in a step and "
                    f"{len(self.expected)} in the pool none is left: give a larger pool (--pool-images)."
                )

    def fork(self) -> "Repair":
        """For another student, which shares what no step changes."""
        other = copy.copy(self)
        other.kept, other.policy = self.kept.fork(), copy.deepcopy(self.policy)
        return other

    def settings(self) -> tuple[Any, ...]:
        """Everything but the share of the task loss that decides what a repair does."""
        without_truth = self.distillation == "spark"  # whatever share of the task loss is asked for
        return self.steps, self.scope, self.rates, self.criterion, self.bfloat16, without_truth

    def run(self, student: Student, index: int, alpha: float, weigh: bool = True, teach: bool = False) -> Tensor:
        """Repair what the choice of a layer has done.

        Where a loss is no number, the block gets back what it had before.

        :param index: of the layer
        :param alpha: share of the task loss
        :param weigh: let the policy weigh places, if there is one
        :param teach: note what the policy may learn from it
        :return: bool scalar, whether the losses stayed finite
        """
        if not self.steps:
            return torch.tensor(True)
        alpha = 0.0 if self.distillation == "spark" else alpha
        modules = student.modules_of(self.scope, index)
        picked = [(index * self.steps + i) % len(self.kept.batches) for i in range(self.steps)]
        losses = [partial(self._loss, student, i, alpha, weigh) for i in picked]
        wanted = teach and self.policy is not None and self.policy.wants_lesson(index)
        afterwards = partial(self._note_lesson, student, picked[-1]) if wanted else lambda optimizer: None
        return finetune_block(
            student, modules, losses, self.rates, self.shortcuts.block_gradient, afterwards=afterwards
        )

    def _loss(self, student: Student, index: int, alpha: float, weigh: bool) -> tuple[Tensor, Tensor]:
        """The AKD loss on one batch of the pool, and its KL part, which the policy weighs if there is one."""
        task, batch = self.teacher.task, self.kept.batches[index]
        expected = self._expected(index)
        outputs = float32_outputs(self._forward(student, index), batch.images.device, self.bfloat16)
        weights = partial(self.policy.weights, task) if weigh and self.policy is not None else None
        return akd_loss_and_divergence(task, self.criterion, alpha, outputs, batch, expected, weights)

    def _expected(self, index: int) -> Sequence[Distilled]:
        """What the outputs on one batch of the pool are to be."""
        return self.expected[index] if self.shortcuts.teacher else self.teacher.outputs(self.kept.batches[index])

    def _note_lesson(self, student: Student, index: int, optimizer: torch.optim.Optimizer) -> None:
        """Note what a batch of the pool teaches the policy, the next one being held back."""
        assert self.policy is not None
        batches = self.kept.batches
        numbers = {id(batch): number for number, batch in enumerate(batches)}

        def forward(batch: Batch) -> State:
            return float32_outputs(self._forward(student, numbers[id(batch)]), batch.images.device, self.bfloat16)

        def expected(batch: Batch) -> Sequence[Distilled]:
            return self._expected(numbers[id(batch)])

        held_back = batches[(index + 1) % len(batches)]
        self.policy.lessons.append(
            lesson(student, self.policy.spark, optimizer, forward, expected, batches[index], held_back)
        )

    def _forward(self, student: Student, index: int) -> Callable[[], State]:
        """The student's forward pass on one batch of the pool."""
        stages, route = student.stages, self.kept.route
        if self.shortcuts.resume or self.shortcuts.block_gradient:
            state = self.kept.state(stages, index)
        else:
            state = run(stages, {"images": self.kept.batches[index].images}, 0, route.start)
        return lambda: route.finish(stages, state)
