"""What trainings of teachers share: a step, and a checkpoint to go on from."""

import io
import math
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from detectors.errors import InputError
from detectors.files import write_atomically


def gradient_step(model: nn.Module, loss: Tensor, optimizer: Any, schedule: Any, clip: float) -> float:
    """One step of optimizer and schedule; the loss.

    :param clip: largest norm of the gradient
    :raises InputError: if the loss is no number
    """
    value = loss.item()
    if not math.isfinite(value):
        raise InputError("The training loss became infinite or NaN: lower --learning-rate.")
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimizer.step()
    schedule.step()
    return value


def save_checkpoint(path: Path, model: nn.Module, optimizer: Any, schedule: Any, state: dict[str, Any]) -> None:
    """Write everything that a training goes on with; ``path`` is whole or what it was."""
    parts = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}
    content = io.BytesIO()  # a full disk would make torch.save raise something else than OSError
    torch.save({**parts, "state": state}, content)
    write_atomically(path, content.getvalue())


@contextmanager
def going_on_from(path: Path, out: Path) -> Iterator[None]:
    """Inside, an interruption says how the training goes on; before there is a checkpoint, nothing is left behind.

    :param path: of the checkpoint
    :param out: of the result, which did not exist when the training began anew
    :raises KeyboardInterrupt: with that sentence
    """
    try:
        yield
    except BaseException as error:
        if not path.exists():  # to be begun anew, which a result would forbid
            out.unlink(missing_ok=True)
        if not isinstance(error, KeyboardInterrupt):
            raise
        if not path.exists():
            raise KeyboardInterrupt("Interrupted before the first epoch had ended: nothing is kept.") from None
        raise KeyboardInterrupt(
            f"Interrupted: the same command again goes on after the last whole epoch, from {path}."
        ) from None


def restore_checkpoint(
    path: Path, model: nn.Module, optimizer: Any, schedule: Any, fits: Callable[[dict[str, Any]], bool]
) -> dict[str, Any]:
    """Go on from there; what was given as ``state``.

    :param fits: whether what was saved is of a training with the same arguments
    :raises InputError: if it does not fit or is damaged
    """
    try:
        saved = torch.load(path, weights_only=True)
        if not fits(saved):
            raise ValueError("another number of steps")
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        schedule.load_state_dict(saved["schedule"])
        state: dict[str, Any] = saved["state"]
    except (RuntimeError, KeyError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise InputError(f"{path} does not fit these arguments or is damaged: remove it to start anew.") from error
    return state
