"""What a step does to the student, without any reinforcement learning: compress, fine-tune, measure."""

import math
from collections.abc import Sequence

import torch
from torch import nn

from detectors.errors import InputError
from hsq_env.choices import Choice
from hsq_env.distillation import AKD
from hsq_env.finetuning import BRIEF_RATES, LearningRates, finetune_block
from hsq_env.states import KeptStates, run
from hsq_env.student import LayerInfo, Student, evaluate, trace_layers
from hsq_env.task import Distilled, Task

FINETUNE_SCOPES = ("layer", "block", "all")


class Compressor:
    """A student with the kept states of the images that fine-tuning and rewards look at.

    :param task: teacher, data, metric
    :param finetune_steps: minibatches per layer; 0 for none
    :param finetune_scope: what they train, "layer", "block" or "all"
    :param rates: learning rates of the brief fine-tuning
    :param activation_bits: see ``Student``
    :param pattern: of sparsity, see ``Student``
    :param resume: keep states before the present block; False recomputes them, with equal results
    :param criterion: the distillation loss
    :param bfloat16: fine-tune under autocast
    """

    def __init__(
        self,
        task: Task,
        finetune_steps: int = 2,
        finetune_scope: str = "block",
        rates: LearningRates = BRIEF_RATES,
        activation_bits: int | str | None = 8,
        pattern: str = "unstructured",
        resume: bool = True,
        criterion: AKD | None = None,
        bfloat16: bool = False,
    ) -> None:
        self.bfloat16 = bfloat16
        self.task, self.criterion, self.rates = task, criterion or AKD(), rates
        self.finetune_steps, self.finetune_scope = finetune_steps, finetune_scope
        self.infos: tuple[LayerInfo, ...] = trace_layers(task)
        if not self.infos:
            raise InputError(f"The model of task '{task.name}' has no Conv2d or Linear layer to compress.")
        self.student = Student(task, self.infos, activation_bits, pattern)
        keep = resume and finetune_scope != "all"  # training everything changes all states
        self._search = KeptStates(task.evaluation("search"), keep)
        self._pool = KeptStates(task.finetuning(), keep)
        self._teacher_outputs = self._distill_teacher() if finetune_steps else []
        self.teacher_metric = evaluate(task, task.stages(task.teacher), "search")
        if not self.teacher_metric > 0:
            raise InputError(
                f"The teacher of task '{task.name}' scores {self.teacher_metric:g} on the search split: "
                "train it further or check that it belongs to this data."
            )

    @torch.no_grad()
    def _distill_teacher(self) -> list[Sequence[Distilled]]:
        stages = self.task.stages(self.task.teacher)
        return [self.task.distilled(run(stages, {"images": batch.images})) for batch in self.task.finetuning()]

    def reset(self) -> None:
        """Back to the teacher's weights."""
        self.student.reset()
        self._search.reset()
        self._pool.reset()

    def compress(self, index: int, choice: Choice) -> None:
        """Prune and quantize layer ``index``; layers come in order."""
        self._enter_block(index)
        self.student.compress(index, choice)

    def _enter_block(self, index: int) -> None:
        """Keep the states before the block of layer ``index``, whose earlier blocks are final."""
        start = self.student.block(self.infos[index].block).start
        for kept in (self._search, self._pool):
            if kept.at != start:
                kept.advance(self.student.stages, start)

    def finetune(self, index: int, alpha: float) -> bool:
        """A few gradient steps with the AKD loss on the block of layer ``index``.

        Which minibatches are taken depends on ``index`` alone, so that equal choices give equal students. Where a loss
        is no number, the block is put back to what it was before.

        :param alpha: share of the task loss
        :return: whether the losses stayed finite
        """
        if not self.finetune_steps:
            return True
        modules = self.student.modules_of(self.finetune_scope, index)
        picked = [(index * self.finetune_steps + i) % len(self._pool.batches) for i in range(self.finetune_steps)]
        stages, start = self.student.stages, self._pool.at
        inputs = [(self._pool.batches[i], self._pool.state(stages, i), self._teacher_outputs[i]) for i in picked]
        before = [_parameters(module) for module in modules]
        finite = finetune_block(
            self.student, stages, modules, start, inputs, self.criterion, alpha, self.rates, self.bfloat16
        ) and all(bool(p.isfinite().all()) for module in modules for p in module.parameters(recurse=False))
        if not finite:
            self._put_back(modules, before)
        return finite

    @torch.no_grad()
    def _put_back(self, modules: Sequence[nn.Module], before: Sequence[dict[str, torch.Tensor]]) -> None:
        for module, values in zip(modules, before, strict=True):
            for name, value in values.items():
                getattr(module, name).copy_(value)
        for layer in self.student.layers:
            layer.store()

    @torch.no_grad()
    def accuracy(self) -> float:
        """The student's metric over the teacher's on the search split; NaN where outputs are no numbers."""
        stages, task = self.student.stages, self.task
        predictions = []
        for batch, state in self._search.each(stages):
            outputs = run(stages, state, self._search.at)
            if not all(bool(item.tensor.isfinite().all()) for item in task.distilled(outputs)):
                return math.nan
            predictions.append(task.predictions(outputs, batch))
        return task.metric(predictions, "search") / self.teacher_metric


def _parameters(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in module.named_parameters(recurse=False)}
