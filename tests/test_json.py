"""``--json``: standard output is one document and nothing else."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import write_noise
from test_cli import Captured, fails, on_tiny  # noqa: F401 - a fixture
from tiny_task import TinyNet, TinyTask

import agents.monitor
import agents.search
import detectors.download
from agents.cli import main
from agents.output import aside, print_json
from detectors.shapes import write_shapes
from restorers.teacher import RestorerSpec, teacher_bytes

QUICK = ["--episodes", "0", "--warm-start", "ilp", "--target-ratio", "6", "--finetune-steps", "1", "--finalists", "1"]


def document(capsys: Captured, *arguments: str) -> tuple[Any, str]:
    """What the command leaves on standard output, parsed, and standard error."""
    main([*arguments, "--json"])
    captured = capsys.readouterr()
    assert captured.out.count("\n") == 1
    return json.loads(captured.out), captured.err


@pytest.fixture(scope="module")
def restorer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher file of an untrained DnCNN."""
    path, spec = tmp_path_factory.mktemp("teacher") / "teacher.safetensors", RestorerSpec("dncnn", 1, noise=25)
    path.write_bytes(teacher_bytes(spec.build_folded(), spec))
    return path


def test_search_and_monitor(
    on_tiny: dict[str, Any],  # noqa: F811
    tiny: TinyTask,
    tmp_path: Path,
    capsys: Captured,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "run"
    found, said = document(capsys, "search", "--out", str(out), *QUICK)
    assert found == json.loads((out / "result.json").read_text())
    assert "episode 1 (ilp)" in said and "HSQ" not in said

    def new_images(*given: Any, **settings: Any) -> TinyTask:
        task = TinyTask()
        task.spec = SimpleNamespace(name="tinynet", build_folded=TinyNet)  # type: ignore[attr-defined]
        task.device = torch.device("cpu")  # type: ignore[attr-defined]
        return task

    monkeypatch.setattr(agents.monitor, "make_task", new_images)
    verdict, _ = document(capsys, "monitor", str(out))
    assert verdict["meets"] is True and verdict["search"] is None
    assert verdict["model"] == found["methods"]["hsq"]["map"] and verdict["teacher"] == found["teacher"]["map"]
    assert set(verdict) == {
        "dataset", "metric", "model", "teacher", "untreated", "accuracy", "target", "claimed", "meets", "search",
    }  # fmt: skip
    with pytest.raises(SystemExit) as end:
        main(["monitor", str(out), "--target-accuracy", "1.4", "--json"])
    assert end.value.code == 1
    assert json.loads(capsys.readouterr().out)["meets"] is False


def test_an_interrupted_search_resumed(
    on_tiny: dict[str, Any],  # noqa: F811
    tmp_path: Path,
    capsys: Captured,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It ends with nothing on standard output; gone on with, the flag is no other setting of the search."""

    def stop(*arguments: Any) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(agents.search, "choose", stop)
        with pytest.raises(SystemExit) as end:
            main(["search", "--out", str(out), *QUICK, "--json"])
    captured = capsys.readouterr()
    assert end.value.code == 130 and captured.out == "" and "Interrupted: " in captured.err.splitlines()[-1]
    found, said = document(capsys, "search", "--resume", str(out))
    assert found == json.loads((out / "result.json").read_text()) and "going on with the long fine-tuning" in said


def test_finetune(on_tiny: dict[str, Any], tmp_path: Path, capsys: Captured) -> None:  # noqa: F811
    out = tmp_path / "run"
    found, said = document(capsys, "finetune", "--out", str(out), "--plan", "uniform4", "--steps", "1")
    assert found == json.loads((out / "result.json").read_text())
    assert found["plan"] == "uniform4" and "as quantized" in said


def test_teacher(tmp_path: Path, capsys: Captured) -> None:
    write_noise(tmp_path / "photos")
    out = tmp_path / "teacher.safetensors"
    flags = "--restorer dncnn --channels 1 --patch 16 --batch-size 1 --epochs 2 --steps-per-epoch 1"
    found, said = document(capsys, "teacher", "--dataset", str(tmp_path / "photos"), "--out", str(out), *flags.split())
    assert set(found) == {"file", "metric", "psnr", "epoch", "seconds"}
    assert (found["file"], found["metric"]) == (str(out), "PSNR") and out.is_file()
    assert f"search PSNR {found['psnr']:.3f}" in said and "epoch 2/2" in said


def test_latency(restorer: Path, tmp_path: Path, capsys: Captured) -> None:
    out = tmp_path / "latency.json"
    flags = ["--teacher", str(restorer), "--size", "32", "32", "--repeats", "1"]
    found, _ = document(capsys, "latency", "--out", str(out), *flags)
    assert found == json.loads(out.read_text()) and found["seconds"]["8"] > 0


def test_folders_of_data(tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    out = str(tmp_path / "shapes")
    found, _ = document(capsys, "shapes", "--out", out, "--train", "3", "--val", "1", "--test", "2")
    assert found == {"folder": out, "images": {"train": 3, "val": 1, "test": 2}}

    def fetch(folder: Path, splits: Any, images: Any) -> Path:
        print("a line")
        return write_shapes(folder, {"train": 1, "val": 2, "test": images})

    monkeypatch.setattr(detectors.download, "fetch_coco", fetch)
    found, said = document(capsys, "data", "coco", "--out", str(tmp_path / "coco"), "--images", "4")
    assert found == {"folder": str(tmp_path / "coco"), "images": {"train": 1, "val": 2, "test": 4}}
    assert said == "a line\n"


def test_sweep(tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray", reason="an extra: pip install -e '.[ray]'")
    record = {"arguments": {"episodes": 3}, "axes": {"seed": [0, 1]}, "trials": [{"seed": 0, "state": "not tried"}]}

    def run_sweep(sweep: Any, out: Path) -> Any:
        print("a line")
        (out / "sweep.json").write_text(json.dumps(record))
        return record["trials"]

    monkeypatch.setattr("agents.sweep.run_sweep", run_sweep)
    assert document(capsys, "sweep", "--out", str(tmp_path), "--seed", "0", "1") == (record, "a line\n")
    assert "--json is the sweep's own" in fails(
        capsys, "sweep", "--out", str(tmp_path), "--seed", "0", "1", "--", "--json"
    )


def test_errors_stay_a_sentence(on_tiny: dict[str, Any], tmp_path: Path, capsys: Captured) -> None:  # noqa: F811
    with pytest.raises(SystemExit) as end:
        main(["search", "--out", str(tmp_path / "run"), "--target-ratio", "50", "--json"])
    captured = capsys.readouterr()
    assert end.value.code == 2 and captured.out == ""
    assert captured.err.splitlines()[-1].startswith("hsq: A target ratio of 50 cannot be reached")


def test_numbers_that_json_does_not_have(capsys: Captured) -> None:
    print_json({"divergence": math.inf, "rows": [(1.5, math.nan)], "more": {"a": -math.inf, "b": 3}})
    expected = {"divergence": None, "rows": [[1.5, None]], "more": {"a": None, "b": 3}}
    assert json.loads(capsys.readouterr().out) == expected


def test_what_is_said_aside(capsys: Captured) -> None:
    for asked in (True, False):
        with aside(asked):
            print(asked)
        print("after")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("after\nFalse\nafter\n", "True\n")
