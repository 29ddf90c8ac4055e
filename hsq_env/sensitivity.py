"""Sensitivity: what each choice of each layer alone does to the distillation loss, before and after a repair."""

from collections.abc import Sequence

import numpy as np
import torch

from detectors.progress import each
from hsq_env.choices import Choice
from hsq_env.compressor import Compressor
from hsq_env.distillation import AKD, JUDGING_WEIGHTS
from hsq_env.layer_info import LayerInfo
from hsq_env.states import Dependencies, KeptStates, run
from hsq_env.student import Student
from hsq_env.table_cache import KeptRows, Table, kept_table, path_of, table_digest
from hsq_env.task import Batch, Distilled, Task


@torch.no_grad()
def measure_sensitivity(
    task: Task,
    infos: Sequence[LayerInfo],
    choices: Sequence[Choice],
    activation_bits: int | str | None = 8,
    pattern: str = "unstructured",
    kept_rows: KeptRows | None = None,
) -> Table:
    """The divergence on the calibration images with one layer compressed, all others as the teacher has them.

    It is the KL part of the AKD loss with ``JUDGING_WEIGHTS``.

    :param kept_rows: of a measurement that was interrupted
    :return: (layers, choices), non-negative; NaN-free: outputs that are no numbers count as the largest other value
    """
    student, criterion = Student(task, infos, activation_bits, pattern), AKD(weights=JUDGING_WEIGHTS)
    kept = KeptStates(task.calibration())
    dependencies = Dependencies(student.stages, kept.batches[0])
    teacher = _teacher_outputs(task, kept.batches)
    rows = kept_rows or KeptRows(None)
    table = rows.load((len(infos), len(choices)))
    for index, info in enumerate(each(infos, "sensitivities of layer")):
        if not np.isnan(table[index]).any():
            continue
        kept.enter(dependencies.route(range(info.stage, info.stage + 1)))
        layer = student.layers[index]
        before = layer.snapshot()
        for column, choice in enumerate(choices):
            student.compress(index, choice)
            table[index, column] = _loss(task, criterion, student, kept, teacher)
            layer.restore(before)
        rows.keep(table)
    return _numbers(table)


@torch.no_grad()
def measure_repaired_sensitivity(
    compressor: Compressor, choices: Sequence[Choice], alpha: float, kept_rows: KeptRows | None = None
) -> Table:
    """The same after the repair that a step makes: a few gradient steps on the layer's block.

    A choice that fine-tuning repairs well may be worth more than one that does less harm at first.

    :param alpha: share of the task loss in the repair
    :param kept_rows: of a measurement that was interrupted
    :return: (layers, choices), as ``measure_sensitivity``
    """
    own, task, criterion = compressor.fork(), compressor.task, compressor.judge.criterion
    kept = KeptStates(task.calibration())
    teacher = _teacher_outputs(task, kept.batches)
    rows = kept_rows or KeptRows(None)
    table = rows.load((len(own.infos), len(choices)))
    for index in each(range(len(own.infos)), "repaired sensitivities of layer"):
        if not np.isnan(table[index]).any():
            continue
        for column, choice in enumerate(choices):
            with own.alone(index, choice, alpha) as (student, route):
                kept.enter(route)
                table[index, column] = _loss(task, criterion, student, kept, teacher)
        rows.keep(table)
    return _numbers(table)


def _teacher_outputs(task: Task, batches: Sequence[Batch]) -> list[Sequence[Distilled]]:
    stages = task.stages(task.teacher)
    return [task.distilled(run(stages, {"images": batch.images})) for batch in batches]


def _loss(
    task: Task, criterion: AKD, student: Student, kept: KeptStates, teacher: Sequence[Sequence[Distilled]]
) -> float:
    """The KL part of the AKD loss, mean over batches."""
    losses = [
        criterion.loss(task.distilled(kept.route.finish(student.stages, kept.state(student.stages, i))), expected)
        for i, expected in enumerate(teacher)
    ]
    return max(torch.stack(losses).double().mean().item(), 0.0)


def _numbers(table: Table) -> Table:
    finite = table[np.isfinite(table)]
    return np.where(np.isfinite(table), table, finite.max(initial=1.0))


def sensitivity(
    task: Task,
    infos: Sequence[LayerInfo],
    choices: Sequence[Choice],
    activation_bits: int | str | None = 8,
    pattern: str = "unstructured",
) -> Table:
    """``measure_sensitivity``, kept on disk under a hash of everything that it depends on."""
    digest = table_digest(task, (infos, choices, activation_bits, pattern), task.calibration())
    rows = KeptRows(path_of(digest))
    table = kept_table(digest, lambda: measure_sensitivity(task, infos, choices, activation_bits, pattern, rows))
    rows.discard()
    return table


def repaired_sensitivity(compressor: Compressor, choices: Sequence[Choice], alpha: float) -> Table:
    """``measure_repaired_sensitivity``, kept on disk likewise."""
    settings = (compressor.infos, choices, compressor.repair_settings(), alpha)
    task = compressor.task
    labelled = task.finetuning() if alpha > 0 else ()
    digest = table_digest(task, settings, [*task.calibration(), *task.finetuning()], labelled=labelled)
    rows = KeptRows(path_of(digest))
    table = kept_table(digest, lambda: measure_repaired_sensitivity(compressor, choices, alpha, rows))
    rows.discard()
    return table
