"""The folder that a search writes: refused if it holds something, every file whole or absent."""

import json
from pathlib import Path
from typing import Any

from detectors.errors import InputError
from detectors.teacher import write_atomically
from hsq_env.choices import Plan
from hsq_env.file import save_hsq
from hsq_env.student import Student


def check_new_folder(path: Path) -> None:
    """Refuse a folder that holds something, or a file.

    :raises InputError: if so
    """
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        raise InputError(f"{path} already holds something: give an empty or new folder with --out.")


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

    def write_teacher(self, content: bytes) -> int:
        """Write ``teacher.safetensors``; its size on disk in bytes."""
        write_atomically(self.path / "teacher.safetensors", content)
        return (self.path / "teacher.safetensors").stat().st_size
