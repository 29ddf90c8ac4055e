"""DQN with action masks, hyperparameters fitted to episodes of about 70 steps.

The environment's observation ends with one number per action that says whether the budget allows it. Masking the
Q-values there covers both places where DQN takes a maximum: the greedy action and the bootstrap target.
"""

from typing import Any

import numpy as np
import torch
from stable_baselines3 import DQN
from stable_baselines3.common.buffers import NStepReplayBuffer
from stable_baselines3.dqn.policies import DQNPolicy, QNetwork

from agents.executed import StoresExecuted

FORBIDDEN = -1e8  # Q-value of an action that the budget rules out

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
    "gradient_steps": 4,  # a real step costs hundreds of times more than a gradient step
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
        values = super().forward(obs)
        return values.masked_fill(obs[:, -values.shape[1] :] < 0.5, FORBIDDEN)


class MaskedDQNPolicy(DQNPolicy):
    """SB3's policy with masked networks."""

    def make_q_net(self) -> QNetwork:
        """The same network as SB3's, masked."""
        net_args = self._update_features_extractor(self.net_args, features_extractor=None)
        return MaskedQNetwork(**net_args).to(self.device)


class MaskedDQN(StoresExecuted, DQN):
    """SB3's DQN that explores among allowed actions and stores the actions that were executed."""

    def predict(
        self,
        observation: Any,
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """As SB3's, random actions drawn from the allowed ones, by every worker on its own."""
        greedy, state = self.policy.predict(observation, state, episode_start, deterministic)
        if deterministic:
            return greedy, state
        count = int(self.action_space.n)  # type: ignore[attr-defined]
        rows = np.atleast_2d(observation)[:, -count:] > 0.5
        actions = np.atleast_1d(greedy).copy()
        for worker in np.flatnonzero(np.random.rand(len(rows)) < self.exploration_rate):
            actions[worker] = np.random.choice(np.flatnonzero(rows[worker]))
        return (actions if self.policy.is_vectorized_observation(observation) else actions[0]), state
