"""DDPG on continuous actions, with the settings of HAQ and AMC as presets."""

from typing import Any

import torch
from stable_baselines3 import DDPG

from agents.executed import StoresExecuted
from agents.noise import DecayingTruncatedNormal

EPISODE = 72  # steps of a ResNet-50 detector

HYPERPARAMETERS: dict[str, Any] = {
    "learning_rate": 1e-3,
    "buffer_size": 20_000,
    "learning_starts": EPISODE,
    "batch_size": 64,
    "gamma": 1.0,
    "gradient_steps": 2,
    "action_noise": lambda actions: DecayingTruncatedNormal(actions, sigma=0.3, decay=0.97),
}
# Both use two hidden layers of 300, a critic that learns ten times as fast as the actor, and credit from the end.
_SHARED: dict[str, Any] = {
    "learning_rate": 1e-3,
    "batch_size": 64,
    "gamma": 1.0,
    "tau": 0.01,
    "policy_kwargs": {"net_arch": [300, 300]},
}
HAQ: dict[str, Any] = {  # Wang et al. 2019, arXiv 1811.08886: 20 episodes of warm-up
    **_SHARED,
    "buffer_size": 128 * EPISODE,
    "learning_starts": 20 * EPISODE,
    "action_noise": lambda actions: DecayingTruncatedNormal(actions, sigma=0.5, decay=0.99, warmup=20),
}
AMC: dict[str, Any] = {  # He et al. 2018, arXiv 1802.03494: 100 episodes of warm-up
    **_SHARED,
    "buffer_size": 2000,
    "learning_starts": 100 * EPISODE,
    "action_noise": lambda actions: DecayingTruncatedNormal(actions, sigma=0.5, decay=0.95, warmup=100),
}


class ExecutedDDPG(StoresExecuted, DDPG):
    """SB3's DDPG that stores executed actions."""


class TwoRateDDPG(ExecutedDDPG):
    """Whose actor learns at a tenth of the critic's rate."""

    def _update_learning_rate(self, optimizers: Any) -> None:
        super()._update_learning_rate(optimizers)
        slow: torch.optim.Optimizer = self.actor.optimizer
        for group in slow.param_groups:
            group["lr"] *= 0.1
