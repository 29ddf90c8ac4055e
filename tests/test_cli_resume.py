"""``hsq search --resume``, the command."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT
from test_cli import Captured, fails, on_tiny  # noqa: F401 - a fixture

import agents.search
from agents.cli import main

SMALL = ["--target-ratio", "6", "--finetune-steps", "2", "--no-surrogate", "--seed", "3"]
SCRIPT = """
import sys
import hsq_env
from types import SimpleNamespace
import hsq_env.make
from tiny_task import TinyTask
from agents.cli import main

def tiny_task(*given, **settings):
    task = TinyTask()
    task.spec = SimpleNamespace(name="tinynet")
    return task

hsq_env.make.make_task = tiny_task
main(sys.argv[1:])
"""


def begun(run: Path, *flags: str) -> "subprocess.Popen[str]":
    """A search in a process of its own, as soon as it has a checkpoint."""
    start = f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'tests')!r}]\n"
    command = [sys.executable, "-c", start + SCRIPT, "search", "--out", str(run), *SMALL, *flags]
    process = subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT)
    deadline = time.monotonic() + 120
    while not list(run.glob("checkpoints/*.checkpoint")):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.01)
    return process


def found(run: Path) -> Any:
    result = json.loads((run / "result.json").read_text())
    history = [{k: v for k, v in row.items() if k != "seconds"} for row in result["history"]]
    return history, result["methods"], result["sha256"]


def test_a_killed_process_is_resumed(
    on_tiny: dict[str, Any],  # noqa: F811
    tmp_path: Path,
    capsys: Captured,
) -> None:
    flags = ["--episodes", "60", "--checkpoint-minutes", "0.002"]
    process = begun(tmp_path / "killed", *flags)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    main(["search", "--resume", str(tmp_path / "killed")])
    main(["search", "--out", str(tmp_path / "through"), *SMALL, *flags])
    assert found(tmp_path / "killed") == found(tmp_path / "through")
    assert "HSQ" in capsys.readouterr().out
    line = fails(capsys, "search", "--resume", str(tmp_path / "killed"))
    assert "has ended: its figures are in" in line


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_process_that_is_told_to_stop_says_how_to_go_on(tmp_path: Path, number: int) -> None:
    run = tmp_path / "run"
    process = begun(run, "--episodes", "4000")
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"Go on with: hsq search --resume {run}" in err and "Traceback" not in out + err
    assert "\r" not in out + err  # there is no terminal
    assert (run / "interrupted.json").is_file() and (run / "model.hsq").is_file()


def test_bad_resumes(
    on_tiny: dict[str, Any],  # noqa: F811
    tmp_path: Path,
    capsys: Captured,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = tmp_path / "run"
    assert "give --out, or --resume" in fails(capsys, "search", "--seed", "1")
    assert "holds no search that could go on" in fails(capsys, "search", "--resume", str(run))

    def stop(*arguments: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(agents.search, "choose", stop)
        fails(capsys, "search", "--out", str(run), *SMALL, "--episodes", "1", code=130)
    assert "leave out --seed beside --resume" in fails(capsys, "search", "--resume", str(run), "--seed", "4")
    settings = run / "checkpoints" / "settings.json"
    good = settings.read_text()
    for bad, sentence in (
        ("{", "holds no search that could go on"),
        ("[]", "is no settings of a search"),
        (json.dumps({**json.loads(good), "arguments": {"algo": "os:abort"}}), "was not written by you"),
    ):
        settings.write_text(bad)
        assert sentence in fails(capsys, "search", "--resume", str(run))
    for changed, sentence in (
        ({"arguments": {}}, "was not begun by this command"),
        ({"arguments": {"nonsense": 1}}, "was not begun by this command"),
        ({"problem": "x"}, "another teacher, other images, other settings or an earlier version"),
    ):
        settings.write_text(json.dumps({**json.loads(good), **changed}))
        assert sentence in fails(capsys, "search", "--resume", str(run), "--trust-checkpoints")
    settings.write_text(good)
    main(["search", "--resume", str(run)])
    assert (run / "result.json").is_file()


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("--ray", "192.0.2.1:1", "--algo", "local"), "'local' acts in one environment: leave out --ray"),
        (("--checkpoint-minutes", "-1"), "There are no -1 minutes between checkpoints"),
    ],
)
def test_bad_flags(
    on_tiny: dict[str, Any],  # noqa: F811
    tmp_path: Path,
    capsys: Captured,
    flags: tuple[str, ...],
    sentence: str,
) -> None:
    assert sentence in fails(capsys, "search", "--out", str(tmp_path / "run"), *flags)
    assert not (tmp_path / "run").exists()
