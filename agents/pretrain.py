"""Learning from known plans before the first step."""

from typing import Any

import torch
from gymnasium.spaces import Discrete
from stable_baselines3 import DQN
from stable_baselines3.common.callbacks import BaseCallback

from detectors.progress import each
from hsq_env.observation import PROGRESS_NAMES

BLUR = 0.2  # standard deviation, of numbers in [0, 1]
TARGET_SYNC = 30  # gradient steps between updates of the target network before the first step


class PretrainOnReplay(BaseCallback):
    """Learns from the seeded replay before the first step of one's own.

    Temporal differences alone say nothing about actions that no seed took, so that the first greedy episode would be
    as good as random. A DQN is therefore also taught that the seeds' actions are better than all others by a margin
    (DQfD, Hester et al. 2018, arXiv 1704.03732, equation 2): it starts from the best known plan. The part of the
    observation that says where the search stands is blurred meanwhile, so that one explored action does not lead to
    states where nothing was learned.

    :param gradient_steps: how many of each kind
    :param margin: by which a seed's action must lead, in rewards
    """

    def __init__(self, gradient_steps: int = 300, margin: float = 0.05) -> None:
        super().__init__()
        self.gradient_steps, self.margin = gradient_steps, margin

    def _on_training_start(self) -> None:
        model: Any = self.model
        if model.replay_buffer.size() == 0:
            return
        for step in each(range(self.gradient_steps), "learning from known plans, step"):
            model.train(gradient_steps=1, batch_size=model.batch_size)
            if isinstance(model, DQN):
                self._margin_step(model)
                if step % TARGET_SYNC == TARGET_SYNC - 1:
                    model.q_net_target.load_state_dict(model.q_net.state_dict())

    def _margin_step(self, model: DQN) -> None:
        assert model.replay_buffer is not None and isinstance(model.action_space, Discrete)
        actions = int(model.action_space.n)
        seeds = model.replay_buffer.sample(model.batch_size)
        observations = seeds.observations.clone()
        moving = slice(-actions - len(PROGRESS_NAMES), -actions)
        observations[:, moving] += BLUR * torch.randn_like(observations[:, moving])
        values = model.q_net(observations)  # (N, actions)
        taken = torch.zeros_like(values).scatter_(1, seeds.actions.long(), 1.0)
        lead = (values + self.margin * (1 - taken)).amax(dim=1) - (values * taken).sum(dim=1)
        model.policy.optimizer.zero_grad()
        lead.mean().backward()
        model.policy.optimizer.step()

    def _on_step(self) -> bool:
        return True
