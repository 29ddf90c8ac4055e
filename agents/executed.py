"""Replay buffers that store what was done, not what was asked for."""

from typing import Any

import numpy as np
from gymnasium import spaces


class StoresExecuted:
    """Mixed into an SB3 off-policy agent: the environment may execute another action so that the budget is met."""

    action_space: spaces.Space[Any]
    policy: Any

    def _store_transition(
        self, replay_buffer: Any, buffer_action: np.ndarray, new_obs: Any, reward: Any, dones: Any, infos: Any
    ) -> None:
        executed = np.array([info["executed_action"] for info in infos], dtype=buffer_action.dtype)
        if isinstance(self.action_space, spaces.Box):
            executed = self.policy.scale_action(executed)
        executed = executed.reshape(buffer_action.shape)
        super()._store_transition(replay_buffer, executed, new_obs, reward, dones, infos)  # type: ignore[misc]
