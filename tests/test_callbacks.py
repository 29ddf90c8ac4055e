"""Callbacks: episodes are recorded as they were, and training stops where it should."""

import json
import math
import time
from typing import Any

import numpy as np
import pytest
from stable_baselines3.common.vec_env import DummyVecEnv
from tiny_task import TinyTask

from agents.algorithms import make_agent
from agents.callbacks import EpisodeRecorder
from agents.episode import Episode
from agents.evaluation_budget import EvaluationBudget
from agents.pretrain import PretrainOnReplay
from agents.rollout import seed_replay
from hsq_env.choices import Choice, Plan
from hsq_env.env import HSQEnv


@pytest.fixture
def agent(tiny: TinyTask) -> Any:
    return make_agent("dqn", HSQEnv(tiny, target_ratio=6.0), seed=0)


def test_an_episode_in_json() -> None:
    plan = Plan(("a", "b"), (Choice(2, 0.75), Choice(8)))
    episode = Episode(
        "dqn", plan, total_reward=1.5, accuracy=0.9, ratio=8.0, seconds=2.5, divergence=0.25, target_ratio=6.0
    )
    assert json.loads(json.dumps(episode.to_json())) == {
        "source": "dqn",
        "total_reward": 1.5,
        "accuracy": 0.9,
        "ratio": 8.0,
        "seconds": 2.5,
        "divergence": 0.25,
        "target_ratio": 6.0,
        "choices": [[2, 0.75], [8, 0.0]],
    }


def test_episodes_are_recorded_and_counted(tiny: TinyTask, agent: Any) -> None:
    episodes: list[Episode] = []
    infos: list[dict[str, Any]] = []

    def note(episode: Episode, info: dict[str, Any]) -> None:
        assert info is infos[-1]
        episodes.append(episode)

    agent.learn(1000, callback=EpisodeRecorder("dqn", note, episodes=3, on_progress=infos.append))
    assert agent.num_timesteps == len(infos) == 21
    assert [episode.source for episode in episodes] == ["dqn"] * 3
    for number, episode in enumerate(episodes):
        steps = infos[7 * number : 7 * number + 7]
        again = HSQEnv(tiny, target_ratio=6.0)
        again.reset()
        rewards = [again.step(info["executed_action"])[1] for info in steps]
        assert episode.plan == again.plan() == steps[-1]["plan"]
        assert episode.total_reward == pytest.approx(sum(rewards), abs=1e-5)  # SB3 hands rewards on in float32
        assert (episode.accuracy, episode.ratio) == (steps[-1]["accuracy"], again.ratio)
        assert (episode.divergence, episode.target_ratio) == (steps[-1]["divergence"], 6.0)
        assert episode.seconds >= 0


def test_a_diverged_student_is_the_worst() -> None:
    info = {"plan": Plan(("a",), (Choice(2),)), "accuracy": 0.0, "ratio": 6.0, "divergence": 0.5, "target_ratio": None}
    made = [Episode.of("dqn", {**info, "diverged": diverged}, 1.5, 0.123) for diverged in (False, True)]
    assert [episode.divergence for episode in made] == [0.5, math.inf]
    assert made[0] == Episode("dqn", info["plan"], 1.5, 0.0, 6.0, 0.12, 0.5, None)  # type: ignore[arg-type]


def test_spent_evaluations_stop_the_training(tiny: TinyTask) -> None:
    """The step that was not measured is no part of an episode."""
    env = EvaluationBudget(HSQEnv(tiny, target_ratio=6.0, step_minibatches=0, table_megabytes=0), 10)
    agent, episodes, seen = make_agent("dqn", env, seed=0), [], []  # type: ignore[var-annotated]
    recorder = EpisodeRecorder("dqn", lambda e, _: episodes.append(e), on_progress=seen.append)
    agent.learn(1000, callback=recorder)
    assert agent.num_timesteps == 11 and len(seen) == 10 and len(episodes) == 1


def test_a_passed_deadline_stops_after_a_step(agent: Any) -> None:
    episodes: list[Episode] = []
    agent.learn(1000, callback=EpisodeRecorder("dqn", lambda e, _: episodes.append(e), deadline=time.monotonic()))
    assert agent.num_timesteps == 1 and episodes == []


def test_without_limits_training_goes_on(agent: Any) -> None:
    episodes: list[Episode] = []
    agent.learn(15, callback=EpisodeRecorder("dqn", lambda e, _: episodes.append(e)))
    assert agent.num_timesteps == 15 and len(episodes) == 2


