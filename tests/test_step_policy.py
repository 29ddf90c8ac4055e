"""SPARK in the environment: a policy that learns between episodes and is part of where the environment stands."""

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from tiny_task import TinyTask

from detectors.errors import InputError
from hsq_env.env import HSQEnv
from hsq_env.sensitivity import measure_repaired_sensitivity
from hsq_env.shortcuts import Shortcuts

ACTIONS = (5, 8, 2, 9, 0, 7, 4)
Seen = list[tuple[float, float]]


def make(tiny: TinyTask, distillation: str = "akd+spark", **settings: Any) -> HSQEnv:
    given = {"reward": "divergence", "sensitivities": np.zeros((7, 12)), **settings}
    return HSQEnv(tiny, distillation=distillation, **given)


def play(env: HSQEnv, actions: tuple[int, ...] = ACTIONS) -> Seen:
    """Accuracy and divergence after each step."""
    seen = []
    for action in actions:
        *_, info = env.step(action)
        seen.append((info["accuracy"], info["divergence"]))
    return seen


def episode(env: HSQEnv) -> Seen:
    env.reset()
    return play(env)


def version(env: HSQEnv) -> int:
    assert env.compressor.policy is not None
    return env.compressor.policy.version


@pytest.mark.parametrize("steps", [4, 5])
def test_a_minibatch_must_be_left_to_hold_back(tiny: TinyTask, steps: int) -> None:
    with pytest.raises(InputError, match=rf"of {steps} minibatches in a step and 4 in the pool none is left"):
        make(tiny, step_minibatches=steps)
    make(tiny, step_minibatches=3)
    make(tiny, "akd", step_minibatches=steps)


def test_the_policy_learns_between_episodes_and_then_stays(tiny: TinyTask) -> None:
    env = make(tiny, policy_episodes=2)
    seen, versions = [], []
    for _ in range(5):
        env.reset()
        versions.append(version(env))
        seen.append(play(env))
    assert versions == [0, 1, 2, 2, 2]
    assert seen[0] != seen[1] != seen[2] and seen[2] == seen[3] == seen[4]
    assert env.steps_taken == (35, 14)  # only the last two episodes were in the table


@pytest.mark.parametrize("distillation", ["spark", "akd+spark"])
def test_shortcuts_change_nothing(distillation: str, tiny: TinyTask) -> None:
    fast, slow = make(tiny, distillation), make(tiny, distillation, shortcuts=Shortcuts.none())
    for _ in range(3):
        assert episode(fast) == episode(slow)


def test_within_an_episode_equal_actions_give_equal_rewards(tiny: TinyTask) -> None:
    env = make(tiny, table_megabytes=0)
    episode(env)
    env.reset()
    first = play(env, ACTIONS[:3])
    state = env.get_state()
    rest = play(env, ACTIONS[3:])
    env.set_state(state)
    assert play(env, ACTIONS[3:]) == rest
    again = make(tiny)
    again.set_state(pickle.loads(pickle.dumps(state)))
    assert version(again) == 1 and play(again, ACTIONS[3:]) == rest
    assert first != episode(env)[:3]


def test_state_has_the_lessons_of_the_episode(tiny: TinyTask) -> None:
    """Two environments that go on from one state learn the same."""
    env = make(tiny)
    env.reset()
    play(env, ACTIONS[:4])
    other = make(tiny)
    other.set_state(env.get_state())
    for one in (env, other):
        play(one, ACTIONS[4:])
    assert episode(env) == episode(other) and version(env) == version(other) == 1


def test_going_back_behind_a_lesson_goes_back_in_the_policy(tiny: TinyTask) -> None:
    env = make(tiny)
    env.reset()
    start = env.get_state()
    first = play(env)
    second = episode(env)
    env.set_state(start)
    assert version(env) == 0 and play(env) == first
    assert episode(env) == second


def test_a_policy_that_never_learns_weighs_all_places_alike(tiny: TinyTask) -> None:
    """Up to rounding."""
    np.testing.assert_allclose(episode(make(tiny, policy_episodes=0)), episode(make(tiny, "akd")), rtol=1e-3, atol=1e-4)


def test_spark_alone_has_no_task_loss(tiny: TinyTask) -> None:
    assert episode(make(tiny, "spark", alpha=0.9)) == episode(make(tiny, "spark", alpha=0.0))
    assert episode(make(tiny, "akd+spark", alpha=0.9)) != episode(make(tiny, "akd+spark", alpha=0.0))


def test_forks_learn_on_their_own(tiny: TinyTask) -> None:
    env = make(tiny)
    env.reset()
    play(env, ACTIONS[:4])
    fork = env.fork()
    assert play(env, ACTIONS[4:]) == play(fork, ACTIONS[4:])
    fork.reset()
    assert version(fork) == 1 and version(env) == 0
    env.reset()
    assert play(env) == play(fork)


def test_repaired_sensitivities_are_those_of_akd(tiny: TinyTask) -> None:
    spark, akd = make(tiny), make(tiny, "akd")
    episode(spark)
    spark.reset()
    measured = [measure_repaired_sensitivity(env.compressor, env.choices, env.alpha) for env in (spark, akd)]
    assert np.array_equal(*measured)
    assert version(spark) == 1


def test_lessons_come_from_some_layers(tiny: TinyTask) -> None:
    env = make(tiny)
    env.reset()
    play(env)
    policy = env.compressor.policy
    assert policy is not None and len(policy.lessons) == 2  # layers 0 and 6
    before = {name: tensor.clone() for name, tensor in policy.spark.policy.state_dict().items()}
    env.reset()
    assert any(not torch.equal(tensor, before[name]) for name, tensor in policy.spark.policy.state_dict().items())


def test_without_a_repair_there_is_nothing_to_learn(tiny: TinyTask) -> None:
    env = make(tiny, step_minibatches=0)
    assert episode(env) == episode(env) and env.compressor.policy is None
    assert env.steps_taken == (14, 7)


def test_unknown_distillation(tiny: TinyTask) -> None:
    with pytest.raises(InputError, match="distillation"):
        make(tiny, "magic")


def test_sensitivities_without_the_ground_truth_are_kept_apart(tiny: TinyTask) -> None:
    """ "spark" leaves out the task loss, whatever share is asked for; the others do not."""
    settings = {name: make(tiny, name).compressor.repair_settings() for name in ("akd", "akd+spark", "spark")}
    assert settings["akd"] == settings["akd+spark"] != settings["spark"]
