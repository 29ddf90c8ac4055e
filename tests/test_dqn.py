"""DQN with masks: neither of its two maxima nor its exploration picks what the budget forbids."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from stable_baselines3.dqn.policies import QNetwork
from tiny_task import TinyTask

from agents.algorithms import make_agent
from agents.dqn import MaskedDQN, MaskedQNetwork
from agents.evaluation_budget import EvaluationBudget
from agents.masked import FORBIDDEN
from agents.rollout import train_agent
from agents.search_log import SearchLog
from detectors.errors import InputError
from hsq_env.env import HSQEnv

Array = NDArray[np.float32]


@pytest.fixture(scope="module")
def env(tiny: TinyTask) -> HSQEnv:
    return HSQEnv(tiny, target_ratio=11.0, step_minibatches=0)


@pytest.fixture
def agent(env: HSQEnv) -> MaskedDQN:
    made = make_agent("dqn", env, seed=0, batch_size=16)
    assert isinstance(made, MaskedDQN)
    return made


def observations(count: int, seed: int = 0) -> tuple[Array, NDArray[np.bool_]]:
    """Random ones with random masks, and the masks."""
    rng = np.random.default_rng(seed)
    allowed = rng.random((count, 12)) < 0.3
    allowed[np.arange(count), rng.integers(12, size=count)] = True
    return np.concatenate([rng.random((count, 40)), allowed], axis=1).astype(np.float32), allowed


def favour(network: Any, action: int) -> None:
    """Make an action look best by far, whatever is observed."""
    with torch.no_grad():
        network.q_net[-1].bias[action] = 100.0


# ---- values


def test_values_are_those_of_sb3_where_allowed(agent: MaskedDQN) -> None:
    seen, allowed = observations(50)
    with torch.no_grad():
        masked = agent.q_net(torch.from_numpy(seen)).numpy()
        plain = QNetwork.forward(agent.q_net, torch.from_numpy(seen)).numpy()
    assert np.array_equal(masked, np.where(allowed, plain, np.float32(FORBIDDEN)))


def test_both_networks_are_masked(agent: MaskedDQN) -> None:
    assert isinstance(agent.q_net, MaskedQNetwork) and isinstance(agent.q_net_target, MaskedQNetwork)


@pytest.mark.parametrize("favourite", range(0, 12, 3))
def test_the_greedy_action_is_the_best_allowed_one(agent: MaskedDQN, favourite: int) -> None:
    favour(agent.q_net, favourite)
    seen, allowed = observations(200, seed=favourite)
    found, _ = agent.predict(seen, deterministic=True)
    with torch.no_grad():
        values = QNetwork.forward(agent.q_net, torch.from_numpy(seen)).numpy()
    expected = [max(np.flatnonzero(row), key=lambda a, v=v: v[a]) for row, v in zip(allowed, values, strict=True)]
    assert found.tolist() == expected
    assert (found == favourite).sum() == allowed[:, favourite].sum() > 0


def test_the_targets_maximum_is_over_allowed_actions(agent: MaskedDQN, monkeypatch: pytest.MonkeyPatch) -> None:
    favour(agent.q_net_target, 7)
    seen, allowed = observations(64)
    allowed[:, 7] = False
    seen[:, -12:] = allowed
    for i in range(0, 64, 2):
        agent.replay_buffer.add(
            seen[i : i + 1], seen[i + 1 : i + 2], np.array([3]), np.array([0.5]), np.array([True]), [{}]
        )
    targets: list[Array] = []
    sampled: list[Any] = []
    sample = agent.replay_buffer.sample

    def record_sample(*arguments: Any, **options: Any) -> Any:
        sampled.append(sample(*arguments, **options)._replace(dones=torch.zeros(16, 1)))
        return sampled[-1]

    def record_loss(values: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        targets.append(target.numpy().copy())
        return (values - target).square().mean()

    agent.set_logger(_quiet_logger())
    with torch.no_grad():
        network = QNetwork.forward
        monkeypatch.setattr(agent.replay_buffer, "sample", record_sample)
        monkeypatch.setattr("stable_baselines3.dqn.dqn.F.smooth_l1_loss", record_loss)
    before = {name: tensor.clone() for name, tensor in agent.q_net_target.state_dict().items()}
    agent.train(1, batch_size=16)
    agent.q_net_target.load_state_dict(before)
    following = sampled[0].next_observations
    with torch.no_grad():
        values = network(agent.q_net_target, following).numpy()
    open_to = following[:, -12:].numpy() > 0.5
    best = np.where(open_to, values, -np.inf).max(axis=1)
    assert values.argmax(axis=1).tolist() == [7] * 16 and not open_to[:, 7].any()
    np.testing.assert_allclose(targets[0][:, 0], 0.5 + sampled[0].discounts.numpy()[:, 0] * best, rtol=1e-6)


def _quiet_logger() -> Any:
    from stable_baselines3.common.logger import Logger

    return Logger(None, [])


# ---- exploration


def test_exploration_draws_every_allowed_action_and_no_other(agent: MaskedDQN) -> None:
    agent.exploration_rate = 1.0
    seen, allowed = observations(1)
    drawn = {int(agent.predict(seen, deterministic=False)[0][0]) for _ in range(300)}
    assert drawn == set(np.flatnonzero(allowed[0])) and len(drawn) > 1


def test_exploration_of_many_observations_at_once(agent: MaskedDQN) -> None:
    agent.exploration_rate = 1.0
    seen, allowed = observations(300)
    found, _ = agent.predict(seen, deterministic=False)
    assert found.shape == (300,) and allowed[np.arange(300), found].all()


def test_every_worker_explores_on_its_own(agent: MaskedDQN) -> None:
    """With two choices allowed, half of the exploring rows differ from the greedy ones."""
    seen, _ = observations(400)
    seen[:, -12:] = 0
    seen[:, [-12, -7]] = 1
    agent.exploration_rate = 0.5
    greedy, _ = agent.predict(seen, deterministic=True)
    np.random.seed(0)
    actions, _ = agent.predict(seen)
    assert set(actions.tolist()) == {0, 5}
    assert 60 < (actions != greedy).sum() < 140


def test_a_single_worker_draws_as_ever(agent: MaskedDQN) -> None:
    """Whether to explore, and only then what: the same numbers as a search of one environment has always used."""
    seen, allowed = observations(60)
    agent.exploration_rate = 0.4
    np.random.seed(1)
    found = [int(agent.predict(row)[0]) for row in seen]
    np.random.seed(1)
    for row, mask, action in zip(seen, allowed, found, strict=True):
        explores = np.random.rand(1)[0] < 0.4
        expected = np.random.choice(np.flatnonzero(mask)) if explores else agent.predict(row, deterministic=True)[0]
        assert action == expected


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_one_observation_gives_one_action(agent: MaskedDQN, rate: float) -> None:
    agent.exploration_rate = rate
    seen, allowed = observations(1)
    action, _ = agent.predict(seen[0], deterministic=False)
    assert np.shape(action) == () and allowed[0, int(action)]


def test_deterministic_actions_are_never_random(agent: MaskedDQN) -> None:
    agent.exploration_rate = 1.0
    seen, _ = observations(100)
    first = agent.predict(seen, deterministic=True)[0]
    assert all(np.array_equal(agent.predict(seen, deterministic=True)[0], first) for _ in range(5))


# ---- the replay


class Executed(gym.Wrapper[Any, Any, Any, Any]):
    """Notes what was asked and what was executed."""

    def __init__(self, env: HSQEnv) -> None:
        super().__init__(env)
        self.asked: list[int] = []
        self.executed: list[int] = []

    def step(self, action: Any) -> Any:
        """As the environment's."""
        result = self.env.step(action)
        self.asked.append(int(action))
        self.executed.append(result[4]["executed_action"])
        return result


