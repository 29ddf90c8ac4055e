"""From a ``.hsq`` file to the model in it, and to a task around it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from detectors.errors import InputError
from detectors.folder import load_folder
from detectors.shapes import CLASS_NAMES
from detectors.task import SHAPES, DetectionTask, shapes_folder
from detectors.teacher import DetectorSpec, freeze, spec_from_json
from hsq_env.file import load_hsq, read_header
from hsq_env.make import Made
from hsq_env.parts import HsqHeader
from restorers.images import PHOTOS, load_photos
from restorers.networks import DnCNN, SuperResolver
from restorers.task import SMALLEST_PATCH, RestorationTask
from restorers.teacher import RestorerSpec

# of a model per byte of its file: 2 bits, 75 % sparse and coded, are about eight; without three quarters of the input
# channels, and without the rows that then nobody reads, more than 64
MOST_ELEMENTS = {"unstructured": 64, "n:m": 64, "channels": 512}


def load_model(file: Path) -> tuple[nn.Module, DetectorSpec | RestorerSpec]:
    """The network of a file, frozen, and what describes it.

    :raises InputError: if the file cannot be used, or holds a network that is not one of this project's
    """
    header = read_header(file)
    try:
        made = RestorerSpec(**header.model) if "restorer" in header.model else spec_from_json(header.model)
        with torch.device("meta"):
            unallocated = made.build_folded()
    except (KeyError, TypeError, ArithmeticError, AttributeError, InputError) as error:
        raise InputError(
            f"{file} holds a model that this command cannot build: load it with hsq_env.load_hsq."
        ) from error
    size, elements = file.stat().st_size, sum(t.numel() for t in unallocated.state_dict().values())
    if _elsewhere(unallocated, header) > size or elements > MOST_ELEMENTS[header.pattern] * size:
        raise InputError(f"{file} holds less than the model that it speaks of: it is damaged.")
    model = made.build_folded()
    load_hsq(file, model)
    return freeze(model), made


def model_beside(task: Made, file: Path) -> nn.Module:
    """The network of a file that holds a compressed form of a task's teacher, frozen, where the teacher is.

    :raises InputError: if the file cannot be used or holds another network
    """
    model = task.spec.build_folded()
    load_hsq(file, model)
    return freeze(model).to(task.device)


def _elsewhere(model: nn.Module, header: HsqHeader) -> int:
    """Elements of a model that are in none of the header's layers; in honest files they take a byte or more each."""
    state = model.state_dict()
    shapes = {entry.name: entry.shape for entry in header.layers}
    of_layers = {n for n, t in state.items() if shapes.get(n.rpartition(".")[0]) == tuple(t.shape)}
    return sum(t.numel() for n, t in state.items() if n not in of_layers)


def model_task(
    file: Path, dataset: str | None, splits: Sequence[str] | None = None, calibration_images: int = 1
) -> Made:
    """A task whose teacher is a ``.hsq`` file's model.

    :param dataset: the embedded data of the model's kind when None
    :param calibration_images: training images that are made ready
    :raises InputError: if the file or the data cannot be used
    """
    images: dict[str, Any] = {"pool_images": 1, "calibration_images": calibration_images}
    model, spec = load_model(file)
    if isinstance(spec, RestorerSpec):
        assert isinstance(model, DnCNN | SuperResolver)
        patch, name = SMALLEST_PATCH * spec.scale, dataset or PHOTOS
        photos = load_photos(name, spec.channels, patch, splits)
        return RestorationTask(name, model, spec, photos, patch=patch, **images)
    name = dataset or SHAPES
    if dataset is None and not set(CLASS_NAMES) <= set(spec.classes):
        raise InputError(f"The model of {file} was not made for the embedded data: give its own with --dataset FOLDER.")
    folder = shapes_folder() if name == SHAPES else Path(name)
    loaded = load_folder(folder, spec.classes, spec.min_size, spec.max_size, splits, spec.preparation)
    return DetectionTask(name, model, spec, loaded, search_images=None, **images)
