"""An agent of one's own in plain PyTorch, for ``hsq search --algo examples.custom_agent:make``.

The agent is a policy gradient (REINFORCE) with the budget's masks. All that a search asks of an agent is ``predict``;
``observe`` is called after every step if it exists, and is where this one learns.

    hsq search --algo examples.custom_agent:make --episodes 20 --out runs/mine
"""

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import nn

from hsq_env import HSQEnv

HIDDEN, LEARNING_RATE, BASELINE_DECAY = 64, 3e-3, 0.9


class Reinforce:
    """REINFORCE with a moving baseline.

    :param observations: numbers per observation
    :param actions: how many; the last numbers of an observation say which of them the budget allows
    """

    def __init__(self, observations: int, actions: int, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.actions = actions
        self.net = nn.Sequential(nn.Linear(observations, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, actions))
        self.optimizer = torch.optim.Adam(self.net.parameters(), LEARNING_RATE)
        self.episode: list[tuple[np.ndarray, int, float]] = []  # observation, executed action, reward
        self.baseline: float | None = None

    def _distribution(self, observations: torch.Tensor) -> torch.distributions.Categorical:
        allowed = observations[:, -self.actions :] > 0.5
        return torch.distributions.Categorical(logits=self.net(observations).masked_fill(~allowed, -torch.inf))

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[int, Any]:
        """The signature of Stable-Baselines3: an action, and whatever should come back as ``state``."""
        with torch.no_grad():
            distribution = self._distribution(torch.as_tensor(observation, dtype=torch.float32)[None])
            action = distribution.probs.argmax(dim=1) if deterministic else distribution.sample()
        return int(action.item()), state

    def observe(self, transition: tuple[Any, Any, Any, float, bool, dict[str, Any]]) -> None:
        """Learn from what was executed, which the budget may have made another action than the one asked for."""
        observation, _, executed, reward, ended, _ = transition
        self.episode.append((observation, int(executed), reward))
        if ended:
            self._learn()
            self.episode = []

    def _learn(self) -> None:
        observations = torch.as_tensor(np.stack([row[0] for row in self.episode]), dtype=torch.float32)
        actions = torch.tensor([row[1] for row in self.episode])
        rewards = np.array([row[2] for row in self.episode])
        to_come = torch.as_tensor(rewards[::-1].cumsum()[::-1].copy(), dtype=torch.float32)  # undiscounted
        total = float(rewards.sum())
        self.baseline = total if self.baseline is None else self.baseline
        loss = -(self._distribution(observations).log_prob(actions) * (to_come - self.baseline)).mean()
        self.baseline = BASELINE_DECAY * self.baseline + (1 - BASELINE_DECAY) * total
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


def make(env: HSQEnv) -> Reinforce:
    """What ``--algo module:factory`` calls."""
    assert isinstance(env.action_space, spaces.Discrete)
    return Reinforce(len(env.observation_names), int(env.action_space.n))
