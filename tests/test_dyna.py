"""Practice in the surrogate, and the plans that it proposes."""

import copy
from typing import Any

import numpy as np
import pytest
from stable_baselines3.common.vec_env import DummyVecEnv
from test_surrogate import make, played
from tiny_task import TinyTask

from agents.algorithms import make_agent
from agents.baselines import planner as planner_module
from agents.dyna import Dyna
from agents.explorer import Explorer
from agents.keep_best import KeepBest
from agents.return_to_best import ReturnToBest
from agents.search_log import SearchLog
from agents.surrogate import (
    DamageModel,
    practice_env,
)
from hsq_env.env import HSQEnv
from hsq_env.self_evaluation import SelfEvaluation


def test_an_agent_practises_and_tries_proposals(tiny: TinyTask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planner_module, "PROBES", 0)
    env = make(tiny, target_ratio=9.0)
    planner = played(env, [4] * 7)
    wrapped = ReturnToBest(KeepBest(env), seed=0)
    agent: Any = make_agent("dqn", wrapped)
    dyna = Dyna(planner, first=3, each=2, gradient_steps=1, proposals=1.0)
    proposed: list[list[int]] = []
    follow = wrapped.follow

    def note(choices: list[int], ceilings: list[float]) -> None:
        proposed.append(choices)
        follow(choices, [np.inf] * 7)

    wrapped.follow = note  # type: ignore[method-assign]
    agent.learn(14, callback=dyna)
    assert dyna.practised == 3 + 2 * 2
    assert agent.replay_buffer.size() == 14  # imagined steps are kept apart
    assert dyna._replay.size() == 7 * 7
    executed = agent.replay_buffer.actions[:14, 0, 0].reshape(2, 7).tolist()
    assert executed == proposed[:2] and len(proposed) == 3


def test_probes_cost_one_evaluation_each(tiny: TinyTask) -> None:
    env = make(tiny, target_ratio=9.0)
    planner = played(env, [4] * 7)
    wrapped = ReturnToBest(KeepBest(env), seed=0)
    agent: Any = make_agent("dqn", wrapped)
    # the probes of one round; plans, which may be played to their end, come after them
    before, steps = env.evaluations, planner.model.steps
    agent.learn(20, callback=Dyna(planner, first=0, each=0, proposals=1.0))
    ends = np.flatnonzero(agent.replay_buffer.dones[:20, 0])
    assert len(ends) >= 4 and agent.replay_buffer.timeouts[ends, 0].all()  # given up, so that values are bootstrapped
    assert planner.model.steps - steps <= env.evaluations - before
    assert env.evaluations - before <= len(ends) + 1


def test_without_proposals_the_agent_decides(tiny: TinyTask) -> None:
    env = make(tiny, target_ratio=9.0)
    agent: Any = make_agent("dqn", ReturnToBest(KeepBest(env), seed=0))
    dyna = Dyna(played(env, [4] * 7), first=0, each=0, proposals=0.0)
    before = {name: tensor.clone() for name, tensor in agent.policy.state_dict().items()}
    agent.learn(7, callback=[dyna])
    assert dyna.practised == 0 and any((agent.policy.state_dict()[n] != t).any() for n, t in before.items())


def test_a_search_with_a_surrogate_keeps_its_budget(tiny: TinyTask) -> None:
    env, log = make(tiny, target_ratio=9.0), SearchLog(lambda line: None)
    Explorer("dqn", episodes=None, evaluations=40).run(env, log)
    assert 35 <= env.evaluations <= 40
    assert min(e.divergence for e in log.episodes) <= log.episodes[0].divergence


def greedy_return(agent: Any, env: HSQEnv, model: DamageModel) -> float:
    """Of the agent in the model, as the model believes."""
    practice = practice_env(env, model)
    observation, _ = practice.reset()
    total, ended = 0.0, False
    while not ended:
        action, _ = agent.predict(observation, deterministic=True)
        observation, reward, ended, _, _ = practice.step(action)
        total += float(reward)
    return total


def test_practice_does_not_unlearn_the_best_plan(tiny: TinyTask) -> None:
    """And the target network follows it, which Stable-Baselines3 does by steps of the environment alone."""
    env = make(tiny, target_ratio=9.0)
    planner = played(env, [4] * 7)
    agent: Any = make_agent("dqn", ReturnToBest(KeepBest(env), seed=0), seed=0)
    target = {name: tensor.clone() for name, tensor in agent.q_net_target.state_dict().items()}
    dyna = Dyna(planner, first=100, each=0, proposals=1.0)
    agent.learn(1, callback=dyna)
    assert any((agent.q_net_target.state_dict()[name] != tensor).any() for name, tensor in target.items())
    practice = practice_env(env, planner.model)
    practice.reset()
    best = sum(float(practice.step(choice)[1]) for choice in planner.best[9.0].choices)
    assert greedy_return(agent, env, planner.model) >= best - 1e-6


