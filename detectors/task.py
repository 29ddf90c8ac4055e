"""A detector with its data and mAP, in the form that the environment takes (``hsq_env.task.Task``)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from detectors.architecture import Architecture, Distillable, architecture_of
from detectors.batches import Batch, layout_of
from detectors.cache import cache_folder
from detectors.checks import check_counts
from detectors.coco import MOST_KEPT, CocoSplit, LazyBatches
from detectors.detection import coco_rows, detections_map
from detectors.errors import InputError
from detectors.fcos import FCOSArchitecture
from detectors.fcos_detections import Candidates, candidates, detections
from detectors.folder import check_folder, load_folder
from detectors.metric import QuickMAP
from detectors.shapes import DEFAULT_IMAGES, SHAPES_VERSION, write_shapes
from detectors.stages import Stage, State
from detectors.teacher import SHIPPED_TEACHER, DetectorSpec, coco_teacher, load_teacher, teacher_bytes
from detectors.train import augmented_batch
from detectors.zoo import known

SHAPES = "shapes"
EMBEDDED = "fcos_resnet50_quarter"  # the detector that ships with a teacher for it


class DetectionTask:
    """A trained detector on a COCO-layout folder.

    :param name: for tables and messages
    :param teacher: folded and frozen
    :param spec: what rebuilds it
    :param splits: "train", "search" and "test"
    :param search_images: how many of the search split rewards look at, the first by id; None for all
    :param test_images: likewise for final numbers
    :param pool_images: training images for the brief fine-tuning
    :param calibration_images: training images for activation ranges and sensitivities
    :param batch_size: of fine-tuning and evaluation
    :param seed: of the long fine-tuning's batches
    :param architecture: what HSQ has to know of a detector of one's own; found by itself for torchvision's
    """

    metric_name = "mAP"

    def __init__(
        self,
        name: str,
        teacher: nn.Module,
        spec: DetectorSpec,
        splits: dict[str, CocoSplit],
        search_images: int | None = 64,
        test_images: int | None = None,
        pool_images: int = 64,
        calibration_images: int = 16,
        batch_size: int = 8,
        seed: int = 0,
        architecture: Architecture | None = None,
    ) -> None:
        check_counts(
            seed,
            search_images=search_images,
            test_images=test_images,
            pool_images=pool_images,
            calibration_images=calibration_images,
            batch_size=batch_size,
        )
        for role, split in splits.items():
            if not len(split):
                raise InputError(f"The {role} split of '{name}' has no images: add some.")
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.name, self.spec, self.seed, self.batch_size = name, spec, seed, batch_size
        # channels last suits tensor cores; on a CPU it changed little
        self.teacher: Any = teacher.to(self.device).to(memory_format=layout_of(self.device))
        self._architecture = architecture or architecture_of(self.teacher)
        limits = {"search": search_images, "test": test_images}
        self._splits = {role: splits[role].first(n) if n else splits[role] for role, n in limits.items()}
        self._train = splits["train"]
        self._pool = self._batches(self._train.first(pool_images))
        self._calibration = self._batches(self._train.first(calibration_images))
        self._evaluation: dict[str, Sequence[Batch]] = {}
        self._quick_map: QuickMAP | None = None
        self._assignments: dict[int, Any] = {}  # by place in the pool

    def _batches(self, split: CocoSplit) -> list[Batch]:
        return [batch.to(self.device, layout_of(self.device)) for batch in split.batches(self.batch_size)]

    def stages(self, model: torch.nn.Module) -> list[Stage]:
        """See ``detectors.architecture.Architecture``."""
        return self._architecture.stages(model)

    def calibration(self) -> list[Batch]:
        """The first training images."""
        return self._calibration

    def finetuning(self) -> list[Batch]:
        """The fixed pool of training batches."""
        return self._pool

    def long_finetuning(self, step: int) -> Batch:
        """A random training batch, flipped and brightened at random; a function of the seed and ``step``."""
        rng = np.random.default_rng([self.seed, step])
        count = min(self.batch_size, len(self._train))
        picked = rng.choice(len(self._train), count, replace=False)
        return augmented_batch(self._train, [self._train.image_ids[i] for i in picked], rng).to(
            self.device, layout_of(self.device)
        )

    def evaluation(self, split: str) -> Sequence[Batch]:
        """All batches of "search" or "test"; made anew each time where memory would not hold them."""
        if split not in self._evaluation:
            lazy = LazyBatches(self._splits[split], self.batch_size, self.device)
            too_many = lazy[0].images.nbytes * len(lazy) > MOST_KEPT
            self._evaluation[split] = lazy if too_many else self._batches(self._splits[split])
        return self._evaluation[split]

    def task_loss(self, outputs: State, batch: Batch) -> Tensor:
        """The sum of torchvision's losses."""
        return self._architecture.loss(outputs, self._assignment(outputs, batch))

    def error_maps(self, outputs: State, batch: Batch) -> list[Tensor]:
        """The classification loss per location of every pyramid level (N, H, W)."""
        error = self._architecture.errors(outputs, self._assignment(outputs, batch))
        sizes = [(x.shape[2], x.shape[3]) for x in outputs["features"]]
        parts = error.split([height * width for height, width in sizes], dim=1)
        return [part.unflatten(1, size) for part, size in zip(parts, sizes, strict=True)]

    def _assignment(self, outputs: State, batch: Batch) -> Any:
        """What a batch's outputs are to find, made once for those of the pool."""
        place = next((i for i, other in enumerate(self._pool) if other is batch), None)
        if place is not None and place in self._assignments:
            return self._assignments[place]
        made = self._architecture.assign(outputs, batch)
        if place is not None:
            self._assignments[place] = made
        return made

    def distilled(self, outputs: State) -> list[Distillable]:
        """Outputs and maps, see ``Architecture.distilled`` of the detector's kind."""
        return self._architecture.distilled(outputs)

    def predictions(self, outputs: State, batch: Batch) -> list[dict[str, Tensor]]:
        """Detections per image."""
        return self._architecture.detect(outputs, batch.image_sizes, _sides(batch))

    def metric(self, predictions: Sequence[list[dict[str, Tensor]]], split: str) -> float:
        """mAP@[.50:.95]."""
        return detections_map(self._splits[split], self._splits[split].chunks(self.batch_size), predictions)

    def quick_predictions(self, outputs: State, batch: Batch) -> Candidates | list[dict[str, Tensor]]:
        """What ``quick_metric`` turns into detections; detections already for all but FCOS."""
        if isinstance(self._architecture, FCOSArchitecture):
            return candidates(self.teacher, outputs, batch.image_sizes, _sides(batch))
        return self.predictions(outputs, batch)

    def quick_metric(self, predictions: Sequence[Candidates | list[dict[str, Tensor]]]) -> float:
        """mAP@[.50:.95] of the search split, ``metric``'s within 1e-15."""
        split = self._splits["search"]
        if self._quick_map is None:
            self._quick_map = QuickMAP(split.truth, split.image_ids)
        found = [detections(self.teacher, p) if isinstance(p, Candidates) else p for p in predictions]
        return self._quick_map(coco_rows(split, split.chunks(self.batch_size), found))

    def describe(self) -> dict[str, Any]:
        """What ``detectors.teacher.spec_from_json`` turns back into a model."""
        return self.spec.as_json()

    def teacher_file(self) -> bytes:
        """The float32 teacher as ``hsq teacher`` writes it."""
        return teacher_bytes(self.teacher, self.spec)


