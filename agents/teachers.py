"""Teachers of one's own data: what ``hsq teacher`` does."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detectors.checks import check_counts
from detectors.errors import InputError
from detectors.folder import class_names, load_folder
from detectors.shapes import CLASS_NAMES
from detectors.task import SHAPES, shapes_folder
from detectors.teacher import DetectorSpec
from detectors.train import train_teacher
from detectors.zoo import BACKGROUND, known
from restorers.images import PHOTOS, load_photos
from restorers.teacher import DENOISERS, RestorerSpec
from restorers.train import train_restorer

EMBEDDED_SIDE = 128  # pixels of the generated images


def train_teacher_file(
    out: Path,
    dataset: str,
    detector: str,
    image_size: int | None,
    level_scale: float | None,
    score_thresh: float,
    train_images: int,
    proposals: int | None = None,
    splits: Sequence[str] | None = None,
    **training: Any,
) -> dict[str, Any]:
    """Train a detector.

    :return: ``{"file", "metric", "map" (of the kept epoch, on the search split), "epoch", "seconds"}``
    """
    check_counts(0, image_size=image_size, train_images=train_images, proposals=proposals)
    if level_scale is not None and not level_scale > 0:
        raise InputError(f"The level scale is {level_scale}: give a number above 0 (--level-scale).")
    embedded = dataset == SHAPES
    names = CLASS_NAMES if embedded else tuple(class_names(dataset, splits))
    settings = known(detector)
    names = (BACKGROUND, *names) if settings.background else names
    usual = EMBEDDED_SIDE if embedded and not settings.fixed else settings.min_size
    if settings.fixed and (image_size not in (None, usual) or level_scale not in (None, 1.0)):
        raise InputError(
            f"'{detector}' takes images of {usual} pixels alone: leave out --image-size and --level-scale."
        )
    if settings.fixed and training.get("batch_size") == 1:
        raise InputError(f"'{detector}' does not train on one image at a time: give --batch-size 2 or more.")
    if proposals is not None and (proposals < 1 or "rcnn" not in detector):
        raise InputError(
            f"{proposals} proposals of '{detector}': give 1 or more, for a Faster R-CNN alone (--proposals)."
        )
    image_size = usual if image_size is None else image_size
    level_scale = 1.0 if settings.fixed else level_scale
    spec = DetectorSpec(
        detector,
        names,
        level_scale=level_scale_for(image_size) if level_scale is None else level_scale,
        min_size=image_size,
        max_size=image_size if settings.fixed else round(image_size * 1333 / 800),  # torchvision's proportion
        score_thresh=score_thresh,
        proposals=proposals,
    )
    spec.build()  # an unknown detector is refused before images are drawn
    folder = shapes_folder({"train": train_images}) if embedded else Path(dataset)
    loaded = load_folder(folder, names, spec.min_size, spec.max_size, splits, spec.preparation)
    return {"file": str(out), "metric": "mAP", **train_teacher(loaded, spec, out, **training)}


def train_restorer_file(
    out: Path,
    dataset: str | None,
    restorer: str,
    noise: float,
    scale: int,
    channels: int,
    patch: int,
    splits: Sequence[str] | None = None,
    **training: Any,
) -> dict[str, Any]:
    """Train a restorer; the same with "psnr" in place of "map"."""
    problem = {"noise": noise} if restorer in DENOISERS else {"scale": scale}
    spec = RestorerSpec(restorer, channels, **problem)
    photos = load_photos(dataset or PHOTOS, channels, patch, splits)
    return {"file": str(out), "metric": "PSNR", **train_restorer(photos, spec, out, patch=patch, **training)}


def level_scale_for(image_size: int) -> float:
    """The power of two nearest to 1.5 * image_size / 800, at most 1: 0.25 at 128 pixels, 1 from 400 on."""
    scale = 1.0
    while scale > 1.5 * image_size / 800 * 2**0.5:
        scale /= 2
    return scale
