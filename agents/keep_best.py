"""An environment wrapper that hands out the best finished students."""

from typing import Any

import gymnasium as gym

from hsq_env.env import HSQEnv
from hsq_env.file import student_bytes


class KeepBest(gym.Wrapper[Any, Any, Any, Any]):
    """Adds ``info["score"]`` at the end of an episode, and ``info["model"]`` if it ended better than all before.

    Better is a higher accuracy under a budget, which makes plans comparable, and a higher return without one. The
    model is the content of a ``.hsq`` file. Vectorized environments reset at once when an episode ends, so that only a
    wrapper still sees the student.
    """

    def __init__(self, env: HSQEnv) -> None:
        super().__init__(env)
        self.best = float("-inf")
        self._return = 0.0

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """As the environment's."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        env = self.env.unwrapped
        assert isinstance(env, HSQEnv)
        before = self._return if env.index > 1 else 0.0  # the last episode may have been given up
        self._return = float(reward) + before
        if terminated and not info["diverged"]:
            info["score"] = self._return if env.budget.limit == float("inf") else info["accuracy"]
            if info["score"] > self.best:
                self.best = info["score"]
                info["model"] = student_bytes(env.student)
        return observation, reward, terminated, truncated, info
