"""HSQ: layer-wise quantization and pruning of detectors and restorers as a Gymnasium environment.

Importing registers the ids and sets OMP_WAIT_POLICY; torch is loaded when an environment is made.
"""

import importlib
import os
from typing import Any

from gymnasium.envs.registration import register

# Spin-waiting OpenMP threads slow every pass down as soon as anything else runs; read when torch loads.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"

_IDS: dict[str, tuple[str, dict[str, Any]]] = {  # the entry point and its arguments
    "HSQ-ResNet50-v0": ("make_detection_env", {"action_space": "discrete"}),
    "HSQ-ResNet50-Continuous-v0": ("make_detection_env", {"action_space": "continuous"}),
    "HSQ-FCOS-ResNet50-v0": ("make_detection_env", {"detector": "fcos_resnet50_fpn"}),
    "HSQ-RetinaNet-ResNet50-v0": ("make_detection_env", {"detector": "retinanet_resnet50_fpn"}),
    "HSQ-RetinaNet-ResNet50V2-v0": ("make_detection_env", {"detector": "retinanet_resnet50_fpn_v2"}),
    "HSQ-FasterRCNN-ResNet50-v0": ("make_detection_env", {"detector": "fasterrcnn_resnet50_fpn"}),
    "HSQ-FasterRCNN-ResNet50V2-v0": ("make_detection_env", {"detector": "fasterrcnn_resnet50_fpn_v2"}),
    "HSQ-FasterRCNN-MobileNetV3-v0": ("make_detection_env", {"detector": "fasterrcnn_mobilenet_v3_large_320_fpn"}),
    "HSQ-SSDLite-v0": ("make_detection_env", {"detector": "ssdlite320_mobilenet_v3_large"}),
    "HSQ-DnCNN-v0": ("make_restoration_env", {"network": "dncnn"}),
    "HSQ-EDSR-v0": ("make_restoration_env", {"network": "edsr"}),
    "HSQ-SRResNet-v0": ("make_restoration_env", {"network": "srresnet"}),
}
for _id, (_entry, _arguments) in _IDS.items():
    register(_id, entry_point=f"hsq_env.make:{_entry}", kwargs=_arguments)

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
