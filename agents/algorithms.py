"""Agents by name."""

from typing import Any

import gymnasium as gym
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from agents.dqn import HYPERPARAMETERS, MaskedDQN, MaskedDQNPolicy
from agents.executed import ExecutedDDPG, ExecutedSAC, ExecutedTD3, StoresExecuted
from detectors.errors import InputError

EPISODE = 72  # steps of a ResNet-50 detector
OFF_POLICY: dict[str, Any] = {"buffer_size": 20_000, "learning_starts": EPISODE, "learning_rate": 1e-3, "gamma": 1.0}

# name: class, policy, hyperparameters, the action space that it needs
ALGORITHMS: dict[str, tuple[type[BaseAlgorithm], Any, dict[str, Any], str]] = {
    "dqn": (MaskedDQN, MaskedDQNPolicy, HYPERPARAMETERS, "discrete"),
    "ppo": (PPO, "MlpPolicy", {"n_steps": EPISODE, "batch_size": EPISODE // 2, "gamma": 1.0}, "discrete"),
    "a2c": (A2C, "MlpPolicy", {"gamma": 1.0}, "discrete"),
    "sac": (ExecutedSAC, "MlpPolicy", OFF_POLICY, "continuous"),
    "td3": (ExecutedTD3, "MlpPolicy", OFF_POLICY, "continuous"),
    "ddpg": (ExecutedDDPG, "MlpPolicy", OFF_POLICY, "continuous"),
}


def action_space_of(algo: str) -> str:
    """The action space that an agent needs.

    :raises InputError: if the agent is unknown
    """
    if algo not in ALGORITHMS:
        raise InputError(f"Unknown agent '{algo}': known are {', '.join(ALGORITHMS)} (--algo).")
    return ALGORITHMS[algo][3]


def stores_executed(algo: str) -> bool:
    """Whether an agent learns from the actions that were executed in place of its own."""
    return issubclass(ALGORITHMS[algo][0], StoresExecuted)


def make_agent(algo: str, env: gym.Env[Any, Any] | VecEnv, seed: int | None = 0, **arguments: Any) -> BaseAlgorithm:
    """An untrained agent for an environment with the action space that it needs.

    :param env: one environment, or several side by side; gradient steps grow with their number
    :param arguments: override the hyperparameters kept here
    """
    action_space_of(algo)
    kind, policy, hyperparameters, _ = ALGORITHMS[algo]
    if isinstance(env, VecEnv) and "gradient_steps" in hyperparameters:
        hyperparameters = {**hyperparameters, "gradient_steps": hyperparameters["gradient_steps"] * env.num_envs}
    return kind(policy, env, seed=seed, device="cpu", **{**hyperparameters, **arguments})
