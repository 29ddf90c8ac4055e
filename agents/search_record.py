"""The record of a search: what it was asked for, what happened, and whether a search that goes on is the same."""

import hashlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agents.explorer import Explorer
from agents.provenance import command, machine, versions
from agents.run_folder import RunFolder
from agents.search_log import SearchLog
from detectors.errors import InputError
from hsq_env.channels import shared_inputs
from hsq_env.choices import PICTURE_BITS, Plan
from hsq_env.env import HSQEnv
from hsq_env.identity import identity
from restorers.task import RestorationTask


def header_of(
    env: HSQEnv, explorer: Explorer, asked: dict[str, Any], task_settings: dict[str, Any] | None
) -> dict[str, Any]:
    """What a search was asked for, as ``result.json`` begins.

    :param asked: what neither the environment nor the explorer knows
    :param task_settings: arguments of ``hsq_env.make.make_task`` that make the task again; None if there are none
    """
    task, targets = env.task, list(env.budgets)
    header: dict[str, Any] = {
        "dataset": task.name,
        "metric": task.metric_name,
        "split": "test",
        **({"patch": task.patch} if isinstance(task, RestorationTask) else {}),
        "algo": explorer.algo,
        "seed": explorer.seed,
        "target_ratio": targets if len(targets) > 1 else targets[0],
        "reward": env.reward,
        "beta": env.beta,
        "workers": explorer.workers,
        "warm_start": list(explorer.begins_with),
        "return_to_best": explorer.returns,
        "surrogate": explorer.has_surrogate(env),
        **asked,
    }
    if task_settings is not None:
        header["rebuild"] = {
            "task": task_settings,
            "activation_bits": env.student.activation_bits,
            "picture_bits": PICTURE_BITS,
            "sparsity_pattern": env.student.pattern,
            "bfloat16": env.compressor.repair.bfloat16,
            "alpha": env.alpha,
            "step_minibatches": env.compressor.repair.steps,
            "distillation": env.compressor.repair.distillation,
            "observe_repaired": env.observe_repaired,
        }
    return header


def settings_of(env: HSQEnv, header: dict[str, Any], env_arguments: dict[str, Any]) -> dict[str, Any]:
    """What a search must have in common with the one that it resumes, as JSON has it."""
    table = env.layer_costs.table
    own = {name: repr(value) for name, value in env_arguments.items() if name != "latency_table"}
    searched = {**{name: value for name, value in header.items() if name != "rebuild"}, **own}
    searched["latency_table"] = None if table is None else hashlib.sha256(repr(table.to_json()).encode()).hexdigest()
    found: dict[str, Any] = json.loads(
        json.dumps({"problem": identity(env), "search": searched, "versions": versions()})
    )
    return found


def compare(before: dict[str, Any], now: dict[str, Any], run: Path) -> None:
    """:raises InputError: if a resumed search is another than the one that was begun"""
    if before["problem"] != now["problem"]:
        raise InputError(
            f"The search of {run} was begun with another teacher, other images, other settings or an earlier version: "
            "give what it was begun with."
        )
    for name, value in now["search"].items():
        was = before["search"].get(name)
        if was != value:
            raise InputError(f"The search of {run} was begun with {name} {was}, not {value}: give that.")


def latencies(env: HSQEnv, plans: Mapping[str, Plan]) -> dict[str, Any]:
    """Milliseconds of all layers by the environment's table, of the teacher and of each plan; nothing without one."""
    table, student = env.layer_costs.table, env.student
    if table is None:
        return {}
    choices = {"float32": None, **{name: plan.choices for name, plan in plans.items()}}
    shared = shared_inputs(student.channel_groups)
    times = {name: table.milliseconds(student.infos, own, student.pattern, shared) for name, own in choices.items()}
    return {"latency": times}


def happened(log: SearchLog, algo: str, started: float) -> dict[str, Any]:
    """What happened, and what is needed to repeat it."""
    return {
        "episodes": sum(episode.source == algo for episode in log.episodes),
        "seconds": round(time.monotonic() - started, 1),
        "steps": log.steps,
        "visited_steps": log.visited_steps,
        "diagnostics": log.diagnostics(),
        "environment": environment(),
        "history": [episode.to_json() for episode in log.episodes],
    }


def environment() -> dict[str, Any]:
    """What figures depend on beside what was asked for."""
    return {"command": command(), "versions": versions(), "machine": machine()}


def interrupted_text(folder: RunFolder, log: SearchLog) -> str:
    """For whoever has interrupted it: what there is by then."""
    if not log.episodes:
        return (
            f"Interrupted before the first plan was finished: {folder.path} holds no plan. Go on with: hsq search "
            f"--resume {folder.path}"
        )
    target = log.episodes[-1].target_ratio
    best = log.best_plans(1, target)
    worth = f", {best[0].accuracy:.4f} of the teacher's accuracy on the search split" if best else ""
    files = "plans so far (plan-*.json and model-*.hsq" if folder.several else "plan so far (plan.json and model.hsq"
    text = f"Interrupted: {folder.path} holds the best {files}{worth}, without the long fine-tuning). "
    return f"{text}Go on with: hsq search --resume {folder.path}"
