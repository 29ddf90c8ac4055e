"""A restorer with its images and PSNR, in the form that the environment takes (``hsq_env.task.Task``)."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from detectors.architecture import Distillable
from detectors.checks import check_counts
from detectors.errors import InputError
from detectors.stages import Stage, State
from restorers.degradation import add_noise, crop_to_multiple, enlarge, reduce
from restorers.images import PHOTOS, Photos, load_photos
from restorers.metric import psnr, ssim
from restorers.teacher import SHIPPED_TEACHERS, Restorer, RestorerSpec, load_teacher, restorer_stages, teacher_bytes

PIXEL_UNIT = 0.02  # of the range: a mean difference that large counts as 1 in the losses
DEFAULT_PATCH = 48
SMALLEST_PATCH = 8  # times the scale: the grid that SPARK's policy looks at
NOISE_SEEDS = {"train": 0, "search": 1, "test": 2}


@dataclass(frozen=True)
class RestorationBatch:
    """Degraded images and what they are to become.

    :param images: (N, C, h, w); noise is not clipped
    :param targets: (N, C, H, W), H = scale * h, in [0, 1]
    """

    images: Tensor
    targets: Tensor

    def to(self, device: torch.device) -> "RestorationBatch":
        """On another device."""
        return RestorationBatch(self.images.to(device), self.targets.to(device))


class RestorationTask:
    """A trained restorer on photographs.

    :param name: for tables and messages
    :param teacher: folded and frozen
    :param spec: what rebuilds it, and the problem
    :param splits: "train", "search" and "test"
    :param search_images: patches of the search split that rewards look at
    :param test_images: how many whole images of the test split, the first by name; None for all
    :param pool_images: training patches for the brief fine-tuning
    :param calibration_images: training patches for activation ranges and sensitivities
    :param batch_size: of fine-tuning and of rewards
    :param patch: side of patches in the restored image, in pixels
    :param seed: of the long fine-tuning's patches
    """

    metric_name = "PSNR"

    def __init__(
        self,
        name: str,
        teacher: Restorer,
        spec: RestorerSpec,
        splits: dict[str, Photos],
        search_images: int | None = 64,
        test_images: int | None = None,
        pool_images: int = 64,
        calibration_images: int = 16,
        batch_size: int = 8,
        patch: int = DEFAULT_PATCH,
        seed: int = 0,
    ) -> None:
        check_counts(
            seed,
            search_images=search_images,
            test_images=test_images,
            pool_images=pool_images,
            calibration_images=calibration_images,
            batch_size=batch_size,
        )
        smallest = SMALLEST_PATCH * spec.scale
        if patch % spec.scale or patch < smallest:
            raise InputError(
                f"A patch of {patch} pixels does not go: give a multiple of {spec.scale} from {smallest} on (--patch)."
            )
        for role, split in splits.items():
            for image_name, pixels in zip(split.names, split.pixels, strict=True):
                if min(pixels.shape[:2]) < patch:
                    raise InputError(
                        f"{image_name} of the {role} split is {pixels.shape[1]}x{pixels.shape[0]}, smaller than the "
                        f"patch of {patch}: remove it or give a smaller patch."
                    )
                if (pixels.ndim == 2) != (spec.channels == 1):
                    raise InputError(f"{image_name} does not have the {spec.channels} channels of the teacher.")
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.name, self.spec, self.seed, self.batch_size, self.patch = name, spec, seed, batch_size, patch
        self.teacher = teacher.to(self.device)
        self._splits = {**splits, "test": splits["test"].first(test_images)}
        self._search_images = search_images or 64
        self._pool = self._patches("train", pool_images)
        self._calibration = self._patches("train", calibration_images)

    # ---- images

    def _clean_patch(self, split: Photos, rng: np.random.Generator) -> NDArray[np.uint8]:
        pixels = split.pixels[int(rng.integers(len(split)))]
        top, left = (int(rng.integers(side - self.patch + 1)) for side in pixels.shape[:2])
        return pixels[top : top + self.patch, left : left + self.patch]

    def _batch(self, clean: Sequence[NDArray[np.uint8]], noise_seed: tuple[int, ...]) -> RestorationBatch:
        """Degrade images of one size."""
        small = [reduce(image, self.spec.scale) for image in clean] if self.spec.scale > 1 else clean
        images, targets = (_tensor_ready(np.stack(list(some))) for some in (small, clean))
        if self.spec.noise:
            images = add_noise(images, self.spec.noise, noise_seed)
        return RestorationBatch(torch.from_numpy(images), torch.from_numpy(targets)).to(self.device)

    def _patches(self, role: str, count: int) -> list[RestorationBatch]:
        """The same patches at every call."""
        seed = NOISE_SEEDS[role]
        rng = np.random.default_rng([seed, 1])
        clean = [self._clean_patch(self._splits[role], rng) for _ in range(count)]
        starts = range(0, count, self.batch_size)
        return [self._batch(clean[i : i + self.batch_size], (seed, 2, i)) for i in starts]

    def calibration(self) -> list[RestorationBatch]:
        """The first patches of the pool."""
        return self._calibration

    def finetuning(self) -> list[RestorationBatch]:
        """The fixed pool of training patches."""
        return self._pool

    def long_finetuning(self, step: int) -> RestorationBatch:
        """Random training patches, flipped and turned at random; a function of the seed and ``step``."""
        rng = np.random.default_rng([self.seed, step, 3])
        clean = [self._clean_patch(self._splits["train"], rng) for _ in range(self.batch_size)]
        turned = [np.rot90(image, int(rng.integers(4))) for image in clean]
        flipped = [image[:, ::-1] if rng.random() < 0.5 else image for image in turned]
        return self._batch([np.ascontiguousarray(image) for image in flipped], (self.seed, step, 4))

    def evaluation(self, split: str) -> list[RestorationBatch]:
        """Patches of "search", or the whole images of "test", one per batch."""
        return self._search if split == "search" else self._test

    @cached_property
    def _search(self) -> list[RestorationBatch]:
        return self._patches("search", self._search_images)

    @cached_property
    def _test(self) -> list[RestorationBatch]:
        cropped = [crop_to_multiple(pixels, self.spec.scale) for pixels in self._splits["test"].pixels]
        return [self._batch([image], (NOISE_SEEDS["test"], i)) for i, image in enumerate(cropped)]

    # ---- the network

    def stages(self, model: torch.nn.Module) -> list[Stage]:
        """See ``restorers.networks``."""
        return restorer_stages(model)

    def task_loss(self, outputs: State, batch: RestorationBatch) -> Tensor:
        """Mean absolute error against the clean images, in units of ``PIXEL_UNIT``."""
        return (outputs["restored"] - batch.targets).abs().mean() / PIXEL_UNIT

    def error_maps(self, outputs: State, batch: RestorationBatch) -> list[Tensor]:
        """The absolute error per pixel, mean over channels, (N, H, W)."""
        return [(outputs["restored"] - batch.targets).abs().mean(dim=1)]

    def distilled(self, outputs: State) -> list[Distillable]:
        """The restored image, in units of ``PIXEL_UNIT``."""
        return [Distillable("restored", "pixels", outputs["restored"] / PIXEL_UNIT)]

    # ---- figures

    def predictions(self, outputs: State, batch: RestorationBatch) -> list[tuple[NDArray[Any], NDArray[Any]]]:
        """Restored and clean images, (H, W) or (H, W, 3)."""
        restored = outputs["restored"]
        if self.spec.scale > 1:  # the papers measure images with 8 bits
            restored = (restored.clamp(0, 1) * 255).round() / 255
        return list(zip(_images(restored), _images(batch.targets), strict=True))

    def metric(self, predictions: Sequence[Any], split: str) -> float:
        """Mean PSNR over images in dB; of the luminance without a border as wide as the scale for super-resolution."""
        return float(np.mean([psnr(*pair, **self.compared()) for some in predictions for pair in some]))

    def untreated_metric(self, split: str) -> float:
        """``metric`` of the noisy images as they are, of reduced ones after bicubic enlargement."""
        batches = self.evaluation(split)
        return self.metric([self.predictions({"restored": self._untreated(b)}, b) for b in batches], split)

    def _untreated(self, batch: RestorationBatch) -> Tensor:
        if self.spec.scale == 1:
            return batch.images
        small = [(image * 255).round().astype(np.uint8) for image in _images(batch.images)]
        return torch.from_numpy(_tensor_ready(np.stack([enlarge(pixels, self.spec.scale) for pixels in small])))

    def structural_similarity(self, predictions: Sequence[Any]) -> float:
        """Mean SSIM over the same."""
        return float(np.mean([ssim(*pair, **self.compared()) for some in predictions for pair in some]))

    def compared(self) -> dict[str, Any]:
        """How images are compared: arguments of ``restorers.metric.psnr`` and ``ssim``."""
        enlarges = self.spec.scale > 1
        return {"shave": self.spec.scale if enlarges else 0, "y_only": enlarges}

    def describe(self) -> dict[str, Any]:
        """What ``RestorerSpec`` takes."""
        return asdict(self.spec)

    def teacher_file(self) -> bytes:
        """The float32 teacher."""
        return teacher_bytes(self.teacher, self.spec)


def _tensor_ready(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(N, H, W) or (N, H, W, 3) of 8 bits to (N, C, H, W) in [0, 1]."""
    channels_first = pixels[:, None] if pixels.ndim == 3 else pixels.transpose(0, 3, 1, 2)
    return np.ascontiguousarray(channels_first, dtype=np.float32) / np.float32(255)


