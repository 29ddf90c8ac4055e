"""A finished run as the report sees it."""

import csv
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from agents.tables import LOST, title_of
from detectors.errors import InputError
from hsq_env.choices import Choice, Plan

Curve = list[tuple[float, float]]  # timesteps or episodes, and values


@dataclass(frozen=True)
class Model:
    """A row of a run's table.

    :param score: in the run's metric on the test split
    :param source: who found its plan; None for baselines
    :param choices: of the layers; None for baselines, whose layers are all alike
    """

    name: str
    title: str
    score: float
    bytes: int
    ratio: float
    source: str | None = None
    choices: tuple[Choice, ...] | None = None

    @property
    def found(self) -> bool:
        """Whether it is the run's own and no baseline."""
        return self.choices is not None


@dataclass(frozen=True)
class Layer:
    """What was known of a layer before the search.

    :param weights: their number
    :param float_bytes: in the teacher
    :param bytes: under each choice of the grid
    :param sensitivity: the divergence that each choice alone causes, likewise
    """

    name: str
    weights: int
    float_bytes: int
    bytes: tuple[int, ...]
    sensitivity: tuple[float, ...]


@dataclass(frozen=True)
class Tried:
    """An episode: a plan that was evaluated, before any fine-tuning at length.

    :param target: ratio that was asked for; None where none was
    """

    number: int
    source: str
    target: float | None
    accuracy: float
    ratio: float
    divergence: float
    reward: float


@dataclass(frozen=True)
class Adjustment:
    """What the self-evaluation changed after a window of episodes."""

    mse: float
    alpha: float
    beta: float
    reason: str


@dataclass(frozen=True)
class Run:
    """Everything that a report says of a run.

    :param name: of its folder, and of those above it where another run of the report is called alike
    :param record: ``result.json`` as it is
    :param grid: the choices that a layer could have; empty where the record does not say
    :param layers: in order; empty likewise
    :param curves: of the training, by the logger's name, over timesteps; those that are no numbers left out
    :param adjustments: of the self-evaluation loop
    """

    path: Path
    name: str
    record: dict[str, Any]
    metric: str
    teacher_score: float
    teacher_bytes: int
    models: tuple[Model, ...]
    tried: tuple[Tried, ...]
    grid: tuple[Choice, ...]
    layers: tuple[Layer, ...]
    curves: dict[str, Curve]
    adjustments: tuple[Adjustment, ...] = ()

    @property
    def environment(self) -> dict[str, Any]:
        """Command, versions and machine, as far as the record has them."""
        told = self.record.get("environment")
        return told if isinstance(told, dict) else {}

    @property
    def checkable(self) -> bool:
        """Whether ``hsq validate`` takes it."""
        return isinstance(self.record.get("rebuild"), dict) and isinstance(self.record.get("sha256"), dict)

    @property
    def lost_in(self) -> tuple[str, float]:
        """What a loss is called, and how many of it a unit of the metric is."""
        return LOST.get(self.metric, ("lost", 1.0))

    def lost(self, model: Model) -> float:
        """By a model, in ``lost_in``."""
        return self.lost_in[1] * (self.teacher_score - model.score)


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """Some runs, each once, with names that tell them apart.

    :raises InputError: if one cannot be read
    """
    folders = list(dict.fromkeys(path.resolve() for path in paths))
    runs = [read_run(path) for path in folders]
    for length in range(2, max((len(path.parts) for path in folders), default=0)):
        names = [run.name for run in runs]
        if len(set(names)) == len(names):
            break
        runs = [
            replace(run, name=_printable("/".join(run.path.parts[-length:]))) if names.count(run.name) > 1 else run
            for run in runs
        ]
    return runs


def _printable(name: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in name)


def read_run(path: Path) -> Run:
    """A finished search or fine-tuning.

    :param path: its folder
    :raises InputError: if there is none, or its record lacks what a report needs
    """
    if not (path / "result.json").is_file() and (path / "checkpoints").is_dir():
        raise InputError(f"The search of {path} has not ended: go on with hsq search --resume {path}.")
    try:
        record: dict[str, Any] = json.loads((path / "result.json").read_text())
        found = _searched(path, record) if "methods" in record else _finetuned(path, record)
        figures = [n for model in found.models for n in (model.score, model.ratio)]
        if not all(map(math.isfinite, [found.teacher_score, *figures])):
            raise ValueError("a figure is no number")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, InputError) as error:
        raise InputError(f"{path} is not the folder of a finished run ({type(error).__name__}: {error}).") from error
    return found


