"""The folder that a search writes: refused if it holds something, every file whole or absent."""

import fcntl
import hashlib
import hmac
import io
import itertools
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm

from agents.checkpoint import user_key
from agents.replay import replay_bytes, replay_of
from agents.spark_file import spark_bytes
from detectors.errors import InputError
from detectors.files import write_atomically, write_json
from hsq_env.choices import Plan
from hsq_env.distillation.spark import Spark
from hsq_env.file import save_hsq
from hsq_env.student import Student

CHECKPOINTS, SETTINGS, LOCK, TEACHER = "checkpoints", "settings.json", "lock", "teacher.safetensors"


def model_file(method: str) -> str:
    """Where the model of a method of ``result.json`` lies in the folder of a run."""
    return f"model{method.removeprefix('hsq')}.hsq" if method.startswith("hsq") else f"baselines/{method}.hsq"


def read_settings(path: Path, trust: bool = False) -> dict[str, Any]:
    """What an interrupted search wrote when it began.

    What stands there is obeyed when the search is resumed; it is therefore signed like checkpoints are.

    :param trust: read what somebody else has signed, too
    :raises InputError: if the folder holds none, or somebody else's
    """
    if (path / "result.json").is_file():
        raise InputError(f"The search of {path} has ended: its figures are in {path / 'result.json'}.")
    file = path / CHECKPOINTS / SETTINGS
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} holds no search that could go on: give the --out of one with --resume.") from error
    if not isinstance(found, dict) or not {"problem", "arguments"} <= set(found):
        raise InputError(f"{file} is no settings of a search: give the --out of one with --resume.")
    if found.pop("signature", None) != _signature(found) and not trust:
        raise InputError(
            f"{file} was not written by you on this machine, and a search does what it says: give --trust-checkpoints "
            "if you know it."
        )
    return found


def _signature(settings: dict[str, Any]) -> str:
    content = json.dumps(settings, sort_keys=True).encode()
    return hmac.digest(user_key(), content, "sha256").hex()


def _unbegun(path: Path) -> bool:
    """Whether a folder holds no more than what a search left that was killed before it had begun."""
    held = set(os.listdir(path))
    if not held <= {CHECKPOINTS, TEACHER, f".{TEACHER}.partial"} or not (path / CHECKPOINTS / LOCK).is_file():
        return not held
    return set(os.listdir(path / CHECKPOINTS)) <= {LOCK, f".{SETTINGS}.partial"}


def check_new_folder(path: Path) -> None:
    """Refuse a folder that holds something, a file, and a place where no folder can be made.

    :raises InputError: if so
    """
    existing = next(place for place in (path, *path.absolute().parents) if place.exists())
    if existing == path and (path.is_file() or not _unbegun(path)):
        raise InputError(f"{path} already holds something: give an empty or new folder with --out.")
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise InputError(f"{path} cannot be made, {existing} does not take it: give another folder with --out.")


class RunFolder:
    """A run's files: result, plan, model, policy, replay, teacher, baselines, logs.

    :param path: must not exist or be empty
    :param several: whether the search has several targets: ``plan-6.json``, ``model-6.hsq`` for the one of 6
    :param resumed: whether it is an interrupted search's
    :param trust: see ``read_settings``
    :raises InputError: if it holds anything or is a file; or no interrupted search, where it should
    """

    def __init__(self, path: str | Path, several: bool = False, resumed: bool = False, trust: bool = False) -> None:
        self.path, self.several = Path(path), several
        if resumed:
            read_settings(self.path, trust)
        else:
            check_new_folder(self.path)
        self.path.mkdir(parents=True, exist_ok=True)

    @property
    def checkpoints(self) -> Path:
        """The folder of what a search needs to go on; absent once it has ended."""
        return self.path / CHECKPOINTS

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Inside, no other search can write to this folder.

        :raises InputError: if one does
        """
        self.checkpoints.mkdir(exist_ok=True)
        with open(self.checkpoints / LOCK, "w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # ends with the process, however that ends
            except OSError as error:
                raise InputError(f"Another search writes to {self.path}: give another folder, or wait.") from error
            try:
                yield
            finally:
                begun = (self.checkpoints / SETTINGS).is_file()
                if self.checkpoints.is_dir() and not begun:  # nor has it ended: the folder can be given again
                    shutil.rmtree(self.checkpoints, ignore_errors=True)
                    (self.path / TEACHER).unlink(missing_ok=True)

    def new_logs(self) -> Path:
        """A folder for TensorBoard's files that holds none yet: a resumed search has one of its own."""
        first = self.path / "tensorboard"
        resumed = (first / f"resumed-{number}" for number in itertools.count(1))
        return next(folder for folder in (first, *itertools.islice(resumed, 10_000)) if not folder.exists())

    def write_settings(self, settings: dict[str, Any]) -> None:
        """Write what a search needs to be resumed."""
        plain = json.loads(json.dumps(settings))
        self.write_json(f"{CHECKPOINTS}/{SETTINGS}", {**plain, "signature": _signature(plain)})

    def discard_checkpoints(self) -> None:
        """The search has ended."""
        shutil.rmtree(self.checkpoints, ignore_errors=True)
        (self.path / "interrupted.json").unlink(missing_ok=True)

    def write_json(self, name: str, data: dict[str, Any]) -> None:
        """Write a JSON file."""
        write_json(self.path / name, data)

    def write_plan(self, plan: Plan, target: float | None = None) -> None:
        """Write ``plan.json``, or that of one target of several."""
        self.write_json(self.named("plan.json", target), plan.to_json())

    def named(self, name: str, target: float | None) -> str:
        """A file's name; with its target, where a run has several."""
        stem, suffix = name.split(".")
        return f"{stem}-{target:g}.{suffix}" if self.several and target is not None else name

    def write_student(self, student: Student, name: str = "model.hsq") -> int:
        """Write a ``.hsq`` file; its size on disk in bytes."""
        save_hsq(student, self.path / name)
        return (self.path / name).stat().st_size

    def write_model(self, content: bytes, target: float | None = None) -> None:
        """Write ``model.hsq``, or that of one target of several, as ``student_bytes`` made it."""
        write_atomically(self.path / self.named("model.hsq", target), content)

    def digests(self) -> dict[str, str]:
        """SHA-256 of every model, plan and table that the folder holds, by path within it."""
        files = [
            path for kind in ("*.hsq", "*.safetensors", "plan*.json", "latency.json") for path in self.path.rglob(kind)
        ]
        lasting = [path for path in files if self.checkpoints not in path.parents]
        return {str(path.relative_to(self.path)): digest_of(path) for path in sorted(lasting)}

    def write_policy(self, agent: BaseAlgorithm) -> None:
        """Write ``policy.zip``, which SB3's ``load`` reads, and ``replay.npz`` if the agent has a replay."""
        content = io.BytesIO()
        agent.save(content)
        write_atomically(self.path / "policy.zip", content.getvalue())
        buffer = replay_of(agent)
        if buffer is not None:
            write_atomically(self.path / "replay.npz", replay_bytes(buffer))

    def write_spark(self, spark: Spark) -> None:
        """Write ``spark.pt``, the policy that weighed places while students were trained."""
        write_atomically(self.path / "spark.pt", spark_bytes(spark))

    def write_teacher(self, content: bytes) -> int:
        """Write ``teacher.safetensors``; its size on disk in bytes."""
        write_atomically(self.path / TEACHER, content)
        return (self.path / TEACHER).stat().st_size


def digest_of(path: Path) -> str:
    """SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
