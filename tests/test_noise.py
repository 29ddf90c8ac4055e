"""Exploration noise of HAQ and AMC."""

from typing import Any

import numpy as np
import pytest
from stable_baselines3.common.vec_env import DummyVecEnv
from tiny_task import TinyTask

from agents.algorithms import make_agent
from agents.noise import DecayingTruncatedNormal
from hsq_env.env import HSQEnv


@pytest.mark.parametrize("warmup", [0, 2])
def test_it_shrinks_with_every_episode_after_the_warmup(warmup: int) -> None:
    noise = DecayingTruncatedNormal(3, sigma=0.4, decay=0.5, warmup=warmup)
    for episode in range(5):
        noise.reset()  # once before the first episode
        np.random.seed(episode)
        found = [noise(), noise()]
        np.random.seed(episode)
        deviation = 0.8 * 0.5 ** max(0, episode - warmup)  # actions are twice as wide as the papers'
        assert np.array_equal(found, deviation * np.random.normal(size=(2, 3)).clip(-2, 2))


def test_it_is_cut_at_two_deviations() -> None:
    noise = DecayingTruncatedNormal(1000, sigma=0.3)
    noise.reset()
    np.random.seed(0)
    drawn = noise()
    assert drawn.max() == pytest.approx(1.2) and drawn.min() == pytest.approx(-1.2)


@pytest.mark.parametrize("algo", ["ddpg", "haq", "amc", "td3"])
def test_agents_count_their_episodes(tiny: TinyTask, algo: str) -> None:
    env = HSQEnv(tiny, action_space="continuous", step_minibatches=0, sensitivities=np.zeros((7, 12)))
    agent: Any = make_agent(algo, env)
    agent.learn(17)
    assert (agent.action_noise.actions, agent.action_noise.episodes) == (2, 2)


def test_every_worker_counts_its_own(tiny: TinyTask) -> None:
    def make() -> HSQEnv:
        return HSQEnv(tiny, action_space="continuous", step_minibatches=0, sensitivities=np.zeros((7, 12)))

    agent: Any = make_agent("ddpg", DummyVecEnv([make, make]), learning_starts=100)
    agent.learn(2 * 15)
    assert [noise.episodes for noise in agent.action_noise.noises] == [2, 2]


def test_agents_share_no_noise(tiny: TinyTask) -> None:
    env = HSQEnv(tiny, action_space="continuous", step_minibatches=0, sensitivities=np.zeros((7, 12)))
    one, other = (make_agent("amc", env) for _ in range(2))
    assert one.action_noise is not other.action_noise  # type: ignore[attr-defined]
