"""Actions that say alpha, the share of the task loss."""

import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from helpers import play
from stable_baselines3.common.env_checker import check_env as sb3_check_env
from tiny_task import TinyTask

from hsq_env.env import HSQEnv

SPACES = ("discrete", "multi_discrete", "continuous")
ACTIONS = [8, 3, 6, 1, 10, 5, 0]  # of the default grid; one per layer


@pytest.mark.parametrize("space", SPACES)
def test_checkers_have_nothing_to_say_about_alpha(tiny: TinyTask, space: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = gym.make("hsq_env:HSQ-ResNet50-v0", task=tiny, action_space=space, alpha_control="agent")
        check_env(made.unwrapped)
        sb3_check_env(made.unwrapped)


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("alpha", [0.1, 0.9])
def test_an_action_says_alpha(tiny: TinyTask, space: str, alpha: float) -> None:
    """The episode of an environment whose alpha that is."""
    env, plain = HSQEnv(tiny, action_space=space, alpha_control="agent"), HSQEnv(tiny, alpha=alpha)
    steps = play(env, [env.actions.encode(action, alpha) for action in ACTIONS])
    for (_, reward, *_, info), (_, same_reward, *_, told) in zip(steps, play(plain, ACTIONS), strict=True):
        assert reward == same_reward and info["divergence"] == told["divergence"]
        assert env.actions.alpha(info["executed_action"]) == alpha
    weights = [layer.weight for layer in env.student.layers]
    assert all(torch.equal(a, b.weight) for a, b in zip(weights, plain.student.layers, strict=True))
    assert env.alpha == 0.3


def test_alpha_may_change_from_step_to_step(tiny: TinyTask) -> None:
    env = HSQEnv(tiny, alpha_control="agent")
    alphas = [0.1, 0.9, 0.3, 0.6, 0.1, 0.1, 0.9]
    steps = play(env, [env.actions.encode(a, alpha) for a, alpha in zip(ACTIONS, alphas, strict=True)])
    assert env.get_state().alphas == tuple(alphas)
    plain = HSQEnv(tiny)
    plain.reset()
    for action, alpha, step in zip(ACTIONS, alphas, steps, strict=True):
        plain.alpha = alpha
        assert plain.step(action)[1] == step[1]


def test_a_forbidden_choice_keeps_its_alpha(tiny: TinyTask) -> None:
    for space in SPACES:
        env = HSQEnv(tiny, action_space=space, alpha_control="agent", target_ratio=12.0, step_minibatches=0)
        told = [info["executed_action"] for *_, info in play(env, [env.actions.encode(8, 0.6)] * 7)]
        assert [env.actions.alpha(action) for action in told] == [0.6] * 7
        assert any(env.actions.decode(action) != 8 for action in told)


def test_the_mask_speaks_of_every_action(tiny: TinyTask) -> None:
    env = HSQEnv(tiny, alpha_control="agent", target_ratio=12.0, step_minibatches=0)
    assert env.observation_space.shape == (40 + 48,) and env.action_space == gym.spaces.Discrete(48)
    assert env.observation_names[40:46] == (
        *(f"allowed_2bit_0_{i}" for i in range(4)),
        *(f"allowed_2bit_0.25_{i}" for i in range(2)),
    )
    observation, info = env.reset()
    while True:
        assert np.array_equal(observation[40:], np.repeat(info["action_mask"], 4)) and observation.shape == (88,)
        if info["layer"] is None:
            break
        observation, *_, info = env.step(0)


def test_what_was_measured_with_one_alpha_says_nothing_of_another(tiny: TinyTask) -> None:
    env = HSQEnv(tiny, alpha_control="agent")
    play(env, [env.actions.encode(5, 0.1)])
    env.reset()
    assert [env.would_measure(env.actions.encode(5, alpha)) for alpha in (0.1, 0.3, 0.6, 0.9)] == [False, *[True] * 3]
