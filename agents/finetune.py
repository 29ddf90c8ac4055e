"""Quantization-aware training on its own: a plan, a teacher, a way to distil; no search."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agents.provenance import command, machine, versions
from agents.run_folder import RunFolder, check_new_folder
from agents.spark_file import load_spark
from detectors.errors import InputError
from detectors.progress import say, work
from hsq_env.choices import BITS, Choice, Plan
from hsq_env.compensation import ROUNDINGS, apply_plan, usual_rounding
from hsq_env.distillation import AKD
from hsq_env.distillation.attention import AttentionAKD
from hsq_env.distillation.spark import EVERY, Spark
from hsq_env.distillation.wavelet import WaveletAKD
from hsq_env.file import student_bytes
from hsq_env.layer_info import LayerInfo, trace_layers
from hsq_env.long_finetuning import LONG_ALPHA, finetune_all
from hsq_env.states import distilled_kinds
from hsq_env.student import Student, evaluate
from hsq_env.task import Task

UNIFORM = "uniform"


@dataclass(frozen=True)
class Distillation:
    """A way to train.

    :param criterion: the distillation loss
    :param alpha: share of the task loss
    :param spark: whether a policy weighs the places
    """

    criterion: AKD
    alpha: float = LONG_ALPHA
    spark: bool = False


DISTILLATIONS: dict[str, Distillation] = {
    "none": Distillation(AKD(), alpha=1.0),
    "akd": Distillation(AKD()),
    "spark": Distillation(AKD(), spark=True),
    "wavelet": Distillation(WaveletAKD()),
    "attention": Distillation(AttentionAKD()),
}


def plan_of(name: str, infos: tuple[LayerInfo, ...]) -> Plan:
    """A plan by name, or from a file.

    :param name: "uniform8", "uniform4", "uniform2", or a plan.json
    :raises InputError: if it is neither, or belongs to other layers
    """
    layers = tuple(info.name for info in infos)
    if name.startswith(UNIFORM) and not Path(name).exists():
        known = [f"{UNIFORM}{bits}" for bits in BITS]
        if name not in known:
            raise InputError(f"Unknown plan '{name}': give {', '.join(known)} or the plan.json of a search.")
        return Plan(layers, (Choice(int(name.removeprefix(UNIFORM)), 0.0),) * len(layers))
    plan = Plan.read(name)
    if plan.layers != layers:
        raise InputError(f"The plan {name} is for other layers than the teacher's: give one of a search with it.")
    return plan


def finetune(
    task: Task,
    out: str | Path,
    plan: str,
    distillation: str = "spark",
    steps: int = 300,
    alpha: float | None = None,
    activation_bits: int | None = 8,
    sparsity_pattern: str = "unstructured",
    rounding: str | None = None,
    policy: str | Path | None = None,
    policy_every: int = EVERY,
    seed: int = 0,
    bfloat16: bool = False,
    task_settings: dict[str, Any] | None = None,
    say: Callable[[str], None] = say,
) -> dict[str, Any]:
    """Compress a teacher as a plan says, train it, measure it before and after, write it.

    :param out: a new or empty folder: model.hsq, plan.json, teacher.safetensors, result.json and, for SPARK, spark.pt
    :param plan: see ``plan_of``
    :param distillation: of ``DISTILLATIONS``
    :param steps: gradient steps; 0 for none (post-training quantization)
    :param alpha: share of the task loss; the distillation's own when None
    :param rounding: "nearest" or "compensated", see ``hsq_env.compensation.apply_plan``; None for the usual one
    :param policy: a spark.pt to go on from
    :param policy_every: steps between two lessons of SPARK's policy
    :param seed: of the policy; the batches follow the task's own
    :param task_settings: for the record: arguments of ``hsq_env.make.make_task`` that make the task again
    :return: the content of result.json
    :raises InputError: if something is missing or does not fit, or the training falls apart; nothing is written then
    """
    started = time.monotonic()
    check_new_folder(Path(out))
    if distillation not in DISTILLATIONS:
        raise InputError(f"Unknown distillation '{distillation}': known are {', '.join(DISTILLATIONS)}.")
    way = DISTILLATIONS[distillation]
    alpha = way.alpha if alpha is None else alpha
    if not 0 <= alpha <= 1:
        raise InputError(f"alpha is {alpha}: give a share in [0, 1].")
    if steps < 0 or policy_every < 1:
        raise InputError(f"{steps} steps and a lesson every {policy_every}: give --steps 0 or more, lessons from 1 on.")
    if rounding not in (None, *ROUNDINGS):
        raise InputError(f"Unknown rounding '{rounding}': known are {', '.join(ROUNDINGS)}.")
    kinds = distilled_kinds(task)
    if isinstance(way.criterion, AttentionAKD) and "features" not in kinds:
        raise InputError(f"'{distillation}' compares features, and '{task.name}' gives none: choose akd or spark.")
    if isinstance(way.criterion, WaveletAKD) and "pixels" not in kinds:
        raise InputError(f"'{distillation}' compares images, and '{task.name}' gives none: choose akd or spark.")
    spark = Spark(way.criterion, every=policy_every, seed=seed) if way.spark else None
    if policy is not None:
        _restore(spark, Path(policy))
    infos = trace_layers(task)
    chosen = plan_of(plan, infos)
    student = Student(task, infos, activation_bits, sparsity_pattern)
    rounding = rounding or usual_rounding(task)
    apply_plan(student, chosen, rounding)
    metric = task.metric_name
    figures = {
        "teacher": evaluate(task, task.stages(task.teacher), "test"),
        "ptq": evaluate(task, student.stages, "test"),
    }
    say(f"teacher: test {metric} {figures['teacher']:.4f}; as quantized: {figures['ptq']:.4f}")
    trained = time.monotonic()
    with work(f"{distillation}, step", steps) as going:
        going.say(f"{metric} {figures['ptq']:.4f} as quantized, {figures['teacher']:.4f} of the teacher")
        if steps and not finetune_all(
            student, steps, way.criterion, alpha, on_step=lambda _: going.advance(), bfloat16=bfloat16, spark=spark
        ):
            raise InputError(f"The training fell apart (a loss that is no number): nothing was written to {out}.")
    seconds = time.monotonic() - trained
    figures["finetuned"] = evaluate(task, student.stages, "test")
    folder, content = RunFolder(out), student_bytes(student)
    teacher_size = folder.write_teacher(task.teacher_file())
    folder.write_plan(chosen)
    folder.write_model(content)
    if spark is not None:
        folder.write_spark(spark)
    result = {
        "dataset": task.name,
        "model": task.describe(),
        "plan": plan,
        "distillation": distillation,
        "steps": steps,
        "alpha": alpha,
        "activation_bits": activation_bits,
        "sparsity_pattern": sparsity_pattern,
        "rounding": rounding,
        "seed": seed,
        "split": "test",
        "metric": metric,
        "figures": figures,
        "bytes": len(content),
        "ratio": teacher_size / len(content),
        "policy_updates": spark.reinforce.updates if spark is not None else 0,
        "training_seconds": round(seconds, 1),
        "seconds": round(time.monotonic() - started, 1),
        **({} if task_settings is None else {"rebuild": {"task": task_settings}}),
        "environment": {"command": command(), "versions": versions(), "machine": machine()},
    }
    folder.write_json("result.json", result)
    say(f"{plan}, {distillation}: test {metric} {figures['finetuned']:.4f} at {result['ratio']:.2f}x, written to {out}")
    return result


def _restore(spark: Spark | None, path: Path) -> None:
    if spark is None:
        raise InputError(f"The policy {path} has nothing to weigh: give --distillation spark with it.")
    load_spark(spark, path)
