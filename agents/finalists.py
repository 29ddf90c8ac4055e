"""The part of a search that follows the agent: long fine-tuning, the choice, the figures of the table."""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agents.baselines.plans import uniform_plan
from agents.episode import Episode
from agents.run_folder import RunFolder
from detectors.progress import Work, work
from hsq_env.choices import Plan
from hsq_env.compensation import apply_plan
from hsq_env.env import HSQEnv
from hsq_env.file import load_hsq, save_hsq
from hsq_env.kept_training import KeptTraining
from hsq_env.long_finetuning import finetune_all
from hsq_env.student import Student, evaluate

UNIFORM_BITS = (8, 4)
Say = Callable[[str], None]
Found = tuple[float | None, Episode, Student]  # the target, the plan's episode, the fine-tuned student


@dataclass(frozen=True)
class KeptStudents:
    """Students that were fine-tuned at length, and the training of one, for a search that is interrupted.

    :param folder: of checkpoints
    :param minutes: between two states of a training
    :param going: work of which every student is one
    """

    folder: Path
    minutes: float
    going: Work | None = None

    def finetuned(self, env: HSQEnv, plan: Plan, steps: int, label: str) -> Student:
        """``finetuned_student``, unless it is there already."""
        name = hashlib.sha256(repr((plan, steps)).encode()).hexdigest()[:16]
        file, training = self.folder / f"{name}.hsq", KeptTraining(self.folder / f"{name}.training", self.minutes)
        student = fresh_student(env)
        if file.is_file():
            load_hsq(file, student.model)
        else:
            finetuned(student, plan, steps, label, env.compressor.repair.bfloat16, training)
            save_hsq(student, file)
            training.discard()
        if self.going is not None:
            self.going.advance()
        return student


def fresh_student(env: HSQEnv) -> Student:
    """With the teacher's weights."""
    return Student(env.task, env.layers, env.student.activation_bits, env.student.pattern)


def finetuned_student(env: HSQEnv, plan: Plan, steps: int, label: str) -> Student:
    """A fresh student with the plan, fine-tuned at length from the teacher's weights.

    Where the fine-tuning diverges, the student is left as the plan alone makes it.

    :param steps: gradient steps; 0 for none
    :param label: for whoever is shown how far it is
    """
    return finetuned(fresh_student(env), plan, steps, label, env.compressor.repair.bfloat16)


def finetuned(
    student: Student, plan: Plan, steps: int, label: str, bfloat16: bool, kept: KeptTraining | None = None
) -> Student:
    """The same of a student that carries nothing yet; it is changed.

    :param bfloat16: fine-tune under autocast
    :param kept: where an interrupted training stands
    """
    apply_plan(student, plan)
    if not steps:
        return student
    with work(f"{label}, step", steps) as going:
        if not finetune_all(
            student, steps, on_step=lambda step: going.advance(step - going.done), bfloat16=bfloat16, kept=kept
        ):
            apply_plan(student, plan)
    return student


def choose(
    env: HSQEnv, best: list[Episode], steps: int, say: Say, kept: KeptStudents | None = None
) -> tuple[Episode, Student, list[dict[str, Any]]]:
    """Fine-tune the best plans and keep the best on the search split.

    Under a budget that is the one with the smallest divergence, which tells plans apart that the metric on few images
    cannot; without one it is the highest metric.

    :param kept: for a search that may be interrupted
    :return: the winner, its fine-tuned student, and a row for each candidate
    """
    winner: tuple[float, Episode, Student] | None = None
    rows = []
    for number, episode in enumerate(best):
        made = finetuned_student if kept is None else kept.finetuned
        student = made(env, episode.plan, steps, f"plan {number + 1} of {len(best)}")
        metric = evaluate(env.task, student.stages, "search")
        _, divergence = env.compressor.judge.measure_anew(student.stages)
        name = env.task.metric_name
        say(
            f"plan {number + 1} ({episode.source}): search {name} {metric:.4f}, divergence {divergence:.3f} "
            f"after {steps} fine-tuning steps"
        )
        figures = {f"finetuned_search_{name.lower()}": metric, "finetuned_divergence": divergence}
        rows.append({"source": episode.source, "divergence": episode.divergence, **figures})
        score = -divergence if episode.target_ratio is not None or env.bounded else metric
        score = score if math.isfinite(score) else -math.inf
        if winner is None or score > winner[0]:
            winner = (score, episode, student)
    assert winner is not None  # a search has at least the integer program's plan
    return winner[1], winner[2], rows


def measure(
    env: HSQEnv,
    folder: RunFolder,
    found: dict[str, Found],
    teacher_bytes: int,
    steps: int,
    say: Say,
    kept: KeptStudents | None = None,
) -> dict[str, dict[str, Any]]:
    """Bytes on disk and the test metric of HSQ and of the uniform plans, as they are and fine-tuned alike.

    :param found: HSQ's by name
    :param kept: for a search that may be interrupted
    :return: ``{name: {"map" (the metric's name), "bytes", "ratio"}}``
    """
    methods: dict[str, dict[str, Any]] = {}

    def add(name: str, measured: Student, file: str) -> None:
        size = folder.write_student(measured, file)
        score = evaluate(env.task, measured.stages, "test")
        metric = env.task.metric_name
        methods[name] = {metric.lower(): score, "bytes": size, "ratio": teacher_bytes / size}
        say(f"{name}: test {metric} {score:.4f}, {size:,} bytes, {teacher_bytes / size:.2f}x")

    for bits in UNIFORM_BITS:
        for suffix, count in (("", 0), ("_finetuned", steps)):
            name = f"uniform{bits}{suffix}"
            made = finetuned_student if kept is None or not count else kept.finetuned
            add(name, made(env, uniform_plan(env, bits), count, f"uniform {bits} bit"), f"baselines/{name}.hsq")
    for name, (target, episode, student) in found.items():
        folder.write_plan(student.plan(), target)  # together with its file, lest an interruption comes between
        add(name, student, folder.named("model.hsq", target))
        methods[name]["source"] = episode.source
        methods[name]["choices"] = [[c.bits, c.sparsity] for c in student.plan().choices]
    return methods
