"""The folder that a search writes: refused if it holds something, every file whole or absent."""

import hashlib
import io
import json
import os
from pathlib import Path
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm

from agents.replay import replay_bytes, replay_of
from detectors.errors import InputError
from detectors.teacher import write_atomically
from hsq_env.choices import Plan
from hsq_env.file import save_hsq
from hsq_env.student import Student


def check_new_folder(path: Path) -> None:
    """Refuse a folder that holds something, a file, and a place where no folder can be made.

    :raises InputError: if so
    """
    existing = next(place for place in (path, *path.absolute().parents) if place.exists())
    if existing == path and (path.is_file() or any(path.iterdir())):
        raise InputError(f"{path} already holds something: give an empty or new folder with --out.")
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise InputError(f"{path} cannot be made, {existing} does not take it: give another folder with --out.")


class RunFolder:
    """A run's files: result, plan, model, policy, replay, teacher, baselines, logs.

    :param path: must not exist or be empty
    :param several: whether the search has several targets: ``plan-6.json``, ``model-6.hsq`` for the one of 6
    :raises InputError: if it holds anything or is a file
    """

    def __init__(self, path: str | Path, several: bool = False) -> None:
        self.path, self.several = Path(path), several
        check_new_folder(self.path)
        self.path.mkdir(parents=True, exist_ok=True)

    def write_json(self, name: str, data: dict[str, Any]) -> None:
        """Write a JSON file."""
        write_atomically(self.path / name, (json.dumps(data, indent=1) + "\n").encode())

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
        return {str(path.relative_to(self.path)): digest_of(path) for path in sorted(files)}

    def write_policy(self, agent: BaseAlgorithm) -> None:
        """Write ``policy.zip``, which SB3's ``load`` reads, and ``replay.npz`` if the agent has a replay."""
        content = io.BytesIO()
        agent.save(content)
        write_atomically(self.path / "policy.zip", content.getvalue())
        buffer = replay_of(agent)
        if buffer is not None:
            write_atomically(self.path / "replay.npz", replay_bytes(buffer))

    def write_teacher(self, content: bytes) -> int:
        """Write ``teacher.safetensors``; its size on disk in bytes."""
        write_atomically(self.path / "teacher.safetensors", content)
        return (self.path / "teacher.safetensors").stat().st_size


def digest_of(path: Path) -> str:
    """SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
