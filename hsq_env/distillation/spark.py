"""SPARK: distillation whose strength a policy decides place by place (arXiv 2606.15243), and how the policy learns.

The policy is rewarded with the student's gain on held-back images against an update that weighs all places alike. To
measure that gain takes two updates and two forward passes, and gives a single number for thousands of decisions. To
first order in the step it is a sum over places: the update ``-P sum_c w_c grad(l_c)`` of an optimizer with the
preconditioner P lowers the held-back loss h by ``sum_c w_c grad(h) . P grad(l_c)``. One step down the held-back loss
shows all of these products at once: ``grad(h) . P grad(l_c)`` is how much it lowers the loss l_c of every place.

Weights that favour places with large gradients make the update longer, which gains something wherever it points; but
how long updates are is for the learning rate to say, and Adam divides the length out again. So the two updates are
compared at equal length. With u the batch's whole gradient, the gain of a step of given length is ``grad(h) . P u``
over the root of ``u . P u``, and its derivative by a weight is in proportion to

    (grad(h) - r u) . P grad(l_c),    r = (grad(h) . P u) / (u . P u)

where r is the share of a batch's gradient that other batches have in common with it, taken as a running mean. A place
is rewarded for what it has in common with the held-back images, and pays for what its batch has alone. One step along
``grad(h) - r u`` shows all of it: one backward pass on held-back images and one forward pass reward every place, and in
a long training the next step's backward pass is that one:

    reward_c = (w_c - 1) (l_c(before) - l_c(after the step))
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from detectors.errors import InputError
from hsq_env.distillation.akd import AKD
from hsq_env.distillation.difficulty import difficulty
from hsq_env.distillation.policy import Draw, Reinforce, SpatialPolicy
from hsq_env.task import Distilled

GRID = 8
EVERY = 5  # training steps between two lessons
COMMON_DECAY = 0.9  # of the running mean of the share that gradients have in common


def cell_losses(criterion: AKD, student: Sequence[Distilled], teacher: Sequence[Distilled], grid: int) -> Tensor:
    """What the KL part of the loss would gain from a cell's weight, ``d loss / d weights`` where all weights are 1.

    Since weights are normalized, it is the cell's part of the loss less the image's mean: it sums to 0 over an image.

    :return: (N, grid, grid)
    """
    count = next(item.tensor.shape[0] for item in teacher)
    with torch.enable_grad():
        weights = torch.ones(count, grid, grid, device=teacher[0].tensor.device, requires_grad=True)
        loss = criterion.loss([_Detached(s) for s in student], teacher, weights)
        return torch.autograd.grad(loss, weights)[0]


class _Detached:
    """An output without its history."""

    def __init__(self, item: Distilled) -> None:
        self.name, self.kind, self.tensor = item.name, item.kind, item.tensor.detach()


def check_places(criterion: AKD, outputs: Sequence[Distilled]) -> None:
    """:raises InputError: if nothing of the outputs has places that weights could be given to"""
    if not criterion.gaps(outputs, outputs):
        kinds = ", ".join(sorted({item.kind for item in outputs}))
        raise InputError(
            f"SPARK weighs places, and what is distilled here ({kinds}) has none: let the task distil its feature maps "
            "too, or choose akd (--distillation)."
        )


def place_rewards(weights: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """What each cell's weight brought, see above.

    :param weights: (N, grid, grid), mean 1 over every image
    :param before: ``cell_losses``, (N, grid, grid)
    :param after: the same after the step
    """
    return (weights - 1) * (before - after)


@dataclass(frozen=True)
class Lesson:
    """What the policy is to learn from.

    :param draw: what it had drawn
    :param before: ``cell_losses`` before the step that shows what places have in common with held-back images
    :param after: and after it
    """

    draw: Draw
    before: Tensor
    after: Tensor


@dataclass
class Spark:
    """A policy with its learning and its random numbers, beside the criterion whose loss it weighs.

    :param criterion: the distillation loss
    :param grid: cells along each side of an image
    :param every: training steps between two lessons of the policy, each of which costs a forward pass
    :param learning: False keeps the policy as it is
    :param seed: of the policy's first weights and of its draws
    """

    criterion: AKD = field(default_factory=AKD)
    grid: int = GRID
    every: int = EVERY
    learning: bool = True
    seed: int = 0
    reinforce: Reinforce = field(init=False)
    log: list[dict[str, float]] = field(init=False, default_factory=list)
    _steps: int = field(init=False, default=0)
    _common: tuple[float, float] = field(init=False, default=(0.0, 0.0))  # running mean and its total weight

    def __post_init__(self) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self.reinforce = Reinforce(SpatialPolicy())
        self._generator = torch.Generator().manual_seed(self.seed)

    @property
    def policy(self) -> SpatialPolicy:
        """What decides."""
        return self.reinforce.policy

    def signals(
        self, images: Tensor, errors: Sequence[Tensor], student: Sequence[Distilled], teacher: Sequence[Distilled]
    ) -> Tensor:
        """What the policy looks at, (N, 4, grid, grid).

        :param images: (N, C, H, W)
        :param errors: of the student against the ground truth, maps (N, H, W)
        """
        self.policy.to(images.device)
        with torch.no_grad():
            gaps = self.criterion.gaps(student, teacher)
        return difficulty(images, errors, gaps, self.grid)

    def draw(self, signals: Tensor) -> Draw:
        """Weight maps that explore while the policy learns; the means once it does not."""
        return self.policy.draw(signals, self._generator if self.learning else None)

    def means(self, signals: Tensor) -> Tensor:
        """Weight maps without exploring, (N, grid, grid)."""
        return self.policy.draw(signals).weights

    def due(self) -> bool:
        """Count a training step; whether the policy has a lesson in it."""
        self._steps += 1
        return self.learning and self._steps % self.every == 0

    def common_share(self, found: float) -> float:
        """The running mean of the share r that a batch's gradient and a held-back one have in common, from 0 to 1.

        :param found: this time; what is no number does not count
        """
        mean, total = self._common
        if math.isfinite(found):
            mean, total = (COMMON_DECAY * old + (1 - COMMON_DECAY) * new for old, new in ((mean, found), (total, 1.0)))
            self._common = mean, total
        return min(1.0, max(0.0, mean / total)) if total else 0.0

    def learn(self, lesson: Lesson) -> None:
        """One lesson, see ``place_rewards``."""
        rewards = place_rewards(lesson.draw.weights, lesson.before, lesson.after)
        figures = self.reinforce.update(lesson.draw, rewards)
        self.log += [figures] if figures else []

    def state_dict(self) -> dict[str, Any]:
        """The policy, its learning and its random numbers."""
        return {
            "reinforce": self.reinforce.state_dict(),
            "generator": self._generator.get_state(),
            "steps": self._steps,
            "common": self._common,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.reinforce.load_state_dict(state["reinforce"])
        self._generator.set_state(state["generator"])
        self._steps, self._common = int(state["steps"]), tuple(state.get("common", (0.0, 0.0)))
