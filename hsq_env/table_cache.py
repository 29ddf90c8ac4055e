"""Tables that take long to measure, kept in the cache folder."""

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from detectors.cache import cache_folder
from hsq_env.distillation import JUDGING_WEIGHTS
from hsq_env.task import Batch, Task

Table = NDArray[np.float64]
ROWS_SECONDS = 60.0  # between two writings of a table that is being measured
CACHE_VERSION = 5  # raised whenever the same inputs would give other sensitivities


def table_digest(
    task: Task,
    settings: object,
    batches: Sequence[Batch],
    version: str = torch.__version__,
    labelled: Sequence[Batch] = (),
) -> str:
    """A name for a table that depends on the teacher, on images and on whatever else ``settings`` shows.

    :param version: of torch, on which last bits depend
    :param labelled: batches of which not only the images count
    """
    digest = hashlib.sha256(repr((CACHE_VERSION, version, JUDGING_WEIGHTS, settings)).encode())
    for tensor in task.teacher.state_dict().values():
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    for batch in batches:
        digest.update(batch.images.cpu().contiguous().numpy().tobytes())
    for batch in labelled:
        _add(digest, _content(batch))
    return digest.hexdigest()[:24]


def _content(batch: Any) -> Any:
    """What a batch consists of."""
    if is_dataclass(batch):
        return {field.name: getattr(batch, field.name) for field in fields(batch)}
    return batch if isinstance(batch, tuple) else getattr(batch, "__dict__", batch.images)


def _add(digest: "hashlib._Hash", value: Any) -> None:
    """Tensors, arrays, numbers and words, however deep in lists and dictionaries; other objects do not count."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().contiguous()
        digest.update(repr((value.dtype, tuple(value.shape))).encode())
        digest.update(value.flatten().view(torch.uint8).numpy().tobytes())
    elif isinstance(value, np.ndarray):
        digest.update(repr((value.dtype, value.shape)).encode())
        digest.update(value.tobytes())
    elif isinstance(value, dict):
        for name, own in value.items():
            digest.update(repr(name).encode())
            _add(digest, own)
    elif isinstance(value, list | tuple):
        digest.update(f"{len(value)} values".encode())
        for own in value:
            _add(digest, own)
    elif value is None or isinstance(value, str | int | float):
        digest.update(repr(value).encode())


def kept_table(digest: str, measure: Callable[[], Table]) -> Table:
    """The table of that name from the cache folder, measured and put there if it is absent or damaged."""
    path = path_of(digest)
    found = _read(path)
    if found is None:
        found = measure()
        _write(path, found)
    return found


class KeptRows:
    """The rows of a table that have been measured so far, written every minute: at full width a table takes hours.

    :param path: of the whole table; None keeps nothing
    """

    def __init__(self, path: Path | None) -> None:
        self._path = None if path is None else path.with_suffix(".part.npy")
        self._due = time.monotonic() + ROWS_SECONDS

    def load(self, shape: tuple[int, int]) -> Table:
        """What was kept; NaN where nothing was."""
        found = None if self._path is None else _read(self._path)
        return np.full(shape, np.nan) if found is None or found.shape != shape else found

    def keep(self, table: Table) -> None:
        """Write the table as it is, if it is time to."""
        if self._path is not None and time.monotonic() >= self._due:
            _write(self._path, table)
            self._due = time.monotonic() + ROWS_SECONDS

    def discard(self) -> None:
        """The table is whole."""
        if self._path is not None:
            with contextlib.suppress(OSError):
                self._path.unlink(missing_ok=True)


def path_of(digest: str) -> Path:
    """Where the table of that name lies."""
    return cache_folder() / f"sensitivity-{digest}.npy"


def _read(path: Path) -> Table | None:
    """None if it is absent or damaged."""
    try:
        with open(path, "rb") as file:
            return np.asarray(np.lib.format.read_array(file, allow_pickle=False), dtype=np.float64)
    except (OSError, ValueError, EOFError):
        return None


def _write(path: Path, table: Table) -> None:
    """Write a table; a full or read-only disk must not stop a search, which can measure it again."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_suffix(f".{os.getpid()}.npy")
        np.save(beside, table)
        beside.replace(path)
