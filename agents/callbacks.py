"""Callbacks of a search: the record of finished episodes, and the end of the time budget."""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from gymnasium.spaces import Discrete
from stable_baselines3 import DQN
from stable_baselines3.common.callbacks import BaseCallback

from detectors.progress import each
from hsq_env.choices import Plan
from hsq_env.observation import PROGRESS_NAMES

BLUR = 0.2  # standard deviation, of numbers in [0, 1]
TARGET_SYNC = 30  # gradient steps between updates of the target network before the first step


@dataclass(frozen=True)
class Episode:
    """A finished episode: everything needed to replay and judge it.

    :param source: who chose, an agent's name or a baseline's
    :param total_reward: sum of the rewards
    :param accuracy: on the search split, after the last layer
    :param divergence: likewise
    :param target_ratio: that it was asked for
    :param ratio: as the written file has it
    """

    source: str
    plan: Plan
    total_reward: float
    accuracy: float
    ratio: float
    seconds: float
    divergence: float = 0.0
    target_ratio: float | None = None

    @classmethod
    def of(cls, source: str, info: dict[str, Any], total_reward: float, seconds: float) -> "Episode":
        """From the info of an episode's last step."""
        return cls(
            source,
            info["plan"],
            total_reward,
            info["accuracy"],
            info["ratio"],
            round(seconds, 2),
            math.inf if info["diverged"] else info["divergence"],
            info["target_ratio"],
        )

    def to_json(self) -> dict[str, Any]:
        """Without the plan's layer names."""
        short = [[c.bits, c.sparsity] for c in self.plan.choices]
        return {**{k: v for k, v in asdict(self).items() if k != "plan"}, "choices": short}


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
        for worker, (info, reward) in enumerate(zip(self.locals["infos"], self.locals["rewards"], strict=True)):
            if info.get("evaluations_spent"):
                return False
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
        if self.episodes is not None and self.finished >= self.episodes:
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


class PretrainOnReplay(BaseCallback):
    """Learns from the seeded replay before the first step of one's own.

    Temporal differences alone say nothing about actions that no seed took, so that the first greedy episode would be
    as good as random. A DQN is therefore also taught that the seeds' actions are better than all others by a margin
    (DQfD, Hester et al. 2018, arXiv 1704.03732, equation 2): it starts from the best known plan. The part of the
    observation that says where the search stands is blurred meanwhile, so that one explored action does not lead to
    states where nothing was learned.

    :param gradient_steps: how many of each kind
    :param margin: by which a seed's action must lead, in rewards
    """

    def __init__(self, gradient_steps: int = 300, margin: float = 0.05) -> None:
        super().__init__()
        self.gradient_steps, self.margin = gradient_steps, margin

    def _on_training_start(self) -> None:
        model: Any = self.model
        if model.replay_buffer.size() == 0:
            return
        for step in each(range(self.gradient_steps), "learning from known plans, step"):
            model.train(gradient_steps=1, batch_size=model.batch_size)
            if isinstance(model, DQN):
                self._margin_step(model)
                if step % TARGET_SYNC == TARGET_SYNC - 1:
                    model.q_net_target.load_state_dict(model.q_net.state_dict())

    def _margin_step(self, model: DQN) -> None:
        assert model.replay_buffer is not None and isinstance(model.action_space, Discrete)
        actions = int(model.action_space.n)
        seeds = model.replay_buffer.sample(model.batch_size)
        observations = seeds.observations.clone()
        moving = slice(-actions - len(PROGRESS_NAMES), -actions)
        observations[:, moving] += BLUR * torch.randn_like(observations[:, moving])
        values = model.q_net(observations)  # (N, actions)
        taken = torch.zeros_like(values).scatter_(1, seeds.actions.long(), 1.0)
        lead = (values + self.margin * (1 - taken)).amax(dim=1) - (values * taken).sum(dim=1)
        model.policy.optimizer.zero_grad()
        lead.mean().backward()
        model.policy.optimizer.step()

    def _on_step(self) -> bool:
        return True
