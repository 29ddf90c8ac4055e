"""The folder of a search: refused if it holds something, every file whole or absent."""

import errno
import json
import os
from pathlib import Path

import pytest
from helpers import random_plan
from tiny_task import TinyTask

from agents.run_folder import RunFolder, check_new_folder
from detectors.errors import InputError
from hsq_env.choices import Plan
from hsq_env.file import read_header, student_bytes
from hsq_env.layer_info import LayerInfo
from hsq_env.student import Student


def test_new_and_empty_folders_are_taken(tmp_path: Path) -> None:
    assert RunFolder(tmp_path / "a" / "b").path.is_dir()
    assert RunFolder(tmp_path / "a" / "b").path == tmp_path / "a" / "b"


def test_checking_makes_nothing(tmp_path: Path) -> None:
    check_new_folder(tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_what_holds_something_is_refused_and_left_alone(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "run"
    held = path if kind == "file" else path / "result.json"
    held.parent.mkdir(exist_ok=True)
    held.write_text("precious")
    for check in (check_new_folder, RunFolder):
        with pytest.raises(InputError) as error:
            check(path)
        assert str(path) in str(error.value) and "--out" in str(error.value)
    assert held.read_text() == "precious" and len(list(tmp_path.rglob("*"))) == (1 if kind == "file" else 2)


@pytest.mark.parametrize("name", ["checkpoints/epoch10.pt", "checkpoints/lock/mine", "teacher.safetensors"])
def test_names_of_ours_are_no_licence(tmp_path: Path, name: str) -> None:
    held = tmp_path / "run" / name
    held.parent.mkdir(parents=True)
    held.write_text("precious")
    for check in (check_new_folder, RunFolder):
        with pytest.raises(InputError, match="already holds something"):
            check(tmp_path / "run")
    assert held.read_text() == "precious"


def test_what_was_killed_before_it_began_is_taken(tmp_path: Path) -> None:
    for name in ("checkpoints/lock", "checkpoints/.settings.json.partial", "teacher.safetensors"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    with RunFolder(tmp_path).locked():
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("nested", ["run", "deep/run"])
def test_a_place_below_a_file_is_refused(tmp_path: Path, nested: str) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="cannot be made"):
        check_new_folder(tmp_path / "file" / nested)


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda place, mode: not (Path(place) == tmp_path and mode == os.W_OK))
    for path in (tmp_path, tmp_path / "deep" / "run"):
        with pytest.raises(InputError) as error:
            check_new_folder(path)
        assert f"{tmp_path} does not take it" in str(error.value)


def test_what_is_written(tiny: TinyTask, infos: tuple[LayerInfo, ...], tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    student, plan = Student(tiny, infos), random_plan(infos, 0)
    student.apply(plan)
    folder.write_plan(plan)
    folder.write_json("result.json", {"map": 0.5})
    for name in ("model.hsq", "baselines/uniform8.hsq"):
        assert folder.write_student(student, name) == (tmp_path / name).stat().st_size == len(student_bytes(student))
        assert read_header(tmp_path / name).plan() == plan
    assert folder.write_teacher(tiny.teacher_file()) == (tmp_path / "teacher.safetensors").stat().st_size
    assert (tmp_path / "teacher.safetensors").read_bytes() == tiny.teacher_file()
    assert Plan.read(tmp_path / "plan.json") == plan
    assert json.loads((tmp_path / "result.json").read_text()) == {"map": 0.5}


def test_a_full_disk_leaves_the_old_files(
    tiny: TinyTask, infos: tuple[LayerInfo, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder(tmp_path)
    student = Student(tiny, infos)
    student.apply(random_plan(infos, 0))
    folder.write_plan(student.plan())
    folder.write_student(student)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    student.apply(random_plan(infos, 1))

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    for write in (lambda: folder.write_plan(student.plan()), lambda: folder.write_student(student)):
        with pytest.raises(OSError, match="No space"):
            write()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
