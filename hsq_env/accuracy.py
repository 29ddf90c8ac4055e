"""Accuracy: a student's metric as a share of what its teacher reaches."""

from dataclasses import dataclass

from detectors.errors import InputError
from hsq_env.task import Task, Untreated


@dataclass(frozen=True)
class Scale:
    """From doing nothing (0) to the teacher (1).

    :param teacher: the teacher's metric
    :param untreated: the metric without any network: 0 for detectors, that of the images as they come for restorers
    :raises InputError: if the teacher is no better than that

    >>> Scale(teacher=0.5).accuracy(0.25)
    0.5
    >>> Scale(teacher=30.0, untreated=20.0).accuracy(29.0)
    0.9
    """

    teacher: float
    untreated: float = 0.0

    def __post_init__(self) -> None:
        if not self.teacher > self.untreated:
            compared = f" and images as they come {self.untreated:g}" if self.untreated else ""
            raise InputError(f"scores {self.teacher:g}{compared}")

    def accuracy(self, metric: float) -> float:
        """At least 0; more than 1 where a student is better than its teacher; NaN stays NaN."""
        share = (metric - self.untreated) / (self.teacher - self.untreated)
        return share if not share < 0 else 0.0


def untreated_metric(task: Task, split: str) -> float:
    """The metric without any network; 0 for a task that does not say."""
    return task.untreated_metric(split) if isinstance(task, Untreated) else 0.0


def scale_of(task: Task, split: str, teacher: float) -> Scale:
    """The scale of a task's split.

    :param teacher: its metric
    :raises InputError: if the teacher is no better than no network
    """
    try:
        return Scale(teacher, untreated_metric(task, split))
    except InputError as error:
        raise InputError(
            f"The teacher of task '{task.name}' {error} on the {split} split: "
            "train it further or check that it belongs to this data."
        ) from error
