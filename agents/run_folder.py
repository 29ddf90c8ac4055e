"""The folder that a search writes: refused if it holds something, every file whole or absent."""

import io
import json
import os
from pathlib import Path
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm

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
    """``result.json``, ``plan.json``, ``model.hsq``, ``policy.zip``, ``teacher.safetensors``, ``baselines/``, logs.

    :param path: must not exist or be empty
    :raises InputError: if it holds anything or is a file
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        check_new_folder(self.path)
        self.path.mkdir(parents=True, exist_ok=True)

    def write_json(self, name: str, data: dict[str, Any]) -> None:
        """Write a JSON file."""
        write_atomically(self.path / name, (json.dumps(data, indent=1) + "\n").encode())

    def write_plan(self, plan: Plan) -> None:
        """Write ``plan.json``."""
        self.write_json("plan.json", plan.to_json())

    def write_student(self, student: Student, name: str = "model.hsq") -> int:
        """Write a ``.hsq`` file; its size on disk in bytes."""
        save_hsq(student, self.path / name)
        return (self.path / name).stat().st_size

    def write_model(self, content: bytes) -> None:
        """Write ``model.hsq`` as ``student_bytes`` made it."""
        write_atomically(self.path / "model.hsq", content)

    def write_policy(self, agent: BaseAlgorithm) -> None:
        """Write ``policy.zip``, which SB3's ``load`` reads."""
        content = io.BytesIO()
        agent.save(content)
        write_atomically(self.path / "policy.zip", content.getvalue())

    def write_teacher(self, content: bytes) -> int:
        """Write ``teacher.safetensors``; its size on disk in bytes."""
        write_atomically(self.path / "teacher.safetensors", content)
        return (self.path / "teacher.safetensors").stat().st_size