def test_environments_side_by_side_are_recorded_apart(tiny: TinyTask) -> None:
    both = DummyVecEnv([lambda: HSQEnv(tiny, target_ratio=6.0)] * 2)
    agent: Any = make_agent("dqn", both, seed=0, exploration_initial_eps=1.0, exploration_final_eps=1.0)
    episodes: list[Episode] = []
    rewards: list[list[float]] = [[], []]

    class Noting(EpisodeRecorder):
        def _on_step(self) -> bool:
            for own, reward in zip(rewards, self.locals["rewards"], strict=True):
                own.append(float(reward))
            return super()._on_step()

    agent.learn(1000, callback=Noting("dqn", lambda e, _: episodes.append(e), episodes=3))
    assert agent.num_timesteps == 2 * 14 and len(episodes) == 4  # both finish in the same step
    ends = [sum(own[start : start + 7]) for start in (0, 7) for own in rewards]
    assert [e.total_reward for e in episodes] == pytest.approx(ends)
    assert len({e.plan for e in episodes}) == 4


def seed(agent: Any, count: int) -> None:
    rng = np.random.default_rng(0)
    for _ in range(count):
        one, other = (np.r_[rng.random(40), np.ones(12)].astype(np.float32)[None] for _ in range(2))
        agent.replay_buffer.add(one, other, np.array([1]), np.array([0.5]), np.array([False]), [{}])


@pytest.mark.parametrize(("seeded", "updates"), [(20, 11), (0, 0)])
def test_a_seeded_replay_is_learned_from_first(agent: Any, seeded: int, updates: int) -> None:
    seed(agent, seeded)
    seen: list[int] = []

    class First(PretrainOnReplay):
        def _on_rollout_start(self) -> None:
            seen.append(agent._n_updates)

    agent.learn(2, callback=First(gradient_steps=11))
    assert seen[0] == updates


def test_a_dqn_starts_from_the_seeds(tiny: TinyTask) -> None:
    """Its first greedy episode takes the actions that the seeds took."""
    env = HSQEnv(tiny, target_ratio=6.0)
    agent: Any = make_agent("dqn", env, seed=0)
    actions = [8, 5, 4, 6, 4, 9, 1]
    observation, _ = env.reset()
    for action in actions:
        following, reward, done, _, info = env.step(action)
        row = (observation[None], following[None], np.array([info["executed_action"]]), np.array([reward]))
        agent.replay_buffer.add(*row, np.array([done]), [info])
        observation = following
    assert env.plan().choices == tuple(env.choices[action] for action in actions)

    class Greedy(PretrainOnReplay):
        def _on_rollout_start(self) -> None:
            seen = agent.replay_buffer.observations[:7, 0]
            found.append(agent.predict(seen, deterministic=True)[0].tolist())

    found: list[list[int]] = []
    agent.learn(1, callback=Greedy())
    assert found[0] == actions


def test_a_margin_is_of_the_seeds_alone(tiny: TinyTask) -> None:
    """What an agent tried before, which a replay that it goes on with holds, is no example."""
    env = HSQEnv(tiny, target_ratio=6.0, step_minibatches=0)
    agent: Any = make_agent("dqn", env, seed=0)
    rng = np.random.default_rng(0)
    tried: list[Any] = []
    actions = [8, 5, 4, 6, 4, 9, 1]
    for choices in ([int(a) for a in rng.integers(0, 12, 7)] for _ in range(30)):
        tried += steps_of(env, choices)
    seed_replay(agent, tried)
    seeds = steps_of(env, actions)
    (pretraining,) = seed_replay(agent, seeds)
    agent.learn(1, callback=pretraining)
    seen = np.array([observation for observation, *_ in seeds])
    assert agent.predict(seen, deterministic=True)[0].tolist() == actions


def steps_of(env: HSQEnv, choices: list[int]) -> list[Any]:
    observation, _ = env.reset()
    steps = []
    for choice in choices:
        following, reward, ended, _, info = env.step(choice)
        steps.append((observation, following, info["executed_action"], float(reward), ended, info))
        observation = following
    return steps


def test_a_spent_worker_takes_no_others_episode_along(tiny: TinyTask) -> None:
    """Both end in one step, one for lack of evaluations and one with a plan."""
    limits = iter([6, 7])
    both = DummyVecEnv(
        [lambda: EvaluationBudget(HSQEnv(tiny, target_ratio=6.0, step_minibatches=0, table_megabytes=0), next(limits))]
        * 2
    )
    agent, episodes = make_agent("dqn", both, seed=0), []  # type: ignore[var-annotated]
    agent.learn(1000, callback=EpisodeRecorder("dqn", lambda e, _: episodes.append(e)))
    assert len(episodes) == 1