def test_the_replay_holds_what_was_executed(env: HSQEnv, monkeypatch: pytest.MonkeyPatch) -> None:
    noting = Executed(env)
    agent = make_agent("dqn", noting, seed=0)

    def always_eight_bits(*arguments: Any, **options: Any) -> tuple[NDArray[np.int64], None]:
        return np.array([8]), None  # far over the budget, as an agent without masks would ask

    monkeypatch.setattr(agent, "predict", always_eight_bits)
    agent.learn(14)
    buffer: Any = agent.replay_buffer  # type: ignore[attr-defined]
    assert noting.asked == [8] * 14 and set(noting.executed) != {8}
    assert buffer.actions[:14, 0, 0].tolist() == noting.executed
    masks = buffer.observations[:14, 0, -12:] > 0.5
    assert masks[np.arange(14), noting.executed].all()


def test_a_masked_agent_asks_for_nothing_else(env: HSQEnv) -> None:
    noting = Executed(env)
    make_agent("dqn", noting, seed=1).learn(35)
    assert noting.asked == noting.executed and len(noting.asked) == 35


def test_the_same_seed_learns_the_same(env: HSQEnv) -> None:
    seen, _ = observations(20)
    made = []
    for _ in range(2):
        agent = make_agent("dqn", env, seed=3)
        agent.learn(21)
        with torch.no_grad():
            made.append(agent.policy.q_net(torch.from_numpy(seen)))  # type: ignore[operator]
    assert torch.equal(*made)


