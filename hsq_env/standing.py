"""Where a search stands in its environment, for checkpoints, and whether two environments are of one problem."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from hsq_env.env_state import EnvState
from hsq_env.prefixes import Row
from hsq_env.table_cache import table_digest

if TYPE_CHECKING:
    from hsq_env.env import HSQEnv


@dataclass(frozen=True)
class Standing:
    """Everything in an environment that a search changes: with it an equal environment goes on bit for bit.

    :param state: the place in the episode
    :param generators: of the environment, and of its action and observation space
    :param steps: see ``HSQEnv.steps_taken``
    :param table: visited prefixes without the weights that they keep, which are made again where they are needed
    :param lookups: of the table, and how many were hits
    """

    state: EnvState
    generators: tuple[Any, Any, Any]
    steps: tuple[int, int]
    table: Sequence[Row]
    lookups: tuple[int, int]


def standing_of(env: "HSQEnv") -> Standing:
    """Everything that a search changes, for a checkpoint; what is computed from it is left out."""
    table = env.compressor.table
    generators = (env.np_random, env.action_space.np_random, env.observation_space.np_random)
    return Standing(env.get_state(), generators, env.steps_taken, table.rows(), (table.lookups, table.hits))


def stand(env: "HSQEnv", standing: Standing) -> None:
    """Go on from where ``standing_of`` was called on an environment with the same settings, bit for bit.

    :raises InputError: if it belongs to another problem
    """
    env.set_state(standing.state)
    env.compressor.table.restore(standing.table, *standing.lookups)
    env.set_state(standing.state)  # the table is another
    env._np_random, env.action_space._np_random, env.observation_space._np_random = standing.generators
    env._steps, env._visited_steps = standing.steps


def identity(env: "HSQEnv") -> str:
    """A hash of the problem: teacher, images, layers, settings of the repair; the same on every machine."""
    shapes = [(info.name, info.shape, info.stride, info.groups, info.calls) for info in env.layers]
    return _digest(env, (shapes, env.choices, env.compressor.repair_settings()), "any")


def problem(env: "HSQEnv") -> str:
    """A hash of all that rewards depend on, to the last bit: also of what this machine measures."""
    settings = (env.layers, env.compressor.repair_settings(), env.compressor.judge.scale)
    return _digest(env, settings, torch.__version__)


def _digest(env: "HSQEnv", settings: object, version: str) -> str:
    task = env.task
    batches = [*task.calibration(), *task.finetuning(), *task.evaluation("search")]
    return table_digest(task, settings, batches, version)
