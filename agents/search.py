"""The search pipeline: sensitivities, seeds, agent, long fine-tuning, choice on the search split, test figures."""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from agents.algorithms import action_space_of, make_agent
from agents.baselines import integer_program_actions
from agents.explore import SearchLog, rollout, seed_replay, train_agent
from agents.finalists import choose, measure
from agents.keep_best import KeepBest
from agents.provenance import machine, versions
from agents.run_folder import RunFolder, check_new_folder
from detectors.errors import InputError
from hsq_env.env import HSQEnv
from hsq_env.student import evaluate
from hsq_env.task import Task


def search(
    task: Task,
    out: str | Path,
    algo: str = "dqn",
    episodes: int | None = 5,
    time_budget: float | None = None,
    target_ratio: float | None = 8.0,
    seed: int = 0,
    finetune_steps: int = 300,
    finalists: int = 2,
    step_minibatches: int = 2,
    detector: str = "",
    say: Callable[[str], None] = tqdm.write,
    **env_arguments: Any,
) -> dict[str, Any]:
    """Search, fine-tune, choose, measure and write the run folder.

    :param out: a new or empty folder
    :param algo: name of an agent
    :param episodes: of the agent, each deciding every layer once; None for no limit
    :param time_budget: seconds of the agent's training; None for no limit
    :param target_ratio: teacher bytes over student bytes; None lets the reward alone trade size for accuracy
    :param finetune_steps: gradient steps of the long fine-tuning, the same for uniform plans
    :param finalists: plans that are fine-tuned at length; the best of them on the search split wins
    :param step_minibatches: gradient steps of the brief fine-tuning in each step of the environment
    :param detector: name for the result file
    :param say: prints a line
    :param env_arguments: of ``HSQEnv``
    :return: the content of ``result.json``
    :raises InputError: for input that cannot be used, before anything is written
    :raises KeyboardInterrupt: with a sentence about what the folder holds by then
    """
    started = time.monotonic()
    check_new_folder(Path(out))
    if finalists < 1:
        raise InputError(f"There would be nothing to choose from {finalists} plans: give --finalists 1 or more.")
    env = HSQEnv(
        task,
        action_space=action_space_of(algo),
        target_ratio=target_ratio,
        finetune_steps=step_minibatches,
        **env_arguments,
    )
    say(f"teacher: {env.compressor.teacher_metric:.4f} on the search split, {env.teacher_bytes:,} bytes")
    folder, log = RunFolder(out), SearchLog(say)
    teacher_bytes = folder.write_teacher(task.teacher_file())
    wrapped = KeepBest(env, folder)
    agent = make_agent(algo, wrapped, seed=seed, tensorboard_log=str(folder.path / "tensorboard"))
    settings = {"algo": algo, "seed": seed, "target_ratio": target_ratio, "finetune_steps": finetune_steps}
    header = {"dataset": task.name, "detector": detector, "split": "test", **settings}
    try:
        seeds = rollout(wrapped, integer_program_actions(env), "integer_program", log)
        callbacks = seed_replay(agent, seeds)
        train_agent(agent, len(env.layers), algo, log, episodes, time_budget, callbacks)
        folder.write_policy(agent)
        best = log.best_plans(finalists, by_return=target_ratio is None)
        winner, student, candidates = choose(env, best, finetune_steps, say)
        methods = measure(env, folder, student, teacher_bytes, finetune_steps, say)
        test_map = evaluate(task, task.stages(task.teacher), "test")
    except KeyboardInterrupt:
        folder.write_policy(agent)
        folder.write_json("interrupted.json", {**header, **_record(log, algo, started)})
        raise KeyboardInterrupt(_interrupted_text(folder, log)) from None
    methods["hsq"]["source"] = winner.source
    result = {
        **header,
        "teacher": {"map": test_map, "bytes": teacher_bytes, "search_map": env.compressor.teacher_metric},
        "methods": methods,
        "candidates": candidates,
        **_record(log, algo, started),
    }
    folder.write_json("result.json", result)
    return result


def _record(log: SearchLog, algo: str, started: float) -> dict[str, Any]:
    """What happened, and what is needed to repeat it."""
    return {
        "episodes": sum(episode.source == algo for episode in log.episodes),
        "seconds": round(time.monotonic() - started, 1),
        "environment": {
            "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
            "versions": versions(),
            "machine": machine(),
        },
        "history": [episode.to_json() for episode in log.episodes],
    }


def _interrupted_text(folder: RunFolder, log: SearchLog) -> str:
    if not log.episodes:
        return f"Interrupted before the first plan was finished: {folder.path} holds no plan."
    best = max(episode.accuracy for episode in log.episodes)
    return (
        f"Interrupted: {folder.path} holds the best plan so far (plan.json and model.hsq, {best:.4f} of the teacher's "
        "accuracy on the search split, without the long fine-tuning)."
    )
