"""Whether what a run claims holds: its files are measured anew, and its plan is replayed from the record alone."""

import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agents.finalists import UNIFORM_BITS, finetuned
from agents.model_task import model_beside
from agents.run_folder import digest_of, model_file
from detectors.errors import InputError
from detectors.progress import Work, say, work
from detectors.task import SHAPES
from hsq_env.channels import channel_groups, shared_inputs
from hsq_env.choices import PICTURE_BITS, Choice, Plan, check_activation_bits
from hsq_env.file import load_hsq
from hsq_env.latency_table import LatencyTable
from hsq_env.layer_info import trace_layers
from hsq_env.make import Made, make_task
from hsq_env.student import Student, evaluate
from restorers.images import PHOTOS
from restorers.task import RestorationTask

# Another machine or number of threads adds up in another order, which rounded activations make visible; a fine-tuning
# that is repeated there takes another way. On the same machine with as many threads both are exact.
MEASURED = {"mAP": 0.002, "PSNR": 0.01}
REPLAYED = {"mAP": 0.01, "PSNR": 0.05}
SHARE = 1e-6  # of a ratio
METHODS = [f"uniform{bits}{end}" for bits in UNIFORM_BITS for end in ("", "_finetuned")]
TASK_SETTINGS = {"dataset", "splits", "patch", "search_images", "pool_images", "calibration_images", "seed"}


@dataclass(frozen=True)
class Check:
    """One figure of a record.

    :param figure: its name, as ``result.json`` has it
    :param found: what it is; a sentence where it could not be found out
    """

    figure: str
    claimed: Any
    found: Any
    holds: bool

    def sentence(self) -> str:
        """For a person."""
        if self.holds:
            beside = "" if _text(self.found) == _text(self.claimed) else f" (found {_text(self.found)})"
            return f"{self.figure}: {_text(self.claimed)} holds{beside}"
        return f"{self.figure}: {_text(self.claimed)} does not hold (found {_text(self.found)})"


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    text = str(value)
    if re.fullmatch("[0-9a-f]{64}", text):
        return f"sha256 {text[:12]}..."
    return text if len(text) <= 120 else text[:117] + "..."


def read_record(run: Path) -> dict[str, Any]:
    """The record of a finished search.

    :raises InputError: if there is none, or it lacks what is needed to check it
    """
    try:
        record: dict[str, Any] = json.loads((run / "result.json").read_text())
        key, targets = record["metric"].lower(), record["target_ratio"]
        numbers = [record["teacher"][key], record["teacher"]["bytes"], record["finetune_steps"]]
        for row in record["methods"].values():
            numbers += [row[key], row["bytes"], row["ratio"]]
        numbers += targets if isinstance(targets, list) else [] if targets is None else [targets]
        numbers += [*record.get("latency", {}).values(), *([asked] if (asked := record.get("target_latency")) else [])]
        if not all(type(number) in (int, float) and math.isfinite(number) for number in numbers):
            raise TypeError("a figure is no number")
        if type(record["finetune_steps"]) is not int:
            raise TypeError("a number of steps is no whole number")
        if not all(isinstance(record[name], str) for name in ("dataset", "model", "split")):
            raise TypeError("a name is no text")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{run} is not the folder of a finished search ({type(error).__name__}: {error}).") from error
    if not isinstance(record.get("rebuild"), dict) or not isinstance(record.get("sha256"), dict):
        raise InputError(
            f"The record of {run} does not say how its task was made, as that of 'hsq search' does: search again."
        )
    return record


def validate(
    run: Path,
    dataset: str | None = None,
    splits: Sequence[str] | None = None,
    replay: bool = True,
    say: Callable[[str], None] = say,
) -> list[Check]:
    """Check every figure of a run's table.

    :param run: folder of a finished search
    :param dataset: where its data lie on this machine; the place in the record when None
    :param splits: names of the splits; those in the record when None
    :param replay: fine-tune the plans again from the teacher, as long as the run did
    :param say: is given a sentence for each
    :raises InputError: if the record or the data cannot be used
    """
    record = read_record(run)
    task = _task(run, record, dataset, splits)
    checks = []
    with work(f"measuring {run.name} again, model", 1 + len(record["methods"])) as going:
        for check in _checks(run, record, task, replay, going):
            checks.append(check)
            say(check.sentence())
    return checks


