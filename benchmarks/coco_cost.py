"""How long the paper's table on COCO takes on this machine: derived from measured images per second, not run.

python -m benchmarks.coco_cost  # on a machine that does nothing else

It is one search for one target, ``hsq search --dataset coco/ --detector fcos_resnet50_fpn --evaluations 500``, whose
table has the float32 network, the uniform plans and HSQ's. A full-width FCOS with 91 classes is timed on pictures with
as many pixels as COCO's at their usual size (800x1088 padded): forward passes, and training steps with the teacher's
forward pass. How many of both a search makes follows from its settings. Counted are whole passes, although a step
computes only what its change reaches: what is written is an upper bound.
"""

import inspect
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hsq_env  # noqa: F401 - before torch

# isort: split
import torch

from agents.finalists import UNIFORM_BITS
from agents.search import search
from benchmarks.artifacts import full_width_task, quantized
from benchmarks.record import write_result
from detectors.task import DetectionTask
from hsq_env.choices import choice_grid
from hsq_env.long_finetuning import finetune_all
from hsq_env.states import run
from hsq_env.student import predictions_of

SIDE = 928  # pixels; its square has as many as 800x1088
IMAGES = {"search": 64, "pool": 64, "calibration": 16, "test": 5000}
BATCH = 8  # images of a minibatch
EVALUATIONS = 500  # of students, the baselines' plans included
REPEATS, STEPS = 3, 3


@dataclass(frozen=True)
class Speed:
    """Seconds of an image.

    :param forward: of the student, and what becomes of its outputs
    :param training: of the teacher's forward pass, the student's and the backward pass
    """

    forward: float
    training: float


def passes(
    layers: int, choices: int, evaluations: int = EVALUATIONS, images: dict[str, int] = IMAGES
) -> dict[str, dict[str, int]]:
    """Images that go forward and that are trained on, by part of a search with its defaults."""
    settings = {n: p.default for n, p in inspect.signature(search).parameters.items()}
    brief = settings["step_minibatches"] * BATCH
    long = settings["finetune_steps"] * BATCH
    tuned = settings["finalists"] + len(UNIFORM_BITS)
    measured = 1 + len(UNIFORM_BITS) * 2 + 1  # the teacher, uniform plans with and without fine-tuning, HSQ
    every = layers * choices
    return {
        "tables": {"forward": 2 * every * images["calibration"], "training": every * brief},
        "search": {"forward": (1 + evaluations) * images["search"], "training": evaluations * brief},
        "fine-tuning": {"forward": 2 * settings["finalists"] * images["search"], "training": tuned * long},
        "test": {"forward": measured * images["test"], "training": 0},
    }


def hours(parts: dict[str, dict[str, int]], speed: Speed) -> dict[str, float]:
    """Of each part."""
    return {
        name: (own["forward"] * speed.forward + own["training"] * speed.training) / 3600 for name, own in parts.items()
    }


def measured(task: DetectionTask) -> Speed:
    """The fastest of a few rounds."""
    student = quantized(task, "uniform8")
    images = sum(len(batch.images) for batch in task.evaluation("test"))
    forward, training = [], []
    for _ in range(REPEATS):
        started = time.monotonic()
        predictions_of(task, student.stages, "test")
        forward.append((time.monotonic() - started) / images)
        started = time.monotonic()
        finetune_all(student, STEPS, pace=0.0)
        training.append((time.monotonic() - started) / STEPS / task.batch_size)
    return Speed(min(forward), min(training))


def main() -> None:
    """Measure and derive."""
    with tempfile.TemporaryDirectory() as folder:
        task = full_width_task(Path(folder) / "pictures", SIDE)
        speed = measured(task)
        layers = len(quantized(task, "uniform8").infos)
        with torch.no_grad():
            outputs = run(task.stages(task.teacher), {"images": task.evaluation("test")[0].images})
    parts = passes(layers, len(choice_grid()))
    figures: dict[str, Any] = {
        "device": task.device.type,
        "threads": torch.get_num_threads(),
        "locations": int(outputs["cls_logits"].shape[1]),
        "images_per_second": {"forward": 1 / speed.forward, "training": 1 / speed.training},
        "images": parts,
        "hours_at_most": hours(parts, speed),
        "hours_at_most_in_all": sum(hours(parts, speed).values()),
    }
    print(figures)
    print(f"wrote {write_result('coco_cost_' + task.device.type, figures)}")


if __name__ == "__main__":
    main()
