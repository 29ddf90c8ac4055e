"""The images of a report: the run's data and models, compared where they can be had."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from agents.model_task import load_model
from agents.report import detections, restorations
from agents.report.run import Run
from agents.run_folder import model_file
from agents.spark_file import load_spark
from detectors.errors import InputError
from detectors.task import DetectionTask
from hsq_env.distillation.spark import Spark
from hsq_env.make import Made, make_task
from restorers.task import DEFAULT_PATCH

LITTLE: dict[str, Any] = {"search_images": 1, "pool_images": 1, "calibration_images": 1}  # of what is not looked at


@dataclass(frozen=True)
class Pictures:
    """What a run's teacher and one of its models make of test images.

    :param model: its title
    :param looked_at: number of images, of which those that differ most are shown
    :param missing: why there are none, a sentence; empty if there are
    """

    model: str
    looked_at: int
    pairs: tuple[detections.Pair, ...] = ()
    crops: tuple[restorations.Crop, ...] = ()
    missing: str = ""


def pictures_of(run: Run, dataset: str | None, splits: Sequence[str] | None, images: int, shown: int) -> Pictures:
    """Compare the teacher with the smallest model that the run found.

    :param dataset: where the data lie here; the place in the record when None
    :param splits: names of the splits; those in the record when None
    :param images: of the test split that are looked at
    :param shown: of these
    """
    found = [model for model in run.models if model.found]
    if not found:
        return Pictures("", 0, missing="The run found no model.")
    smallest = max(found, key=lambda model: model.ratio)
    file = run.path / (model_file(smallest.name) if smallest.name.startswith("hsq") else "model.hsq")
    try:
        task = _task(run, dataset, splits, images)
        student, _ = load_model(file)
        student.to(task.device)
        if isinstance(task, DetectionTask):
            looked_at = sum(len(batch.image_ids) for batch in task.evaluation("test"))
            pairs = tuple(detections.compare(task, student, shown))
            return Pictures(smallest.title, looked_at, pairs=pairs)
        crops = tuple(restorations.compare(task, student, shown, _policy(run)))
        return Pictures(smallest.title, len(task.evaluation("test")), crops=crops)
    except InputError as error:
        return Pictures(smallest.title, 0, missing=str(error))


def _task(run: Run, dataset: str | None, splits: Sequence[str] | None, images: int) -> Made:
    """:raises InputError: if the record does not say where the data are, or they cannot be used"""
    made: Any = (run.record.get("rebuild") or {}).get("task")
    if not isinstance(made, dict) and dataset is None:
        raise InputError("The record does not say where its data are: give --dataset.")
    made = made if isinstance(made, dict) else {}
    return make_task(
        dataset or made.get("dataset"),
        run.path / "teacher.safetensors",
        splits or made.get("splits") or None,
        patch=made.get("patch", DEFAULT_PATCH),
        test_images=images,
        **LITTLE,
    )


def _policy(run: Run) -> Spark | None:
    """The run's, where SPARK helped to train."""
    file = run.path / "spark.pt"
    if not file.is_file():
        return None
    spark = Spark()
    load_spark(spark, file)
    return spark