def _searched(path: Path, record: dict[str, Any]) -> Run:
    """Of ``hsq search``."""
    metric = record["metric"]
    key = metric.lower()
    layers = record.get("layers") or {"choices": [], "rows": []}
    diagnostics = record.get("diagnostics") or {}
    return Run(
        path,
        _printable(path.resolve().name),
        record,
        metric,
        float(record["teacher"][key]),
        int(record["teacher"]["bytes"]),
        tuple(_model(name, row, key) for name, row in record["methods"].items()),
        tuple(_tried(number, episode) for number, episode in enumerate(record.get("history", []), 1)),
        tuple(Choice(bits, sparsity) for bits, sparsity in layers["choices"]),
        tuple(_layer(row) for row in layers["rows"]),
        _curves(path, diagnostics.get("q_values") or []),
        tuple(_adjustment(told) for told in diagnostics.get("self_evaluation") or []),
    )


def _adjustment(told: dict[str, Any]) -> Adjustment:
    return Adjustment(float(told["mse"]), float(told["alpha"]), float(told["beta"]), str(told["reason"]))


def _finetuned(path: Path, record: dict[str, Any]) -> Run:
    """Of ``hsq finetune``."""
    figures, size = record["figures"], int(record["bytes"])
    plan = Plan.read(path / "plan.json")
    ratio, source = float(record["ratio"]), str(record["plan"])
    rows: tuple[Model, ...] = (Model("ptq", "as quantized", float(figures["ptq"]), size, ratio, source, plan.choices),)
    if record["steps"]:
        title = f"fine-tuned, {record['distillation']}"
        trained = Model("finetuned", title, float(figures["finetuned"]), size, ratio, source, plan.choices)
        rows = (replace(rows[0], title="as quantized (bytes of the trained)", source=None, choices=None), trained)
    teacher_bytes = round(size * float(record["ratio"]))
    name, teacher = _printable(path.resolve().name), float(figures["teacher"])
    return Run(path, name, record, record["metric"], teacher, teacher_bytes, rows, (), (), (), {})


def _model(name: str, row: dict[str, Any], key: str) -> Model:
    choices = row.get("choices")
    return Model(
        name,
        title_of(name),
        float(row[key]),
        int(row["bytes"]),
        float(row["ratio"]),
        row.get("source"),
        None if choices is None else tuple(Choice(bits, sparsity) for bits, sparsity in choices),
    )


def _layer(row: dict[str, Any]) -> Layer:
    sizes, sensitivity = tuple(map(int, row["bytes"])), tuple(map(float, row["sensitivity"]))
    if not all(map(math.isfinite, sensitivity)):
        raise ValueError("a sensitivity is no number")
    return Layer(str(row["name"]), int(row["weights"]), int(row["float_bytes"]), sizes, sensitivity)


def _tried(number: int, episode: dict[str, Any]) -> Tried:
    figures = ("accuracy", "ratio", "divergence", "total_reward")
    target = episode.get("target_ratio")
    return Tried(number, str(episode["source"]), target, *(float(episode.get(name, math.nan)) for name in figures))


def _curves(path: Path, q_values: Sequence[Any]) -> dict[str, Curve]:
    """What the agent's logger wrote, leg by leg where a search was resumed; nothing where there is none.

    :param q_values: steps and values, which the record tells more finely than the log
    """
    first = path / "tensorboard" / "progress.csv"
    resumed = (path / "tensorboard").glob("resumed-*/progress.csv")
    legs = [first, *sorted(resumed, key=lambda leg: int(leg.parent.name.removeprefix("resumed-")))]
    curves: dict[str, Curve] = {}
    for leg in (_leg(file) for file in legs if file.is_file()):
        begun = min((curve[0][0] for curve in leg.values()), default=0.0)
        for name in {**curves, **leg}:  # what came after the checkpoint that a leg went on from is gone
            kept = [point for point in curves.get(name, []) if point[0] < begun]
            curves[name] = [*kept, *leg.get(name, [])]
    told = [(step, value) for pair in q_values if (step := _number(pair[0])) is not None
            and (value := _number(pair[1])) is not None]  # fmt: skip
    return {**curves, **({"q_values/mean_max": told} if told else {})}


def _leg(file: Path) -> dict[str, Curve]:
    """Of one ``progress.csv``; rows without a step are of the last one's."""
    curves: dict[str, Curve] = {}
    at = 0.0
    with open(file, newline="") as lines:
        for row in csv.DictReader(lines):
            step = _number(row.get("time/total_timesteps"))
            at = at if step is None else step
            for name, text in row.items():
                value = _number(text)
                if value is not None and name:
                    curves.setdefault(name, []).append((at, value))
    return curves


def _number(text: Any) -> float | None:
    """None for what is none, and for infinities."""
    try:
        value = float(text)
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None
