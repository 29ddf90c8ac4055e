"""The search pipeline: sensitivities, seeds, agent, long fine-tuning, choice on the search split, test figures."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm

from agents.checkpoint import Checkpoints
from agents.episode import Episode
from agents.explorer import Explorer
from agents.finalists import UNIFORM_BITS, KeptStudents, choose, measure
from agents.keeper import Keeper, handling_signals, interrupt
from agents.layer_figures import layer_figures
from agents.run_folder import RunFolder, check_new_folder, read_settings
from agents.search_log import SearchLog
from agents.search_record import compare, environment, happened, header_of, interrupted_text, latencies, settings_of
from agents.tracking import Tracking, check_tracker, record_of
from detectors.errors import InputError
from detectors.progress import Work, say, work
from hsq_env.accuracy import untreated_metric
from hsq_env.env import HSQEnv
from hsq_env.outcomes import OutcomeFile
from hsq_env.self_evaluation import SelfEvaluation
from hsq_env.student import Student, evaluate
from hsq_env.task import Task

BETA_WITHOUT_TARGET = 0.95
CHECKPOINT_MINUTES = 5.0


def search(
    task: Task,
    out: str | Path,
    explorer: Explorer | None = None,
    target_ratio: float | Sequence[float] | None = 8.0,
    target_accuracy: float | None = None,
    finetune_steps: int = 300,
    finalists: int = 2,
    step_minibatches: int = 2,
    reward: str = "divergence",
    beta: float | None = None,
    target_latency: float | None = None,
    model: str = "",
    task_settings: dict[str, Any] | None = None,
    checkpoint_minutes: float = CHECKPOINT_MINUTES,
    resume: bool = False,
    trust_checkpoints: bool = False,
    track: str = "tensorboard",
    arguments: dict[str, Any] | None = None,
    on_episode: Callable[[Episode, float], object] = lambda episode, score: None,
    say: Callable[[str], None] = say,
    **env_arguments: Any,
) -> dict[str, Any]:
    """Search, fine-tune, choose, measure and write the run folder.

    :param out: a new or empty folder
    :param explorer: the agent and how it searches
    :param target_ratio: teacher bytes over student bytes; several for a plan each from one training; None lets the
        reward alone trade size for accuracy
    :param target_accuracy: ``hsq_env.accuracy`` on the search split; with it ``target_ratio`` is no hard budget but,
        like this, an aim, which the self-evaluation loop approaches by tuning alpha and beta
    :param finetune_steps: gradient steps of the long fine-tuning, the same for uniform plans
    :param finalists: plans that are fine-tuned at length; the best of them on the search split wins: by divergence
        where there is a target, by the metric where plans of all sizes compete
    :param step_minibatches: gradient steps of the brief fine-tuning in each step of the environment
    :param beta: weight of accuracy in the reward; None for 1 where a target bounds what the reward charges, else 0.95
    :param target_latency: milliseconds by the environment's ``latency_table``, in place of ``target_ratio``
    :param model: name for the result file
    :param task_settings: arguments of ``hsq_env.make.make_task`` that make the same task again from the teacher that
        the run writes; without them the record cannot be replayed
    :param checkpoint_minutes: between two checkpoints
    :param resume: go on with the interrupted search of ``out``, which must have had the same arguments
    :param trust_checkpoints: read checkpoints that another user or machine wrote, which can run code
    :param track: where the search's numbers go besides, see ``agents.tracking.TRACKERS``; a resumed one's as before
    :param arguments: of the command, which a resumed search reads again
    :param on_episode: called with every finished episode and its score, higher is better
    :param say: prints a line
    :param env_arguments: of ``HSQEnv``
    :return: the content of ``result.json``
    :raises InputError: for input that cannot be used, before anything is written
    :raises KeyboardInterrupt: with a sentence about what the folder holds by then
    """
    started = time.monotonic()
    explorer = explorer or Explorer()
    if resume:
        read_settings(Path(out), trust_checkpoints)
    else:
        check_new_folder(Path(out))
    _check(explorer, finalists, finetune_steps, checkpoint_minutes, track)
    aimed_ratio = None
    if target_accuracy is not None:
        explorer = _evaluating_itself(explorer, target_accuracy, target_ratio)
        aimed_ratio, target_ratio = target_ratio, None
    if beta is None:
        beta = BETA_WITHOUT_TARGET if _unbounded(reward, target_ratio, target_latency) else 1.0
    env = HSQEnv(
        task,
        action_space=explorer.action_space(),
        target_ratio=target_ratio,
        target_latency=target_latency,
        step_minibatches=step_minibatches,
        reward=reward,
        beta=beta,
        **env_arguments,
    )
    say(f"teacher: {env.compressor.judge.scale.teacher:.4f} on the search split, {env.teacher_bytes:,} bytes")
    folder = RunFolder(out, several=len(env.budgets) > 1, resumed=resume, trust=trust_checkpoints)
    asked = {
        "model": model,
        "finetune_steps": finetune_steps,
        "target_accuracy": target_accuracy,
        "aimed_ratio": aimed_ratio,
        "target_latency": target_latency,
    }
    header = header_of(env, explorer, asked, task_settings)
    record = folder.checkpoints / "episodes.jsonl"
    log = SearchLog(say, folder, merit=explorer.merit, bounded=target_latency is not None, record=record)
    with folder.locked(), handling_signals(interrupt), work("search") as going, ExitStack() as stack:
        settings = settings_of(env, header, env_arguments)
        before = read_settings(folder.path, trust_checkpoints) if resume else {}
        if resume:
            compare(before, settings, folder.path)
        teacher_bytes = folder.write_teacher(task.teacher_file())
        tracked = record_of(track, before.get("tracking", {}))
        if not resume:
            folder.write_settings({**settings, "arguments": arguments or {}, "tracking": tracked})
        shown = {**settings["search"], "problem": settings["problem"], **environment()}
        tracking = stack.enter_context(Tracking(folder, tracked, shown, resume, say))
        log.on_episode = partial(_on_episode, going, log, tracking, on_episode)
        env.share(OutcomeFile(folder.checkpoints / "outcomes.txt"))
        with _interruptible(folder, log, header, started) as agents:
            checkpoints = Checkpoints(folder.checkpoints, trust_checkpoints)
            keeper = Keeper(checkpoints, checkpoint_minutes, env, log, say)
            _explore(env, explorer, folder, log, resume, keeper, agents.append, tracking)
            going.say(log.best_so_far())
            found = _best_of(env, log, finalists, explorer.algo)
            with work("fine-tuning", sum(map(len, found.values())) + len(UNIFORM_BITS)) as tuning:
                kept = KeptStudents(folder.checkpoints, checkpoint_minutes, tuning)
                methods, candidates = _winners(env, folder, found, finetune_steps, say, kept)
                figures = measure(env, folder, methods, teacher_bytes, finetune_steps, say, kept)
            teacher = _teacher_figures(env, teacher_bytes)
        if env.layer_costs.table is not None:
            folder.write_json("latency.json", env.layer_costs.table.to_json())
        result = {
            **header,
            "teacher": teacher,
            "methods": figures,
            "candidates": candidates if folder.several else next(iter(candidates.values())),
            **latencies(env, {name: winner.plan for name, (_, winner, _) in methods.items()}),
            "layers": layer_figures(env),
            "sha256": folder.digests(),
            **happened(log, explorer.algo, started),
        }
        folder.write_json("result.json", result)
        tracking.result(result)
        folder.discard_checkpoints()
        return result


@contextmanager
def _interruptible(folder: RunFolder, log: SearchLog, header: dict[str, Any], started: float) -> Iterator[list[Any]]:
    """Inside, an interruption leaves what there is by then, and says so.

    :return: a list that takes the agent as soon as there is one
    """
    agents: list[Any] = []
    try:
        yield agents
    except KeyboardInterrupt:
        for agent in agents:
            if isinstance(agent, BaseAlgorithm):
                folder.write_policy(agent)
        folder.write_json("interrupted.json", {**header, **happened(log, header["algo"], started)})
        raise KeyboardInterrupt(interrupted_text(folder, log)) from None
    except OSError:
        log.say(f"{folder.path} holds what has been done: go on with hsq search --resume {folder.path}")
        raise


def _best_of(env: HSQEnv, log: SearchLog, finalists: int, algo: str) -> dict[float | None, list[Episode]]:
    """The plans that are fine-tuned at length, by target.

    :raises InputError: if there are none
    """
    if not log.episodes:
        raise InputError(f"No plan was finished: give '{algo}' more evaluations, episodes or seconds.")
    found = {target: log.best_plans(finalists, target) for target in env.budgets}
    for target, best in found.items():
        if not best:
            raise InputError(f"No plan that reaches {target}x was finished: give more evaluations or episodes.")
    return found


def _explore(
    env: HSQEnv,
    explorer: Explorer,
    folder: RunFolder,
    log: SearchLog,
    resume: bool,
    keeper: Keeper,
    on_agent: Callable[[Any], object],
    tracking: Tracking,
) -> None:
    """Look for plans, or go on with it."""

    def begins(agent: Any) -> None:
        on_agent(agent)
        tracking.agent(agent)

    begun = keeper.load() if resume else None
    lost = log.recover([info.name for info in env.layers], anew=begun is None or not explorer.apart)
    if begun is not None:
        begun.lost = [episode for episode in lost if episode.source == explorer.algo]
        begun.callbacks.finished_meanwhile(len(begun.lost))
    if log.ended:
        log.say(f"{folder.path} had found its plans: going on with the long fine-tuning")
        return
    if resume:
        episodes = len(log.episodes)
        log.say(f"going on after {episodes} episodes" if begun else "going on with what was measured, from the start")
    agent = explorer.run(env, log, tracking.logger, begins, keeper, begun)
    if isinstance(agent, BaseAlgorithm):
        folder.write_policy(agent)
    if env.compressor.policy is not None and not explorer.apart:  # workers have one each
        folder.write_spark(env.compressor.policy.spark)
    log.end()
    keeper.write(None)
    if keeper.stopping:  # told so in the last step, after which nobody has asked
        raise KeyboardInterrupt


def _check(explorer: Explorer, finalists: int, finetune_steps: int, checkpoint_minutes: float, track: str) -> None:
    """Refuse what cannot be searched with."""
    if not checkpoint_minutes >= 0:
        raise InputError(
            f"There are no {checkpoint_minutes:g} minutes between checkpoints: give 0 or more (--checkpoint-minutes)."
        )
    if finalists < 1:
        raise InputError(f"There would be nothing to choose from {finalists} plans: give --finalists 1 or more.")
    if finetune_steps < 0:
        raise InputError(f"There are no {finetune_steps} steps: give 0 or more (--finetune-steps).")
    explorer.check()
    check_tracker(track)


def _winners(
    env: HSQEnv,
    folder: RunFolder,
    found: dict[float | None, list[Episode]],
    steps: int,
    say: Callable[[str], None],
    kept: KeptStudents,
) -> tuple[dict[str, tuple[float | None, Episode, Student]], dict[str, list[dict[str, Any]]]]:
    """The best fine-tuned plan of each target by the method's name, and by target what was chosen from."""
    methods, candidates = {}, {}
    for target, best in found.items():
        winner, student, candidates[str(target)] = choose(env, best, steps, say, kept)
        methods[f"hsq-{target:g}" if folder.several else "hsq"] = (target, winner, student)
    return methods, candidates


