"""What a result needs beside its figures so that it can be repeated: versions and machine."""

import platform
import shlex
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("torch", "torchvision", "gymnasium", "stable-baselines3", "pycocotools", "numpy")


def command() -> str:
    """The present one, as a shell takes it."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def versions() -> dict[str, str]:
    """Of Python and of the packages that figures depend on."""
    return {"python": platform.python_version(), **{package: version(package) for package in PACKAGES}}


def machine() -> dict[str, Any]:
    """The processor's name where the system tells it, torch's threads, and whether there is a GPU."""
    return {"processor": _processor(), "threads": torch.get_num_threads(), "cuda": torch.cuda.is_available()}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    named = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor())
