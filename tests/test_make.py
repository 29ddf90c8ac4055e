"""The registered ids, in this process and in fresh ones."""

import warnings
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from helpers import play, python
from stable_baselines3.common.env_checker import check_env as sb3_check_env
from tiny_task import TinyTask

import hsq_env
from detectors.errors import InputError
from hsq_env.env import HSQEnv
from hsq_env.make import ENV_ARGUMENTS, RESTORATION_ARGUMENTS, TASK_ARGUMENTS, make_detection_env, make_restoration_env

IDS = {
    "HSQ-ResNet50-v0": gym.spaces.Discrete(12),
    "HSQ-ResNet50-Continuous-v0": gym.spaces.Box(-1, 1, (2,)),
    **{
        f"HSQ-{name}-v0": gym.spaces.Discrete(12)
        for name in (
            "FCOS-ResNet50",
            "RetinaNet-ResNet50",
            "RetinaNet-ResNet50V2",
            "FasterRCNN-ResNet50",
            "FasterRCNN-ResNet50V2",
            "FasterRCNN-MobileNetV3",
            "SSDLite",
        )
    },
    "HSQ-DnCNN-v0": gym.spaces.Discrete(12),
    "HSQ-EDSR-v0": gym.spaces.Discrete(12),
    "HSQ-SRResNet-v0": gym.spaces.Discrete(12),
}


@pytest.mark.parametrize("name", sorted(IDS))
def test_ids_pass_both_checkers(tiny: TinyTask, name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gym.make(name, task=tiny)
        assert isinstance(env.unwrapped, HSQEnv) and env.unwrapped.action_space == IDS[name]
        check_env(env.unwrapped)
        sb3_check_env(env.unwrapped)


def test_arguments_reach_the_environment(tiny: TinyTask) -> None:
    env = gym.make("HSQ-ResNet50-v0", task=tiny, reward="size", beta=0.25, target_ratio=6.0, render_mode="ansi")
    inner = env.unwrapped
    assert isinstance(inner, HSQEnv)
    assert (inner.task, inner.reward, inner.beta, inner.render_mode) == (tiny, "size", 0.25, "ansi")
    assert inner.budget.limit < float("inf")


def test_an_unknown_argument_is_named_with_the_known_ones(tiny: TinyTask) -> None:
    with pytest.raises(InputError) as error:
        gym.make("HSQ-ResNet50-v0", task=tiny, target_ration=8.0)
    text = str(error.value)
    assert text.startswith("Unknown argument 'target_ration': known are task, dataset, detector, teacher, ")
    assert "search_images" in text and "target_ratio, " in text


def test_known_arguments_are_those_of_task_and_environment() -> None:
    assert TASK_ARGUMENTS[0] == "search_images" and "seed" in TASK_ARGUMENTS
    assert ENV_ARGUMENTS[0] == "bits" and "render_mode" in ENV_ARGUMENTS
    assert not set(TASK_ARGUMENTS) & set(ENV_ARGUMENTS)


def test_a_missing_folder_is_told_first_then_a_missing_teacher(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    with pytest.raises(InputError, match=r"no data folder .*photos"):
        make_detection_env(dataset=photos)
    photos.mkdir()
    with pytest.raises(InputError, match=r"photos needs a teacher.*hsq teacher --dataset .*photos"):
        make_detection_env(dataset=photos)


def test_names_are_exported_on_demand() -> None:
    assert hsq_env.HSQEnv is HSQEnv and hsq_env.InputError is InputError
    assert set(hsq_env.__all__) == {name for name in hsq_env.__all__ if getattr(hsq_env, name).__name__ == name}
    with pytest.raises(AttributeError, match="'hsq_env' has no attribute 'nothing'"):
        _ = hsq_env.nothing


def test_importing_is_cheap() -> None:
    """It registers the ids and sets OMP_WAIT_POLICY, and loads neither torch nor SB3."""
    done = python(
        "import os\nos.environ.pop('OMP_WAIT_POLICY', None)\nimport gymnasium, hsq_env\n"
        "print('torch' in sys.modules, 'stable_baselines3' in sys.modules, os.environ['OMP_WAIT_POLICY'],\n"
        "      sorted(i for i in gymnasium.registry if i.startswith('HSQ')))\n"
    )
    assert done.stdout == f"False False PASSIVE {sorted(IDS)}\n", done.stderr


WORKER = """
import gymnasium as gym

class Later:
    '''Builds the tiny task when first asked for something: unpickling it imports nothing.'''
    def __getattr__(self, name):
        if name.startswith('__'):
            raise AttributeError(name)
        if 'task' not in self.__dict__:
            import torch
            from tiny_task import TinyTask
            with torch.enable_grad():
                self.task = TinyTask()
        return getattr(self.task, name)

def make():
    import sys  # in this process for the spaces, then in the worker
    assert 'hsq_env' not in sys.modules and 'torch' not in sys.modules
    return gym.make('hsq_env:HSQ-ResNet50-v0', task=Later(), disable_env_checker=True)

if __name__ == '__main__':
    env = gym.vector.AsyncVectorEnv([make], context='spawn')
    env.reset(seed=0)
    rewards = [float(env.step([action])[1][0]) for action in (8, 3, 6, 1, 10, 5, 0)]
    env.close()
    print(rewards)
"""


@pytest.mark.slow
def test_a_worker_where_nothing_was_imported_makes_the_environment(tiny: TinyTask) -> None:
    done = python(WORKER)
    assert done.returncode == 0, done.stderr
    expected = [step[1] for step in play(HSQEnv(tiny), [8, 3, 6, 1, 10, 5, 0])]
    assert done.stdout == f"{expected}\n"


@pytest.mark.parametrize(("name", "layers"), [("HSQ-DnCNN-v0", 17), ("HSQ-EDSR-v0", 36)])
def test_restorers_ship_with_teachers_for_the_embedded_photographs(name: str, layers: int) -> None:
    few = {"search_images": 4, "pool_images": 4, "calibration_images": 8, "batch_size": 4, "patch": 32}
    measured = np.zeros((layers, 12))  # sensitivities, which would take most of the time
    env = gym.make(name, step_minibatches=1, test_images=1, sensitivities=measured, **few)
    inner = env.unwrapped
    assert isinstance(inner, HSQEnv) and len(inner.layers) == layers and inner.task.name == "photos"
    env.reset(seed=0)
    _, reward, terminated, _, info = env.step(8)  # 8 bits
    assert np.isfinite(reward) and not terminated and 0 < info["accuracy"] < 1.1


def test_a_network_without_a_shipped_teacher_says_so() -> None:
    with pytest.raises(InputError, match="give its file with --teacher FILE; dncnn, edsr ship with one"):
        gym.make("HSQ-SRResNet-v0")


def test_an_unknown_argument_of_a_restorer_is_named() -> None:
    with pytest.raises(InputError, match="Unknown argument 'detector': known are task, dataset, network, teacher, "):
        make_restoration_env(detector="fcos_resnet50")
    assert {"patch", "batch_size"} <= set(RESTORATION_ARGUMENTS)
