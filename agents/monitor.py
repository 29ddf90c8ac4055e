"""Watching a finished model on new images, and searching again from where its search ended."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agents.explorer import Explorer
from agents.model_task import model_beside
from detectors.errors import InputError
from hsq_env.accuracy import Scale, scale_of
from hsq_env.make import Made, make_task
from hsq_env.student import evaluate

TOLERANCE = 0.01  # of the accuracy (``hsq_env.accuracy``), that new images may cost before a model has degraded


@dataclass(frozen=True)
class Verdict:
    """What a model is worth on new images.

    :param scale: the teacher's metric on them, and that of the images as they come
    :param model: the model's
    :param target: accuracy that it has to reach (``hsq_env.accuracy``)
    :param claimed: accuracy that its run measured
    :param metric: its name
    """

    scale: Scale
    model: float
    target: float
    claimed: float
    metric: str

    @property
    def accuracy(self) -> float:
        """See ``hsq_env.accuracy``."""
        return self.scale.accuracy(self.model)

    @property
    def meets(self) -> bool:
        """Whether the target is met."""
        return self.accuracy >= self.target

    def to_json(self, dataset: str) -> dict[str, Any]:
        """For a machine."""
        return {
            "dataset": dataset,
            "metric": self.metric,
            "model": self.model,
            "teacher": self.scale.teacher,
            "untreated": self.scale.untreated,
            "accuracy": self.accuracy,
            "target": self.target,
            "claimed": self.claimed,
            "meets": self.meets,
        }

    def sentence(self, dataset: str) -> str:
        """For a person."""
        end = "the target is met." if self.meets else "the target is missed: search again with --retrain --out FOLDER."
        return (
            f"{dataset}: {self.metric} {self.model:.4f}, teacher {self.scale.teacher:.4f}, "
            f"accuracy {self.accuracy:.4f}; asked {self.target:.4f}, its run had {self.claimed:.4f}; {end}"
        )


def read_run(run: Path) -> dict[str, Any]:
    """The result of a finished search.

    :raises InputError: if the folder holds none
    """
    try:
        result: dict[str, Any] = json.loads((run / "result.json").read_text())
        key = result["metric"].lower()
        _ = result["teacher"][key], result["methods"]["hsq"][key], result["algo"], result["target_ratio"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{run} is not the folder of a finished search for one target ({error}).") from error
    return result


def _claimed(run: Path, result: dict[str, Any]) -> float:
    """The accuracy that a run measured on its own test split.

    :raises InputError: if its record does not say what images scored before any network, or more than the teacher
    """
    key, teacher = result["metric"].lower(), result["teacher"]
    untreated = teacher.get(f"untreated_{key}", 0.0 if key == "map" else None)
    if untreated is None:
        raise InputError(f"{run} was made by a version that did not measure untreated images: search again.")
    try:
        return Scale(teacher[key], untreated).accuracy(result["methods"]["hsq"][key])
    except InputError as error:
        raise InputError(f"The teacher of {run} {error} on its own test split: train it further.") from error


def monitor(
    run: Path, dataset: str | None, target_accuracy: float | None = None, splits: tuple[str, ...] | None = None
) -> tuple[Verdict, Made]:
    """Measure a run's teacher and model on the test split of new data.

    :param run: folder of a finished search
    :param dataset: new data of the run's kind; the embedded data when None
    :param target_accuracy: None for what the run measured less ``TOLERANCE``
    :return: the verdict, and the task on the new data
    :raises InputError: if the run or the data cannot be used
    """
    result = read_run(run)
    settings = {name: result[name] for name in ("patch",) if name in result}
    task = make_task(dataset, run / "teacher.safetensors", splits, **settings)
    claimed = _claimed(run, result)
    scale = scale_of(task, "test", evaluate(task, task.stages(task.teacher), "test"))
    model = model_beside(task, run / "model.hsq")
    measured = evaluate(task, task.stages(model), "test")
    target = claimed - TOLERANCE if target_accuracy is None else target_accuracy
    return Verdict(scale, measured, target, claimed, task.metric_name), task


def arguments_of(run: Path) -> dict[str, Any]:
    """What a run was asked for but data, limits and workers, as arguments of ``hsq search``.

    :raises InputError: if its record does not say what bounded it
    """
    result = read_run(run)
    rebuild = result.get("rebuild", {})
    made = rebuild.get("task", {})
    known: dict[str, Any] = {}
    for record, names in (
        (result, ("target_ratio", "target_latency", "target_accuracy", "reward", "beta", "patch")),
        (result, ("warm_start", "return_to_best", "surrogate")),
        (rebuild, ("alpha", "step_minibatches", "distillation", "observe_repaired")),
        (rebuild, ("activation_bits", "sparsity_pattern", "bfloat16")),
        (made, ("search_images", "pool_images", "calibration_images", "seed")),
    ):
        known |= {name: record[name] for name in names if name in record}
    if known.get("target_accuracy") is not None and result.get("aimed_ratio") is not None:
        known["target_ratio"] = result["aimed_ratio"]
    if known.get("target_ratio") is None and known.get("target_latency") is None:
        raise InputError(
            f"The record of {run} says no ratio and no time to aim at: search with hsq search --continue-from {run} "
            "--target-ratio N."
        )
    if "warm_start" in known:
        known["warm_start"] = tuple(known["warm_start"])
    return known | ({"latency_table": run / "latency.json"} if "latency" in result else {})


def agent_of_run(run: Path, asked: str = Explorer.algo) -> str:
    """The name of a run's agent, with whose policy and replay a search can begin.

    :param asked: the agent that is asked for; the usual one for none in particular
    :raises InputError: if the run kept no policy, or one of an agent that is made elsewhere, or another is asked for
    """
    algo = str(read_run(run)["algo"])
    if not (run / "policy.zip").is_file():
        raise InputError(f"{run} holds no policy.zip: its search was '{algo}', which learns nothing.")
    if ":" in algo:
        raise InputError(f"The search of {run} was by '{algo}': let what it makes load {run / 'policy.zip'} itself.")
    if asked not in (algo, Explorer.algo):
        raise InputError(f"The agent of {run} is '{algo}', not '{asked}': leave out --algo.")
    return algo