@pytest.mark.parametrize("name", ["td3", "ddpg"])
def test_workers_with_noise_practise(tiny: TinyTask, name: str) -> None:
    """Stable-Baselines3 draws noise for all of them at once then."""
    env = make(tiny, target_ratio=9.0, action_space="continuous")
    both = DummyVecEnv([lambda i=i: ReturnToBest(KeepBest(env.fork()), seed=i) for i in range(2)])  # type: ignore[misc]
    agent: Any = make_agent(name, both, seed=0, policy_kwargs={"net_arch": [16]})
    dyna = Dyna(played(env, [4] * 7), first=2, each=0, gradient_steps=1)
    agent.learn(4, callback=dyna)
    assert dyna.practised == 2


def test_the_first_practice_explores(tiny: TinyTask) -> None:
    """Though Stable-Baselines3 says nothing of exploration before the first real step."""
    env = make(tiny, target_ratio=9.0)
    agent: Any = make_agent("dqn", ReturnToBest(KeepBest(env), seed=0), seed=0, exploration_initial_eps=0.5)
    dyna = Dyna(played(env, [4] * 7), first=20, each=0, gradient_steps=1)
    agent.learn(1, callback=dyna)
    assert len(np.unique(dyna._replay.actions[:140, 0, 0].reshape(20, 7), axis=0)) > 10


def test_examples_are_none_where_actions_say_alpha(tiny: TinyTask) -> None:
    """Which alphas a plan was played with the model does not know."""
    env = make(tiny, target_ratio=9.0, alpha_control="agent")
    agent: Any = make_agent("dqn", ReturnToBest(KeepBest(env), seed=0), seed=0)
    dyna = Dyna(played(env, [4] * 7), first=0, each=0)
    dyna.init_callback(agent)
    assert dyna._known(agent, practice_env(env, dyna.planner.model)) is None
    other = make(tiny, target_ratio=9.0)
    dyna = Dyna(played(other, [4] * 7), first=0, each=0)
    agent = make_agent("dqn", ReturnToBest(KeepBest(other), seed=0), seed=0)
    known = dyna._known(agent, practice_env(other, dyna.planner.model))
    assert known.actions[:7, 0, 0].tolist() == dyna.planner.best[9.0].choices and not known.full


def test_noise_explores_in_practice_too(tiny: TinyTask) -> None:
    env = make(tiny, target_ratio=9.0, action_space="continuous")
    agent: Any = make_agent("td3", ReturnToBest(KeepBest(env), seed=0), seed=0, policy_kwargs={"net_arch": [16]})
    dyna = Dyna(played(env, [4] * 7), first=0, each=0)
    dyna.init_callback(agent)
    observation, _ = env.reset()
    drawn = np.array([dyna._explored(observation) for _ in range(20)])
    assert len(np.unique(drawn, axis=0)) > 10 and abs(drawn).max() <= 1


def test_where_another_reward_counts_nobody_practises(tiny: TinyTask) -> None:
    """The model knows no accuracy: what it would say of one is a guess."""
    env = make(tiny, target_ratio=9.0)
    env.reward = "paper"
    agent: Any = make_agent("dqn", ReturnToBest(KeepBest(env), seed=0))
    dyna = Dyna(played(env, [4] * 7), first=3, each=2)
    agent.learn(8, callback=dyna)
    assert dyna.practised == 0


@pytest.mark.parametrize(
    ("settings", "surrogate"),
    [({"target_ratio": 9.0}, True), ({"target_ratio": [6.0, 9.0]}, True), ({"target_ratio": None}, False)],
)
def test_a_surrogate_needs_a_budget(tiny: TinyTask, settings: dict[str, Any], surrogate: bool) -> None:
    env = make(tiny, **settings)
    loop = SelfEvaluation(0.9, 9.0)
    assert Explorer("dqn").has_surrogate(env) is surrogate
    timed = copy.copy(env)
    timed.budgets = {None: make(tiny, target_ratio=9.0).budgets[9.0]}  # of milliseconds, beside no ratio
    assert Explorer("dqn").has_surrogate(timed)
    assert not Explorer("dqn", self_evaluation=loop).has_surrogate(env)
    for other in (Explorer("ppo"), Explorer("haq"), Explorer("ilp"), Explorer("dqn", warm_start=())):
        assert not other.has_surrogate(env)
