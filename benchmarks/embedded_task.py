"""Is the embedded task worth searching? Test mAP of the teacher and of students damaged in one place, unrepaired.

python -m benchmarks.embedded_task

Measured are uniform plans, uniform 4 bit also with scales from the largest weight (how much of the damage the
least-squares scales avoid), and the harshest choice (2 bits, 75 % sparsity) on each part of the network alone. Writes
``benchmarks/results/embedded_task.json``.
"""

from typing import Any
from unittest.mock import patch

from torch import Tensor

import hsq_env  # noqa: F401 - before torch
from benchmarks.record import write_result
from detectors.task import detection_task
from hsq_env import layers as layers_module
from hsq_env.choices import Choice, Plan
from hsq_env.layer_info import trace_layers
from hsq_env.quantizers import Levels, storable
from hsq_env.student import Student, evaluate

HARSHEST = Choice(2, 0.75)
PARTS = ("stem", "layer1", "layer2", "layer3", "layer4", "fpn", "head")


def largest_weight_scale(weight: Tensor, mask: Tensor | None, levels: Levels, bits: int) -> Tensor:
    """The scale that reaches the largest weight of each channel, in place of ``best_scale``."""
    return storable(weight.flatten(1).abs().amax(dim=1) / levels.reach)


def main() -> None:
    """Measure and write."""
    task = detection_task()
    infos = trace_layers(task)
    student = Student(task, infos)
    teacher = evaluate(task, task.stages(task.teacher), "test")
    print(f"teacher {teacher:.4f}", flush=True)
    uniform: dict[str, Any] = {}

    def measure_uniform(name: str, bits: int) -> None:
        student.apply(Plan(tuple(i.name for i in infos), (Choice(bits, 0.0),) * len(infos)))
        uniform[name] = evaluate(task, student.stages, "test")
        print(f"uniform {name} bit {uniform[name]:.4f}", flush=True)

    for bits in (8, 4, 2):
        measure_uniform(str(bits), bits)
    with patch.object(layers_module, "best_scale", largest_weight_scale):
        measure_uniform("4, scales from the largest weight", 4)
    parts = {}
    for part in PARTS:
        student.reset()
        chosen = [k for k, info in enumerate(infos) if info.block.split(".")[0] == part]
        for k in chosen:
            student.compress(k, HARSHEST)
        score = evaluate(task, student.stages, "test")
        parts[part] = {"layers": len(chosen), "map": score, "points_lost": 100 * (teacher - score)}
        print(f"{part} ({len(chosen)} layers) at {HARSHEST}: {score:.4f}", flush=True)
    points = {bits: 100 * (teacher - score) for bits, score in uniform.items()}
    figures = {"split": "test", "teacher_map": teacher, "uniform_map": uniform, "uniform_points_lost": points}
    print(f"wrote {write_result('embedded_task', {**figures, 'parts_at_2_bits_75_percent': parts})}")


if __name__ == "__main__":
    main()
