"""Many searches at once, as trials of Ray Tune: which of them are worth their time, and what they found together."""

import contextlib
import itertools
import json
import math
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler
from ray.tune.search import ConcurrencyLimiter
from ray.tune.search.optuna import OptunaSearch

from agents.episode import Episode
from agents.pareto import pareto_front
from agents.ray_workers import connect, disconnect
from agents.run_folder import CHECKPOINTS, SETTINGS
from agents.trial_progress import TrialProgress
from detectors.errors import InputError
from detectors.files import write_json
from detectors.progress import work

RECORD, STOPPED, ERROR = "sweep.json", "stopped", "error.txt"
TUNE = ".tune"  # folder of what Ray notes meanwhile
NOTHING = -1e30  # worth of a trial that has found nothing
GRACE_EPISODES = 5  # of the agent, before a trial may be stopped
FULL_FOLDER = "holds files that are no sweep's: give an empty or new folder with --out"


@dataclass(frozen=True)
class Sweep:
    """What varies, and where it runs.

    :param axes: values by name of an argument of ``hsq search``; every combination is a trial
    :param arguments: of ``hsq search``, the same in all trials
    :param trials: how many combinations are tried, drawn by Optuna without repetition; all when None
    :param address: see ``agents.ray_workers.connect``
    :param at_once: trials side by side
    :param gpus: share of a GPU of each
    :param stop_hopeless: end trials early that are behind others with the same target
    """

    axes: dict[str, list[Any]]
    arguments: dict[str, Any]
    trials: int | None = None
    address: str = "local"
    at_once: int = 2
    gpus: float = 0.0
    stop_hopeless: bool = True

    @property
    def combinations(self) -> list[dict[str, Any]]:
        """All that could be tried."""
        return [dict(zip(self.axes, values, strict=True)) for values in itertools.product(*self.axes.values())]

    def check(self) -> None:
        """:raises InputError: for settings that no sweep can have"""
        if not self.axes or not all(self.axes.values()):
            raise InputError("A sweep needs something that varies: give several --target-ratio, --seed, --reward, ...")
        for name, values in self.axes.items():
            if len(set(values)) < len(values):
                raise InputError(f"A value of --{name.replace('_', '-')} stands there twice: {values}.")
        if self.at_once < 1 or (self.trials is not None and self.trials < 1):
            raise InputError("A sweep of no trials finds nothing: give --at-once and --trials 1 or more.")


def name_of(combination: dict[str, Any]) -> str:
    """A folder's name for a trial."""
    return "-".join(f"{name.replace('_', '')}_{value}" for name, value in combination.items()).replace(os.sep, "_")


def run_sweep(sweep: Sweep, out: Path, say: Callable[[str], None] = print) -> list[dict[str, Any]]:
    """Run all trials; called again, a sweep goes on: finished trials are read, interrupted ones resumed.

    :param out: a folder of runs, and of sweep.json
    :return: a row per trial: its values, what became of it, ratio, metric, bytes, whether it lies on the front
    :raises InputError: for settings that cannot be used, before anything is begun
    """
    sweep.check()
    out = out.resolve()
    named = {name_of(combination): combination for combination in sweep.combinations}
    found = {path.name for path in out.iterdir()} if out.is_dir() else set()
    strangers = {name for name in found - {*named, RECORD} if not name.startswith(".")}
    if out.is_file() or strangers:
        raise InputError(f"{out} {FULL_FOLDER}.")
    arguments = json.loads(json.dumps(sweep.arguments, default=str))
    if RECORD in found and _arguments_of(out / RECORD) != arguments:
        raise InputError(f"The sweep of {out} was begun with other flags behind '--': give those, or another folder.")
    own = connect(sweep.address, sweep.at_once)
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / RECORD, {"arguments": arguments, "axes": sweep.axes, "trials": []})
        _run_trials(sweep, out)
    finally:
        if own:
            disconnect()
    rows = [row_of(combination, out / name) for name, combination in named.items()]
    mark_front(rows)
    write_json(out / RECORD, {"arguments": arguments, "axes": sweep.axes, "trials": rows})
    failed = [row["run"] for row in rows if row["state"] == "failed"]
    if failed:
        say(f"{len(failed)} of {len(rows)} trials failed, {', '.join(failed)}: see error.txt in their folders")
    return rows


