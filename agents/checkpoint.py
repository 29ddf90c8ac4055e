"""Checkpoints of a search: an agent with all that it has learned, drawn and begun, so that it goes on bit for bit.

What is kept is the whole graph of objects that a training consists of (agent, callbacks, wrappers, the log's content),
pickled with the random states of Python, NumPy and torch. Objects that a resumed search makes again from its settings
(the environment, its task, its tables of sizes) are left out and stand in the pickle as names; of the environment there
is its ``Standing``. Worker processes are begun anew: with several of them the episodes in their middle are lost.

A pickle can run code. Checkpoints are therefore signed with a key that this user's cache folder holds, those of others
are refused, and they are removed when the search has ended.
"""

import contextlib
import errno
import hashlib
import hmac
import io
import os
import pickle
import random
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import torch
import zstandard
from stable_baselines3.common.logger import Logger

from detectors.cache import cache_folder
from detectors.errors import InputError
from detectors.files import write_atomically
from hsq_env.env import HSQEnv

MAGIC = b"HSQCKPT1"
DIGEST = 32  # bytes of a checksum and of a signature
KEPT = 2  # checkpoints
FULL = (errno.ENOSPC, errno.EDQUOT)


class Checkpoints:
    """A folder of numbered checkpoints, of which the last two stay.

    A file is whole or absent, and starts with a checksum: one that is torn nevertheless (a machine that lost its power)
    is passed over for the one before. Behind the checksum stands the signature.

    :param folder: made with the first checkpoint
    :param trust: read those that were signed by others too, which runs whatever code they hold
    """

    def __init__(self, folder: str | Path, trust: bool = False) -> None:
        self.folder, self.trust = Path(folder), trust

    def files(self) -> list[Path]:
        """The oldest first."""
        return sorted(self.folder.glob("[0-9]*.checkpoint"))

    def write(self, content: bytes) -> Path:
        """Write the next one; on a full disk the older of two makes room for it.

        :raises OSError: if it cannot be written; those that were there stay, or the newest of them
        """
        files = self.files()
        number = int(files[-1].stem) + 1 if files else 1
        path = self.folder / f"{number:08d}.checkpoint"
        packed = zstandard.ZstdCompressor(level=1).compress(content)
        signature = hmac.digest(user_key(), packed, "sha256")
        data = MAGIC + hashlib.sha256(signature + packed).digest() + signature + packed
        try:
            write_atomically(path, data)
        except OSError as error:
            if error.errno not in FULL or len(files) < KEPT:
                raise
            for old in files[: 1 - KEPT]:
                old.unlink()
            write_atomically(path, data)
        for old in self.files()[:-KEPT]:
            old.unlink()
        return path

    def newest(self, say: Callable[[str], None]) -> bytes | None:
        """The content of the newest one that is whole; None if there is none.

        :param say: told of those that are not
        :raises InputError: if it was signed by somebody else
        """
        for path in reversed(self.files()):
            data = path.read_bytes()
            checksum, signed = data[len(MAGIC) : len(MAGIC) + DIGEST], data[len(MAGIC) + DIGEST :]
            if data.startswith(MAGIC) and hashlib.sha256(signed).digest() == checksum:
                signature, packed = signed[:DIGEST], signed[DIGEST:]
                if not (self.trust or hmac.compare_digest(signature, hmac.digest(user_key(), packed, "sha256"))):
                    raise InputError(
                        f"{path} was not written by you on this machine, and reading it could run code of whoever "
                        "wrote it: give --trust-checkpoints if you know it."
                    )
                return zstandard.ZstdDecompressor().decompress(packed)
            say(f"{path} is damaged: going on from the checkpoint before it.")
            path.unlink()  # the next one takes its number
        return None


def user_key() -> bytes:
    """The key that signs this user's checkpoints; made when it is first needed."""
    path = cache_folder() / "checkpoint.key"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f".{path.name}.{os.getpid()}")
        with open(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(secrets.token_bytes(DIGEST))
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):  # another search was first: its key counts
            os.link(beside, path)
        beside.unlink()
    return path.read_bytes()


# attributes of an environment that no search changes, which others may hold too
SHARED = (
    "task",
    "layers",
    "actions",
    "choices",
    "compressor",
    "layer_costs",
    "sizes",
    "costs",
    "budgets",
    "sensitivities",
    "observation_names",
    "_static",
)


def freeze(content: Any, env: HSQEnv, made_again: dict[str, Any]) -> bytes:
    """Objects as bytes, without those that a resumed search makes again.

    :param env: which they may hold
    :param made_again: further objects of that kind, by name
    """
    file = io.BytesIO()
    names = {id(getattr(env, name)): f"env.{name}" for name in SHARED}
    others = {id(value): name for name, value in made_again.items() if value is not None}
    _Pickler(file, {**names, id(env): "env", **others}).dump(content)
    return file.getvalue()


def thaw(data: bytes, env: HSQEnv, made_again: dict[str, Any]) -> Any:
    """The objects of ``freeze`` around those that were made again.

    :raises InputError: if they were written by another version of a library or of this project
    """
    parts = {"env": env, **{f"env.{name}": getattr(env, name) for name in SHARED}, **made_again}
    try:
        return _Unpickler(io.BytesIO(data), {"logger": None, "workers": None, **parts}).load()
    except Exception as error:  # whatever another version's objects stumble over
        raise InputError(
            f"The checkpoint does not fit the installed versions ({error}): go on with those that began the search."
        ) from error


class _Pickler(cloudpickle.Pickler):
    """Puts names in place of what is made again.

    :param names: by id
    """

    def __init__(self, file: io.BytesIO, names: dict[int, str]) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self._names = names

    def persistent_id(self, obj: Any) -> str | None:
        """See ``pickle.Pickler``."""
        if isinstance(obj, Logger):
            return "logger"
        return self._names.get(id(obj))


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, parts: dict[str, Any]) -> None:
        super().__init__(file)
        self._parts = parts

    def persistent_load(self, pid: str) -> Any:
        """See ``pickle.Unpickler``."""
        return self._parts[pid]


def random_states() -> dict[str, Any]:
    """Of all that draws without a generator of its own."""
    states = {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state_all()
    return states


def set_random_states(states: dict[str, Any]) -> None:
    """Go on drawing from there."""
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    torch.set_rng_state(states["torch"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(states["cuda"])
