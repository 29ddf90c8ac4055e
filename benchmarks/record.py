"""Writing a result: figures beside the command, versions and machine that made them."""

import json
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from detectors.teacher import write_atomically

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "torchvision", "gymnasium", "stable-baselines3", "pycocotools", "numpy")


def processor() -> str:
    """The processor's name where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


def write_result(name: str, figures: dict[str, Any]) -> Path:
    """Write ``benchmarks/results/<name>.json``."""
    data = {
        "command": " ".join(["python", "-m", f"benchmarks.{Path(sys.argv[0]).stem}", *sys.argv[1:]]),
        "versions": {"python": platform.python_version(), **{package: version(package) for package in PACKAGES}},
        "machine": {"processor": processor(), "threads": torch.get_num_threads(), "cuda": torch.cuda.is_available()},
        **figures,
    }
    path = RESULTS / f"{name}.json"
    write_atomically(path, (json.dumps(data, indent=1) + "\n").encode())
    return path