def _arguments_of(record: Path) -> Any:
    """The flags with which a sweep was begun.

    :raises InputError: if the record is damaged
    """
    try:
        return json.loads(record.read_text())["arguments"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{record} is damaged ({type(error).__name__}: {error}): give another folder.") from error


def _run_trials(sweep: Sweep, out: Path) -> None:
    space: dict[str, Any] = {
        name: optuna.distributions.CategoricalDistribution(_plain(v)) for name, v in sweep.axes.items()
    }
    grid = {name: _plain(values) for name, values in sweep.axes.items()}
    every = math.prod(len(values) for values in sweep.axes.values())
    count = every if sweep.trials is None else min(sweep.trials, every)
    seed = 0
    sampler = optuna.samplers.GridSampler(grid, seed)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    algorithm = ConcurrencyLimiter(
        OptunaSearch(space, metric="score", mode="max", sampler=sampler), max_concurrent=sweep.at_once
    )
    trial = tune.with_resources(_Trial(sweep.arguments, out), {"cpu": 1, "gpu": sweep.gpus})
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # it would end the sweep as if all had been tried
    with work("sweep, trial", count) as going:
        results = tune.Tuner(
            trial,
            tune_config=tune.TuneConfig(
                num_samples=count,
                search_alg=algorithm,
                scheduler=AmongEquals(out) if sweep.stop_hopeless else None,
            ),
            run_config=tune.RunConfig(
                verbose=0,
                storage_path=str(out / TUNE),
                callbacks=[TrialProgress(going, sweep.arguments.get("episodes"), name_of)],
            ),
        ).fit()
    for result in (results[number] for number in range(len(results))):
        if result.error is not None and result.config is not None:
            folder = out / name_of(result.config)
            folder.mkdir(parents=True, exist_ok=True)
            if not (folder / ERROR).is_file():  # it could not say so itself
                (folder / ERROR).write_text(f"{str(result.error).strip().splitlines()[-1]}\n")
    shutil.rmtree(out / TUNE, ignore_errors=True)


def _plain(values: Sequence[Any]) -> list[Any]:
    """Optuna knows numbers and strings."""
    return [str(value) if isinstance(value, Path) else value for value in values]


class _Trial:
    """A search, in a process of Ray's.

    :param arguments: of ``hsq search``
    """

    def __init__(self, arguments: dict[str, Any], out: Path) -> None:
        self.arguments, self.out = arguments, out

    def __call__(self, config: dict[str, Any]) -> None:
        """Search; reports after every episode."""
        from agents.commands.search import begin, resume_run

        folder = self.out / name_of(config)
        (folder / ERROR).unlink(missing_ok=True)
        if (folder / STOPPED).is_file():
            tune.report({"score": NOTHING, "episodes": 1})
            return
        before = _episodes_of(folder)
        best, episodes = max(map(_worth, before), default=NOTHING), len(before)
        figures: dict[str, float] = {}  # of the best plan

        def on_episode(episode: Episode, score: float) -> None:
            nonlocal best, episodes
            if _worth(vars(episode)) > best:
                figures.update(ratio=episode.ratio, accuracy=episode.accuracy)
            best, episodes = max(best, _worth(vars(episode))), episodes + 1
            tune.report({"score": best, "episodes": episodes, **figures})

        if (folder / "result.json").is_file():
            tune.report({"score": best, "episodes": episodes})
            return
        try:
            if (folder / CHECKPOINTS / SETTINGS).is_file():
                resume_run(folder, on_episode)
            else:
                begin({**self.arguments, **config}, folder, on_episode)
        except InputError as error:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / ERROR).write_text(f"{error}\n")
            tune.report({"score": NOTHING, "episodes": 1})  # Ray insists on a figure
        except Exception as error:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / ERROR).write_text(f"{type(error).__name__}: {error}\n")
            raise


def _worth(episode: dict[str, Any]) -> float:
    """What plans of one target are compared by, higher is better."""
    bounded = episode["target_ratio"] is not None
    return -float(episode["divergence"]) if bounded else float(episode["total_reward"])


def _episodes_of(folder: Path) -> list[dict[str, Any]]:
    """What a search has played so far."""
    if (folder / "result.json").is_file():
        found: list[dict[str, Any]] = json.loads((folder / "result.json").read_text())["history"]
        return found
    record = folder / CHECKPOINTS / "episodes.jsonl"
    rows = []
    for line in record.read_text().splitlines() if record.is_file() else []:
        with contextlib.suppress(ValueError):  # torn
            rows.append(json.loads(line))
    return rows


class AmongEquals(FIFOScheduler):
    """Successive halving (Li et al. 2018, arXiv 1810.05934), among trials with the same target and reward.

    Divergences of different targets say nothing about each other. What is stopped is so for good: its folder says it.

    :param out: of the sweep
    """

    def __init__(self, out: Path) -> None:
        super().__init__()
        self.out = out
        self._of: dict[tuple[Any, ...], Any] = {}

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        """See Ray."""
        return True

    def _scheduler(self, trial: Any) -> Any:
        key = tuple(trial.config.get(name) for name in ("target_ratio", "reward", "detector"))
        if key not in self._of:
            self._of[key] = ASHAScheduler(
                time_attr="episodes", metric="score", mode="max", grace_period=GRACE_EPISODES, max_t=10**9
            )
        return self._of[key]

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """See Ray."""
        self._scheduler(trial).on_trial_add(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """See Ray."""
        decided: str = self._scheduler(trial).on_trial_result(tune_controller, trial, result)
        folder = self.out / name_of(trial.config)
        if decided == self.STOP and folder.is_dir():
            (folder / STOPPED).touch()
        return decided

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """See Ray."""
        self._scheduler(trial).on_trial_complete(tune_controller, trial, result)


def row_of(combination: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What became of a trial."""
    row: dict[str, Any] = {**combination, "run": folder.name, "front": False}
    if (folder / "result.json").is_file():
        result = json.loads((folder / "result.json").read_text())
        key = result["metric"].lower()
        found = {name: figures for name, figures in result["methods"].items() if name.startswith("hsq")}
        figures = next(iter(found.values()))
        return {
            **row,
            "state": "finished",
            "metric": result["metric"],
            "value": figures[key],
            "lost": result["teacher"][key] - figures[key],
            "ratio": figures["ratio"],
            "bytes": figures["bytes"],
        }
    if (folder / ERROR).is_file():
        return {**row, "state": "failed", "error": (folder / ERROR).read_text().strip()}
    if (folder / STOPPED).is_file():
        return {**row, "state": "stopped"}
    return {**row, "state": "interrupted" if folder.is_dir() else "not tried"}


def mark_front(rows: list[dict[str, Any]]) -> None:
    """Mark finished trials that no other one of their detector beats in both bytes and what is lost."""
    done = [row for row in rows if row["state"] == "finished"]
    for detector in {row.get("detector") for row in done}:
        rivals = [row for row in done if row.get("detector") == detector]
        unbeaten = pareto_front([(-row["bytes"], -row["lost"]) for row in rivals])
        for index, row in enumerate(rivals):
            row["front"] = index in unbeaten
