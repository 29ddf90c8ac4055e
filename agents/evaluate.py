"""What a finished model measures."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agents.model_task import model_task
from hsq_env.student import evaluate


def evaluate_file(file: Path, dataset: str | None, split: str, splits: Sequence[str] | None = None) -> dict[str, Any]:
    """Bytes and metric of a ``.hsq`` file; the ratio too where the teacher lies beside it.

    :param dataset: the embedded data of the model's kind when None
    :raises InputError: if the file or the data cannot be used
    """
    task = model_task(file, dataset, splits)
    score, size = evaluate(task, task.stages(task.teacher), split), file.stat().st_size
    result = {"file": str(file), "dataset": task.name, "split": split, task.metric_name.lower(): score, "bytes": size}
    teacher = file.parent / "teacher.safetensors"
    ratio = {"ratio": teacher.stat().st_size / size} if teacher.is_file() else {}
    return {**result, **ratio, "metric": task.metric_name}
