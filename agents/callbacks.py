"""The callback that hands finished episodes on and ends a training with its budget."""

import time
from collections.abc import Callable
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback

from agents.episode import Episode


class EpisodeRecorder(BaseCallback):
    """Hands every finished episode on, logs its end and stops the training at a number of episodes or seconds.

    :param source: name written into the records
    :param on_episode: called with each record and the info of its last step
    :param episodes: stop after so many; None for no limit
    :param deadline: stop at this ``time.monotonic()``; None for none
    :param on_progress: called with each step's info, for progress
    :param on_end: called after the training
    """

    def __init__(
        self,
        source: str,
        on_episode: Callable[[Episode, dict[str, Any]], None],
        episodes: int | None = None,
        deadline: float | None = None,
        on_progress: Callable[[dict[str, Any]], None] = lambda info: None,
        on_end: Callable[[], object] = lambda: None,
    ) -> None:
        super().__init__()
        self.on_end = on_end
        self.source, self.on_episode, self.on_progress = source, on_episode, on_progress
        self.episodes, self.deadline = episodes, deadline
        self.finished = 0
        self._rewards: list[float] = []
        self._started: list[float] = []
        self._lengths: list[int] = []  # steps of the episodes that are going on

    def _on_training_start(self) -> None:
        count = self.training_env.num_envs
        self._rewards, self._started, self._lengths = [0.0] * count, [time.monotonic()] * count, [0] * count

    def _on_training_end(self) -> None:
        self.on_end()

    def _on_step(self) -> bool:
        spent = False
        for worker, (info, reward) in enumerate(zip(self.locals["infos"], self.locals["rewards"], strict=True)):
            if info.get("evaluations_spent"):
                spent = True
                continue
            if info.get("worker_lost"):
                self.model.num_timesteps -= self._lengths[worker] + 1  # they are dropped, and must be taken again
                self._begin(worker)
                continue
            self._lengths[worker] += 1
            self._rewards[worker] += float(reward)
            self.on_progress(info)
            if "plan" in info:
                self._finish(worker, info)
            elif self.locals["dones"][worker]:  # given up
                self._begin(worker)
        if spent or (self.episodes is not None and self.finished >= self.episodes):
            return False
        return self.deadline is None or time.monotonic() < self.deadline

    def on_new_workers(self) -> None:
        """The episodes that were going on are lost, and their steps must be taken again."""
        self.model.num_timesteps -= sum(self._lengths)
        self._on_training_start()

    def __getstate__(self) -> dict[str, Any]:
        """Clocks count from another moment after a restart: what is left and what has passed is kept."""
        now = time.monotonic()
        left = None if self.deadline is None else self.deadline - now
        return {**self.__dict__, "deadline": left, "_started": [now - started for started in self._started]}

    def __setstate__(self, state: dict[str, Any]) -> None:
        now = time.monotonic()
        self.__dict__.update(state)
        self.deadline = None if self.deadline is None else now + self.deadline
        self._started = [now - passed for passed in self._started]

    def _begin(self, worker: int) -> None:
        self._rewards[worker], self._started[worker], self._lengths[worker] = 0.0, time.monotonic(), 0

    def _finish(self, worker: int, info: dict[str, Any]) -> None:
        now = time.monotonic()
        episode = Episode.of(self.source, info, self._rewards[worker], now - self._started[worker])
        self._begin(worker)
        self.finished += 1
        self.logger.record("search/accuracy", episode.accuracy)
        self.logger.record("search/divergence", episode.divergence)
        self.logger.record("search/ratio", episode.ratio)
        self.logger.record("search/total_reward", episode.total_reward)
        self.logger.record("time/total_timesteps", self.num_timesteps, exclude="tensorboard")
        self.logger.dump(self.num_timesteps)
        self.on_episode(episode, info)
