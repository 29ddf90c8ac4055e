"""An environment wrapper that writes the best finished plan to disk at once."""

from typing import Any

import gymnasium as gym

from agents.run_folder import RunFolder
from hsq_env.env import HSQEnv


class KeepBest(gym.Wrapper[Any, Any, Any, Any]):
    """Writes ``plan.json`` and ``model.hsq`` whenever an episode ends better than all before.

    Better is a higher accuracy under a budget, which makes plans comparable, and a higher return without one.
    Vectorized environments reset at once when an episode ends, so that only a wrapper still sees the student.

    :param folder: of the run; None keeps nothing
    """

    def __init__(self, env: HSQEnv, folder: RunFolder | None) -> None:
        super().__init__(env)
        self.folder, self.best = folder, float("-inf")
        self._return = 0.0

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """As the environment's."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        env = self.env.unwrapped
        assert isinstance(env, HSQEnv)
        self._return = float(reward) + (
            self._return if env.index > 1 else 0.0
        )  # the last episode may have been given up
        if terminated:
            score = self._return if env.budget.limit == float("inf") else info["accuracy"]
            if score > self.best and not info["diverged"]:
                self.best = score
                if self.folder is not None:
                    self.folder.write_plan(info["plan"])
                    self.folder.write_student(env.student)
        return observation, reward, terminated, truncated, info