def test_observations_without_a_mask_are_told_of(env: HSQEnv) -> None:
    """Normalized, a mask of ones is one of zeros."""
    normalized = VecNormalize(DummyVecEnv([lambda: env]), norm_reward=False)
    agent = make_agent("dqn", normalized, learning_starts=0, exploration_initial_eps=1.0)
    with pytest.raises(InputError, match=r"last 12 numbers.*VecNormalize"):
        agent.learn(3)


def test_a_greedy_action_needs_a_mask_too(env: HSQEnv, agent: MaskedDQN) -> None:
    with pytest.raises(InputError, match="No action is allowed"):
        agent.predict(np.zeros((2, 52), np.float32), deterministic=True)


def test_actions_of_another_space_are_told_of(tiny: TinyTask) -> None:
    inner = HSQEnv(tiny, action_space="continuous", target_ratio=6.0, step_minibatches=0)
    rescaled = gym.wrappers.RescaleAction(inner, np.float32(0.0), np.float32(1.0))  # type: ignore[var-annotated]
    agent = make_agent("sac", rescaled, seed=0, learning_starts=100)
    with pytest.raises(InputError, match="RescaleAction"):
        agent.learn(20)


@pytest.mark.parametrize("limits", [{"episodes": 4}, {"episodes": None, "evaluations": 28}])
def test_exploration_falls_with_the_share_that_is_done(tiny: TinyTask, limits: dict[str, Any]) -> None:
    """However long an agent of Stable-Baselines3 is told that it has."""
    rates: list[float] = []

    class Rates(BaseCallback):
        gives_up_episodes = True

        def _on_step(self) -> bool:
            rates.append(self.model.exploration_rate)  # type: ignore[attr-defined]
            return True

    env = EvaluationBudget(
        HSQEnv(tiny, target_ratio=6.0, step_minibatches=0, table_megabytes=0), limits.get("evaluations")
    )
    agent = make_agent("dqn", env, exploration_initial_eps=0.5, exploration_final_eps=0.1, exploration_fraction=0.5)
    log = SearchLog(lambda line: None)
    train_agent(agent, 7, "dqn", log, limits["episodes"], None, [Rates()], evaluations=limits.get("evaluations"))
    rates[0] = 0.5  # SB3 sets it at the first step
    assert len(rates) >= 28 and np.diff(rates).max() < 1e-9
    assert rates[7] == pytest.approx(0.3, abs=0.03) and rates[15:28] == pytest.approx([0.1] * 13)
