"""The log of a search, the rollout that seeds a replay, and the agent's training."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import play
from stable_baselines3.common.vec_env import DummyVecEnv
from tiny_task import TinyTask

from agents.algorithms import action_space_of, make_agent
from agents.episode import Episode
from agents.keep_best import KeepBest
from agents.plan_agent import PlanAgent
from agents.rollout import play as play_policy
from agents.rollout import rollout, seed_replay, train_agent
from agents.run_folder import RunFolder
from agents.search_log import SearchLog
from hsq_env.choices import Choice, Plan
from hsq_env.env import HSQEnv

ACTIONS = [8, 5, 6, 5, 4, 9, 0]


def note(message: str) -> None:
    """Says nothing."""


def episode(
    bits: int, divergence: float, total_reward: float, source: str = "dqn", ratio: float = 6.0, target: float = 6.0
) -> Episode:
    return Episode(source, Plan(("a",), (Choice(bits),)), total_reward, 0.98765, ratio, 1.0, divergence, target)


# ---- the log


def test_the_log_tells_each_episode() -> None:
    told: list[str] = []
    log = SearchLog(told.append)
    log.note(episode(8, 1.23456, 0.0), {"score": -1.23456, "model": b""})
    assert told == ["episode 1 (dqn): accuracy 0.9877 at 6.00x, divergence 1.235, 1 s"]
    log.note(episode(8, 0.5, 0.0, target=8.5), {"score": -0.5, "model": b""})  # now there are several targets
    assert told[1] == "episode 2 (dqn): accuracy 0.9877 at 6.00x (asked 8.5x), divergence 0.500, 1 s"


def test_best_plans_are_different_and_ranked() -> None:
    log = SearchLog(note)
    for row in (episode(2, 0.3, 3.0), episode(4, 0.1, 1.0), episode(4, 0.1, 1.0, "again"), episode(8, 0.2, 2.0)):
        log.note(row, {})
    assert [e.plan.choices[0].bits for e in log.best_plans(5, 6.0)] == [4, 8, 2]
    assert [e.plan.choices[0].bits for e in log.best_plans(5, None)] == [2, 8, 4]
    assert [e.plan.choices[0].bits for e in log.best_plans(2, 6.0)] == [4, 8]


def test_among_equals_the_earlier_comes_first() -> None:
    log = SearchLog(note)
    rows = [episode(2, 0.9, 1.0, "first"), episode(4, 0.9, 1.0, "second"), episode(2, 0.9, 1.0, "third")]
    for row in rows:
        log.note(row, {})
    assert [e.source for e in log.best_plans(3, 6.0)] == ["first", "second"]


def test_plans_count_for_every_target_that_they_reach() -> None:
    log = SearchLog(note)
    for row in (
        episode(8, 0.1, 1.0, "close", ratio=5.99),
        episode(4, 0.2, 1.0, "six"),
        episode(2, 0.3, 1.0, "ten", 10.0),
    ):
        log.note(row, {})
    assert [[e.source for e in log.best_plans(3, target)] for target in (5.0, 6.0, 10.0, 10.1)] == [
        ["close", "six", "ten"],
        ["six", "ten"],
        ["ten"],
        [],
    ]


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
    steps = rollout(KeepBest(env), ACTIONS, "ilp", log)
    expected = play(env, [env.actions.encode(action) for action in ACTIONS])
    assert len(steps) == 7
    for before, step, (observation, reward, terminated, _, info) in zip(
        [env.reset()[0], *(row[0] for row in expected)], steps, expected, strict=False
    ):
        assert np.array_equal(step[0], before) and np.array_equal(step[1], observation)
        assert np.array_equal(step[2], info["executed_action"]) and step[3:5] == (reward, terminated)
    (record,) = log.episodes
    assert record.source == "ilp" and record.plan == expected[-1][4]["plan"]
    assert record.total_reward == pytest.approx(sum(row[1] for row in expected))
    for name in ("accuracy", "ratio", "divergence", "target_ratio"):
        assert getattr(record, name) == expected[-1][4][name]


@pytest.mark.parametrize("algo", ["dqn", "sac"])
def test_a_replay_is_seeded_with_a_rollout(tiny: TinyTask, algo: str) -> None:
    env = HSQEnv(tiny, action_space=action_space_of(algo), target_ratio=5.0)
    agent: Any = make_agent(algo, env)
    steps = rollout(KeepBest(env), ACTIONS, "ilp", SearchLog(note))
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
    steps = rollout(KeepBest(env), ACTIONS, "ilp", SearchLog(note))
    seed_replay(agent, steps)
    buffer = agent.replay_buffer
    assert buffer.pos == 7 and buffer.observations.shape[1] == 2
    for i, step in enumerate(steps):
        for worker in range(2):
            assert np.array_equal(buffer.observations[i, worker], step[0])
            assert buffer.actions[i, worker] == step[2] and buffer.rewards[i, worker] == np.float32(step[3])


def test_an_agent_without_a_replay_is_left_alone(tiny: TinyTask) -> None:
    env = HSQEnv(tiny, target_ratio=5.0)
    steps = rollout(KeepBest(env), ACTIONS, "ilp", SearchLog(note))
    assert seed_replay(make_agent("ppo", env), steps) == []


# ---- plans as policies


class Told:
    """Proposes what is given to it and notes what it is told."""

    def __init__(self, *plans: list[int]) -> None:
        self.plans, self.told_of = list(plans), []  # type: tuple[list[list[int]], list[tuple[list[int], float, float]]]

    def propose(self) -> list[int] | None:
        """See ``Proposer``."""
        return self.plans.pop(0) if self.plans else None

    def told(self, choices: list[int], score: float, ratio: float) -> None:
        """See ``Proposer``."""
        self.told_of.append((choices, score, ratio))


@pytest.mark.parametrize("space", ["discrete", "multi_discrete", "continuous"])
def test_plans_are_played_until_there_are_no_more(tiny: TinyTask, space: str) -> None:
    """What is told is what was executed: the budget makes something else of 8 bits everywhere."""
    env, log = HSQEnv(tiny, action_space=space, target_ratio=5.0, step_minibatches=0), SearchLog(note)
    proposer = Told(ACTIONS, [8] * 7)
    agent = PlanAgent(proposer, env)
    play_policy(agent, KeepBest(env), "told", log)
    assert agent.finished and [e.source for e in log.episodes] == ["told"] * 2
    for episode, (choices, score, ratio) in zip(log.episodes, proposer.told_of, strict=True):
        assert episode.plan.choices == tuple(env.choices[i] for i in choices)
        assert (score, ratio) == (-episode.divergence, episode.ratio)
    assert proposer.told_of[0][0] == ACTIONS and proposer.told_of[1][0] != [8] * 7


def test_a_plan_is_followed_by_its_state(tiny: TinyTask) -> None:
    env = HSQEnv(tiny, target_ratio=5.0, step_minibatches=0)
    agent, state = PlanAgent(Told(ACTIONS, ACTIONS[::-1]), env), None
    assert agent.start_episode()
    for action in ACTIONS:
        found, state = agent.predict(None, state, np.array([False]))
        assert found == action
    assert agent.predict(None, state, np.array([True]))[0] == ACTIONS[0]  # a new episode, though the state is old
    assert agent.start_episode() and agent.predict(None)[0] == ACTIONS[-1]
    assert not agent.start_episode() and agent.finished


@pytest.mark.parametrize(
    ("episodes", "deadline", "expected"), [(2, None, 2), (0, None, 0), (None, 0.0, 0), (9, None, 3)]
)
def test_playing_stops_at_its_limits(
    tiny: TinyTask, episodes: int | None, deadline: float | None, expected: int
) -> None:
    env, log = HSQEnv(tiny, target_ratio=5.0, step_minibatches=0), SearchLog(note)
    play_policy(PlanAgent(Told(*[ACTIONS] * 3), env), KeepBest(env), "told", log, episodes, deadline)
    assert len(log.episodes) == expected


def test_a_rollout_for_one_of_several_targets(tiny: TinyTask) -> None:
    env, log = HSQEnv(tiny, target_ratio=(5.0, 9.0), step_minibatches=0), SearchLog(note)
    for target in (9.0, 5.0, 9.0):
        rollout(KeepBest(env), ACTIONS, "ilp", log, target)
    assert [e.target_ratio for e in log.episodes] == [9.0, 5.0, 9.0]
    assert log.episodes[0].plan == log.episodes[2].plan != log.episodes[1].plan


# ---- training


@pytest.mark.parametrize(("episodes", "seconds", "expected"), [(2, None, 2), (0, None, 0), (5, 0, 0), (None, 0.0, 0)])
def test_training_stops_at_its_limits(
    tiny: TinyTask, episodes: int | None, seconds: float | None, expected: int
) -> None:
    env, log = HSQEnv(tiny, target_ratio=5.0, step_minibatches=0), SearchLog(note)
    agent = make_agent("dqn", env)
    log.note(episode(8, 1.0, 1.0, "ilp"), {})
    train_agent(agent, 7, "dqn", log, episodes, seconds, [])
    assert [e.source for e in log.episodes[1:]] == ["dqn"] * expected
    assert agent.num_timesteps == 7 * expected
