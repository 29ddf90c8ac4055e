"""What runs in Ray's actors: environments, and the outcomes that they share."""

import pickle
from pathlib import Path
from typing import Any

import gymnasium as gym
import ray
import torch
from ray.exceptions import RayError
from stable_baselines3.common.env_util import is_wrapped
from stable_baselines3.common.monitor import Monitor

from agents.workers import Wrap, own_fork
from hsq_env.env import HSQEnv
from hsq_env.outcomes import KeptOutcomes, OutcomeFile, Outcomes
from hsq_env.prefixes import Outcome


class Worker:
    """What runs in an actor: an environment in its wrappers.

    :param pickled: an environment, from the object store; this process makes its own copy
    :param wrap: put around it
    :param number: of the worker
    :param outcomes: an actor to share outcomes with
    :param file: where the search shares them, if this machine sees it
    """

    def __init__(self, pickled: bytes, wrap: Wrap, number: int, outcomes: Any, file: Path | None) -> None:
        torch.set_num_threads(1)
        env: HSQEnv = pickle.loads(pickled)
        # a file of this machine, or of storage that it shares, answers in microseconds; an actor in milliseconds
        env.share(OutcomeFile(file) if file is not None and file.is_file() else RemoteOutcomes(outcomes))
        self.env: Any = Monitor(wrap(own_fork(env, number), number))

    def step(self, action: Any) -> tuple[Any, float, bool, dict[str, Any], dict[str, Any]]:
        """As SB3's vectorized environments: an episode that ends is followed by the next."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        info["TimeLimit.truncated"] = truncated and not terminated
        following: dict[str, Any] = {}
        if terminated or truncated:
            info["terminal_observation"] = observation
            observation, following = self.env.reset()
        return observation, float(reward), terminated or truncated, info, following

    def reset(self, seed: int | None, options: dict[str, Any] | None) -> tuple[Any, dict[str, Any]]:
        """Start over."""
        observation, info = self.env.reset(seed=seed, options=options)
        return observation, info

    def get(self, name: str) -> Any:
        """An attribute of the environment or of a wrapper."""
        return self.env.get_wrapper_attr(name)

    def has(self, name: str) -> bool:
        """Whether there is one."""
        return bool(self.env.has_wrapper_attr(name))

    def set(self, name: str, value: Any) -> None:
        """Set an attribute."""
        self.env.set_wrapper_attr(name, value)

    def call(self, name: str, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """Call a method of the environment or of a wrapper."""
        return self.env.get_wrapper_attr(name)(*arguments, **named)

    def wrapped(self, kind: type[gym.Wrapper[Any, Any, Any, Any]]) -> bool:
        """Whether a wrapper is of a kind."""
        return is_wrapped(self.env, kind)


class OutcomeKeeper:
    """What runs in the actor that workers share outcomes through.

    :param path: of the search's file, where it runs on the machine that has it
    """

    def __init__(self, path: Path | None) -> None:
        self.kept: Outcomes = KeptOutcomes() if path is None else OutcomeFile(path)

    def get(self, key: bytes) -> Outcome | None:
        """See ``Outcomes``."""
        return self.kept.get(key)

    def put(self, key: bytes, outcome: Outcome) -> None:
        """See ``Outcomes``."""
        self.kept.put(key, outcome)


class RemoteOutcomes:
    """A worker's way to that actor. A search goes on without it."""

    def __init__(self, keeper: Any) -> None:
        self._keeper = keeper

    def get(self, key: bytes) -> Outcome | None:
        """See ``Outcomes``."""
        try:
            found: Outcome | None = ray.get(self._keeper.get.remote(key))
        except RayError:
            return None
        return found

    def put(self, key: bytes, outcome: Outcome) -> None:
        """See ``Outcomes``; nobody waits for it."""
        self._keeper.put.remote(key, outcome)
