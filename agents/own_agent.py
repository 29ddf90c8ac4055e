"""An agent of one's own, named as ``module:factory``."""

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

from agents.rollout import Policy
from detectors.errors import InputError
from hsq_env.env import HSQEnv


def factory_of(name: str) -> Callable[[HSQEnv], Any]:
    """The callable that ``module:factory`` names.

    :raises InputError: if there is none
    """
    module, _, factory = name.partition(":")
    if not {"", os.getcwd()} & set(sys.path):  # a console script does not look where it is called
        sys.path.insert(0, os.getcwd())
    try:
        found: Callable[[HSQEnv], Any] = getattr(importlib.import_module(module), factory)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise InputError(f"No agent can be had from '{name}' ({error}): give --algo module:factory.") from error
    if not callable(found):
        raise InputError(f"No agent can be had from '{name}', which cannot be called: give --algo module:factory.")
    return found


def agent_of(name: str, env: HSQEnv) -> Any:
    """What a factory of one's own makes for an environment.

    :raises InputError: if there is none, or what it makes cannot choose
    """
    made = factory_of(name)(env)
    if not isinstance(made, Policy):
        raise InputError(
            f"What '{name}' makes has no predict(): give a factory of an agent with Gymnasium's signature."
        )
    return made
