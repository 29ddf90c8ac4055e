"""Sensitivity: what each choice of each layer alone does to the distillation loss, before and after a repair."""

import hashlib
import os
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from detectors.cache import cache_folder
from hsq_env.choices import Choice
from hsq_env.compressor import Compressor
from hsq_env.distillation import AKD, JUDGING_WEIGHTS
from hsq_env.states import Dependencies, KeptStates, run
from hsq_env.student import LayerInfo, Student
from hsq_env.task import Batch, Distilled, Task

Table = NDArray[np.float64]
CACHE_VERSION = 4  # raised whenever the same inputs would give other sensitivities


@torch.no_grad()
def measure_sensitivity(
    task: Task,
    infos: Sequence[LayerInfo],
    choices: Sequence[Choice],
    activation_bits: int | str | None = 8,
    pattern: str = "unstructured",
) -> Table:
    """The divergence on the calibration images with one layer compressed, all others as the teacher has them.

    It is the KL part of the AKD loss with ``JUDGING_WEIGHTS``.

    :return: (layers, choices), non-negative; NaN-free: outputs that are no numbers count as the largest other value
    """
    student, criterion = Student(task, infos, activation_bits, pattern), AKD(weights=JUDGING_WEIGHTS)
    kept = KeptStates(task.calibration())
    dependencies = Dependencies(student.stages, kept.batches[0])
    teacher = _teacher_outputs(task, kept.batches)
    table = np.full((len(infos), len(choices)), np.nan)
    for index, info in enumerate(tqdm(infos, "sensitivities", disable=None, leave=False)):
        kept.enter(dependencies.route(range(info.stage, info.stage + 1)))
        layer = student.layers[index]
        before = layer.snapshot()
        for column, choice in enumerate(choices):
            student.compress(index, choice)
            table[index, column] = _loss(task, criterion, student, kept, teacher)
            layer.restore(before)
    return _numbers(table)


@torch.no_grad()
def measure_repaired_sensitivity(compressor: Compressor, choices: Sequence[Choice], alpha: float) -> Table:
    """The same after the repair that a step makes: a few gradient steps on the layer's block.

    A choice that fine-tuning repairs well may be worth more than one that does less harm at first.

    :param alpha: share of the task loss in the repair
    :return: (layers, choices), as ``measure_sensitivity``
    """
    own, task, criterion = compressor.fork(), compressor.task, compressor.judge.criterion
    kept = KeptStates(task.calibration())
    teacher = _teacher_outputs(task, kept.batches)
    table = np.full((len(own.infos), len(choices)), np.nan)
    for index in tqdm(range(len(own.infos)), "repaired sensitivities", disable=None, leave=False):
        for column, choice in enumerate(choices):
            with own.alone(index, choice, alpha) as (student, route):
                kept.enter(route)
                table[index, column] = _loss(task, criterion, student, kept, teacher)
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
    return kept_table(digest, lambda: measure_sensitivity(task, infos, choices, activation_bits, pattern))


def repaired_sensitivity(compressor: Compressor, choices: Sequence[Choice], alpha: float) -> Table:
    """``measure_repaired_sensitivity``, kept on disk likewise."""
    settings = (compressor.infos, choices, compressor.repair_settings(), alpha)
    task = compressor.task
    digest = table_digest(task, settings, [*task.calibration(), *task.finetuning()])
    return kept_table(digest, lambda: measure_repaired_sensitivity(compressor, choices, alpha))


def table_digest(task: Task, settings: object, batches: Sequence[Batch]) -> str:
    """A name for a table that depends on the teacher, on images and on whatever else ``settings`` shows."""
    digest = hashlib.sha256(repr((CACHE_VERSION, torch.__version__, JUDGING_WEIGHTS, settings)).encode())
    for tensor in task.teacher.state_dict().values():
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    for batch in batches:
        digest.update(batch.images.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:24]


def kept_table(digest: str, measure: Callable[[], Table]) -> Table:
    """The table of that name from the cache folder, measured and put there if it is absent or damaged."""
    path = cache_folder() / f"sensitivity-{digest}.npy"
    try:
        with open(path, "rb") as file:
            return np.asarray(np.lib.format.read_array(file, allow_pickle=False), dtype=np.float64)
    except (OSError, ValueError, EOFError):  # absent or damaged: measure
        pass
    table = measure()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_suffix(f".{os.getpid()}.npy")
        np.save(beside, table)
        beside.replace(path)
    except OSError:  # a full or read-only disk must not stop a search: the table is only a shortcut
        pass
    return table
