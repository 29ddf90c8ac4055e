"""Where a search stands in its environment, for checkpoints."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hsq_env.env_state import EnvState
from hsq_env.prefixes import Row

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
