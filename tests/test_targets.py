"""An environment with several target ratios."""

import numpy as np
import pytest
from tiny_task import TinyTask

from detectors.errors import InputError
from hsq_env.env import HSQEnv

ACTIONS = [8, 3, 6, 1, 10, 5, 0]  # of the default grid; one per layer
NO_SENSITIVITIES = np.zeros((7, 12))


def test_every_episode_draws_a_target(tiny: TinyTask) -> None:
    env = HSQEnv(tiny, target_ratio=(4.0, 8.0, 12.0), step_minibatches=0, sensitivities=NO_SENSITIVITIES)
    at = env.observation_names.index("target")
    drawn = []
    for seed in (5, *[None] * 30):
        observation, info = env.reset(seed=seed)
        target = info["target_ratio"]
        assert env.target_ratio == target and observation[at] == np.float32(1 / target)
        assert np.array_equal(info["action_mask"], env.budgets[target].mask(0, 0))
        for _ in range(7):
            info = env.step(8)[4]
        assert info["target_ratio"] == target <= info["ratio"]
        drawn.append(target)
    assert set(drawn) == {4.0, 8.0, 12.0}
    assert [env.reset(seed=seed)[1]["target_ratio"] for seed in (5, *[None] * 30)] == drawn


@pytest.mark.parametrize("target", [4.0, 12.0])
def test_one_of_several_targets_is_that_target(tiny: TinyTask, target: float) -> None:
    several, one = HSQEnv(tiny, target_ratio=(4.0, 8.0, 12.0)), HSQEnv(tiny, target_ratio=target)
    first, info = several.reset(options={"target_ratio": target})
    expected, told = one.reset()
    assert np.array_equal(first, expected) and info["target_ratio"] == told["target_ratio"] == target
    for action in ACTIONS:
        (seen, reward, *_, info), (same_seen, same_reward, *_, told) = several.step(action), one.step(action)
        assert np.array_equal(seen, same_seen) and reward == same_reward
        assert info["executed_action"] == told["executed_action"]


def test_asking_for_a_target_draws_nothing(tiny: TinyTask) -> None:
    env = HSQEnv(tiny, target_ratio=(4.0, 12.0), step_minibatches=0, sensitivities=NO_SENSITIVITIES)
    env.reset(seed=1)
    drawn = [env.reset()[1]["target_ratio"] for _ in range(10)]
    env.reset(seed=1)
    again = []
    for _ in range(10):
        env.reset(options={"target_ratio": 4.0})
        again.append(env.reset()[1]["target_ratio"])
    assert drawn == again


def test_a_state_holds_its_target(tiny: TinyTask) -> None:
    env = HSQEnv(tiny, target_ratio=(4.0, 12.0), step_minibatches=0)
    env.reset(options={"target_ratio": 12.0})
    seen, *_ = env.step(0)
    state = env.get_state()
    env.reset(options={"target_ratio": 4.0})
    observation, info = env.set_state(state)
    assert np.array_equal(observation, seen) and info["target_ratio"] == env.target_ratio == 12.0
    with pytest.raises(InputError, match=r"Unknown target ratio 12\.0: known are 4\.0"):
        HSQEnv(tiny, target_ratio=4.0, step_minibatches=0).set_state(state)


def test_a_refused_reset_changes_nothing(tiny: TinyTask) -> None:
    env = HSQEnv(tiny, target_ratio=(4.0, 12.0), step_minibatches=0, sensitivities=NO_SENSITIVITIES)
    env.reset(seed=3, options={"target_ratio": 4.0, "alpha": 0.2, "beta": 0.7})
    env.step(0)
    state, drawn = env.get_state(), env.np_random.bit_generator.state
    for options in ({"target_ratio": 12.0, "beta": 3}, {"alpha": 0.5, "beta": -1}, {"target_ratio": 12.0, "gamma": 1}):
        with pytest.raises(InputError):
            env.reset(seed=4, options=options)
        assert env.get_state() == state and env.np_random.bit_generator.state == drawn
        assert (env.alpha, env.beta, env.target_ratio) == (0.2, 0.7, 4.0)


def test_targets_that_cannot_be(tiny: TinyTask) -> None:
    with pytest.raises(InputError, match="target ratio of 13 cannot be reached"):
        HSQEnv(tiny, target_ratio=(4.0, 13.0))
    with pytest.raises(InputError, match="target_ratio is empty"):
        HSQEnv(tiny, target_ratio=())
    env = HSQEnv(tiny, target_ratio=(4.0, 12.0))
    with pytest.raises(InputError, match=r"Unknown target ratio 7\.0: known are 4\.0, 12\.0\."):
        env.reset(options={"target_ratio": 7.0})