def _task(run: Path, record: dict[str, Any], dataset: str | None, splits: Sequence[str] | None) -> Made:
    try:
        made = record["rebuild"]["task"]
        if set(made) != TASK_SETTINGS:
            raise KeyError(", ".join(sorted(set(made) ^ TASK_SETTINGS)))
        if not isinstance(made["dataset"], str | None):
            raise TypeError("a dataset that is no name")
        own = {name: value for name, value in made.items() if name not in ("dataset", "splits")}
        _ = [record["rebuild"][name] for name in ("sparsity_pattern", "bfloat16")]
        check_activation_bits(record["rebuild"]["activation_bits"])
        return make_task(
            dataset or made["dataset"], run / "teacher.safetensors", splits or made["splits"] or None, **own
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"The record of {run} does not say how its task was made ({type(error).__name__}: {error}): search again."
        ) from error


def _checks(run: Path, record: dict[str, Any], task: Made, replay: bool, going: Work) -> Iterator[Check]:
    metric, key = task.metric_name, task.metric_name.lower()
    if record["metric"] != metric:
        yield Check("metric", record["metric"], metric, False)
        return
    several = isinstance(record["target_ratio"], list)
    for name in sorted({*files_of(record), *record["sha256"]}):
        found = digest_of(run / name) if (run / name).is_file() else "no such file"
        digest = record["sha256"].get(name, "not in the record")
        yield Check(name, digest, found, digest == found)
    yield Check("split", record["split"], "test", record["split"] == "test")
    yield Check("model", record["model"], task.spec.name, record["model"] == task.spec.name)
    embedded = PHOTOS if isinstance(task, RestorationTask) else SHAPES
    used = Path(record["rebuild"]["task"]["dataset"] or embedded).name
    if record["dataset"] != used:
        yield Check("dataset", record["dataset"], used, False)
    targets = record["target_ratio"] if several else [record["target_ratio"]]
    for target in [t for t in targets if t is not None and record.get("target_accuracy") is None]:
        name = f"hsq-{target:g}" if several else "hsq"
        reached = record["methods"].get(name, {}).get("ratio", 0.0)
        yield Check(f"{name}.ratio beside its target", target, reached, reached >= target)
    missing = set(METHODS) - set(record["methods"])
    if missing:
        yield Check("methods", "with uniform plans", f"without {', '.join(sorted(missing))}", False)
    teacher, size = record["teacher"], len(task.teacher_file())  # of the network alone, whatever the file holds
    yield Check("teacher.bytes", teacher["bytes"], size, teacher["bytes"] == size)
    yield _near(f"teacher.{key}", teacher[key], evaluate(task, task.stages(task.teacher), "test"), MEASURED[metric])
    for name, row in record["methods"].items():
        going.advance()
        yield from _file_checks(name, row, run / model_file(name), size, task)
        if name.startswith("hsq"):
            plan = run / model_file(name).replace("model", "plan").replace(".hsq", ".json")
            yield from _plan_checks(name, row, run / model_file(name), plan, record, task, replay)
    if "latency" in record or record.get("target_latency") is not None:
        yield from _latency_checks(run, record, task)


def files_of(record: dict[str, Any]) -> list[str]:
    """Every file whose content a record has to name."""
    table = ["latency.json"] if "latency" in record else []
    return ["teacher.safetensors", *table, *(model_file(name) for name in record["methods"])]


def _near(figure: str, claimed: float, found: float, tolerance: float) -> Check:
    return Check(figure, claimed, found, abs(claimed - found) <= tolerance)


