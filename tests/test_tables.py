"""What the commands print."""

import json
import re
from pathlib import Path

import pytest
from tiny_task import TinyTask

from agents.tables import print_evaluation, print_info, print_table
from detectors.errors import InputError
from hsq_env.choices import Choice, Plan
from hsq_env.file import save_hsq
from hsq_env.layer_info import LayerInfo
from hsq_env.student import Student

Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """What goes to a file or a pipe is not cut off or broken, whatever the terminal's width."""
    monkeypatch.setenv("COLUMNS", "40")


def cells(text: str) -> list[list[str]]:
    """The words of each row, without the table's frame."""
    return [[cell.strip() for cell in line.replace("┃", "│").split("│")[1:-1]] for line in text.splitlines()]


def test_the_table_of_a_search(capsys: Captured) -> None:
    result = {
        "dataset": "shapes",
        "split": "test",
        "metric": "mAP",
        "episodes": 5,
        "seconds": 61.4,
        "teacher": {"map": 0.7, "bytes": 8_000_000},
        "methods": {
            "uniform8": {"map": 0.69, "bytes": 2_000_000, "ratio": 4.0},
            "hsq": {"map": 0.701, "bytes": 1_000_000, "ratio": 8.0, "source": "dqn"},
        },
    }
    print_table(result, Path("runs/one"))
    text = capsys.readouterr().out
    assert "shapes, test split" in text
    rows = cells(text)
    assert ["method", "mAP", "points lost", "bytes", "ratio"] in rows
    assert ["teacher, FP32", "0.7000", "", "8,000,000", "1.00x"] in rows
    assert ["uniform 8 bit", "0.6900", "1.00", "2,000,000", "4.00x"] in rows
    assert ["HSQ", "0.7010", "-0.10", "1,000,000", "8.00x"] in rows
    assert "Plans from dqn; 5 episodes, 61 s. Written to runs/one." in text


def test_the_table_of_a_restorer(capsys: Captured) -> None:
    result = {
        "dataset": "photos",
        "split": "test",
        "metric": "PSNR",
        "episodes": 5,
        "seconds": 61.4,
        "teacher": {"psnr": 30.4, "bytes": 8_000_000},
        "methods": {"hsq": {"psnr": 30.15, "bytes": 1_000_000, "ratio": 8.0, "source": "dqn"}},
    }
    print_table(result, Path("runs/one"))
    rows = cells(capsys.readouterr().out)
    assert ["method", "PSNR", "dB lost", "bytes", "ratio"] in rows
    assert ["HSQ", "30.1500", "0.25", "1,000,000", "8.00x"] in rows


def test_the_table_of_several_targets(capsys: Captured) -> None:
    row = {"map": 0.7, "bytes": 1_000_000, "ratio": 8.0}
    sources = {"hsq-6": "ilp", "hsq-7.5": "dqn", "hsq-8": "ilp"}
    result = {
        "dataset": "shapes",
        "split": "test",
        "metric": "mAP",
        "episodes": 5,
        "seconds": 61.4,
        "teacher": {"map": 0.7, "bytes": 8_000_000},
        "methods": {name: {**row, "source": source} for name, source in sources.items()},
    }
    print_table(result, Path("runs/one"))
    text = capsys.readouterr().out
    assert [line[0] for line in cells(text) if line and line[0].startswith("HSQ")] == [
        "HSQ, 6x",
        "HSQ, 7.5x",
        "HSQ, 8x",
    ]
    assert "Plans from ilp and dqn;" in text


def test_an_evaluation(capsys: Captured) -> None:
    result = {"file": "a.hsq", "dataset": "shapes", "split": "test", "map": 0.12345, "bytes": 1234, "metric": "mAP"}
    print_evaluation(result, as_json=False)
    print_evaluation({**result, "ratio": 8.0}, as_json=False)
    print_evaluation(result, as_json=True)
    plain, with_ratio, as_json = capsys.readouterr().out.splitlines()
    assert plain == "a.hsq: mAP 0.1235 on shapes (test), 1,234 bytes"
    assert with_ratio == f"{plain}, 8.00x"
    assert json.loads(as_json) == result


def test_a_plan(tiny: TinyTask, infos: tuple[LayerInfo, ...], tmp_path: Path, capsys: Captured) -> None:
    student, path = Student(tiny, infos), tmp_path / "model.hsq"
    plan = Plan(tuple(i.name for i in infos), (Choice(8), Choice(4, 0.75), *(Choice(2, 0.25),) * 5))
    student.apply(plan)
    save_hsq(student, path)
    print_info(path, as_json=True)
    assert json.loads(capsys.readouterr().out) == {
        "model": {"model": "TinyNet"},
        "pattern": "unstructured",
        **plan.to_json(),
    }
    print_info(path, as_json=False)
    text = capsys.readouterr().out
    assert f"{path.stat().st_size:,} bytes" in text
    rows = cells(text)
    assert ["stem", "16x1x3x3", "8", "0%", "dense", "8"] in rows
    assert ["block1.conv1", "16x16x3x3", "4", "75%", "bitmask", "8"] in rows
    assert ["logits", "3x16", "2", "25%", "dense", "8"] in rows


def test_forced_colours_do_not_make_a_terminal_of_a_pipe(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    out = Path("/data/projects/customers/detection/photographs/runs/with-a-rather-long-name")
    teacher = {"map": 0.7, "bytes": 8_000_000}
    result = {"dataset": "shapes", "split": "test", "metric": "mAP", "episodes": 1, "seconds": 61.4}
    print_table({**result, "teacher": teacher, "methods": {}}, out)
    text = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    assert "1 episode, 61 s. Written to " + str(out) in text


def test_a_file_with_unchosen_layers(
    tiny: TinyTask, infos: tuple[LayerInfo, ...], tmp_path: Path, capsys: Captured
) -> None:
    student, path = Student(tiny, infos, activation_bits=None), tmp_path / "model.hsq"
    student.compress(0, Choice(4))
    save_hsq(student, path)
    print_info(path, as_json=False)
    rows = cells(capsys.readouterr().out)
    assert ["stem", "16x1x3x3", "4", "0%", "dense", "32"] in rows
    assert ["logits", "3x16", "32", "0%", "", ""] in rows
    with pytest.raises(InputError):
        print_info(path, as_json=True)
