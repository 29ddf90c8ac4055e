"""QR-DQN with masks: as DQN, with a distribution of values in place of their mean."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sb3_contrib.qrdqn.policies import QuantileNetwork
from stable_baselines3.common.logger import Logger
from test_dqn import Executed, observations
from tiny_task import TinyTask

from agents.algorithms import make_agent
from agents.masked import FORBIDDEN
from agents.qrdqn import MaskedQRDQN, MaskedQuantileNetwork
from hsq_env.env import HSQEnv

QUANTILES = 25


@pytest.fixture(scope="module")
def env(tiny: TinyTask) -> HSQEnv:
    return HSQEnv(tiny, target_ratio=11.0, step_minibatches=0)


@pytest.fixture
def agent(env: HSQEnv) -> MaskedQRDQN:
    made = make_agent("qrdqn", env, seed=0, batch_size=16)
    assert isinstance(made, MaskedQRDQN)
    return made


def plain(network: Any, seen: NDArray[np.float32]) -> NDArray[np.float32]:
    """sb3-contrib's quantiles, (N, quantiles, actions)."""
    with torch.no_grad():
        return np.asarray(QuantileNetwork.forward(network, torch.from_numpy(seen)))


def favour(network: Any, action: int) -> None:
    """Make an action look best by far, whatever is observed."""
    with torch.no_grad():
        network.quantile_net[-1].bias.view(QUANTILES, 12)[:, action] = 100.0


# ---- values


def test_quantiles_are_those_of_sb3_where_allowed(agent: MaskedQRDQN) -> None:
    seen, allowed = observations(50)
    with torch.no_grad():
        masked = agent.quantile_net(torch.from_numpy(seen)).numpy()
    assert masked.shape == (50, QUANTILES, 12)
    assert np.array_equal(masked, np.where(allowed[:, None], plain(agent.quantile_net, seen), np.float32(FORBIDDEN)))


def test_both_networks_are_masked(agent: MaskedQRDQN) -> None:
    for network in (agent.quantile_net, agent.quantile_net_target):
        assert isinstance(network, MaskedQuantileNetwork)


@pytest.mark.parametrize("favourite", range(0, 12, 3))
def test_the_greedy_action_is_the_best_allowed_one(agent: MaskedQRDQN, favourite: int) -> None:
    favour(agent.quantile_net, favourite)
    seen, allowed = observations(200, seed=favourite)
    found, _ = agent.predict(seen, deterministic=True)
    values = plain(agent.quantile_net, seen).mean(axis=1)
    assert found.tolist() == np.where(allowed, values, -np.inf).argmax(axis=1).tolist()
    assert (found == favourite).sum() == allowed[:, favourite].sum() > 0


def test_the_targets_maximum_is_over_allowed_actions(agent: MaskedQRDQN, monkeypatch: pytest.MonkeyPatch) -> None:
    favour(agent.quantile_net_target, 7)
    seen, allowed = observations(64)
    allowed[:, 7] = False
    seen[:, -12:] = allowed
    for i in range(0, 64, 2):
        row = (seen[i : i + 1], seen[i + 1 : i + 2], np.array([3]), np.array([0.5]), np.array([True]))
        agent.replay_buffer.add(*row, [{}])  # type: ignore[union-attr]
    targets: list[NDArray[np.float32]] = []
    sampled: list[Any] = []
    sample = agent.replay_buffer.sample  # type: ignore[union-attr]

    def record_sample(*arguments: Any, **options: Any) -> Any:
        sampled.append(sample(*arguments, **options)._replace(dones=torch.zeros(16, 1)))
        return sampled[-1]

    def record_loss(values: torch.Tensor, target: torch.Tensor, **options: Any) -> torch.Tensor:
        targets.append(target.numpy().copy())
        return (values - target).square().mean()

    agent.set_logger(Logger(None, []))
    monkeypatch.setattr(agent.replay_buffer, "sample", record_sample)
    monkeypatch.setattr("sb3_contrib.qrdqn.qrdqn.quantile_huber_loss", record_loss)
    agent.train(1, batch_size=16)
    following = sampled[0].next_observations.numpy()
    quantiles = plain(agent.quantile_net_target, following)  # (16, quantiles, actions)
    means, open_to = quantiles.mean(axis=1), following[:, -12:] > 0.5
    assert means.argmax(axis=1).tolist() == [7] * 16 and not open_to[:, 7].any()
    best = np.where(open_to, means, -np.inf).argmax(axis=1)
    expected = 0.5 + sampled[0].discounts.numpy() * quantiles[np.arange(16), :, best]
    np.testing.assert_allclose(targets[0], expected, rtol=1e-5, atol=1e-6)


# ---- exploration and the replay


def test_exploration_draws_every_allowed_action_and_no_other(agent: MaskedQRDQN) -> None:
    agent.exploration_rate = 1.0
    seen, allowed = observations(1)
    drawn = {int(agent.predict(seen, deterministic=False)[0][0]) for _ in range(300)}
    assert drawn == set(np.flatnonzero(allowed[0])) and len(drawn) > 1


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_one_observation_gives_one_action(agent: MaskedQRDQN, rate: float) -> None:
    agent.exploration_rate = rate
    seen, allowed = observations(1)
    action, _ = agent.predict(seen[0], deterministic=False)
    assert np.shape(action) == () and allowed[0, int(action)]


def test_the_replay_holds_what_was_executed(env: HSQEnv, monkeypatch: pytest.MonkeyPatch) -> None:
    noting = Executed(env)
    agent: Any = make_agent("qrdqn", noting, seed=0)
    monkeypatch.setattr(agent, "predict", lambda *arguments, **options: (np.array([8]), None))  # far over the budget
    agent.learn(14)
    assert noting.asked == [8] * 14 and set(noting.executed) != {8}
    assert agent.replay_buffer.actions[:14, 0, 0].tolist() == noting.executed


def test_a_masked_agent_asks_for_nothing_else(env: HSQEnv) -> None:
    noting = Executed(env)
    make_agent("qrdqn", noting, seed=1).learn(35)
    assert noting.asked == noting.executed and len(noting.asked) == 35


def test_the_same_seed_learns_the_same(env: HSQEnv) -> None:
    seen, _ = observations(20)
    made = []
    for _ in range(2):
        agent: Any = make_agent("qrdqn", env, seed=3)
        agent.learn(21)
        made.append(plain(agent.quantile_net, seen))
    assert np.array_equal(*made)
