"""Tracking of a search: its settings, every episode, the training and the final table go to a service that keeps them.

A search runs for hours and a service may be down for some of them: whatever goes wrong in a tracker is said once, and
the search goes on.
"""

import importlib.util
import secrets
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.logger import Logger

from agents.episode import Episode
from agents.run_folder import RunFolder
from agents.trackers import MLflow, TensorBoard, WeightsAndBiases, reason_of
from detectors.errors import InputError
from hsq_env.accuracy import Scale

TRACKERS: dict[str, type[TensorBoard]] = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases, "mlflow": MLflow}


def check_tracker(name: str) -> None:
    """Import what a tracker needs.

    :raises InputError: if there is no such tracker, or its package is missing
    """
    if name not in TRACKERS:
        raise InputError(f"Unknown tracker '{name}': known are {', '.join(TRACKERS)} (--track).")
    try:
        importlib.import_module(TRACKERS[name].package)
    except ImportError as error:
        raise InputError(
            f"Tracking with {name} needs a package that is not installed ({error}): pip install -e '.[{name}]' in "
            "HSQ's folder."
        ) from error


def record_of(name: str, before: Mapping[str, Any]) -> dict[str, Any]:
    """What a search keeps of its tracker: a name for it there, and where that is.

    :param name: of ``TRACKERS``
    :param before: that of the search that goes on; empty for a new one
    """
    if before.get("track") == name:
        return dict(before)
    return {"track": name, "id": secrets.token_hex(6), **TRACKERS[name].place()}


class Tracking:
    """A tracker whose failures end no search; a context manager around one run.

    :param record: see ``record_of``
    :param settings: of the search, by name
    :param resumed: whether it goes on
    """

    def __init__(
        self,
        folder: RunFolder,
        record: Mapping[str, Any],
        settings: Mapping[str, Any],
        resumed: bool,
        say: Callable[[str], None],
    ) -> None:
        self._name, self._say, self._warned = record["track"], say, False
        self._tracker = TRACKERS[self._name](folder, record, say, self._attempt)
        self._settings, self._resumed = settings, resumed

    def __enter__(self) -> "Tracking":
        self._attempt(self._tracker.open, self._settings, self._resumed)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        killed = kind is not None and issubclass(kind, KeyboardInterrupt)
        self._attempt(self._tracker.close, "KILLED" if killed else "FINISHED" if kind is None else "FAILED")

    def logger(self) -> Logger:
        """For an agent of Stable-Baselines3."""
        return self._tracker.logger()

    def agent(self, agent: Any) -> None:
        """The agent is about to begin."""
        if isinstance(agent, BaseAlgorithm):
            self._attempt(self._tracker.agent, agent)

    def episode(self, number: int, episode: Episode) -> None:
        """An episode was finished, whoever chose in it.

        :param number: of the search, from 1
        """
        names = ("accuracy", "divergence", "ratio", "total_reward")
        self._attempt(self._tracker.log, {f"episode/{name}": getattr(episode, name) for name in names}, number)

    def result(self, result: Mapping[str, Any]) -> None:
        """The search has its ``result.json``."""
        self._attempt(self._tracker.summarize, table_of(result))

    def _attempt(self, call: Callable[..., object], *arguments: Any) -> None:
        try:
            call(*arguments)
        except Exception as error:  # of networks, services, disks
            if not self._warned:
                reason = reason_of(error)
                self._say(
                    f"Tracking with {self._name} fails ({reason}): the search goes on, its folder has everything."
                )
            self._warned = True


def table_of(result: Mapping[str, Any]) -> dict[str, float]:
    """The final table by names such as ``table/hsq/map``: the metric, accuracy, bytes and ratio of every method.

    :param result: the content of ``result.json``
    """
    key, teacher = result["metric"].lower(), result["teacher"]
    table = {f"table/teacher/{name}": float(teacher[name]) for name in (key, "bytes")}
    for method, row in result["methods"].items():
        table |= {f"table/{method}/{name}": float(row[name]) for name in (key, "bytes", "ratio")}
        with suppress(InputError):  # a teacher that does nothing on the test split
            accuracy = Scale(teacher[key], teacher[f"untreated_{key}"]).accuracy(row[key])
            table[f"table/{method}/accuracy"] = accuracy
    return {**table, **{name: float(result[name]) for name in ("episodes", "steps", "seconds")}}
