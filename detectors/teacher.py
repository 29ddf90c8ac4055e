"""Teacher files: a detector's folded FP32 weights as safetensors with everything needed to rebuild it."""

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torchvision.models.detection import FCOS

from detectors.errors import InputError
from detectors.fcos import build_fcos, fold_batch_norm

FORMAT = "hsq-teacher"
SHIPPED_TEACHER = Path(__file__).parent / "data" / "shapes_fcos_resnet50_quarter.safetensors"
DETECTORS: dict[str, dict[str, Any]] = {  # name on the command line: arguments of build_fcos
    "fcos_resnet50": {"width": 1.0},
    "fcos_resnet50_quarter": {"width": 0.25},
}


@dataclass(frozen=True)
class DetectorSpec:
    """What rebuilds a detector: its name in ``DETECTORS``, its classes by label and its sizes."""

    detector: str
    classes: tuple[str, ...]
    level_scale: float = 1.0  # see build_fcos
    min_size: int = 800  # pixels of the shorter image side
    max_size: int = 1333  # pixels of the longer image side at most
    score_thresh: float = 0.05  # detections below are dropped

    def __post_init__(self) -> None:
        if not (
            isinstance(self.detector, str)
            and self.classes
            and all(isinstance(name, str) for name in self.classes)
            and all(isinstance(size, int) and size > 0 for size in (self.min_size, self.max_size))
            and all(isinstance(number, int | float) for number in (self.level_scale, self.score_thresh))
            and 0 < self.level_scale < math.inf
            and 0 <= self.score_thresh <= 1
        ):
            raise InputError(
                f"{self} is no detector: give a name, names of classes, sizes in pixels, a level scale above 0 and a "
                "score threshold from 0 to 1."
            )

    @property
    def name(self) -> str:
        """Of the network."""
        return self.detector

    def build(self) -> FCOS:
        """The detector with random weights and trainable batch norm.

        :raises InputError: if the name is unknown
        """
        if self.detector not in DETECTORS:
            raise InputError(f"Unknown detector '{self.detector}': known are {', '.join(DETECTORS)}.")
        return build_fcos(
            len(self.classes),
            **DETECTORS[self.detector],
            level_scale=self.level_scale,
            min_size=self.min_size,
            max_size=self.max_size,
            score_thresh=self.score_thresh,
        )

    def build_folded(self) -> FCOS:
        """The detector without batch norm, as teachers and students have it, with random weights."""
        model = fold_batch_norm(self.build())
        assert isinstance(model, FCOS)
        return model


def spec_from_json(data: dict[str, Any]) -> DetectorSpec:
    """The inverse of ``dataclasses.asdict`` after a trip through JSON.

    :raises InputError: or KeyError, TypeError, if it is none
    """
    return DetectorSpec(**{**data, "classes": tuple(data["classes"])})


def freeze(model: nn.Module) -> nn.Module:
    """Evaluation mode, no gradients, in place."""
    return model.eval().requires_grad_(False)


def write_atomically(path: Path, content: bytes) -> None:
    """Write beside and rename, so that ``path`` holds all of ``content`` or what it held before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.partial")
    try:
        with open(beside, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def teacher_bytes(model: nn.Module, spec: DetectorSpec, dtype: torch.dtype = torch.float32) -> bytes:
    """The content of a teacher file.

    :param model: folded
    :param dtype: float16 halves the file for shipping; a ratio is always against the float32 file
    """
    tensors = {name: tensor.detach().to(dtype).contiguous() for name, tensor in model.state_dict().items()}
    return save(tensors, {"format": FORMAT, "version": "1", "spec": json.dumps(asdict(spec))})


def read_metadata(path: Path) -> dict[str, str]:
    """What a teacher file says of itself.

    :raises InputError: if it is missing or damaged
    """
    if not path.is_file():
        raise InputError(f"There is no teacher file {path}: train one with 'hsq teacher --out {path}'.")
    with _complete(path), safe_open(path, "pt") as file:
        return file.metadata() or {}


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a teacher file.

    :raises InputError: if it is missing or damaged
    """
    metadata = read_metadata(path)
    with _complete(path):
        return load_file(path), metadata


@contextmanager
def _complete(path: Path) -> Iterator[None]:
    """Damage in the words of the project."""
    try:
        yield
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is not a complete safetensors file ({error}): train or copy it again.") from error


def load_teacher(path: str | Path) -> tuple[FCOS, DetectorSpec]:
    """Read a teacher file.

    :return: the frozen model and its description
    :raises InputError: if the file is missing, damaged, foreign or of another shape than it says
    """
    path = Path(path)
    tensors, metadata = read_safetensors(path)
    if metadata.get("format") != FORMAT:
        raise InputError(f"{path} is not a teacher written by 'hsq teacher': its header lacks format '{FORMAT}'.")
    try:
        spec = spec_from_json(json.loads(metadata["spec"]))
        model = spec.build_folded()
    except (KeyError, TypeError, ValueError) as error:  # an InputError too, which does not know the file
        raise InputError(f"{path} does not describe its detector ({error}): train or copy it again.") from error
    load_weights(model, tensors, path)
    freeze(model)
    return model, spec


def load_weights(model: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Copy ``tensors`` into ``model``; InputError names the first difference in names or shapes."""
    own = model.state_dict()
    for name in sorted(set(own) ^ set(tensors)):
        has, lacks = ("the file", "the network") if name in tensors else ("the network", "the file")
        raise InputError(f"{path} does not fit the network: {has} has '{name}', {lacks} has not.")
    for name, tensor in tensors.items():
        if tensor.shape != own[name].shape:
            raise InputError(
                f"{path} does not fit the network: '{name}' is {tuple(tensor.shape)}, "
                f"expected {tuple(own[name].shape)}."
            )
    model.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
