"""Sensitivity: what each choice of each layer alone does to the distillation loss, before any repair."""

import hashlib
import os
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from detectors.cache import cache_folder
from hsq_env.choices import Choice
from hsq_env.distillation import AKD
from hsq_env.states import Dependencies, KeptStates, run
from hsq_env.student import LayerInfo, Student
from hsq_env.task import Task

CACHE_VERSION = 1  # raised whenever the same inputs would give other sensitivities


@torch.no_grad()
def measure_sensitivity(
    task: Task,
    infos: Sequence[LayerInfo],
    choices: Sequence[Choice],
    activation_bits: int | str | None = 8,
    pattern: str = "unstructured",
) -> NDArray[np.float64]:
    """The KL part of the AKD loss on the calibration images with one layer compressed, all others as the teacher's.

    :return: (layers, choices), non-negative; NaN-free: outputs that are no numbers count as the largest other value
    """
    student, criterion = Student(task, infos, activation_bits, pattern), AKD()
    kept = KeptStates(task.calibration())
    dependencies = Dependencies(student.stages, kept.batches[0])
    teacher_stages = task.stages(task.teacher)
    teacher = [task.distilled(run(teacher_stages, {"images": batch.images})) for batch in kept.batches]
    table = np.full((len(infos), len(choices)), np.nan)
    for index, info in enumerate(tqdm(infos, "sensitivities", disable=None, leave=False)):
        kept.enter(dependencies.route(range(info.stage, info.stage + 1)))
        layer = student.layers[index]
        before = layer.snapshot()
        for column, choice in enumerate(choices):
            student.compress(index, choice)
            losses = [
                criterion.loss(
                    task.distilled(kept.route.finish(student.stages, kept.state(student.stages, batch))), expected
                ).item()
                for batch, expected in enumerate(teacher)
            ]
            table[index, column] = max(float(np.mean(losses)), 0.0)
            layer.restore(before)
    finite = table[np.isfinite(table)]
    return np.where(np.isfinite(table), table, finite.max(initial=1.0))


def sensitivity(
    task: Task,
    infos: Sequence[LayerInfo],
    choices: Sequence[Choice],
    activation_bits: int | str | None = 8,
    pattern: str = "unstructured",
) -> NDArray[np.float64]:
    """``measure_sensitivity``, kept on disk under a hash of everything that it depends on."""
    digest = hashlib.sha256(repr((CACHE_VERSION, torch.__version__, infos, choices, activation_bits, pattern)).encode())
    for tensor in task.teacher.state_dict().values():
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    for batch in task.calibration():
        digest.update(batch.images.cpu().contiguous().numpy().tobytes())
    path = cache_folder() / f"sensitivity-{digest.hexdigest()[:24]}.npy"
    try:
        with open(path, "rb") as file:
            return np.asarray(np.lib.format.read_array(file, allow_pickle=False), dtype=np.float64)
    except (OSError, ValueError, EOFError):  # absent or damaged: measure
        pass
    table = measure_sensitivity(task, infos, choices, activation_bits, pattern)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_suffix(f".{os.getpid()}.npy")
        np.save(beside, table)
        beside.replace(path)
    except OSError:  # a full or read-only disk must not stop a search: the table is only a shortcut
        pass
    return table
