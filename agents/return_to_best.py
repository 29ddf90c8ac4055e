"""First return, then explore: an environment wrapper for agents that learn from what was executed."""

from typing import Any

import gymnasium as gym
import numpy as np

from agents.keep_best import KeepBest
from hsq_env.env import HSQEnv


class ReturnToBest(gym.Wrapper[Any, Any, Any, Any]):
    """Follows the best plan so far up to a random layer, whatever the agent says, and leaves the rest to the agent.

    The environment is deterministic and answers what was measured before from its table, so that returning is free and
    all measurements are spent around the best plan (Go-Explore, Ecoffet et al. 2021, arXiv 2004.12919, section 2).
    What was done stands in ``info["executed_action"]``: agents must store that. The layer is drawn with a probability
    that grows linearly, since leaving late costs few measurements and leaving early many.

    :param env: hands out scores
    :param seed: of the layers at which the agent takes over
    """

    def __init__(self, env: KeepBest, seed: int = 0) -> None:
        super().__init__(env)
        self.score = float("-inf")
        self.best: list[int] = []  # index of the choice per layer
        self._rng = np.random.default_rng(seed)
        self._until = 0

    def know(self, choices: list[int], score: float) -> None:
        """Tell of a plan, which is followed from now on if it is better than all before."""
        if score > self.score:
            self.score, self.best = score, list(choices)

    def reset(self, **arguments: Any) -> tuple[Any, dict[str, Any]]:
        """As the environment's; draws the layer at which the agent takes over."""
        layers = len(self.best)
        weights = np.arange(1, layers + 1)
        self._until = int(self._rng.choice(layers, p=weights / weights.sum())) if layers else 0
        return self.env.reset(**arguments)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """As the environment's, with the best plan's action in the beginning of an episode."""
        env = self.env.unwrapped
        assert isinstance(env, HSQEnv)
        if env.index < self._until:
            action = env.actions.encode(self.best[env.index])
        observation, reward, terminated, truncated, info = self.env.step(action)
        if "score" in info:
            self.know([env.choices.index(choice) for choice in info["plan"].choices], info["score"])
        return observation, reward, terminated, truncated, info
