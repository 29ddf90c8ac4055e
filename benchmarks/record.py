"""Writing a result: figures beside the command, versions and machine that made them."""

import json
import sys
from pathlib import Path
from typing import Any

from agents.provenance import machine, versions
from detectors.teacher import write_atomically

RESULTS = Path(__file__).parent / "results"


def write_result(name: str, figures: dict[str, Any]) -> Path:
    """Write ``benchmarks/results/<name>.json``."""
    command = " ".join(["python", "-m", f"benchmarks.{Path(sys.argv[0]).stem}", *sys.argv[1:]])
    data = {"command": command, "versions": versions(), "machine": machine(), **figures}
    path = RESULTS / f"{name}.json"
    write_atomically(path, (json.dumps(data, indent=1) + "\n").encode())
    return path
