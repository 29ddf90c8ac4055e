"""The unit in which searches are compared: a student that was measured on the search images."""

from typing import Any

import gymnasium as gym

from hsq_env.env import HSQEnv

IDLE_EPISODES = 100  # without anything new, after which a search counts as ended


class EvaluationBudget(gym.Wrapper[Any, Any, Any, Any]):
    """Truncates the episode in which a number of student evaluations would be exceeded.

    A step that the environment measures is one evaluation; a step that it finds in its table is none. Under a limit
    ``info["measured"]`` is 1 or 0 accordingly. Nothing is computed any more once the budget is spent: further steps end
    at once with ``truncated`` and ``info["evaluations_spent"]``. The same happens to an agent that has long only
    repeated what is known.

    :param env: an ``HSQEnv`` or something around one
    :param limit: evaluations from now on; None for no limit
    """

    def __init__(self, env: gym.Env[Any, Any], limit: int | None) -> None:
        super().__init__(env)
        self.limit, self.spent = limit, 0
        self._idle = 0  # steps since the last that was measured
        self._observation: Any = None

    def allow(self, evaluations: int) -> None:
        """So many from now on, whatever was left."""
        self.limit = self.spent + evaluations

    def reset(self, **arguments: Any) -> tuple[Any, dict[str, Any]]:
        """As the environment's."""
        self._observation, info = self.env.reset(**arguments)
        return self._observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """As the environment's while evaluations are left."""
        inner = self.env.unwrapped
        assert isinstance(inner, HSQEnv)
        over = self.limit is not None and self.spent >= self.limit and inner.would_measure(action)
        if over or (self.limit is not None and self._idle >= IDLE_EPISODES * len(inner.layers)):
            info = {"executed_action": action, "action_mask": inner.allowed(), "evaluations_spent": True}
            return self._observation, 0.0, False, True, {**info, "accuracy": inner.accuracy}
        before = inner.evaluations
        self._observation, reward, terminated, truncated, info = self.env.step(action)
        measured = inner.evaluations - before
        if self.limit is not None:
            info["measured"] = measured
        self.spent += measured
        self._idle = 0 if measured else self._idle + 1
        return self._observation, reward, terminated, truncated, info