def _teacher_figures(env: HSQEnv, teacher_bytes: int) -> dict[str, Any]:
    task = env.task
    key = task.metric_name.lower()
    return {
        key: evaluate(task, task.stages(task.teacher), "test"),
        "bytes": teacher_bytes,
        f"search_{key}": env.compressor.judge.scale.teacher,
        f"untreated_{key}": untreated_metric(task, "test"),
    }


def _on_episode(
    going: Work,
    log: SearchLog,
    tracking: Tracking,
    on_episode: Callable[[Episode, float], object],
    episode: Episode,
    score: float,
) -> None:
    """Show the best plan so far, track the episode, and hand it on."""
    going.say(log.best_so_far())
    tracking.episode(len(log.episodes), episode)
    on_episode(episode, score)


def _unbounded(reward: str, target_ratio: Any, target_latency: float | None) -> bool:
    """Whether nothing but the reward holds down what it charges: bytes, time or operations."""
    if reward in ("latency", "energy"):
        return reward == "energy" or target_latency is None
    return target_ratio is None and target_latency is None


def _evaluating_itself(
    explorer: Explorer, target_accuracy: float, target_ratio: float | Sequence[float] | None
) -> Explorer:
    """With a self-evaluation loop that has these aims."""
    if not 0 < target_accuracy <= 1.5:
        raise InputError(f"target_accuracy is {target_accuracy}: give a share (--target-accuracy 0.97).")
    if not isinstance(target_ratio, int | float):
        raise InputError("The self-evaluation needs one ratio to aim at: give one with --target-ratio.")
    return replace(explorer, self_evaluation=SelfEvaluation(target_accuracy, float(target_ratio)))
