"""What is put around the environments that agents learn in."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium as gym

from agents.evaluation_budget import EvaluationBudget
from agents.keep_best import KeepBest
from agents.return_to_best import ReturnToBest
from hsq_env.env import HSQEnv


@dataclass(frozen=True)
class Wrapping:
    """What is put around a worker's environment, which then knows the best plans so far.

    :param known: index of the choice per layer, and the score, by target ratio
    :param evaluations: of the worker; None for no limit
    :param merit: see ``KeepBest``
    :param returns: see ``ReturnToBest``
    """

    known: dict[float | None, tuple[list[int], float]]
    evaluations: int | None
    merit: Callable[[float, float], float] | None
    returns: bool
    seed: int

    def __call__(self, env: HSQEnv, worker: int) -> gym.Env[Any, Any]:
        """The environment in its wrappers."""
        kept = KeepBest(env, self.merit)
        kept.best.update({target: score for target, (_, score) in self.known.items()})
        budget = EvaluationBudget(kept, self.evaluations)
        if not self.returns:
            return budget
        returning = ReturnToBest(budget, self.seed + worker)  # outside: what it follows is what would be measured
        for target, (choices, score) in self.known.items():
            returning.know(choices, score, target)
        return returning