def _file_checks(name: str, row: dict[str, Any], file: Path, teacher_bytes: int, task: Made) -> Iterator[Check]:
    key = task.metric_name.lower()
    if not file.is_file():
        yield Check(f"{name}.bytes", row["bytes"], f"no file {file.name}", False)
        return
    size = file.stat().st_size
    yield Check(f"{name}.bytes", row["bytes"], size, row["bytes"] == size)
    ratio = teacher_bytes / size
    yield Check(f"{name}.ratio", row["ratio"], ratio, abs(row["ratio"] - ratio) <= SHARE * ratio)
    try:
        model = model_beside(task, file)
    except InputError as error:
        yield Check(f"{name}.{key}", row[key], str(error), False)
        return
    yield _near(f"{name}.{key}", row[key], evaluate(task, task.stages(model), "test"), MEASURED[task.metric_name])


def _plan_checks(
    name: str, row: dict[str, Any], file: Path, written: Path, record: dict[str, Any], task: Made, replay: bool
) -> Iterator[Check]:
    """The plan in the record, beside the model's and the plan file's, and what it leads to."""
    infos = trace_layers(task)
    claimed: Any = row.get("choices")
    try:
        plan = Plan(tuple(i.name for i in infos), tuple(Choice(bits, sparsity) for bits, sparsity in claimed))
    except (InputError, TypeError, ValueError) as error:
        yield Check(f"{name}.choices", claimed, str(error), False)
        return
    for what, read in (
        ("plan of the model", lambda: load_hsq(file, task.spec.build_folded()).plan()),
        (written.name, lambda: Plan.read(written)),
    ):
        try:
            found: Any = read()
        except InputError as error:
            yield Check(f"{name}.choices", claimed, str(error), False)
            continue
        yield (
            Check(f"{name}.choices", "plan of the record", f"{what}: the same", True)
            if found == plan
            else Check(f"{name}.choices", "plan of the record", f"{what}: another", False)
        )
    if replay:
        yield _replayed(name, row, plan, record, task)


def _latency_checks(run: Path, record: dict[str, Any], task: Made) -> Iterator[Check]:
    """What the run's own table says of its plans; a table is of one machine, so that nothing is timed again."""
    claims, target = record.get("latency", {}), record.get("target_latency")
    infos, pattern = trace_layers(task), record["rebuild"]["sparsity_pattern"]
    groups = channel_groups(task.teacher, task.stages, task.calibration()[0].images) if pattern == "channels" else ()
    found = [name for name in record["methods"] if name.startswith("hsq")]
    for name in ("float32", *found):
        try:
            rows = None if name == "float32" else record["methods"][name]["choices"]
            plan = None if rows is None else [Choice(bits, sparsity) for bits, sparsity in rows]
            table = LatencyTable.read(run / "latency.json")
            milliseconds = table.milliseconds(infos, plan, pattern, shared_inputs(groups))
        except (InputError, KeyError, TypeError, ValueError) as error:
            yield Check(f"latency.{name}", claims.get(name), str(error), False)
            continue
        yield _near(f"latency.{name}", claims.get(name, math.nan), milliseconds, SHARE * milliseconds)
        if name != "float32" and target is not None:
            yield Check(f"latency.{name} beside its target", target, milliseconds, milliseconds <= target)


def _replayed(name: str, row: dict[str, Any], plan: Plan, record: dict[str, Any], task: Made) -> Check:
    """The plan made anew from the teacher, with as much fine-tuning."""
    rebuild, key = record["rebuild"], task.metric_name.lower()
    if rebuild["activation_bits"] not in (None, PICTURE_BITS) and rebuild.get("picture_bits") != PICTURE_BITS:
        raise InputError(
            "This search was made by an earlier version, which rounded pictures like other inputs: replay it with that "
            "version, or leave the replay out (--no-replay)."
        )
    student = Student(task, trace_layers(task), rebuild["activation_bits"], rebuild["sparsity_pattern"])
    finetuned(student, plan, record["finetune_steps"], f"{name} again", rebuild["bfloat16"])
    found = evaluate(task, student.stages, "test")
    return _near(f"{name}.{key} replayed", row[key], found, REPLAYED[task.metric_name])
