"""Learning from known plans before the first step."""

from typing import Any

import torch
from gymnasium.spaces import Discrete
from stable_baselines3 import DQN
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback

from detectors.progress import each
from hsq_env.observation import PROGRESS_NAMES

BLUR = 0.2  # standard deviation, of numbers in [0, 1]
MARGIN = 0.05  # in rewards
TARGET_SYNC = 30  # gradient steps between updates of the target network where the environment takes none


class PretrainOnReplay(BaseCallback):
    """Learns from the seeded replay before the first step of one's own.

    Temporal differences alone say nothing about actions that no seed took, so that the first greedy episode would be
    as good as random. A DQN is therefore also taught that the seeds' actions are better than all others by a margin
    (DQfD, Hester et al. 2018, arXiv 1704.03732, equation 2): it starts from the best known plan. The part of the
    observation that says where the search stands is blurred meanwhile, so that one explored action does not lead to
    states where nothing was learned.

    :param seeds: the seeds alone, where the replay also holds what an agent tried before; the replay when None
    :param gradient_steps: how many of each kind
    :param margin: by which a seed's action must lead, in rewards
    """

    def __init__(self, seeds: ReplayBuffer | None = None, gradient_steps: int = 300, margin: float = MARGIN) -> None:
        super().__init__()
        self.seeds, self.gradient_steps, self.margin = seeds, gradient_steps, margin

    def _on_training_start(self) -> None:
        model: Any = self.model
        if model.replay_buffer.size() == 0:
            return
        for step in each(range(self.gradient_steps), "learning from known plans, step"):
            model.train(gradient_steps=1, batch_size=model.batch_size)
            margin_step(model, model.replay_buffer if self.seeds is None else self.seeds, self.margin)
            if step % TARGET_SYNC == TARGET_SYNC - 1:
                sync_target(model)

    def _on_step(self) -> bool:
        return True


def margin_step(model: Any, seeds: ReplayBuffer, margin: float = MARGIN) -> None:
    """Teach a DQN that the actions of ``seeds`` lead all others by a margin; other agents are left as they are."""
    if not isinstance(model, DQN):
        return
    assert isinstance(model.action_space, Discrete)
    actions = int(model.action_space.n)
    drawn = seeds.sample(model.batch_size)
    observations = drawn.observations.clone()
    moving = slice(-actions - len(PROGRESS_NAMES), -actions)
    observations[:, moving] += BLUR * torch.randn_like(observations[:, moving])
    values = model.q_net(observations)  # (N, actions)
    taken = torch.zeros_like(values).scatter_(1, drawn.actions.long(), 1.0)
    lead = (values + margin * (1 - taken)).amax(dim=1) - (values * taken).sum(dim=1)
    model.policy.optimizer.zero_grad()
    lead.mean().backward()
    model.policy.optimizer.step()


def sync_target(model: Any) -> None:
    """Let the target network follow, which Stable-Baselines3 does by steps of the environment alone."""
    for name in ("q_net", "quantile_net"):  # of DQN and of QR-DQN; others follow with every gradient step
        net = getattr(model, name, None)
        if net is not None:
            getattr(model, f"{name}_target").load_state_dict(net.state_dict())
