"""Every agent learns on the tiny task."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_task import TinyTask

from agents.algorithms import ALGORITHMS, action_space_of, make_agent
from agents.dqn import MaskedDQN
from detectors.errors import InputError
from hsq_env.env import HSQEnv

SMALL: dict[str, dict[str, Any]] = {  # updates within two episodes of seven steps
    "ppo": {"n_steps": 7, "batch_size": 7},
    "maskable_ppo": {"n_steps": 7, "batch_size": 7},
    "haq": {"learning_starts": 7},
    "amc": {"learning_starts": 7},
    "sac": {"learning_starts": 7},
    "td3": {"learning_starts": 7},
    "ddpg": {"learning_starts": 7},
}


@pytest.mark.parametrize("algo", sorted(ALGORITHMS))
def test_two_episodes(tiny: TinyTask, tmp_path: Path, algo: str) -> None:
    env = HSQEnv(tiny, action_space=action_space_of(algo), target_ratio=6.0)
    agent = make_agent(algo, env, seed=0, **SMALL.get(algo, {}))
    before = {name: tensor.clone() for name, tensor in agent.policy.state_dict().items()}
    agent.learn(14)
    after = agent.policy.state_dict()
    assert agent.num_timesteps >= 14
    assert any(not torch.equal(after[name], before[name]) for name in before)
    assert all(tensor.isfinite().all() for tensor in after.values())
    agent.save(tmp_path / "policy.zip")
    loaded = ALGORITHMS[algo].kind.load(tmp_path / "policy.zip", env=env)
    seen = np.random.default_rng(0).random((20, 52)).astype(np.float32)
    assert np.array_equal(loaded.predict(seen, deterministic=True)[0], agent.predict(seen, deterministic=True)[0])


def test_an_unknown_agent_is_refused_with_the_known_ones() -> None:
    with pytest.raises(
        InputError, match=r"Unknown agent 'rainbow': known are dqn, qrdqn, maskable_ppo, ppo, sac, td3, ddpg, haq, amc"
    ):
        action_space_of("rainbow")


def test_spaces_fit_the_agents() -> None:
    found = {algo: action_space_of(algo) for algo in ALGORITHMS}
    discrete = dict.fromkeys(("dqn", "qrdqn", "maskable_ppo", "ppo"), "discrete")
    assert found == {**discrete, **dict.fromkeys(("sac", "td3", "ddpg", "haq", "amc"), "continuous")}


def test_dqn_has_masks_and_the_papers_learning_rate(tiny: TinyTask) -> None:
    agent = make_agent("dqn", HSQEnv(tiny))
    assert isinstance(agent, MaskedDQN)
    assert agent.learning_rate == 1e-3
    assert isinstance(agent.policy.optimizer, torch.optim.Adam)


def test_arguments_override_the_hyperparameters(tiny: TinyTask) -> None:
    agent: Any = make_agent("dqn", HSQEnv(tiny), gamma=0.5, learning_rate=0.25)
    assert (agent.gamma, agent.learning_rate) == (0.5, 0.25)


@pytest.mark.parametrize("algo", ["sac", "td3", "ddpg"])
def test_continuous_agents_store_what_was_executed(algo: str, tiny: TinyTask) -> None:
    env = HSQEnv(tiny, action_space="continuous", target_ratio=10.0)
    agent = make_agent(algo, env, seed=0, learning_starts=100)  # warm-up: random actions, no gradient steps
    agent.learn(total_timesteps=len(env.layers))
    stored = agent.replay_buffer.actions[: len(env.layers), 0]  # type: ignore[attr-defined]
    spent = sum(env.sizes[k, env.actions.decode(action)] for k, action in enumerate(stored))
    assert env.teacher_bytes / (spent + env.fixed_bytes) >= 10.0  # random actions alone stay below


@pytest.mark.parametrize("name", ["dqn", "qrdqn"])
def test_returns_of_several_steps_are_discounted_as_the_agent_is(tiny: TinyTask, name: str) -> None:
    env = HSQEnv(tiny, target_ratio=6.0, step_minibatches=0)
    for given, gamma in ({}, 1.0), ({"gamma": 0.9}, 0.9):
        agent: Any = make_agent(name, env, **given)
        assert agent.gamma == agent.replay_buffer.gamma == gamma and agent.replay_buffer.n_steps == 4
    assert ALGORITHMS[name].hyperparameters["replay_buffer_kwargs"]["gamma"] == 1.0
