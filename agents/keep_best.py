"""An environment wrapper that hands out the best finished students."""

from collections.abc import Callable
from typing import Any

import gymnasium as gym

from hsq_env.env import HSQEnv
from hsq_env.file import student_bytes


class KeepBest(gym.Wrapper[Any, Any, Any, Any]):
    """Adds ``info["score"]`` at the end of an episode, and ``info["model"]`` if it ended better than all before.

    Better is a smaller divergence under a budget, which makes plans comparable, and a higher return without one. mAP on
    the few images that rewards see is too coarse to tell good plans apart. Every target has a best of its own. The
    model is the content of a ``.hsq`` file. Vectorized environments reset at once when an episode ends, so that only a
    wrapper still sees the student.

    :param merit: of accuracy and ratio, smaller is better; compares plans in place of all that where it is given
    """

    def __init__(self, env: HSQEnv, merit: Callable[[float, float], float] | None = None) -> None:
        super().__init__(env)
        self.merit = merit
        self.best: dict[float | None, float] = {}  # score by target ratio
        self._return = 0.0

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """As the environment's."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        env = self.env.unwrapped
        assert isinstance(env, HSQEnv)
        before = self._return if env.index > 1 else 0.0  # the last episode may have been given up
        self._return = float(reward) + before
        if terminated and not info["diverged"]:
            info["score"] = self._score(info, env.bounded)
            if info["score"] > self.best.get(env.target_ratio, float("-inf")):
                self.best[env.target_ratio] = info["score"]
                info["model"] = student_bytes(env.student)
        return observation, reward, terminated, truncated, info

    def _score(self, info: dict[str, Any], bounded: bool) -> float:
        if self.merit is not None:
            return -self.merit(info["accuracy"], info["ratio"])
        return -float(info["divergence"]) if bounded else self._return