def _sides(batch: Batch) -> tuple[int, int]:
    """(height, width) of a batch with its padding."""
    return batch.images.shape[2], batch.images.shape[3]


def shapes_folder(images: dict[str, int] | None = None) -> Path:
    """The generated ``shapes`` data in the cache, drawn on first use (15 seconds for the default 1552 images)."""
    counts = {**DEFAULT_IMAGES, **(images or {})}
    folder = cache_folder() / f"shapes-v{SHAPES_VERSION}-{'-'.join(str(counts[s]) for s in DEFAULT_IMAGES)}"
    if not folder.exists():
        write_shapes(folder, counts)
    return folder


def _teacher_of(dataset: str, detector: str | None, teacher: str | Path | None) -> tuple[nn.Module, DetectorSpec]:
    """See ``detection_task``."""
    if teacher is None and dataset != SHAPES:
        if detector is None:
            raise InputError(
                f"The data {dataset} needs a teacher: train one with 'hsq teacher --dataset {dataset} --out FILE' (in "
                "minutes with --detector fcos_resnet50_quarter --image-size 160 --epochs 10 --cycles 1) and give it "
                "with --teacher FILE, or name a detector of torchvision's with --detector for COCO's classes."
            )
        return coco_teacher(detector)
    if teacher is None and detector not in (None, EMBEDDED):
        raise InputError(
            f"The embedded data has no teacher '{detector}': give --dataset and --teacher, or leave out --detector."
        )
    model, spec = load_teacher(SHIPPED_TEACHER if teacher is None else teacher, detector)
    if detector is not None and known(detector) is not known(spec.detector):
        raise InputError(
            f"The teacher {teacher or SHIPPED_TEACHER} is a {spec.detector}, not a {detector}: drop --detector."
        )
    return model, spec


def detection_task(
    dataset: str | Path = SHAPES,
    detector: str | None = None,
    teacher: str | Path | None = None,
    splits: Sequence[str] | None = None,
    **settings: Any,
) -> DetectionTask:
    """Build a task from a folder and a teacher file.

    :param dataset: "shapes" or a COCO-layout folder
    :param detector: name that the teacher must have; any when None
    :param teacher: file written by ``hsq teacher``, or of torchvision's COCO weights of ``detector``; when None the
        shipped one for ``shapes``, and torchvision's COCO weights for other data where ``detector`` is named
    :param splits: names of the training, the search and, if there is one, the test split; found when None
    :param settings: further arguments of ``DetectionTask``
    :raises InputError: if something is missing or does not fit
    """
    if str(dataset) != SHAPES:
        check_folder(Path(dataset))
    model, spec = _teacher_of(str(dataset), detector, teacher)
    folder = shapes_folder() if str(dataset) == SHAPES else Path(dataset)
    loaded = load_folder(folder, spec.classes, spec.min_size, spec.max_size, splits, spec.preparation)
    return DetectionTask(Path(dataset).name, model, spec, loaded, **settings)
