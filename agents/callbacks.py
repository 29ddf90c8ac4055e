"""Callbacks of a search: the record of finished episodes, and the end of the time budget."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback

from hsq_env.choices import Plan


@dataclass(frozen=True)
class Episode:
    """A finished episode: everything needed to replay and judge it.

    :param source: who chose, an agent's name or a baseline's
    :param total_reward: sum of the rewards
    :param accuracy: on the search split, after the last layer
    :param ratio: as the written file has it
    """

    source: str
    plan: Plan
    total_reward: float
    accuracy: float
    ratio: float
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Without the plan's layer names."""
        short = [[c.bits, c.sparsity] for c in self.plan.choices]
        return {**{k: v for k, v in asdict(self).items() if k != "plan"}, "choices": short}


class EpisodeRecorder(BaseCallback):
    """Hands every finished episode on, logs its end and stops the training at a number of episodes or seconds.

    :param source: name written into the records
    :param on_episode: called with each record
    :param episodes: stop after so many; None for no limit
    :param deadline: stop at this ``time.monotonic()``; None for none
    :param on_progress: called with each step's info, for progress
    """

    def __init__(
        self,
        source: str,
        on_episode: Callable[[Episode], None],
        episodes: int | None = None,
        deadline: float | None = None,
        on_progress: Callable[[dict[str, Any]], None] = lambda info: None,
    ) -> None:
        super().__init__()
        self.source, self.on_episode, self.on_progress = source, on_episode, on_progress
        self.episodes, self.deadline = episodes, deadline
        self.finished = 0
        self._reward, self._started = 0.0, time.monotonic()

    def _on_step(self) -> bool:
        info, reward = self.locals["infos"][0], float(self.locals["rewards"][0])
        self._reward += reward
        self.on_progress(info)
        if "plan" in info:
            now = time.monotonic()
            episode = Episode(
                self.source, info["plan"], self._reward, info["accuracy"], info["ratio"], round(now - self._started, 2)
            )
            self._reward, self._started = 0.0, now
            self.finished += 1
            self.logger.record("search/accuracy", episode.accuracy)
            self.logger.record("search/ratio", episode.ratio)
            self.logger.record("search/total_reward", episode.total_reward)
            self.logger.dump(self.num_timesteps)
            self.on_episode(episode)
        if self.episodes is not None and self.finished >= self.episodes:
            return False
        return self.deadline is None or time.monotonic() < self.deadline


class PretrainOnReplay(BaseCallback):
    """Gradient steps on the seeded replay before the first step of one's own.

    :param gradient_steps: how many
    """

    def __init__(self, gradient_steps: int = 500) -> None:
        super().__init__()
        self.gradient_steps = gradient_steps

    def _on_training_start(self) -> None:
        model: Any = self.model
        if model.replay_buffer.size() > 0:
            model.train(gradient_steps=self.gradient_steps, batch_size=model.batch_size)

    def _on_step(self) -> bool:
        return True
