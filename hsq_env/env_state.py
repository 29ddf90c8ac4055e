"""A place in an episode, small enough to be pickled and given to any equal environment."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hsq_env.prefixes import Row
from hsq_env.step_policy import PolicyState


@dataclass(frozen=True)
class EnvState:
    """A place in an episode.

    :param executed: index of the choice of every decided layer
    :param alphas: share of the task loss in each of those steps
    :param accuracy: after the last of them
    :param divergence: likewise
    :param alpha: of the steps to come
    :param beta: weight of accuracy in the rewards to come
    :param target_ratio: of the episode
    :param policy: SPARK's, where there is one
    """

    executed: tuple[int, ...]
    alphas: tuple[float, ...]
    accuracy: float
    divergence: float
    alpha: float
    beta: float
    target_ratio: float | None
    policy: PolicyState | None = None


@dataclass(frozen=True)
class Standing:
    """Everything in an environment that a search changes: with it an equal environment goes on bit for bit.

    :param state: the place in the episode
    :param generators: of the environment, and of its action and observation space
    :param steps: see ``HSQEnv.steps_taken``
    :param table: visited prefixes without the weights that they keep, which are made again where they are needed
    :param lookups: of the table, and how many were hits
    """

    state: EnvState
    generators: tuple[Any, Any, Any]
    steps: tuple[int, int]
    table: Sequence[Row]
    lookups: tuple[int, int]
