"""What is asked of an environment and cannot be, and the pictures that can."""

import math
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from helpers import play
from test_env import episode
from tiny_task import TinyTask

from detectors.errors import InputError
from hsq_env.env import HSQEnv


@pytest.fixture
def env(tiny: TinyTask) -> HSQEnv:
    made = HSQEnv(tiny)
    made.reset()
    return made


@pytest.mark.parametrize(
    ("argument", "value", "known"),
    [
        ("action_space", "box", "'discrete', 'multi_discrete', 'continuous'"),
        ("reward", "best", "'paper', 'paper-literal', 'size', 'energy', 'latency', 'terminal', 'divergence'"),
        ("alpha_control", "both", "'fixed', 'agent'"),
        ("finetune_scope", "stage", "'layer', 'block', 'all'"),
        ("sparsity_pattern", "2:4", "'unstructured', 'n:m', 'channels'"),
        ("render_mode", "human", "None, 'ansi', 'rgb_array'"),
    ],
)
def test_unknown_values_name_the_known_ones(tiny: TinyTask, argument: str, value: str, known: str) -> None:
    with pytest.raises(InputError) as error:
        HSQEnv(tiny, **{argument: value})  # type: ignore[arg-type]
    assert str(error.value) == f"Unknown {argument} '{value}': known are {known}."


@pytest.mark.parametrize("name", ["alpha", "beta"])
@pytest.mark.parametrize("value", [-0.1, 1.5, math.nan])
def test_shares_lie_between_0_and_1(tiny: TinyTask, env: HSQEnv, name: str, value: float) -> None:
    with pytest.raises(InputError, match=f"{name} is .*from 0 to 1"):
        HSQEnv(tiny, **{name: value})  # type: ignore[arg-type]
    with pytest.raises(InputError, match=f"{name} is .*from 0 to 1"):
        env.reset(options={name: value})


@pytest.mark.parametrize("value", [1, 9, "8", 0])
def test_activation_bits_are_known(tiny: TinyTask, value: Any) -> None:
    with pytest.raises(InputError, match=r"activation_bits is .*2 to 8, 'match' or None"):
        HSQEnv(tiny, activation_bits=value)


def test_unknown_reset_options_name_the_known_ones(env: HSQEnv) -> None:
    with pytest.raises(InputError, match=r"Unknown reset option 'gamma': known are 'alpha', 'beta', 'target_ratio'\."):
        env.reset(options={"gamma": 1.0})


def test_render_as_text(tiny: TinyTask) -> None:
    env = HSQEnv(tiny, render_mode="ansi")
    info = play(env, [9, 3])[-1][4]
    lines = env.render().splitlines()
    assert lines[1].split() == ["stem", "144", "8", "25%"]
    assert lines[2].split() == ["block1.conv1", "2304", "2", "75%"]
    assert lines[3].split() == ["block1.conv2", "2304", "<-"]
    assert lines[-1] == f"2 of 7 layers, accuracy {info['accuracy']:.3f}, ratio {info['ratio']:.2f}"


def test_render_as_pixels(tiny: TinyTask) -> None:
    env = HSQEnv(tiny, render_mode="rgb_array")
    env.reset()
    empty = env.render()
    env.step(8)
    one = env.render()
    assert empty.shape == one.shape == (134, 72, 3) and one.dtype == np.uint8
    assert np.array_equal(one[:, 12:], empty[:, 12:])  # only the first layer's bars changed
    assert (one[2:66, 2:10] == (0, 114, 178)).all()  # 8 bits: the full height


def test_render_without_a_mode_says_so(env: HSQEnv) -> None:
    with pytest.warns(UserWarning, match="render_mode"):
        assert env.render() is None


@pytest.mark.parametrize(("space", "action"), [("discrete", 12), ("multi_discrete", [0, 9]), ("continuous", [0.0])])
def test_what_is_no_action_leaves_everything_as_it_was(tiny: TinyTask, space: str, action: Any) -> None:
    env = HSQEnv(tiny, action_space=space, step_minibatches=0)
    env.reset()
    with pytest.raises(InputError, match="is no action here"):
        env.step(action)
    assert env.index == 0 and env.steps_taken == (0, 0)
    env.step(env.actions.encode(3))


def test_a_finished_plan_above_the_budget_is_no_state(tiny: TinyTask) -> None:
    generous, strict = (HSQEnv(tiny, target_ratio=ratio, step_minibatches=0) for ratio in (3.5, 11.0))
    episode(generous, [8] * 7)
    state = replace(generous.get_state(), target_ratio=11.0)
    with pytest.raises(InputError, match="more than the budget allows"):
        strict.set_state(state)


def test_lists_of_pictures_can_be_asked_for(tiny: TinyTask) -> None:
    made = gym.make("HSQ-ResNet50-v0", task=tiny, step_minibatches=0, render_mode="rgb_array_list")
    made.reset()
    made.step(4)
    pictures: Any = made.render()
    assert len(pictures) == 2 and pictures[0].shape[2] == 3
