"""Damaged files of both versions, a few hundred of each; ``python -m benchmarks.fuzz`` tries more."""

from pathlib import Path

import numpy as np
import pytest
from helpers import random_plan
from tiny_task import TinyNet, TinyTask

from benchmarks.fuzz import fuzz, mutated, outcome, with_checksum
from detectors.errors import InputError
from hsq_env.file import load_hsq, student_bytes
from hsq_env.layer_info import LayerInfo
from hsq_env.student import Student


def read(path: Path) -> object:
    return load_hsq(path, TinyNet())


@pytest.fixture(scope="module", params=[False, True], ids=["version 1", "version 2"])
def honest(tiny: TinyTask, infos: tuple[LayerInfo, ...], request: pytest.FixtureRequest) -> bytes:
    student = Student(tiny, infos)
    student.apply(random_plan(infos, 0))
    return student_bytes(student, coded=request.param)


def test_damaged_files_are_read_or_refused(honest: bytes) -> None:
    found = fuzz(honest, 400, 1, read)
    crashes = [text for text in found["fuzz_examples"] if "allowed" not in text]  # so small a file is all overhead
    assert crashes == [] and found["fuzz_refused"] > 200


def test_cases_differ_and_repeat(honest: bytes) -> None:
    cases = [mutated(np.random.default_rng(seed), honest) for seed in range(50)]
    assert len(set(cases)) > 40 and cases[7] == mutated(np.random.default_rng(7), honest)


def test_a_failure_is_counted(honest: bytes, tmp_path: Path) -> None:
    def careless(path: Path) -> object:
        raise KeyError("x")

    def vague(path: Path) -> object:
        raise InputError("something")

    assert outcome(honest, tmp_path / "model.hsq", careless).startswith("KeyError")
    assert outcome(honest, tmp_path / "model.hsq", vague).startswith("InputError")
    assert outcome(honest, tmp_path / "model.hsq", read) == "read"


def test_a_file_that_never_ends_is_counted(honest: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def endless(path: Path) -> object:
        while True:
            pass

    monkeypatch.setattr("benchmarks.fuzz.SECONDS", 0.1)
    assert outcome(honest, tmp_path / "model.hsq", endless).startswith("HangError")


def test_the_checksum_is_repaired(tiny: TinyTask, infos: tuple[LayerInfo, ...], tmp_path: Path) -> None:
    student = Student(tiny, infos)
    student.apply(random_plan(infos, 0))
    content = bytearray(student_bytes(student))
    content[-1] ^= 1
    assert "another checksum" in _refused(bytes(content), tmp_path)
    assert "another checksum" not in _refused(with_checksum(bytes(content)), tmp_path)


def _refused(content: bytes, folder: Path) -> str:
    (folder / "model.hsq").write_bytes(content)
    try:
        read(folder / "model.hsq")
    except InputError as error:
        return str(error)
    return ""
