"""Teacher files: a detector's folded FP32 weights as safetensors with everything needed to rebuild it."""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from detectors.backbone import fold_batch_norm
from detectors.batches import Preparation
from detectors.errors import InputError
from detectors.zoo import Wanted, coco_classes, coco_weights, known, load_coco_weights

FORMAT = "hsq-teacher"
SHIPPED_TEACHER = Path(__file__).parent / "data" / "shapes_fcos_resnet50_quarter.safetensors"
PICKLED = (".pth", ".pt")  # endings of torchvision's files of weights
ADDED = {"antialias": True, "proposals": None}  # fields that files written before lack, with what they mean


@dataclass(frozen=True)
class DetectorSpec:
    """What rebuilds a detector: its name in ``detectors.zoo``, its classes by label and its sizes."""

    detector: str
    classes: tuple[str, ...]
    level_scale: float = 1.0  # object sizes over those that torchvision's anchors suit
    min_size: int = 800  # pixels of the shorter image side
    max_size: int = 1333  # pixels of the longer image side at most
    score_thresh: float = 0.05  # detections below are dropped
    antialias: bool = True  # how images are resized, see detectors.batches.Preparation
    proposals: int | None = None  # that a second stage classifies, per image; torchvision's number when None

    def __post_init__(self) -> None:
        if not (
            isinstance(self.detector, str)
            and self.classes
            and all(isinstance(name, str) for name in self.classes)
            and all(isinstance(size, int) and size > 0 for size in (self.min_size, self.max_size))
            and all(isinstance(number, int | float) for number in (self.level_scale, self.score_thresh))
            and 0 < self.level_scale < math.inf
            and 0 <= self.score_thresh <= 1
            and isinstance(self.antialias, bool)
            and (self.proposals is None or (isinstance(self.proposals, int) and self.proposals > 0))
        ):
            raise InputError(
                f"{self} is no detector: give a name, names of classes, sizes in pixels, a level scale above 0 and a "
                "score threshold from 0 to 1."
            )

    @property
    def name(self) -> str:
        """Of the network."""
        return self.detector

    @property
    def preparation(self) -> Preparation:
        """What becomes of images besides their size."""
        return known(self.detector).preparation(self.antialias)

    def build(self) -> nn.Module:
        """The detector with random weights and trainable batch norm.

        :raises InputError: if the name is unknown, or the network does not come in these sizes
        """
        return known(self.detector).build(
            Wanted(len(self.classes), self.level_scale, self.min_size, self.max_size, self.score_thresh, self.proposals)
        )

    def build_folded(self) -> nn.Module:
        """The detector without batch norm, as teachers and students have it, with random weights."""
        return fold_batch_norm(self.build())

    def as_json(self) -> dict[str, Any]:
        """The inverse of ``spec_from_json``; fields that came later are left out where they say nothing new."""
        return {name: value for name, value in asdict(self).items() if name not in ADDED or value != ADDED[name]}


def coco_spec(detector: str) -> DetectorSpec:
    """What torchvision's COCO weights of a detector are for.

    :raises InputError: if it has none
    """
    settings, classes = known(detector), coco_classes(detector)
    sizes = (settings.min_size, settings.max_size, settings.score_thresh)
    return DetectorSpec(detector, classes, 1.0, *sizes, antialias=False)


def spec_from_json(data: dict[str, Any]) -> DetectorSpec:
    """The inverse of ``DetectorSpec.as_json`` after a trip through JSON.

    :raises InputError: or KeyError, TypeError, if it is none
    """
    return DetectorSpec(**{**data, "classes": tuple(data["classes"])})


def freeze(model: nn.Module) -> nn.Module:
    """Evaluation mode, no gradients, in place."""
    return model.eval().requires_grad_(False)


def teacher_bytes(model: nn.Module, spec: DetectorSpec, dtype: torch.dtype = torch.float32) -> bytes:
    """The content of a teacher file.

    :param model: folded
    :param dtype: float16 halves the file for shipping; a ratio is always against the float32 file
    """
    tensors = {name: tensor.detach().to(dtype).contiguous() for name, tensor in model.state_dict().items()}
    return save(tensors, {"format": FORMAT, "version": "1", "spec": json.dumps(spec.as_json())})


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


def load_teacher(path: str | Path, detector: str | None = None) -> tuple[nn.Module, DetectorSpec]:
    """Read a teacher file.

    :param path: written by ``hsq teacher``, or torchvision's COCO weights of ``detector`` (.pth)
    :param detector: needed for weights of torchvision's
    :return: the frozen model and its description
    :raises InputError: if the file is missing, damaged, foreign or of another shape than it says
    """
    path = Path(path)
    if path.suffix in PICKLED:
        if detector is None:
            raise InputError(
                f"{path} does not say which detector it is of: name it (hsq search --detector, finetune --network), "
                "or train a teacher with 'hsq teacher'."
            )
        return coco_teacher(detector, path)
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


def coco_teacher(detector: str, file: Path | None = None) -> tuple[nn.Module, DetectorSpec]:
    """A detector with torchvision's COCO weights, folded and frozen, and its description.

    :param file: of the weights; downloaded when None
    :raises InputError: if there are none, or they do not fit
    """
    spec = coco_spec(detector)
    weights = coco_weights(detector, file)
    model = spec.build()
    load_coco_weights(model, detector, weights, "torchvision's download" if file is None else str(file))
    return freeze(fold_batch_norm(model)), spec


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
