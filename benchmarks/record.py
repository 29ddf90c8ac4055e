"""Writing a result: figures beside the command, versions and machine that made them."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from agents.provenance import machine, versions
from detectors.files import write_json

RESULTS = Path(__file__).parent / "results"


def command() -> str:
    """What was called, as one would call it again."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    module = f"benchmarks.{Path(sys.argv[0]).stem}" if spec is None else spec.name
    return " ".join(["python", "-m", module, *sys.argv[1:]])


def write_result(name: str, figures: dict[str, Any]) -> Path:
    """Write ``benchmarks/results/<name>.json``."""
    data = {"command": command(), "versions": versions(), "machine": machine(), **figures}
    path = RESULTS / f"{name}.json"
    write_json(path, data)
    return path


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a record to which runs add one line each."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]


def made_with() -> dict[str, Any]:
    """The revision, versions and machine that a line was made with: those of a record may differ."""
    asked = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        revision = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        revision = "unknown"
    return {"revision": revision, "torch": versions()["torch"], "machine": machine()}


def append_line(path: Path, row: dict[str, Any]) -> None:
    """Add a row and what it was made with, whoever else writes."""
    row = {**row, "made_with": made_with()}
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(handle, (json.dumps(row) + "\n").encode())
    finally:
        os.close(handle)