def _images(batch: Tensor) -> list[NDArray[np.float64]]:
    arrays = batch.detach().double().cpu().numpy().transpose(0, 2, 3, 1)
    return [image[..., 0] if image.shape[-1] == 1 else image for image in arrays]


def restoration_task(
    dataset: str | Path = PHOTOS,
    teacher: str | Path | None = None,
    splits: Sequence[str] | None = None,
    network: str | None = None,
    patch: int = DEFAULT_PATCH,
    **settings: Any,
) -> RestorationTask:
    """Build a task from a folder of images and a teacher file.

    :param dataset: "photos", scikit-image's, or a folder of images, see ``restorers.images.load_photos``
    :param teacher: file of a restorer; the shipped one of ``network`` when None
    :param splits: names of the folders for training, search and test
    :param network: name that the teacher must have; any when None
    :param patch: side of patches in the restored image, in pixels
    :param settings: further arguments of ``RestorationTask``
    :raises InputError: if something is missing or does not fit
    """
    teacher = teacher or SHIPPED_TEACHERS.get(str(network))
    if teacher is None:
        shipped = ", ".join(SHIPPED_TEACHERS)
        raise InputError(f"A restorer needs a teacher: give its file with --teacher FILE; {shipped} ship with one.")
    model, spec = load_teacher(teacher)
    if network is not None and network != spec.name:
        raise InputError(f"The teacher {teacher} is a {spec.name}, not a {network}: drop the name.")
    photos = load_photos(dataset, spec.channels, patch, splits)
    return RestorationTask(Path(dataset).name, model, spec, photos, patch=patch, **settings)
