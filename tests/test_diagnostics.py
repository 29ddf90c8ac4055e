"""Q-values on fixed states, and the regression over a search's steps."""

from typing import Any

import numpy as np
import pytest
import torch
from helpers import play
from tiny_task import TinyTask

from agents.algorithms import make_agent
from agents.diagnostics import QValues, StepRegression
from agents.regression import Step, regress
from hsq_env.env import HSQEnv

NONE = np.zeros((7, 12))


def make(tiny: TinyTask, **settings: Any) -> HSQEnv:
    return HSQEnv(tiny, step_minibatches=0, sensitivities=NONE, **settings)


@pytest.mark.parametrize("algo", ["dqn", "qrdqn"])
def test_q_values_are_the_means_of_the_networks_largest(tiny: TinyTask, algo: str) -> None:
    env = make(tiny, target_ratio=9.0)
    states = np.stack([step[0] for step in play(env, [5] * 7)])
    agent: Any = make_agent(algo, env)
    callback = QValues(states, every=5)
    agent.learn(11, callback=callback)
    assert [n for n, _ in callback.history] == [0, 5, 10]
    network = agent.q_net if algo == "dqn" else agent.quantile_net
    callback._look()
    with torch.no_grad():
        values = network(torch.as_tensor(states))
        expected = (values.mean(dim=1) if algo == "qrdqn" else values).amax(dim=1).mean().item()
    assert callback.history[-1][1] == pytest.approx(expected)


def test_agents_without_q_values_have_no_history(tiny: TinyTask) -> None:
    callback = QValues(np.zeros((2, 52), dtype=np.float32))
    make_agent("ppo", make(tiny), n_steps=7, batch_size=7).learn(7, callback=callback)
    assert callback.history == [] and not callback.settled


@pytest.mark.parametrize(("values", "settled"), [([1, 2, 3, 4, 5, 6, 7, 8], False), ([1, 3, 4, 4, 4, 4, 4, 4], True)])
def test_settled(values: list[float], settled: bool) -> None:
    callback = QValues(np.zeros((1, 52), dtype=np.float32))
    callback.history = list(enumerate(map(float, values)))
    assert callback.settled is settled


def test_every_measured_step_is_collected_once(tiny: TinyTask) -> None:
    env = make(tiny)
    callback = StepRegression(env)
    callback._walks = [([], 1.0)]
    plans = [[8] * 7, [8, 8, 8, 0, 0, 0, 0], [8] * 7]
    expected: dict[tuple[int, ...], float] = {}
    for plan in plans:
        before = 1.0
        for layer, (*_, info) in enumerate(play(env, plan)):
            callback.add(0, info)
            expected.setdefault(tuple(plan[: layer + 1]), before - info["accuracy"])
            before = info["accuracy"]
        callback._walks = [([], 1.0)]
    assert [s.harm for s in callback.steps] == list(expected.values())
    assert [(s.layer, s.choice) for s in callback.steps] == [
        (len(prefix) - 1, env.choices[prefix[-1]]) for prefix in expected
    ]


def test_insensitive_layers_are_explored_among_their_smallest_choices(tiny: TinyTask) -> None:
    env = make(tiny)
    agent: Any = make_agent("dqn", env, exploration_initial_eps=1.0, exploration_final_eps=1.0)
    callback = StepRegression(env, every=1)
    rng = np.random.default_rng(0)
    harmless = [Step(2, env.choices[i], 1e-4 * rng.normal()) for i in rng.integers(12, size=40)]
    agent.learn(7, callback=callback)
    callback.steps = harmless
    callback._fit()
    assert callback.insensitive == [2] and callback.to_json()["insensitive_layers"] == [env.layers[2].name]
    observations = np.stack([env.reset()[0], *(step[0] for step in play(env, [8] * 7)[:6])])
    small = set(np.flatnonzero(env.sizes[2] <= np.quantile(env.sizes[2], 0.25)).tolist())
    drawn = [{int(agent.predict(observations[k])[0]) for _ in range(200)} for k in (1, 2, 3)]
    assert drawn[1] == small and len(drawn[0]) == len(drawn[2]) == 12


def test_the_record_is_the_regression(tiny: TinyTask) -> None:
    env = make(tiny)
    callback = StepRegression(env)
    make_agent("dqn", env, exploration_initial_eps=1.0).learn(6 * 7, callback=callback)
    fitted = regress(callback.steps)
    assert fitted is not None and callback.to_json()["all_layers"] == fitted.to_json()
