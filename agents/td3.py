"""TD3 on continuous actions."""

from typing import Any

from stable_baselines3 import TD3

from agents.executed import StoresExecuted
from agents.noise import DecayingTruncatedNormal

HYPERPARAMETERS: dict[str, Any] = {
    "learning_rate": 1e-3,
    "buffer_size": 20_000,
    "learning_starts": 72,  # an episode of a ResNet-50 detector
    "batch_size": 64,
    "gamma": 1.0,
    "gradient_steps": 2,
    "action_noise": lambda actions: DecayingTruncatedNormal(actions, sigma=0.3, decay=0.97),
}


class ExecutedTD3(StoresExecuted, TD3):
    """SB3's TD3 that stores executed actions."""
