"""Agents by name."""

from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from sb3_contrib import MaskablePPO
from stable_baselines3 import PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from agents import ddpg, dqn, maskable_ppo, ppo, qrdqn, sac, td3
from agents.executed import StoresExecuted
from detectors.errors import InputError


@dataclass(frozen=True)
class Algorithm:
    """An agent of Stable-Baselines3 or sb3-contrib.

    :param hyperparameters: as its file has them; an ``action_noise`` is made for a number of action dimensions
    :param action_space: that it needs
    :param as_published: learns from its own episodes alone, as its paper has it: no plans to begin with, no surrogate
    """

    kind: type[BaseAlgorithm]
    policy: Any
    hyperparameters: dict[str, Any]
    action_space: str
    as_published: bool = False


ALGORITHMS: dict[str, Algorithm] = {
    "dqn": Algorithm(dqn.MaskedDQN, dqn.MaskedDQNPolicy, dqn.HYPERPARAMETERS, "discrete"),
    "qrdqn": Algorithm(qrdqn.MaskedQRDQN, qrdqn.MaskedQRDQNPolicy, qrdqn.HYPERPARAMETERS, "discrete"),
    "maskable_ppo": Algorithm(MaskablePPO, "MlpPolicy", maskable_ppo.HYPERPARAMETERS, "discrete"),
    "ppo": Algorithm(PPO, "MlpPolicy", ppo.HYPERPARAMETERS, "discrete"),
    "sac": Algorithm(sac.ExecutedSAC, "MlpPolicy", sac.HYPERPARAMETERS, "continuous"),
    "td3": Algorithm(td3.ExecutedTD3, "MlpPolicy", td3.HYPERPARAMETERS, "continuous"),
    "ddpg": Algorithm(ddpg.ExecutedDDPG, "MlpPolicy", ddpg.HYPERPARAMETERS, "continuous"),
    "haq": Algorithm(ddpg.TwoRateDDPG, "MlpPolicy", ddpg.HAQ, "continuous", as_published=True),
    "amc": Algorithm(ddpg.TwoRateDDPG, "MlpPolicy", ddpg.AMC, "continuous", as_published=True),
}


def action_space_of(algo: str) -> str:
    """The action space that an agent needs.

    :raises InputError: if the agent is unknown
    """
    if algo not in ALGORITHMS:
        raise InputError(f"Unknown agent '{algo}': known are {', '.join(ALGORITHMS)} (--algo).")
    return ALGORITHMS[algo].action_space


def stores_executed(algo: str) -> bool:
    """Whether an agent learns from the actions that were executed in place of its own."""
    return issubclass(ALGORITHMS[algo].kind, StoresExecuted)


def make_agent(algo: str, env: gym.Env[Any, Any] | VecEnv, seed: int | None = 0, **arguments: Any) -> BaseAlgorithm:
    """An untrained agent for an environment with the action space that it needs.

    :param env: one environment, or several side by side; gradient steps grow with their number
    :param arguments: override the hyperparameters kept here
    """
    action_space_of(algo)
    algorithm = ALGORITHMS[algo]
    settings = {**algorithm.hyperparameters, **arguments}
    kept = settings.get("replay_buffer_kwargs")
    if kept is not None and "gamma" in kept and "replay_buffer_kwargs" not in arguments:
        settings["replay_buffer_kwargs"] = {**kept, "gamma": settings["gamma"]}  # its returns of several steps
    if isinstance(env, VecEnv) and "gradient_steps" in settings and "gradient_steps" not in arguments:
        settings["gradient_steps"] *= env.num_envs
    if callable(settings.get("action_noise")) and "action_noise" not in arguments:
        settings["action_noise"] = settings["action_noise"](int(np.prod(env.action_space.shape or ())))
    return algorithm.kind(algorithm.policy, env, seed=seed, device="cpu", **settings)
