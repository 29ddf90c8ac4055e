"""A long fine-tuning on disk, so that an interrupted one goes on with the same result."""

import contextlib
import io
import pickle
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from detectors.files import write_atomically


class KeptTraining:
    """The state of a training, written every few minutes; whoever writes it last wins.

    It holds tensors and numbers only: reading it runs no code.

    :param path: of the file, whose folder exists
    :param minutes: between two states
    """

    def __init__(self, path: str | Path, minutes: float) -> None:
        self.path, self.minutes = Path(path), minutes
        self._due = time.monotonic() + 60 * minutes

    @torch.no_grad()
    def restore(
        self,
        parameters: Sequence[Tensor],
        optimizer: torch.optim.Optimizer,
        schedule: torch.optim.lr_scheduler.LambdaLR,
    ) -> int:
        """Put back what was kept; how many steps have been taken, 0 if nothing fits.

        :param parameters: everything that the training changes, in the order in which it was kept
        """
        try:
            state: dict[str, Any] = torch.load(self.path, weights_only=True)
            kept, step = state["parameters"], int(state["step"])
            if [p.shape for p in kept] != [p.shape for p in parameters]:
                return 0
            optimizer.load_state_dict(state["optimizer"])  # refused as a whole, or taken
        except (OSError, RuntimeError, KeyError, ValueError, EOFError, pickle.UnpicklingError):  # absent or damaged
            return 0
        for parameter, value in zip(parameters, kept, strict=True):
            parameter.copy_(value)
        schedule.last_epoch = step  # the rates themselves are the optimizer's
        return step

    def keep(
        self,
        step: int,
        parameters: Sequence[Tensor],
        optimizer: torch.optim.Optimizer,
    ) -> None:
        """Write the state after ``step`` steps if it is time to.

        A disk that takes nothing costs no more than that the training would begin anew.
        """
        if time.monotonic() < self._due:
            return
        self._due = time.monotonic() + 60 * self.minutes
        content = io.BytesIO()
        torch.save(
            {
                "step": step,
                "parameters": [p.detach() for p in parameters],
                "optimizer": optimizer.state_dict(),
            },
            content,
        )
        with contextlib.suppress(OSError):
            write_atomically(self.path, content.getvalue())

    def discard(self) -> None:
        """Remove the file: the training has ended."""
        self.path.unlink(missing_ok=True)
