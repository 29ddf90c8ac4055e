"""HSQ: layer-wise quantization and pruning of detectors as a Gymnasium environment.

Importing registers the ids and nothing else; torch is loaded when an environment is made.
"""

import importlib
import os
from typing import Any

from gymnasium.envs.registration import register

# Spin-waiting OpenMP threads slow every pass down as soon as anything else runs; read when torch loads.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"

_ID_ARGUMENTS: dict[str, dict[str, Any]] = {
    "HSQ-ResNet50-v0": {"action_space": "discrete"},
    "HSQ-ResNet50-Continuous-v0": {"action_space": "continuous"},
}
for _id, _arguments in _ID_ARGUMENTS.items():
    register(_id, entry_point="hsq_env.make:make_detection_env", kwargs=_arguments)

_EXPORTS = {
    "HSQEnv": "hsq_env.env",
    "InputError": "detectors.errors",
    "Choice": "hsq_env.choices",
    "Plan": "hsq_env.choices",
    "Student": "hsq_env.student",
    "Task": "hsq_env.task",
    "load_hsq": "hsq_env.file",
    "read_header": "hsq_env.file",
    "save_hsq": "hsq_env.file",
}
__all__ = list(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(importlib.import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'hsq_env' has no attribute '{name}'")
