"""The search pipeline: sensitivities, seeds, agent, long fine-tuning, choice on the search split, test figures."""

import math
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
from tqdm import tqdm

from agents.algorithms import action_space_of, make_agent, stores_executed
from agents.baselines import integer_program_actions
from agents.explore import SearchLog, rollout, seed_replay, train_agent
from agents.finalists import choose, measure
from agents.keep_best import KeepBest
from agents.provenance import machine, versions
from agents.return_to_best import ReturnToBest
from agents.run_folder import RunFolder, check_new_folder
from agents.workers import check_workers, steps_taken
from agents.workers import workers as make_workers
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
    workers: int = 1,
    return_to_best: bool = True,
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
    :param workers: environments side by side, each in a process of its own with one thread
    :param return_to_best: let episodes follow the best plan so far up to a random layer (see ``ReturnToBest``);
        on-policy agents never do
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
    check_workers(workers)
    env = HSQEnv(
        task,
        action_space=action_space_of(algo),
        target_ratio=target_ratio,
        finetune_steps=step_minibatches,
        **env_arguments,
    )
    say(f"teacher: {env.compressor.teacher_metric:.4f} on the search split, {env.teacher_bytes:,} bytes")
    folder = RunFolder(out)
    log = SearchLog(say, folder)
    teacher_bytes = folder.write_teacher(task.teacher_file())
    settings = {"algo": algo, "seed": seed, "target_ratio": target_ratio, "finetune_steps": finetune_steps}
    settings |= {"workers": workers, "return_to_best": return_to_best and stores_executed(algo)}
    header = {"dataset": task.name, "detector": detector, "split": "test", **settings}
    agent = None
    try:
        seeds = rollout(KeepBest(env), integer_program_actions(env), "integer_program", log)
        wrap = partial(_wrapped, stores_executed(algo) and return_to_best, seed, log)
        with make_workers(env, workers, wrap) as trained_on:
            agent = make_agent(algo, trained_on, seed=seed, tensorboard_log=str(folder.path / "tensorboard"))
            callbacks = seed_replay(agent, seeds)
            train_agent(agent, len(env.layers), algo, log, episodes, time_budget, callbacks)
            for steps in steps_taken(trained_on):
                log.count(steps)
        if workers > 1:  # the rollout was the parent's
            log.count(env.steps_taken)
        folder.write_policy(agent)
        best = log.best_plans(finalists, by_return=target_ratio is None)
        winner, student, candidates = choose(env, best, finetune_steps, say)
        methods = measure(env, folder, student, teacher_bytes, finetune_steps, say)
        test_map = evaluate(task, task.stages(task.teacher), "test")
    except KeyboardInterrupt:
        if agent is not None:
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


def _wrapped(returns: bool, seed: int, log: SearchLog, env: HSQEnv, worker: int) -> gym.Env[Any, Any]:
    """A worker's environment, which knows the best plan so far."""
    kept = KeepBest(env)
    if not returns:
        return kept
    returning = ReturnToBest(kept, seed + worker)
    best = log.best_plans(1, by_return=not math.isfinite(env.budget.limit))[0]
    returning.know([env.choices.index(choice) for choice in best.plan.choices], log.best_score)
    return returning


def _record(log: SearchLog, algo: str, started: float) -> dict[str, Any]:
    """What happened, and what is needed to repeat it."""
    return {
        "episodes": sum(episode.source == algo for episode in log.episodes),
        "seconds": round(time.monotonic() - started, 1),
        "steps": log.steps,
        "visited_steps": log.visited_steps,
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
