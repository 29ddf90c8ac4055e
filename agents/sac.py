"""SAC on continuous actions."""

from typing import Any

from stable_baselines3 import SAC

from agents.executed import StoresExecuted

HYPERPARAMETERS: dict[str, Any] = {
    "learning_rate": 1e-3,
    "buffer_size": 20_000,
    "learning_starts": 72,  # an episode of a ResNet-50 detector
    "batch_size": 64,
    "gamma": 1.0,
    "gradient_steps": 2,
}


class ExecutedSAC(StoresExecuted, SAC):
    """SB3's SAC that stores executed actions."""
