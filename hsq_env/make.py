"""What the registered ids call."""

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detectors.errors import InputError
from detectors.task import SHAPES, DetectionTask, detection_task
from hsq_env.env import HSQEnv
from hsq_env.task import Task
from restorers.images import PHOTOS
from restorers.task import DEFAULT_PATCH, RestorationTask, restoration_task
from restorers.teacher import RESTORERS, is_restorer

Made = DetectionTask | RestorationTask
TASK_ARGUMENTS = tuple(inspect.signature(DetectionTask).parameters)[4:]
RESTORATION_ARGUMENTS = tuple(inspect.signature(RestorationTask).parameters)[4:]
ENV_ARGUMENTS = tuple(inspect.signature(HSQEnv).parameters)[1:]


def _checked(arguments: dict[str, Any], own: Sequence[str], of_task: Sequence[str]) -> list[dict[str, Any]]:
    """Arguments of the task and of the environment, apart.

    :param own: names that the entry point takes itself, for the message
    :raises InputError: for an unknown argument, naming the known ones
    """
    unknown = [name for name in arguments if name not in (*of_task, *ENV_ARGUMENTS)]
    if unknown:
        raise InputError(f"Unknown argument '{unknown[0]}': known are {', '.join((*own, *of_task, *ENV_ARGUMENTS))}.")
    return [{name: value for name, value in arguments.items() if name in some} for some in (of_task, ENV_ARGUMENTS)]


def make_detection_env(
    task: Task | None = None,
    dataset: str | Path = SHAPES,
    detector: str | None = None,
    teacher: str | Path | None = None,
    splits: Sequence[str] | None = None,
    **arguments: Any,
) -> HSQEnv:
    """The environment of a detector.

    :param task: a task of one's own; the next four are then unused
    :param dataset: "shapes" or a COCO-layout folder
    :param detector: name that the teacher must have, see ``detectors.zoo``; any when None
    :param teacher: file written by ``hsq teacher``, or torchvision's COCO weights of ``detector`` (.pth); when None the
        shipped one for ``shapes``, for other data torchvision's COCO weights of ``detector``, downloaded
    :param splits: names of the training, the search and, if there is one, the test split; found when None
    :param arguments: further ones of ``DetectionTask`` and of ``HSQEnv``
    :raises InputError: for an unknown argument, naming the known ones
    """
    own = ("task", "dataset", "detector", "teacher", "splits")
    settings, rest = _checked(arguments, own, TASK_ARGUMENTS)
    made: Task = detection_task(dataset, detector, teacher, splits, **settings) if task is None else task
    return HSQEnv(made, **rest)


def make_restoration_env(
    task: Task | None = None,
    dataset: str | Path = PHOTOS,
    network: str = "dncnn",
    teacher: str | Path | None = None,
    splits: Sequence[str] | None = None,
    **arguments: Any,
) -> HSQEnv:
    """The environment of a restorer.

    :param task: a task of one's own; the next four are then unused
    :param dataset: "photos", the embedded ones, or a folder of images
    :param network: name that the teacher must have, "dncnn", "edsr" or "srresnet"
    :param teacher: file written by ``hsq teacher --restorer``; the shipped one, if there is one, when None
    :param splits: names of the folders for training, search and test; found when None
    :param arguments: further ones of ``RestorationTask`` and of ``HSQEnv``
    :raises InputError: for an unknown argument, naming the known ones, or a network that ships without a teacher
    """
    own = ("task", "dataset", "network", "teacher", "splits")
    settings, rest = _checked(arguments, own, RESTORATION_ARGUMENTS)
    made: Task = restoration_task(dataset, teacher, splits, network, **settings) if task is None else task
    return HSQEnv(made, **rest)


# what ``gymnasium.make`` looks at when it is asked for lists of pictures, or for a window
make_detection_env.metadata = make_restoration_env.metadata = HSQEnv.metadata  # type: ignore[attr-defined]


def make_task(
    dataset: str | Path | None = None,
    teacher: str | Path | None = None,
    splits: Sequence[str] | None = None,
    network: str | None = None,
    patch: int = DEFAULT_PATCH,
    **settings: Any,
) -> Made:
    """A detector's or a restorer's task, whichever the teacher is.

    :param dataset: "shapes" or a COCO-layout folder for a detector, "photos" or a folder of images for a restorer; the
        embedded data of its kind when None
    :param teacher: a teacher file; the shipped one of ``network``, or the shipped detector, when None
    :param splits: names of the training, the search and the test split
    :param network: name that the teacher must have; any when None
    :param patch: side of a restorer's patches in the restored image, in pixels
    :param settings: further arguments of the task
    :raises InputError: if something is missing or does not fit
    """
    if network in RESTORERS or (teacher is not None and is_restorer(teacher)):
        return restoration_task(dataset or PHOTOS, teacher, splits, network, patch, **settings)
    return detection_task(dataset or SHAPES, network, teacher, splits, **settings)
