"""SPARK's policy: a small network that says, cell by cell, how strongly the student is pulled (arXiv 2606.15243).

It exists in training only; the student never sees it.
"""

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SIGNALS = 4  # of ``difficulty``
LARGEST_FACTOR = 4.0  # a cell's weight before normalization lies between its inverse and it
FIRST_SPREAD = 0.5  # standard deviation of the first policy's draws
SPREADS = (0.05, 1.0)


@dataclass(frozen=True)
class Draw:
    """Weight maps that the policy drew.

    :param signals: what it saw, (N, 4, grid, grid)
    :param actions: draws of the Gaussian, (N, grid, grid)
    :param weights: (N, grid, grid), positive, mean 1 over every image
    """

    signals: Tensor
    actions: Tensor
    weights: Tensor


def weights_of(actions: Tensor) -> Tensor:
    """Squashed and normalized: ``LARGEST_FACTOR ** tanh(action)`` over its mean, so that the loss keeps its scale.

    :param actions: (N, grid, grid)
    :return: (N, grid, grid), mean 1 over every image

    >>> weights = weights_of(torch.tensor([[[0.0, 9.0], [-9.0, 0.0]]]))
    >>> weights.mean().item(), round((weights[0, 0, 1] / weights[0, 1, 0]).item(), 3)
    (1.0, 16.0)
    """
    raw = torch.exp(math.log(LARGEST_FACTOR) * torch.tanh(actions))
    return raw / raw.mean(dim=(1, 2), keepdim=True)


def spread_over(weights: Tensor, height: int, width: int) -> Tensor:
    """A grid's weights at the places of an output, bilinear between the cells' middles, mean 1 again.

    :param weights: (N, grid, grid)
    :return: (N, height, width)
    """
    if min(height, width) < weights.shape[-1]:
        spread = F.adaptive_avg_pool2d(weights[:, None], (height, width))[:, 0]
    else:
        spread = F.interpolate(weights[:, None], (height, width), mode="bilinear", align_corners=False)[:, 0]
    return spread / spread.mean(dim=(1, 2), keepdim=True)


class SpatialPolicy(nn.Module):
    """Three convolutions give the mean of a Gaussian for every cell; one number is its spread.

    The last convolution begins with zeros: the first policy weighs all places alike on average.

    :param channels: of the two hidden layers
    """

    def __init__(self, channels: int = 16) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(SIGNALS, channels, 3, padding=1, padding_mode="replicate"),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, padding_mode="replicate"),
            nn.ReLU(),
            nn.Conv2d(channels, 1, 3, padding=1, padding_mode="replicate"),
        )
        for parameter in self.layers[-1].parameters():
            nn.init.zeros_(parameter)
        self.log_spread = nn.Parameter(torch.tensor(math.log(FIRST_SPREAD)))

    def distribution(self, signals: Tensor) -> torch.distributions.Normal:
        """Of the actions (N, grid, grid), from ``difficulty``'s signals (N, 4, grid, grid)."""
        return torch.distributions.Normal(self.layers(signals)[:, 0], self.log_spread.exp(), validate_args=False)

    @torch.no_grad()
    def draw(self, signals: Tensor, generator: torch.Generator | None = None) -> Draw:
        """Sample maps, or take the means where no generator is given."""
        gaussian = self.distribution(signals)
        actions = gaussian.mean
        if generator is not None:
            noise = torch.randn(actions.shape, generator=generator, device=generator.device).to(actions.device)
            actions = actions + gaussian.stddev * noise
        return Draw(signals, actions, weights_of(actions))


class Reinforce:
    """The policy's learning: REINFORCE (Williams 1992) with a moving baseline, entropy, and a pull to equal weights.

    Rewards are per cell: how much of the student's gain a cell's weight brought. They are divided by their running
    root mean square, since gains shrink by orders of magnitude in the course of a training. Most of a reward is noise,
    and Adam follows noise as far as it follows a gain: without a pull the weights wander off where there is nothing to
    be gained. Entropy and pull together are the KL divergence from the first policy's Gaussian,

        KL = -entropy + (mean^2 + spread^2) / (2 FIRST_SPREAD^2) + constant

    :param policy: what learns
    :param learning_rate: Adam's
    :param divergence: weight of that divergence beside rewards whose root mean square is 1
    :param decay: of the moving baseline and of the running mean square
    """

    def __init__(
        self, policy: SpatialPolicy, learning_rate: float = 3e-3, divergence: float = 0.1, decay: float = 0.9
    ) -> None:
        self.policy, self.divergence, self.decay = policy, divergence, decay
        self.optimizer = torch.optim.Adam(policy.parameters(), lr=learning_rate)
        self.baseline, self.square, self.updates = 0.0, 0.0, 0

    def update(self, draw: Draw, rewards: Tensor) -> dict[str, float]:
        """One gradient step.

        :param draw: what the policy had drawn
        :param rewards: (N, grid, grid)
        :return: figures for a log: mean reward, its scale, entropy, spread of the Gaussian
        """
        if not bool(torch.isfinite(rewards).all()):  # a student that fell apart teaches nothing
            return {}
        self.updates += 1
        correction = 1 - self.decay**self.updates
        self.square = self.decay * self.square + (1 - self.decay) * rewards.double().square().mean().item()
        scale = math.sqrt(self.square / correction) + 1e-30
        baseline = self.baseline / (1 - self.decay ** (self.updates - 1)) if self.updates > 1 else 0.0
        gaussian = self.policy.distribution(draw.signals)
        advantage = rewards / scale - baseline
        entropy = gaussian.entropy().mean()
        pull = (gaussian.mean.square() + gaussian.variance).mean() / (2 * FIRST_SPREAD**2)
        loss = -(advantage * gaussian.log_prob(draw.actions)).mean() + self.divergence * (pull - entropy)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            self.policy.log_spread.clamp_(*(math.log(s) for s in SPREADS))
        mean = rewards.double().mean().item()
        self.baseline = self.decay * self.baseline + (1 - self.decay) * mean / scale
        return {
            "reward": mean,
            "scale": scale,
            "entropy": entropy.item(),
            "spread": gaussian.stddev.flatten()[0].item(),
        }

    def state_dict(self) -> dict[str, Any]:
        """Everything that goes on with the policy."""
        return {
            "policy": {name: tensor.clone() for name, tensor in self.policy.state_dict().items()},
            "optimizer": copy.deepcopy(self.optimizer.state_dict()),
            "baseline": self.baseline,
            "square": self.square,
            "updates": self.updates,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.policy.load_state_dict(state["policy"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.baseline, self.square, self.updates = state["baseline"], state["square"], state["updates"]
