"""The log of a search, the rollout that seeds a replay, and the agent's training."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import play
from stable_baselines3.common.vec_env import DummyVecEnv
from tiny_task import TinyTask

from agents.algorithms import action_space_of, make_agent
from agents.callbacks import Episode
from agents.explore import SearchLog, rollout, seed_replay, train_agent
from agents.keep_best import KeepBest
from agents.run_folder import RunFolder
from hsq_env.choices import Choice, Plan
from hsq_env.env import HSQEnv

ACTIONS = [8, 5, 6, 5, 4, 9, 0]


def note(message: str) -> None:
    """Says nothing."""


def episode(bits: int, accuracy: float, total_reward: float, source: str = "dqn") -> Episode:
    return Episode(source, Plan(("a",), (Choice(bits),)), total_reward, accuracy, 6.0, 1.0)


# ---- the log


def test_the_log_tells_each_episode() -> None:
    told: list[str] = []
    log = SearchLog(told.append)
    log.note(episode(8, 0.98765, 1.23456), {})
    assert told == ["episode 1 (dqn): accuracy 0.9877 at 6.00x, return 1.235, 1 s"]


def test_best_plans_are_different_and_ranked() -> None:
    log = SearchLog(note)
    for row in (episode(2, 0.7, 3.0), episode(4, 0.9, 1.0), episode(4, 0.9, 1.0, "again"), episode(8, 0.8, 2.0)):
        log.note(row, {})
    assert [e.plan.choices[0].bits for e in log.best_plans(5, by_return=False)] == [4, 8, 2]
    assert [e.plan.choices[0].bits for e in log.best_plans(5, by_return=True)] == [2, 8, 4]
    assert [e.plan.choices[0].bits for e in log.best_plans(2, by_return=False)] == [4, 8]


def test_among_equals_the_earlier_comes_first() -> None:
    log = SearchLog(note)
    rows = [episode(2, 0.9, 1.0, "first"), episode(4, 0.9, 1.0, "second"), episode(2, 0.9, 1.0, "third")]
    for row in rows:
        log.note(row, {})
    assert [e.source for e in log.best_plans(3, by_return=False)] == ["first", "second"]


def test_the_best_is_written_at_once(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    log = SearchLog(note, folder)
    seen = []
    for bits, score, model in ((2, 0.5, b"a"), (4, 0.9, b"b"), (8, 0.7, b"c"), (8, 0.95, None), (2, 0.9, b"d")):
        log.note(episode(bits, 1.0, 1.0), {"score": score, **({} if model is None else {"model": model})})
        plan = Plan.read(folder.path / "plan.json")
        seen.append((plan.choices[0].bits, (folder.path / "model.hsq").read_bytes()))
    assert seen == [(2, b"a"), (4, b"b"), (4, b"b"), (4, b"b"), (4, b"b")]  # another worker's own best may be no better


# ---- rollouts


@pytest.mark.parametrize("algo", ["dqn", "sac"])
def test_a_rollout_is_the_episode(tiny: TinyTask, algo: str) -> None:
    env, log = HSQEnv(tiny, action_space=action_space_of(algo), target_ratio=5.0), SearchLog(note)
    steps = rollout(KeepBest(env), ACTIONS, "integer_program", log)
    expected = play(env, [env.actions.encode(action) for action in ACTIONS])
    assert len(steps) == 7
    for before, step, (observation, reward, terminated, _, info) in zip(
        [env.reset()[0], *(row[0] for row in expected)], steps, expected, strict=False
    ):
        assert np.array_equal(step[0], before) and np.array_equal(step[1], observation)
        assert np.array_equal(step[2], info["executed_action"]) and step[3:5] == (reward, terminated)
    (record,) = log.episodes
    assert record.source == "integer_program" and record.plan == expected[-1][4]["plan"]
    assert record.total_reward == pytest.approx(sum(row[1] for row in expected))
    assert (record.accuracy, record.ratio) == (expected[-1][4]["accuracy"], expected[-1][4]["ratio"])


@pytest.mark.parametrize("algo", ["dqn", "sac"])
def test_a_replay_is_seeded_with_a_rollout(tiny: TinyTask, algo: str) -> None:
    env = HSQEnv(tiny, action_space=action_space_of(algo), target_ratio=5.0)
    agent: Any = make_agent(algo, env)
    steps = rollout(KeepBest(env), ACTIONS, "integer_program", SearchLog(note))
    assert len(seed_replay(agent, steps)) == 1
    buffer = agent.replay_buffer
    assert buffer.size() == 7
    for i, (observation, following, action, reward, done, _) in enumerate(steps):
        assert np.array_equal(buffer.observations[i, 0], observation)
        assert np.array_equal(buffer.next_observations[i, 0], following)
        np.testing.assert_allclose(buffer.actions[i, 0], np.atleast_1d(action), rtol=1e-6)  # [-1, 1] is scaled already
        assert (buffer.rewards[i, 0], buffer.dones[i, 0]) == (np.float32(reward), done)


def test_a_replay_for_several_workers_is_filled_in_every_column(tiny: TinyTask) -> None:
    env = HSQEnv(tiny, target_ratio=5.0)
    agent: Any = make_agent("dqn", DummyVecEnv([lambda: HSQEnv(tiny, target_ratio=5.0)] * 2))
    steps = rollout(KeepBest(env), ACTIONS, "integer_program", SearchLog(note))
    seed_replay(agent, steps)
    buffer = agent.replay_buffer
    assert buffer.pos == 7 and buffer.observations.shape[1] == 2
    for i, step in enumerate(steps):
        for worker in range(2):
            assert np.array_equal(buffer.observations[i, worker], step[0])
            assert buffer.actions[i, worker] == step[2] and buffer.rewards[i, worker] == np.float32(step[3])


def test_an_agent_without_a_replay_is_left_alone(tiny: TinyTask) -> None:
    env = HSQEnv(tiny, target_ratio=5.0)
    steps = rollout(KeepBest(env), ACTIONS, "integer_program", SearchLog(note))
    assert seed_replay(make_agent("ppo", env), steps) == []


# ---- training


@pytest.mark.parametrize(("episodes", "seconds", "expected"), [(2, None, 2), (0, None, 0), (5, 0, 0), (None, 0.0, 0)])
def test_training_stops_at_its_limits(
    tiny: TinyTask, episodes: int | None, seconds: float | None, expected: int
) -> None:
    env, log = HSQEnv(tiny, target_ratio=5.0, finetune_steps=0), SearchLog(note)
    agent = make_agent("dqn", env)
    log.note(episode(8, 1.0, 1.0, "integer_program"), {})
    train_agent(agent, 7, "dqn", log, episodes, seconds, [])
    assert [e.source for e in log.episodes[1:]] == ["dqn"] * expected
    assert agent.num_timesteps == 7 * expected
