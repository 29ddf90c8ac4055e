"""Replay buffers on disk."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stable_baselines3.common.vec_env import DummyVecEnv
from tiny_task import TinyTask

from agents.algorithms import make_agent
from agents.replay import ARRAYS, fill_replay, replay_bytes, replay_of
from detectors.errors import InputError
from hsq_env.env import HSQEnv

NONE = np.zeros((7, 12))


def trained(tiny: TinyTask, steps: int, **arguments: Any) -> Any:
    env = HSQEnv(tiny, target_ratio=6.0, step_minibatches=0, sensitivities=NONE)
    agent = make_agent("dqn", env, **arguments)
    agent.learn(steps)
    return agent


def steps_of(buffer: Any) -> list[Any]:
    return [[getattr(buffer, name)[i].tolist() for name in ARRAYS] for i in range(buffer.size())]


def test_what_is_written_is_read(tiny: TinyTask, tmp_path: Path) -> None:
    agent = trained(tiny, 10)
    path = tmp_path / "replay.npz"
    path.write_bytes(replay_bytes(agent.replay_buffer))
    other: Any = make_agent("dqn", HSQEnv(tiny, target_ratio=6.0, step_minibatches=0, sensitivities=NONE))
    assert fill_replay(other.replay_buffer, path) == 10
    *before, last = steps_of(agent.replay_buffer)
    assert steps_of(other.replay_buffer)[:-1] == before
    end = [ARRAYS.index(name) for name in ("dones", "timeouts")]  # of the episode that was going on: nothing follows it
    ended = [[1.0] if i in end else value for i, value in enumerate(last)]
    assert [last[i] for i in end] == [[0.0], [0.0]] and steps_of(other.replay_buffer)[-1] == ended
    assert (other.replay_buffer.pos, other.replay_buffer.full) == (10, False)
    other.learn(3)  # goes on behind them
    assert other.replay_buffer.size() == 13


def test_a_full_buffer_is_written_oldest_first(tiny: TinyTask, tmp_path: Path) -> None:
    last = trained(tiny, 14, buffer_size=5)
    assert last.replay_buffer.pos == 4
    path = tmp_path / "replay.npz"
    path.write_bytes(replay_bytes(last.replay_buffer))
    with np.load(path) as file:
        assert file["dones"].ravel().tolist() == [0, 0, 0, 0, 1]  # the 14th step ends the second episode
        newest = file["observations"][2:]
    small: Any = make_agent("dqn", HSQEnv(tiny, step_minibatches=0, sensitivities=NONE), buffer_size=3)
    assert fill_replay(small.replay_buffer, path) == 3
    assert small.replay_buffer.full and small.replay_buffer.pos == 0
    assert np.array_equal(small.replay_buffer.observations, newest)


def test_every_worker_gets_every_step(tiny: TinyTask, tmp_path: Path) -> None:
    agent = trained(tiny, 7)
    path = tmp_path / "replay.npz"
    path.write_bytes(replay_bytes(agent.replay_buffer))
    make = [lambda: HSQEnv(tiny, target_ratio=6.0, step_minibatches=0, sensitivities=NONE)] * 2
    both: Any = make_agent("dqn", DummyVecEnv(make))  # type: ignore[arg-type]
    assert fill_replay(both.replay_buffer, path) == 7
    for worker in range(2):
        assert np.array_equal(both.replay_buffer.rewards[:7, worker], agent.replay_buffer.rewards[:7, 0])


def test_the_latest_steps_of_every_worker_are_kept(tiny: TinyTask, tmp_path: Path) -> None:
    make = [lambda: HSQEnv(tiny, target_ratio=6.0, step_minibatches=0, sensitivities=NONE)] * 2
    both: Any = make_agent("dqn", DummyVecEnv(make), seed=1)  # type: ignore[arg-type]
    both.learn(40)
    path = tmp_path / "replay.npz"
    path.write_bytes(replay_bytes(both.replay_buffer))
    other: Any = make_agent("dqn", make[0](), buffer_size=10)
    assert fill_replay(other.replay_buffer, path) == 10
    for worker, rows in ((0, slice(0, 5)), (1, slice(5, 10))):
        newest = both.replay_buffer.observations[15:20, worker]
        assert np.array_equal(other.replay_buffer.observations[rows, 0], newest)


def test_agents_without_a_replay_have_none(tiny: TinyTask) -> None:
    assert replay_of(make_agent("ppo", HSQEnv(tiny, step_minibatches=0, sensitivities=NONE))) is None


@pytest.mark.parametrize("content", [b"", b"nonsense", b"PK\x03\x04abc", None])
def test_other_files_are_refused(tiny: TinyTask, tmp_path: Path, content: bytes | None) -> None:
    agent: Any = make_agent("dqn", HSQEnv(tiny, step_minibatches=0, sensitivities=NONE))
    path = tmp_path / "replay.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match="holds no replay"):
        fill_replay(agent.replay_buffer, path)
    assert agent.replay_buffer.size() == 0


def test_another_problem_is_refused(tiny: TinyTask, tmp_path: Path) -> None:
    path = tmp_path / "replay.npz"
    path.write_bytes(replay_bytes(trained(tiny, 7).replay_buffer))
    other: Any = make_agent("dqn", HSQEnv(tiny, bits=(4, 8), step_minibatches=0, sensitivities=np.zeros((7, 8))))
    with pytest.raises(InputError, match=r"observations of shape \(52,\) where this search has \(44,\)"):
        fill_replay(other.replay_buffer, path)


def test_workers_episodes_follow_each_other(tiny: TinyTask, tmp_path: Path) -> None:
    """Step by step, with an end behind each worker's last."""
    make = [lambda: HSQEnv(tiny, target_ratio=6.0, step_minibatches=0, sensitivities=NONE)] * 2
    both: Any = make_agent("dqn", DummyVecEnv(make), seed=1, exploration_initial_eps=1.0)  # type: ignore[arg-type]
    both.learn(20)
    path = tmp_path / "replay.npz"
    path.write_bytes(replay_bytes(both.replay_buffer))
    other: Any = make_agent("dqn", make[0]())
    assert fill_replay(other.replay_buffer, path) == 20
    buffer = other.replay_buffer
    for row in range(19):
        if not buffer.dones[row, 0]:
            assert np.array_equal(buffer.next_observations[row], buffer.observations[row + 1])
    assert np.flatnonzero(buffer.dones[:20, 0]).tolist() == [6, 9, 16, 19]
    assert np.flatnonzero(buffer.timeouts[:20, 0]).tolist() == [9, 19]
