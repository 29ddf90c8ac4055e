"""Whether two environments are of one problem."""

from typing import TYPE_CHECKING

import torch

from hsq_env.table_cache import table_digest

if TYPE_CHECKING:
    from hsq_env.env import HSQEnv


def identity(env: "HSQEnv") -> str:
    """A hash of the problem: teacher, images, labels, layers, settings of the repair; the same on every machine."""
    shapes = [(info.name, info.shape, info.stride, info.groups, info.calls) for info in env.layers]
    return _digest(env, (shapes, env.choices, env.compressor.repair_settings()), "any")


def problem(env: "HSQEnv") -> str:
    """A hash of all that rewards depend on, to the last bit: also of what this machine measures."""
    settings = (env.layers, env.compressor.repair_settings(), env.compressor.judge.scale)
    return _digest(env, settings, torch.__version__)


def _digest(env: "HSQEnv", settings: object, version: str) -> str:
    task = env.task
    labelled = [*task.finetuning(), *task.evaluation("search")]
    return table_digest(task, settings, task.calibration(), version, labelled)
