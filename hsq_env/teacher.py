"""The teacher in an environment: what it puts out."""

from collections.abc import Sequence
from typing import Any

import torch

from hsq_env.states import run
from hsq_env.task import Batch, Distilled, Task


class Teacher:
    """A task's teacher. Its stages are made anew where it is unpickled."""

    def __init__(self, task: Task) -> None:
        self.task, self.stages = task, task.stages(task.teacher)

    @torch.no_grad()
    def outputs(self, batch: Batch) -> Sequence[Distilled]:
        """What a student's outputs on a batch are to be."""
        return self.task.distilled(run(self.stages, {"images": batch.images}))

    def __getstate__(self) -> dict[str, Any]:
        return {"task": self.task}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["task"])  # type: ignore[misc]
