"""What a student is worth on the search split."""

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hsq_env.accuracy import Scale, scale_of
from hsq_env.distillation import AKD, JUDGING_WEIGHTS
from hsq_env.shortcuts import Shortcuts
from hsq_env.states import KeptStates, straight
from hsq_env.student import evaluate
from hsq_env.task import QuickMetric, Stage, Task
from hsq_env.teacher import Teacher


def quick_form(task: Task) -> QuickMetric | None:
    """The task, if it has the quick form of its own metric; not if a subclass has changed only the metric itself."""
    if not isinstance(task, QuickMetric):
        return None
    depth = {name: i for i, kind in reversed([*enumerate(type(task).__mro__)]) for name in vars(kind)}
    own = all(depth.get("quick_" + name, 0) <= depth.get(name, 0) for name in ("predictions", "metric"))
    return task if own else None


def _mean(losses: Sequence[Tensor]) -> float:
    return torch.stack(list(losses)).double().mean().item()


class Judge:
    """The search split, what the teacher makes of it, and the states of a student on it.

    :param teacher: with its task
    :param shortcuts: what may be reused; none of them changes a result
    """

    def __init__(self, teacher: Teacher, shortcuts: Shortcuts) -> None:
        self.teacher, self.shortcuts, self.criterion = teacher, shortcuts, AKD(weights=JUDGING_WEIGHTS)
        self.kept = KeptStates(teacher.task.evaluation("search"), shortcuts.resume)
        self.expected = [teacher.outputs(batch) for batch in self.kept.batches]
        self.scale = scale_of(teacher.task, "search", evaluate(teacher.task, teacher.stages, "search"))

    def fork(self) -> "Judge":
        """For another student, which shares what no step changes."""
        other = copy.copy(self)
        other.kept = self.kept.fork()
        return other

    @torch.no_grad()
    def measure(self, stages: Sequence[Stage]) -> tuple[float, float]:
        """A student on the search split; NaN where outputs are no numbers.

        :return: its accuracy (``hsq_env.accuracy``), and the divergence from the teacher: the KL part of the AKD loss
            with ``JUDGING_WEIGHTS``
        """
        scale = self.scale
        if not self.shortcuts.teacher:
            scale = Scale(evaluate(self.teacher.task, self.teacher.stages, "search"), scale.untreated)
        metric, divergence = self._measure(stages)
        return scale.accuracy(metric), divergence

    def measure_anew(self, stages: Sequence[Stage]) -> tuple[float, float]:
        """``measure`` of a student that no steps led to: nothing kept is used."""
        other = self.fork()
        other.kept.reset()
        other.kept.enter(straight(0, len(stages)))
        return other.measure(stages)

    def _measure(self, stages: Sequence[Stage]) -> tuple[float, float]:
        """Metric and divergence."""
        task = self.teacher.task
        quick = quick_form(task) if self.shortcuts.metric else None
        predictions: list[Any] = []
        finite: list[Tensor] = []
        divergences: list[Tensor] = []
        for index, batch in enumerate(self.kept.batches):
            outputs = self.kept.route.finish(stages, self.kept.state(stages, index))
            distilled = task.distilled(outputs)
            finite += [item.tensor.isfinite().all() for item in distilled]
            expected = self.expected[index] if self.shortcuts.teacher else self.teacher.outputs(batch)
            divergences.append(self.criterion.loss(distilled, expected))
            if quick is not None:
                predictions.append(quick.quick_predictions(outputs, batch))
            elif all(finite):
                predictions.append(task.predictions(outputs, batch))
            else:
                return math.nan, math.nan
        if quick is None:
            return task.metric(predictions, "search"), _mean(divergences)
        if not bool(torch.stack(finite).all()):
            return math.nan, math.nan
        return quick.quick_metric(predictions), _mean(divergences)
