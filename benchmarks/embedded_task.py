"""Is the embedded task worth searching? Test mAP of the teacher and of students damaged in one place, unrepaired.

python -m benchmarks.embedded_task

Measured are uniform plans, and the harshest choice (2 bits, 75 % sparsity) on each part of the network alone. Writes
``benchmarks/results/embedded_task.json``.
"""

import hsq_env  # noqa: F401 - before torch
from benchmarks.record import write_result
from detectors.task import detection_task
from hsq_env.choices import Choice, Plan
from hsq_env.student import Student, evaluate, trace_layers

HARSHEST = Choice(2, 0.75)
PARTS = ("stem", "layer1", "layer2", "layer3", "layer4", "fpn", "head")


def main() -> None:
    """Measure and write."""
    task = detection_task()
    infos = trace_layers(task)
    student = Student(task, infos)
    teacher = evaluate(task, task.stages(task.teacher), "test")
    print(f"teacher {teacher:.4f}", flush=True)
    uniform = {}
    for bits in (8, 4, 2):
        student.apply(Plan(tuple(i.name for i in infos), (Choice(bits, 0.0),) * len(infos)))
        uniform[str(bits)] = evaluate(task, student.stages, "test")
        print(f"uniform {bits} bit {uniform[str(bits)]:.4f}", flush=True)
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
