"""Replay buffers that store what was done, not what was asked for."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer

from detectors.errors import InputError


class StoresExecuted:
    """Mixed into an SB3 off-policy agent: the environment may execute another action so that the budget is met."""

    action_space: spaces.Space[Any]
    policy: Any

    def _store_transition(
        self, replay_buffer: Any, buffer_action: np.ndarray, new_obs: Any, reward: Any, dones: Any, infos: Any
    ) -> None:
        executed = np.array([info["executed_action"] for info in infos], dtype=buffer_action.dtype)
        if isinstance(self.action_space, spaces.Box):
            if not ((self.action_space.low <= executed) & (executed <= self.action_space.high)).all():
                raise InputError(
                    f"Actions {executed.tolist()} were executed, which are none of this agent's: leave out what "
                    "changes actions (RescaleAction)."
                )
            executed = self.policy.scale_action(executed)
        executed = executed.reshape(buffer_action.shape)
        super()._store_transition(replay_buffer, executed, new_obs, reward, dones, infos)  # type: ignore[misc]
        lost = [worker for worker, info in enumerate(infos) if info.get("worker_lost")]
        if lost:
            drop_episodes(replay_buffer, lost)


def drop_episodes(buffer: ReplayBuffer, workers: Sequence[int]) -> None:
    """Take back the newest episode of some workers, which ended where nobody knows.

    A buffer has a row per step and a column per worker, and no holes: another worker's steps of the same rows take the
    place of the lost ones, as an episode that was truncated. Where all workers are lost, or there is one alone, earlier
    steps of the same column do, or the rows are given back.

    :param workers: columns whose last row was stored just now
    """
    last = (buffer.pos - 1) % buffer.buffer_size
    others = [column for column in range(buffer.n_envs) if column not in workers]
    lengths = {worker: _episode_length(buffer, last, worker) for worker in workers}
    if not others and not buffer.full and max(lengths.values()) >= buffer.pos:
        buffer.pos = 0  # there was nothing else yet
        return
    for worker, length in lengths.items():
        rows = (last - np.arange(length)[::-1]) % buffer.buffer_size
        earlier = (last - length - np.arange(max(1, _held(buffer) - length))[::-1]) % buffer.buffer_size
        source = (rows, others[0]) if others else (np.resize(earlier, length), worker)
        for name in ("observations", "next_observations", "actions", "rewards", "dones", "timeouts"):
            array = getattr(buffer, name)
            array[rows, worker] = array[source]
    end_episodes(buffer, workers)


def end_episodes(buffer: ReplayBuffer, workers: Sequence[int]) -> None:
    """Let the newest step of some workers be the last of its episode: what follows is another's."""
    last = (buffer.pos - 1) % buffer.buffer_size
    for worker in workers:
        if not buffer.dones[last, worker]:
            buffer.dones[last, worker] = buffer.timeouts[last, worker] = 1.0


def _held(buffer: ReplayBuffer) -> int:
    return buffer.buffer_size if buffer.full else buffer.pos


def _episode_length(buffer: ReplayBuffer, last: int, worker: int) -> int:
    """Rows from the beginning of the episode that ends with row ``last``."""
    for length in range(1, _held(buffer)):
        if buffer.dones[(last - length) % buffer.buffer_size, worker]:
            return length
    return _held(buffer)
