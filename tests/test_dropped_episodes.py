"""Replay buffers give back the steps of episodes whose worker died."""

from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer

from agents.executed import drop_episodes


def filled(kind: type[ReplayBuffer], columns: int, lengths: list[int], size: int = 40) -> Any:
    """A buffer with finished episodes of some lengths, all columns alike; numbers tell where a step came from."""
    buffer = kind(size, spaces.Box(0, 1e6, (1,)), spaces.Discrete(9), n_envs=columns)
    for episode, length in enumerate(lengths):
        for step in range(length):
            values = np.array([[1000.0 * column + 100 * episode + step] for column in range(columns)])
            ends = np.full(columns, step == length - 1)
            infos: list[dict[str, Any]] = [{} for _ in range(columns)]
            buffer.add(values, values + 1, np.zeros((columns, 1)), values[:, 0], ends, infos)
    return buffer


@pytest.mark.parametrize("kind", [ReplayBuffer, NStepReplayBuffer])
def test_dropped_steps_are_replaced_by_others(kind: type[ReplayBuffer]) -> None:
    buffer = filled(kind, 2, [5, 7, 4])
    for lost in ([1], [0]):
        buffer = filled(kind, 2, [5, 7, 4])
        other = 1 - lost[0]
        before = buffer.rewards.copy()
        drop_episodes(buffer, lost)
        assert np.array_equal(buffer.rewards[:12], before[:12]) and buffer.pos == 16
        assert np.array_equal(buffer.rewards[12:16, lost[0]], before[12:16, other])
        assert buffer.dones[15, lost[0]] and not buffer.timeouts[15, lost[0]]  # the other's episode did end there
        assert np.array_equal(buffer.rewards[:, other], before[:, other])


def test_dropped_steps_of_all_workers_are_replaced_by_earlier_ones() -> None:
    buffer = filled(ReplayBuffer, 2, [5, 3, 4])
    before = buffer.rewards.copy()
    drop_episodes(buffer, [0, 1])
    assert np.array_equal(buffer.rewards[8:12], before[:4]) and np.array_equal(buffer.rewards[:8], before[:8])
    buffer = filled(ReplayBuffer, 1, [3, 5])
    drop_episodes(buffer, [0])
    assert set(buffer.rewards[:8, 0]) == {0.0, 1.0, 2.0}
    buffer = filled(ReplayBuffer, 1, [6])
    drop_episodes(buffer, [0])
    assert buffer.size() == 0
    buffer = filled(ReplayBuffer, 1, [9, 8, 9, 8, 9], size=20)  # around the end
    drop_episodes(buffer, [0])
    assert not {400.0 + step for step in range(9)} & set(buffer.rewards[:, 0]) and buffer.full


def test_copied_steps_from_the_middle_of_an_episode_end_one() -> None:
    buffer = filled(ReplayBuffer, 2, [5, 7])
    ends = np.array([False, True])  # the second worker's episode ends, the first one's goes on
    buffer.add(np.full((2, 1), 5.0), np.full((2, 1), 6.0), np.zeros((2, 1)), np.full(2, 9.0), ends, [{}, {}])
    drop_episodes(buffer, [1])
    assert buffer.dones[12].tolist() == [0, 1] and buffer.timeouts[12].tolist() == [0, 1]
