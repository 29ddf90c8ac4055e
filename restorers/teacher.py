"""Teacher files of restorers: folded FP32 weights as safetensors with everything needed to rebuild the network."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn

from detectors.backbone import fold_batch_norm
from detectors.errors import InputError
from detectors.stages import Stage
from detectors.teacher import FORMAT, PICKLED, freeze, load_weights, read_metadata, read_safetensors
from restorers.networks import DnCNN, SuperResolver, edsr, srresnet

Restorer = DnCNN | SuperResolver
DENOISERS: dict[str, Callable[..., Restorer]] = {"dncnn": DnCNN}
SUPER_RESOLVERS: dict[str, Callable[..., Restorer]] = {"edsr": edsr, "srresnet": srresnet}
DATA = Path(__file__).parent / "data"
SHIPPED_TEACHERS = {"dncnn": DATA / "photos_dncnn_grey25.safetensors", "edsr": DATA / "photos_edsr_x2.safetensors"}
RESTORERS = {**DENOISERS, **SUPER_RESOLVERS}
SCALES = (2, 4)


@dataclass(frozen=True)
class RestorerSpec:
    """What rebuilds a restorer and its problem.

    :param restorer: name in ``RESTORERS``
    :param channels: of images, 1 or 3
    :param noise: standard deviation of the noise, of 255; 0 for super-resolution
    :param scale: of super-resolution, 2 or 4; 1 for denoising
    """

    restorer: str
    channels: int = 3
    noise: float = 0.0
    scale: int = 1

    def __post_init__(self) -> None:
        whole = type(self.channels) is int and type(self.scale) is int
        if not isinstance(self.restorer, str) or not isinstance(self.noise, int | float) or not whole:
            raise InputError(f"{self} is no restorer: give a name and a number.")
        if self.restorer not in RESTORERS:
            raise InputError(f"Unknown restorer '{self.restorer}': known are {', '.join(RESTORERS)}.")
        if self.channels not in (1, 3):
            raise InputError(f"Images of {self.channels} channels cannot be restored: give 1 (grey) or 3 (colour).")
        if self.restorer in DENOISERS and not (0 < self.noise <= 255 and self.scale == 1):
            raise InputError(f"{self.restorer} removes noise: give a level above 0, up to 255, not {self.noise:g}.")
        if self.restorer in SUPER_RESOLVERS and not (self.noise == 0 and self.scale in SCALES):
            raise InputError(f"{self.restorer} enlarges: give a scale of 2 or 4, not {self.scale}, and no noise.")

    @property
    def name(self) -> str:
        """Of the network."""
        return self.restorer

    def build(self) -> Restorer:
        """The network with random weights, batch norm in place."""
        scale = {"scale": self.scale} if self.restorer in SUPER_RESOLVERS else {}
        return RESTORERS[self.restorer](channels=self.channels, **scale)

    def build_folded(self) -> Restorer:
        """The network without batch norm, as teachers and students have it."""
        return folded(self.build())


def folded(model: Restorer) -> Restorer:
    """Batch norm folded into the convolutions, in place."""
    fold_batch_norm(model)
    return model


def restorer_stages(model: nn.Module) -> list[Stage]:
    """See ``hsq_env.task.Task.stages``."""
    assert isinstance(model, DnCNN | SuperResolver)
    return model.stages()


def teacher_bytes(model: nn.Module, spec: RestorerSpec, dtype: torch.dtype = torch.float32) -> bytes:
    """The content of a teacher file.

    :param model: folded
    :param dtype: float16 halves the file for shipping; a ratio is always against the float32 file
    """
    tensors = {name: tensor.detach().to(dtype).contiguous() for name, tensor in model.state_dict().items()}
    return save(tensors, {"format": FORMAT, "version": "1", "restorer": json.dumps(asdict(spec))})


def load_teacher(path: str | Path) -> tuple[Restorer, RestorerSpec]:
    """Read a teacher file.

    :return: the frozen model and its description
    :raises InputError: if the file is missing, damaged, foreign or of another shape than it says
    """
    path = Path(path)
    tensors, metadata = read_safetensors(path)
    if metadata.get("format") != FORMAT or "restorer" not in metadata:
        raise InputError(f"{path} is not a restorer's teacher: import or train one, and give its file.")
    try:
        spec = RestorerSpec(**json.loads(metadata["restorer"]))
        model = spec.build_folded()
    except (TypeError, ValueError) as error:  # an InputError too, which does not know the file
        raise InputError(f"{path} does not describe its restorer ({error}): train or copy it again.") from error
    load_weights(model, tensors, path)
    freeze(model)
    return model, spec


def is_restorer(path: str | Path) -> bool:
    """Whether a teacher file holds a restorer.

    :raises InputError: if it is missing or damaged
    """
    return Path(path).suffix not in PICKLED and "restorer" in read_metadata(Path(path))


def load_published(path: str | Path, spec: RestorerSpec) -> Restorer:
    """A network with weights as they were published, batch norm not yet folded.

    :param path: safetensors with the names of ``spec.build()``
    :return: folded and frozen
    :raises InputError: if the file is missing or damaged, or does not fit
    """
    tensors, _ = read_safetensors(Path(path))
    model = spec.build()
    counters = {n: t for n, t in model.state_dict().items() if n.endswith("num_batches_tracked")}
    load_weights(model, {**counters, **_without_counters(tensors)}, Path(path))
    freeze(folded(model))
    return model


def _without_counters(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if not name.endswith("num_batches_tracked")}
