"""An environment's standing: put into an equal environment, it goes on bit for bit."""

import pickle
from typing import Any

import numpy as np
import pytest
from tiny_task import TinyTask

from detectors.errors import InputError
from hsq_env.choices import Choice
from hsq_env.env import HSQEnv
from hsq_env.prefixes import NODE_BYTES, Decision, Outcome, PrefixTable
from hsq_env.standing import stand, standing_of

LAYERS = 7


def env_of(tiny: TinyTask, **settings: Any) -> HSQEnv:
    return HSQEnv(tiny, sensitivities=np.zeros((LAYERS, 12)), **{"target_ratio": (6.0, 10.0), **settings})


def walk(env: HSQEnv, actions: list[int]) -> list[Any]:
    found = []
    for action in actions:
        observation, reward, ended, _, info = env.step(action)
        found.append((observation.tolist(), reward, str(info)))
        if ended:
            observation, info = env.reset()  # draws a target
            found.append((observation.tolist(), str(info)))
    return found


@pytest.mark.parametrize(
    "settings",
    [{}, {"distillation": "akd+spark", "policy_episodes": 2}, {"table_megabytes": 20 * NODE_BYTES / 1e6}],
    ids=["plain", "spark", "small table"],
)
def test_an_equal_environment_goes_on_from_any_step(tiny: TinyTask, settings: dict[str, Any]) -> None:
    actions = np.random.default_rng(0).integers(0, 12, 30).tolist()
    for at in (0, 3, 7, 17):
        env, other = env_of(tiny, **settings), env_of(tiny, **settings)
        env.reset(seed=5)
        walk(env, actions[:at])
        standing = pickle.loads(pickle.dumps(standing_of(env)))
        other.reset(seed=1)
        walk(other, [1, 2, 3])  # whatever it did before
        stand(other, standing)
        assert other.steps_taken == env.steps_taken and other.index == env.index
        assert walk(other, actions[at:]) == walk(env, actions[at:])
        assert other.steps_taken == env.steps_taken
        assert other.action_space.sample() == env.action_space.sample()
        assert other.compressor.table.rows() == env.compressor.table.rows()


def test_a_standing_of_another_problem_is_refused(tiny: TinyTask) -> None:
    env = env_of(tiny)
    env.reset(seed=5)
    with pytest.raises(InputError, match="Unknown target ratio"):
        stand(env_of(tiny, target_ratio=8.0), standing_of(env))


def test_a_table_is_restored_in_the_order_of_its_use() -> None:
    table = PrefixTable(10 * NODE_BYTES)
    choices = [Choice(bits, 0.0) for bits in (2, 4, 8)]
    rng = np.random.default_rng(0)

    def visit(some: PrefixTable, path: list[int]) -> None:
        node = some.root
        for number in path:
            decision = Decision(choices[number], 0.0)
            node = some.find(node, decision) or some.add(node, decision, Outcome(float(number), True, 0.5))

    for _ in range(30):
        visit(table, rng.integers(0, 3, rng.integers(1, 5)).tolist())
    other = PrefixTable(10 * NODE_BYTES)
    visit(other, [0, 0])
    other.restore(table.rows(), table.lookups, table.hits)
    for _ in range(60):
        assert other.rows() == table.rows()
        assert (other.bytes, other.lookups, other.hits) == (table.bytes, table.lookups, table.hits)
        path = rng.integers(0, 3, rng.integers(1, 5)).tolist()
        visit(table, path)
        visit(other, path)
