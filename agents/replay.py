"""What an agent has learned and seen, as files that run no code when they are read."""

import io
import pickle
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.save_util import load_from_zip_file, recursive_setattr

from detectors.errors import InputError

ARRAYS = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")


def replay_of(agent: BaseAlgorithm) -> ReplayBuffer | None:
    """An agent's replay buffer, if it has one."""
    buffer = getattr(agent, "replay_buffer", None)
    return buffer if isinstance(buffer, ReplayBuffer) else None


def load_policy(agent: BaseAlgorithm, path: Path) -> None:
    """Take the weights of an archive that SB3 saved, and its optimizers' states, without unpickling anything.

    :raises InputError: if the file is none or holds weights of another shape
    """
    try:
        _, parameters, variables = load_from_zip_file(path, load_data=False, device="cpu")
        agent.set_parameters(parameters, device="cpu")
        for name, value in (variables or {}).items():
            recursive_setattr(agent, f"{name}.data", value.data)
    except (OSError, ValueError, KeyError, AttributeError, RuntimeError, pickle.UnpicklingError) as error:
        raise InputError(f"{path} holds no policy for this search ({error}): give a run with its settings.") from error


def replay_bytes(buffer: ReplayBuffer) -> bytes:
    """The content of a ``.npz`` file: the buffer's steps, oldest first, (steps, workers, ...)."""
    order = np.arange(buffer.size())
    if buffer.full:
        order = np.roll(order, -buffer.pos)
    content = io.BytesIO()
    np.savez_compressed(content, **{name: getattr(buffer, name)[order] for name in ARRAYS})
    return content.getvalue()


def fill_replay(buffer: ReplayBuffer, path: Path) -> int:
    """Put a file's steps into a buffer, the latest of every worker if there are too many.

    Every worker's column gets every step, so that a file may come from any number of workers.

    :return: how many
    :raises InputError: if the file is none or its steps are of another problem
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays: dict[str, Any] = {name: file[name] for name in ARRAYS}
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path} holds no replay ({error}): give a run that was finished.") from error
    if arrays["observations"].shape[2:] != buffer.observations.shape[2:]:
        raise InputError(
            f"{path} holds observations of shape {arrays['observations'].shape[2:]} where this search has "
            f"{buffer.observations.shape[2:]}: search with the settings of that run."
        )
    rows = max(1, buffer.buffer_size // arrays["observations"].shape[1])
    arrays = {name: value[-rows:] for name, value in arrays.items()}
    steps = arrays["observations"].shape[0] * arrays["observations"].shape[1]
    unfinished = arrays["dones"][-1:] == 0
    for name in ("dones", "timeouts"):  # a worker's last episode went on: nothing follows it here
        arrays[name][-1:][unfinished] = 1.0
    in_turn = {name: value.swapaxes(0, 1).reshape(steps, *value.shape[2:]) for name, value in arrays.items()}
    flat = {name: value[-buffer.buffer_size :] for name, value in in_turn.items()}
    count = len(flat["rewards"])
    for name in ARRAYS:
        getattr(buffer, name)[:count] = flat[name][:, None]
    buffer.pos, buffer.full = count % buffer.buffer_size, count == buffer.buffer_size
    return count
