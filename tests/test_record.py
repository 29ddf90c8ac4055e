"""Records and results of benchmarks: whole lines, commands that make them again, one teacher each."""

import argparse
import json
import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest

from benchmarks import record, speed, table1
from benchmarks.faults import per_second
from benchmarks.record import append_line, check_same_teacher, command, read_lines, refusing, write_result
from detectors.errors import InputError


def test_a_command_without_the_flags_of_its_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["--shard", "0", "--data", "a folder", "--of=2", "--rows", "W2", "W4", "--quick"]
    monkeypatch.setattr("sys.argv", ["benchmarks/table1.py", *words])
    whole = command()
    assert whole.endswith(" --shard 0 --data 'a folder' --of=2 --rows W2 W4 --quick")
    assert command(("--shard", "--of", "--rows")) == whole.replace(" --shard 0", "").replace(" --of=2 --rows W2 W4", "")


def test_results_name_the_command_of_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    monkeypatch.setattr("sys.argv", ["benchmarks/spark.py", "--networks", "edsr", "--shard", "1", "--of", "2"])
    made = json.loads(write_result("some", {"figure": 1}, without=("--networks",)).read_text())
    assert made["figure"] == 1
    assert "--" not in made["command"]
    assert os.listdir(tmp_path) == ["some.json"]


def _write(folder: Path, number: int) -> None:
    record.RESULTS = folder
    for _ in range(20):
        append_line(folder / "lines.jsonl", {"number": number, "text": "x" * 10_000})
        write_result("some", {"lines": len(read_lines(folder / "lines.jsonl"))})


def test_several_processes_write_side_by_side(tmp_path: Path) -> None:
    workers = [multiprocessing.get_context("fork").Process(target=_write, args=(tmp_path, n)) for n in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    rows = read_lines(tmp_path / "lines.jsonl")
    assert sorted(row["number"] for row in rows) == sorted([0, 1, 2] * 20)
    assert {row["made_with"]["revision"] for row in rows} == {record.REVISION}
    assert sorted(os.listdir(tmp_path)) == ["lines.jsonl", "some.json"]


def test_a_line_that_finds_no_room_leaves_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "lines.jsonl"
    append_line(path, {"number": 1})
    before = path.read_bytes()

    class Full:
        """A file on a disk that has room for ten more bytes."""

        def __init__(self, path: Path, *given: Any, **named: Any) -> None:
            self.file = open(path, "ab", buffering=0)  # noqa: SIM115
            self.seek, self.truncate = self.file.seek, self.file.truncate

        def __enter__(self) -> "Full":
            return self

        def __exit__(self, *error: Any) -> None:
            self.file.close()

        def write(self, content: bytes) -> int:
            return self.file.write(content[:10])

    monkeypatch.setattr(record, "open", Full, raising=False)
    with pytest.raises(OSError, match="No space left"):
        append_line(path, {"number": 2})
    assert path.read_bytes() == before


def test_torn_lines_are_named(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_text('{"a": 1}\n\n{"a": \n')
    with pytest.raises(InputError, match=r"Line 3 of .*lines\.jsonl is torn .*: delete it"):
        read_lines(path)
    assert read_lines(tmp_path / "absent.jsonl") == []


def test_a_record_is_of_one_teacher(tmp_path: Path) -> None:
    check_same_teacher(tmp_path, [0.5, 0.501], 0.5, 0.002)
    check_same_teacher(tmp_path, [], 0.5, 0.002)
    with pytest.raises(InputError, match=r"another teacher or other data \(0\.6000 there, 0\.5000 here\)"):
        check_same_teacher(tmp_path, [0.5, 0.6], 0.5, 0.002)


def test_bad_input_ends_with_its_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop, refusing(argparse.ArgumentParser()):
        raise InputError("This is wrong: do that.")
    assert stop.value.code == 2
    assert "This is wrong: do that." in capsys.readouterr().err


def test_what_another_process_is_at_is_left_to_it(tmp_path: Path) -> None:
    folder = tmp_path / "work" / "seed0"
    with table1.claimed(folder) as first, table1.claimed(folder) as second, table1.claimed(tmp_path / "other") as third:
        assert (first, second, third) == (True, False, True)
    with table1.claimed(folder) as again:
        assert again
    assert not folder.exists()


def test_steps_per_second_count_every_worker() -> None:
    assert per_second([10.0, 10.5, 11.0, 11.5, 12.0], workers=2) == 4.0


def test_a_part_of_the_speed_that_was_interrupted_is_measured_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    monkeypatch.setattr(speed, "RESULTS", tmp_path)
    monkeypatch.setattr(speed, "Bench", lambda task, dataset, teacher, seed: argparse.Namespace(name=task))
    monkeypatch.setattr(speed, "settings", lambda bench: {})
    called: list[str] = []

    def interrupted(bench: Any, save: Any) -> None:
        called.append("interrupted")
        save({"one": 1, "of the first call": 1})
        raise KeyboardInterrupt

    def whole(bench: Any, save: Any) -> None:
        called.append("whole")
        save({"one": 2})
        save({"two": 2})

    monkeypatch.setattr(speed, "PARTS", {"cold": interrupted})
    with pytest.raises(KeyboardInterrupt):
        speed.main()
    monkeypatch.setattr(speed, "PARTS", {"cold": whole})
    speed.main()
    speed.main()
    assert called == ["interrupted", "whole"]
    found = json.loads((tmp_path / "speed.json").read_text())["embedded"]
    assert (found["one"], found["two"], "of the first call" in found) == (2, 2, False)
    assert found["parts"]["cold"]["finished"]
