"""What several test files share."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # both must be in force before torch loads
os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tiny_task import TinyTask

    from hsq_env.layer_info import LayerInfo
    from hsq_env.student import Student


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Generated and measured things go to a folder of this run; subprocesses inherit it."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HSQ_CACHE", str(folder))
        patch.setenv("SB3_LOGDIR", str(folder / "logs"))  # where agents that nobody gave a logger make a folder
        yield folder


@pytest.fixture(scope="session")
def shapes_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The generated data in small: 8 training, 4 search and 4 test images. Not to be written to."""
    from detectors.shapes import write_shapes

    return write_shapes(tmp_path_factory.mktemp("data") / "shapes", {"train": 8, "val": 4, "test": 4})


@pytest.fixture(scope="session")
def tiny() -> "TinyTask":
    """The tiny task, built once in a process and its forks; nothing may change it."""
    from tiny_task import the_tiny_task

    return the_tiny_task()


@pytest.fixture(scope="session")
def infos(tiny: "TinyTask") -> "tuple[LayerInfo, ...]":
    """The seven layers of the tiny task."""
    from hsq_env.layer_info import trace_layers

    return trace_layers(tiny)


@pytest.fixture(scope="module")
def student(tiny: "TinyTask", infos: "tuple[LayerInfo, ...]") -> "Student":
    """One of the tiny task with a choice in every layer. Not to be changed."""
    from helpers import random_plan

    from hsq_env.student import Student

    made = Student(tiny, infos)
    made.apply(random_plan(infos, 0))
    return made


@pytest.fixture(params=[1, 2], ids=["version 1", "version 2"])
def path(student: "Student", tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """That student's file, a good one of either version."""
    from hsq_env.file import student_bytes

    (tmp_path / "model.hsq").write_bytes(student_bytes(student, coded=request.param == 2))
    return tmp_path / "model.hsq"
