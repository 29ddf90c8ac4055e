"""The part of a search that looks for plans: a baseline's rollout that seeds the replay, then the agent."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from tqdm import tqdm

from agents.callbacks import Episode, EpisodeRecorder, PretrainOnReplay
from agents.keep_best import KeepBest
from agents.run_folder import RunFolder
from hsq_env.choices import Plan
from hsq_env.env import HSQEnv

UNLIMITED_EPISODES = 1_000_000
Transition = tuple[Any, Any, Any, float, bool, dict[str, Any]]  # observation, next, action, reward, done, info


@dataclass
class SearchLog:
    """What a search has found so far.

    :param say: prints a line
    :param folder: where the best plan so far is written; None for nowhere
    """

    say: Callable[[str], None]
    folder: RunFolder | None = None
    episodes: list[Episode] = field(default_factory=list)
    best_score: float = float("-inf")
    steps: int = 0
    visited_steps: int = 0  # that the table of visited prefixes answered

    def count(self, steps: tuple[int, int]) -> None:
        """Add the ``steps_taken`` of an environment."""
        self.steps, self.visited_steps = self.steps + steps[0], self.visited_steps + steps[1]

    def note(self, episode: Episode, info: dict[str, Any]) -> None:
        """Keep and announce a finished episode, and write it to disk if it is the best.

        :param info: of its last step, from ``KeepBest``
        """
        if "model" in info and info["score"] > self.best_score:
            self.best_score = info["score"]
            if self.folder is not None:
                self.folder.write_plan(episode.plan)
                self.folder.write_model(info["model"])
        self.episodes.append(episode)
        self.say(
            f"episode {len(self.episodes)} ({episode.source}): accuracy {episode.accuracy:.4f} at "
            f"{episode.ratio:.2f}x, return {episode.total_reward:.3f}, {episode.seconds:.0f} s"
        )

    def best_plans(self, count: int, by_return: bool) -> list[Episode]:
        """The best finished episodes with different plans, best first, earlier ones first among equals."""
        different: dict[Plan, Episode] = {}
        for episode in sorted(self.episodes, key=lambda e: -(e.total_reward if by_return else e.accuracy)):
            different.setdefault(episode.plan, episode)
        return list(different.values())[:count]


def rollout(env: KeepBest, choices: list[int], source: str, log: SearchLog) -> list[Transition]:
    """Play the given choices, one per layer.

    :return: the steps, for a replay buffer
    """
    inner = env.unwrapped
    assert isinstance(inner, HSQEnv)
    started, total, transitions = time.monotonic(), 0.0, []
    observation, info = env.reset()
    for choice in tqdm(choices, source.replace("_", " "), disable=None, leave=False):
        following, reward, terminated, _, info = env.step(inner.actions.encode(choice))
        transitions.append((observation, following, info["executed_action"], float(reward), terminated, info))
        observation, total = following, total + float(reward)
    seconds = round(time.monotonic() - started, 2)
    log.note(Episode(source, info["plan"], total, info["accuracy"], info["ratio"], seconds), info)
    return transitions


def seed_replay(agent: BaseAlgorithm, transitions: list[Transition]) -> list[BaseCallback]:
    """Put steps into the replay buffer of an agent that has one.

    :return: callbacks that make the agent learn from them first
    """
    if not isinstance(agent, OffPolicyAlgorithm) or agent.replay_buffer is None:
        return []
    for observation, following, action, reward, done, info in transitions:
        stored = action if np.ndim(action) == 0 else agent.policy.scale_action(np.asarray(action))
        obs, next_obs, actions, rewards, dones = (
            np.repeat(np.asarray(value)[None], agent.n_envs, axis=0)  # the buffer has a column for every worker
            for value in (observation, following, stored, reward, done)
        )
        agent.replay_buffer.add(obs, next_obs, actions, rewards, dones, [info] * agent.n_envs)
    return [PretrainOnReplay()]


def train_agent(
    agent: BaseAlgorithm,
    layers: int,
    source: str,
    log: SearchLog,
    episodes: int | None,
    time_budget: float | None,
    callbacks: list[BaseCallback],
) -> None:
    """Let the agent learn until its episodes or its seconds are used up, with a progress bar per episode.

    :param layers: steps of an episode
    :param source: name of the agent in the log
    """
    if episodes == 0 or time_budget == 0:
        return
    with tqdm(total=layers, desc="episode", disable=None, leave=False) as bar:

        def on_progress(info: dict[str, Any]) -> None:
            if bar.n == layers:
                bar.reset()
            bar.update()
            bar.set_postfix(accuracy=f"{info['accuracy']:.3f}", best=f"{max(e.accuracy for e in log.episodes):.4f}")

        deadline = None if time_budget is None else time.monotonic() + time_budget
        recorder = EpisodeRecorder(source, log.note, episodes, deadline, on_progress)
        rounds = math.ceil((episodes or UNLIMITED_EPISODES) / agent.n_envs)
        limit = rounds * agent.n_envs * layers
        agent.learn(total_timesteps=limit, callback=CallbackList([*callbacks, recorder]))
