"""First return, then explore: an environment wrapper for agents that learn from what was executed."""

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np

from hsq_env.env import HSQEnv


class ReturnToBest(gym.Wrapper[Any, Any, Any, Any]):
    """Follows the best plan so far up to a random layer, whatever the agent says, and leaves the rest to the agent.

    The environment is deterministic and answers what was measured before from its table, so that returning is free and
    all measurements are spent around the best plan (Go-Explore, Ecoffet et al. 2021, arXiv 2004.12919, section 2).
    What was done stands in ``info["executed_action"]``: agents must store that. The layer is drawn with a probability
    that grows linearly, since leaving late costs few measurements and leaving early many.

    :param env: around a ``KeepBest``, which hands out scores
    :param seed: of the layers at which the agent takes over
    """

    def __init__(self, env: gym.Env[Any, Any], seed: int = 0) -> None:
        super().__init__(env)
        self.best: dict[float | None, tuple[float, list[int]]] = {}  # score, index of the choice per layer; by target
        self._alphas: dict[float | None, list[float]] = {}  # of the best plan's steps, where they were told
        self._rng = np.random.default_rng(seed)
        self._until = 0
        self._proposed: list[int] = []
        self._ceilings: list[float] = []

    def follow(self, choices: list[int], ceilings: list[float]) -> None:
        """Play a plan in the present episode, whatever the agent says; only its beginning, if it is shorter.

        :param choices: index per layer; none at all to leave the episode to the agent
        :param ceilings: divergence after each layer above which the episode is truncated, as it is after a beginning;
            none for no such limit
        """
        self._proposed, self._ceilings = list(choices), list(ceilings)

    def know(
        self, choices: list[int], score: float, target: float | None, alphas: Sequence[float] | None = None
    ) -> None:
        """Tell of a plan, which is followed from now on if it is better than all before for its target.

        :param alphas: of its steps; the environment's present one when None
        """
        if target in self.best and score <= self.best[target][0]:
            return
        self.best[target] = score, list(choices)
        self._alphas.pop(target, None)
        if alphas is not None:
            self._alphas[target] = list(alphas)

    def _plan(self) -> list[int]:
        env = self.env.unwrapped
        assert isinstance(env, HSQEnv)
        return self.best.get(env.target_ratio, (0.0, []))[1]

    def reset(self, **arguments: Any) -> tuple[Any, dict[str, Any]]:
        """As the environment's; draws the layer at which the agent takes over."""
        observation, info = self.env.reset(**arguments)
        self._proposed, self._ceilings = [], []
        layers = len(self._plan())
        weights = np.arange(1, layers + 1)
        self._until = int(self._rng.choice(layers, p=weights / weights.sum())) if layers else 0
        return observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """As the environment's, with the best plan's action in the beginning of an episode."""
        env = self.env.unwrapped
        assert isinstance(env, HSQEnv)
        if self._proposed:
            action = env.actions.encode(self._proposed[env.index], env.alpha)
        elif env.index < self._until:
            alphas = self._alphas.get(env.target_ratio)
            action = env.actions.encode(self._plan()[env.index], alphas[env.index] if alphas else env.alpha)
        observation, reward, terminated, truncated, info = self.env.step(action)
        if not (terminated or truncated):
            hopeless = bool(self._ceilings) and not info["divergence"] <= self._ceilings[env.index - 1]
            truncated = hopeless or env.index == len(self._proposed)
        if "score" in info:
            executed = [env.choices.index(choice) for choice in info["plan"].choices]
            self.know(executed, info["score"], env.target_ratio, env.get_state().alphas)
        return observation, reward, terminated, truncated, info
