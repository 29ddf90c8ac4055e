"""SPARK's policy in the environment's steps.

It stays the same all through an episode and students follow its means, so that equal choices in one episode give equal
students, bit for bit; what it is to learn from its draws is noted on the way and learned when the next episode begins.
After as many episodes as it may learn in it stays as it is, and visited prefixes count across episodes again.
"""

import copy
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hsq_env.distillation import AKD
from hsq_env.distillation.spark import Lesson, Spark
from hsq_env.lessons import error_maps
from hsq_env.task import Batch, Distilled, State, Task

LAYERS_PER_LESSON = 6


@dataclass(frozen=True)
class PolicyState:
    """Everything that a policy's weights and next lessons depend on.

    :param version: episodes in which it has learned
    :param spark: see ``Spark.state_dict``
    :param lessons: of the present episode
    """

    version: int
    spark: dict[str, Any]
    lessons: tuple[Lesson, ...]


class StepPolicy:
    """The policy, its version and what it is to learn.

    :param criterion: the distillation loss
    :param episodes: in which it learns
    :param seed: of its first weights and of its draws
    """

    def __init__(self, criterion: AKD, episodes: int, seed: int = 0) -> None:
        self.spark, self.episodes, self.version = Spark(criterion, seed=seed), episodes, 0
        self.lessons: list[Lesson] = []
        self.spark.learning = self.learning

    @property
    def learning(self) -> bool:
        """Whether lessons are still taken."""
        return self.version < self.episodes

    def weights(
        self,
        task: Task,
        outputs: State,
        batch: Batch,
        distilled: Sequence[Distilled],
        teacher: Sequence[Distilled],
    ) -> Tensor:
        """Of the places of a minibatch, (N, grid, grid): the policy's means."""
        return self.spark.means(self.spark.signals(batch.images, error_maps(task, outputs, batch), distilled, teacher))

    def wants_lesson(self, layer: int) -> bool:
        """Every few layers, others in every episode."""
        return self.learning and (layer + self.version) % LAYERS_PER_LESSON == 0

    def end_episode(self) -> bool:
        """Learn what was noted.

        :return: whether the policy has changed
        """
        if not self.lessons:
            return False
        for lesson in self.lessons:
            self.spark.learn(lesson)
        self.lessons, self.version = [], self.version + 1
        self.spark.learning = self.learning
        return True

    def digest(self) -> bytes:
        """Of its weights."""
        weights = [tensor.cpu().contiguous().numpy().tobytes() for tensor in self.spark.policy.state_dict().values()]
        return hashlib.sha256(b"".join(weights)).digest()

    def state(self) -> PolicyState:
        """A copy of everything."""
        return PolicyState(self.version, copy.deepcopy(self.spark.state_dict()), tuple(self.lessons))

    def load(self, state: PolicyState) -> bool:
        """Go on from there.

        :return: whether its weights are others than they were
        """
        changed = state.version != self.version or any(
            not torch.equal(tensor, state.spark["reinforce"]["policy"][name])
            for name, tensor in self.spark.policy.state_dict().items()
        )
        self.spark.load_state_dict(copy.deepcopy(state.spark))
        self.version, self.lessons = state.version, list(state.lessons)
        self.spark.learning = self.learning
        return changed
