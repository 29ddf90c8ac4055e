"""A place in an episode, small enough to be pickled and given to any equal environment."""

from dataclasses import dataclass

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
