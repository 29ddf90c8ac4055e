"""Small things that several tests do."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from hsq_env.choices import BITS, SPARSITIES, Plan, choice_grid
from hsq_env.env import HSQEnv
from hsq_env.layer_info import LayerInfo
from hsq_env.student import Student
from hsq_env.task import State, Task

ROOT = Path(__file__).resolve().parent.parent


def random_plan(infos: Sequence[LayerInfo], seed: int) -> Plan:
    """One choice of the default grid per layer, all drawn alike."""
    grid = choice_grid(BITS, SPARSITIES)
    drawn = np.random.default_rng(seed).integers(len(grid), size=len(infos))
    return Plan(tuple(info.name for info in infos), tuple(grid[i] for i in drawn))


def outputs(task: Task, model: torch.nn.Module, images: torch.Tensor) -> State:
    """A forward pass through all stages of any model that fits the task."""
    state: State = {"images": images}
    with torch.no_grad():
        for stage in task.stages(model):
            state = stage.run(state)
    return state


def student_logits(student: Student, split: str = "test") -> torch.Tensor:
    """The student's logits on the first batch of a split."""
    with torch.no_grad():
        logits = student.outputs(student.task.evaluation(split)[0])["logits"]
    assert isinstance(logits, torch.Tensor)
    return logits


def play(env: HSQEnv, actions: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Reset and take the actions; the steps."""
    env.reset()
    return [env.step(action) for action in actions]


def rewards_of(env: HSQEnv, actions: Sequence[Any]) -> list[float]:
    """Reset and take the actions; the rewards."""
    return [step[1] for step in play(env, actions)]


def python(script: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run a script in a fresh interpreter that finds the packages and the helpers of the tests."""
    start = f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'tests')!r}]\n"
    command = [sys.executable, "-c", start + script, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)


def write_noise(folder: Path, count: int = 5) -> Path:
    """Grey pictures of noise, 20x24 pixels.

    :return: the folder
    """
    folder.mkdir(exist_ok=True)
    for i in range(count):
        pixels = np.random.default_rng(i).integers(0, 256, (20, 24), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder
