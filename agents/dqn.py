"""DQN with action masks, hyperparameters fitted to episodes of about 70 steps."""

from typing import Any

import torch
from stable_baselines3 import DQN
from stable_baselines3.common.buffers import NStepReplayBuffer
from stable_baselines3.dqn.policies import DQNPolicy, QNetwork

from agents.masked import ExploresAllowed, masked

HYPERPARAMETERS: dict[str, Any] = {
    "learning_rate": 1e-3,  # the paper's
    "buffer_size": 20_000,  # 277 episodes of 72 steps; the paper's 1000 episodes pass through
    "learning_starts": 0,  # the replay is seeded
    "batch_size": 64,
    "gamma": 1.0,  # episodes are finite and every layer counts alike
    # four-step returns: credit travels down an episode of 72 steps in 18 updates
    "replay_buffer_class": NStepReplayBuffer,
    "replay_buffer_kwargs": {"n_steps": 4, "gamma": 1.0},
    "train_freq": 1,
    "gradient_steps": 1,  # most are taken in practice (agents/dyna.py)
    "target_update_interval": 144,  # two episodes
    "exploration_fraction": 0.5,
    "exploration_initial_eps": 0.1,  # seven layers of an episode, around what the seeds did
    "exploration_final_eps": 0.02,
    "policy_kwargs": {"net_arch": [128, 128]},
}


class MaskedQNetwork(QNetwork):
    """Q-values with those of forbidden actions at ``FORBIDDEN``."""

    def forward(self, obs: torch.Tensor | dict[str, torch.Tensor]) -> torch.Tensor:
        """:param obs: (N, features), the last columns being the mask; returns (N, actions)"""
        assert isinstance(obs, torch.Tensor)
        return masked(super().forward(obs), obs)


class MaskedDQNPolicy(DQNPolicy):
    """SB3's policy with masked networks."""

    def make_q_net(self) -> QNetwork:
        """The same network as SB3's, masked."""
        net_args = self._update_features_extractor(self.net_args, features_extractor=None)
        return MaskedQNetwork(**net_args).to(self.device)


class MaskedDQN(ExploresAllowed, DQN):
    """SB3's DQN that explores among allowed actions and stores the actions that were executed."""
