"""The paper's table on smaller data: float32, uniform bits, an integer program, HSQ, and other libraries.

python -m benchmarks.table1
python -m benchmarks.table1 --data bccd --dataset bccd/ --teachers fcos.safetensors retinanet.safetensors
python -m benchmarks.table1 --latency  # on a machine that does nothing else

HSQ is ``hsq search`` with all targets at once, a search for each seed; the integer program's plans, which know every
choice of every layer alone as the step repairs it, and the uniform plans are fine-tuned alike, with as many steps on as
many images and as many seeds. On the embedded data HSQ fine-tunes two finalists and keeps the better on search images.
Test figures are of images that no search has seen. Files lie in ``--work``, a run folder for each search; latencies are
theirs, in onnxruntime on one thread, each in turn with the same network in float32.

A line of ``benchmarks/results/table1_runs.jsonl`` is a search or the plans without one; what is there is not run again,
and what another process is at is left to it: the same command may run twice side by side. ``table1_<data>.json`` is
made anew after each, with the rows of ``benchmarks.peers`` and the paper's own.
"""

import argparse
import fcntl
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hsq_env  # noqa: F401 - before torch

# isort: split
import numpy as np
import torch

from agents.baselines.plans import integer_program_choices, uniform_plan
from agents.bench import bench
from agents.explorer import Explorer
from agents.finalists import finetuned_student
from agents.run_folder import digest_of
from agents.search import search
from benchmarks.peers.given import REPEATS
from benchmarks.peers.run import PROTOCOL as PEERS_PROTOCOL
from benchmarks.peers.run import RUNS as PEERS_RUNS
from benchmarks.record import RESULTS, append_line, command, read_lines, refusing, write_result
from benchmarks.search import TEST_IMAGES
from benchmarks.statistics import interquartile_mean, interval
from detectors.errors import InputError
from detectors.export import check_exportable
from detectors.task import DetectionTask, detection_task, shapes_folder
from detectors.teacher import SHIPPED_TEACHER
from hsq_env.choices import Plan
from hsq_env.env import HSQEnv
from hsq_env.file import save_hsq
from hsq_env.student import evaluate

RUNS = RESULTS / "table1_runs.jsonl"
SEEDS = 3
TARGETS = (4.0, 6.0, 8.0, 12.0, 16.0)
BITS = (8, 4, 2)
SHIPPED = [SHIPPED_TEACHER]
PLANS, SEARCH, LATENCY = "plans", "search", "latency"  # kinds of lines
PROTOCOL = 1  # raised when earlier lines must not be compared with new ones
QUOTED = {  # the paper's own, on COCO: not measured here
    "float32": {"map": 0.453, "ratio": 1.0},
    "uniform8": {"map": 0.382, "ratio": 4.0},
    "uniform4": {"map": 0.295, "ratio": 8.0},
    "hsq": {"map": 0.439, "ratio": 6.0},
}


@dataclass(frozen=True)
class Bench:
    """What is spent on a data set.

    :param task: arguments of ``detection_task``
    :param evaluations: of a search, over all targets
    :param repair_steps: minibatches in a step
    :param finetune_steps: of the long fine-tuning
    :param finalists: plans of each target that get it
    :param bfloat16: fine-tune in bfloat16
    """

    task: dict[str, Any]
    evaluations: int
    repair_steps: int
    finetune_steps: int
    finalists: int
    bfloat16: bool = False


ON_PHOTOS = {"search_images": 8, "pool_images": 16, "calibration_images": 8, "batch_size": 4}
BENCHES = {
    "embedded": Bench({"search_images": 64, "pool_images": 64, "calibration_images": 16}, 1000, 4, 150, 2),
    "bccd": Bench(ON_PHOTOS, 600, 2, 120, 1, bfloat16=True),
}


def lines(data: str) -> list[dict[str, Any]]:
    """What has been run on a data set, under the present protocol."""
    return [row for row in read_lines(RUNS) if row["protocol"] == PROTOCOL and row["data"] == data]


class Runner:
    """A detector with its data, and what is done with them.

    :param work: where files go
    """

    def __init__(self, data: str, dataset: str | Path, teacher: Path, work: Path) -> None:
        self.data, self.bench, self.teacher = data, BENCHES[data], teacher
        self.task = self._task(dataset, 0)
        self.dataset, self.detector = dataset, self.task.spec.detector
        self.digest = digest_of(teacher)
        self.folder = work / f"{data}-{self.detector}-{self.digest[:8]}"

    def _task(self, dataset: str | Path, seed: int) -> DetectionTask:
        return detection_task(dataset, None, self.teacher, seed=seed, **self.bench.task)

    def _settings(self) -> dict[str, Any]:
        return {"reward": "divergence", "alpha": 0.0, "beta": 1.0, "bfloat16": self.bench.bfloat16}

    def place(self, kind: str, seed: int) -> Path:
        """The folder of a line's files."""
        return self.folder / (f"seed{seed}" if kind == SEARCH else f"{PLANS}{seed}")

    def plans(self, seed: int) -> Iterator[dict[str, Any]]:
        """Uniform bits and the integer program's plan of each target, fine-tuned, and with seed 0 as they are.

        :param seed: of the fine-tuning's batches
        """
        bench = self.bench
        env = HSQEnv(self.task, target_ratio=TARGETS, step_minibatches=bench.repair_steps, **self._settings())
        _ = env.repaired_sensitivities  # of the same plans for every seed
        env.task = self.task if seed == 0 else self._task(self.dataset, seed)
        files = self.place(PLANS, seed)
        fresh(files)
        if seed == 0:
            whole = len(self.task.teacher_file())
            yield {"method": "float32", "map": self._map(self.task.stages(self.task.teacher)), "bytes": whole}
        for bits in BITS:
            plan = uniform_plan(env, bits)
            if seed == 0:
                yield self._row(env, files / f"uniform{bits}.hsq", plan, 0)
            yield self._row(env, files / f"uniform{bits}_finetuned.hsq", plan, bench.finetune_steps)
        names = tuple(info.name for info in env.layers)
        for target in TARGETS:
            env.reset(options={"target_ratio": target})
            chosen = integer_program_choices(env, env.repaired_sensitivities)
            plan = Plan(names, tuple(env.choices[index] for index in chosen))
            yield self._row(env, files / f"ilp_repaired-{target:g}.hsq", plan, bench.finetune_steps)

    def _map(self, stages: Sequence[Any]) -> float:
        return evaluate(self.task, stages, "test")

    def _row(self, env: HSQEnv, file: Path, plan: Plan, steps: int) -> dict[str, Any]:
        student = finetuned_student(env, plan, steps, file.stem)
        save_hsq(student, file)
        return {"method": file.stem, "map": self._map(student.stages), "bytes": file.stat().st_size}

    def search(self, seed: int) -> Iterator[dict[str, Any]]:
        """One search for all targets."""
        bench, out = self.bench, self.place(SEARCH, seed)
        fresh(out)
        result = search(
            self._task(self.dataset, seed),
            out,
            Explorer(seed=seed, episodes=None, evaluations=bench.evaluations),
            target_ratio=TARGETS,
            finetune_steps=bench.finetune_steps,
            finalists=bench.finalists,
            step_minibatches=bench.repair_steps,
            model=self.detector,
            **self._settings(),
        )
        for name, row in result["methods"].items():
            if name.startswith("hsq-"):
                yield {"method": name, "map": row["map"], "bytes": row["bytes"], "source": row["source"]}

    def line(self, kind: str, seed: int) -> dict[str, Any]:
        """One line of the record."""
        started = time.monotonic()
        rows = list(self.plans(seed) if kind == PLANS else self.search(seed))
        return {
            "protocol": PROTOCOL,
            "data": self.data,
            "detector": self.detector,
            "kind": kind,
            "seed": seed,
            "teacher_sha256": self.digest,
            "rows": rows,
            "teacher_bytes": len(self.task.teacher_file()),
            "finetune_steps": self.bench.finetune_steps,
            "seconds": round(time.monotonic() - started, 1),
        }

    def own(self) -> list[dict[str, Any]]:
        """The detector's lines."""
        return [row for row in lines(self.data) if row["teacher_sha256"] == self.digest]

    def files(self) -> dict[str, Path]:
        """The files of the first seed's rows on record that have one."""
        first = [line for line in self.own() if line["kind"] != LATENCY and line["seed"] == 0]
        known = {row["method"] for line in first for row in line["rows"]}
        found = {name: self.place(PLANS, 0) / f"{name}.hsq" for name in known}
        found |= {f"hsq-{t:g}": self.place(SEARCH, 0) / f"model-{t:g}.hsq" for t in TARGETS}
        return {name: file for name, file in sorted(found.items()) if name in known and file.is_file()}

    def latency(self) -> dict[str, Any]:
        """One line with the milliseconds of every file and of float32, on an image as the task has them.

        :raises InputError: if there are no files, or no ONNX form of the detector
        """
        check_exportable(self.task.teacher, post_processing=False)
        files = self.files()
        if not files:
            raise InputError(f"{self.folder} has no files to time: run the table first, with the same --work.")
        height, width = self.task.calibration()[0].images.shape[-2:]
        rows = []
        for method, file in files.items():
            (speed,) = bench(file, (height, width), threads=(1,), repeats=REPEATS).speeds
            rows.append({"method": method, "ms": 1000 * speed.compressed, "float32_ms": 1000 * speed.float32})
        plain = float(np.median([row["float32_ms"] for row in rows]))
        return {
            "protocol": PROTOCOL,
            "data": self.data,
            "detector": self.detector,
            "kind": LATENCY,
            "teacher_sha256": self.digest,
            "image": [height, width],
            "rows": [*rows, {"method": "float32", "ms": plain, "float32_ms": plain}],
        }


def fresh(folder: Path) -> None:
    """An empty folder: what an interrupted run has left there goes."""
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)


@contextmanager
def claimed(folder: Path) -> Iterator[bool]:
    """Whether no other process makes what belongs into a folder; none does so inside."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.with_name(f".{folder.name}.lock"), "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # ends with the process, however that ends
        except BlockingIOError:
            free = False
        else:
            free = True
        yield free


def methods_of(own: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Per method: interquartile mean of the test mAP over seeds, its interval, bytes, ratio and latency."""
    found: dict[str, list[dict[str, Any]]] = {}
    for line in sorted((line for line in own if line["kind"] != LATENCY), key=lambda line: line["seed"]):
        for row in line["rows"]:
            found.setdefault(row["method"], []).append({**row, "teacher_bytes": line["teacher_bytes"]})
    timed = [line for line in own if line["kind"] == LATENCY]  # of which the newest counts
    milliseconds = {row["method"]: row for row in (timed[-1]["rows"] if timed else [])}
    return {
        method: {
            "map": float(interquartile_mean([row["map"] for row in rows])),
            "ci": interval([row["map"] for row in rows]),
            "seeds": [row["map"] for row in rows],
            "bytes": round(float(np.mean([row["bytes"] for row in rows]))),
            "seed_bytes": [row["bytes"] for row in rows],
            "ratio": float(np.mean([row["teacher_bytes"] / row["bytes"] for row in rows])),
            "latency_ms": milliseconds[method]["ms"] if method in milliseconds else None,
            "float32_ms": milliseconds[method]["float32_ms"] if method in milliseconds else None,
        }
        for method, rows in found.items()
    }


def peers_of(data: str) -> list[dict[str, Any]]:
    """What other libraries reached on a data set, the newest line of each last."""
    return [row for row in read_lines(PEERS_RUNS) if row["protocol"] == PEERS_PROTOCOL and row["data"] == data]


PEER_FIGURES = (
    "map", "bytes", "ratio", "nominal_bytes", "nominal_ratio", "latency_ms", "float32_ms", "version", "note",
)  # fmt: skip


def write_summary(data: str) -> Path:
    """``table1_<data>.json`` from the lines; of a detector with several teachers the last counts."""
    rows = lines(data)
    figures: dict[str, Any] = {}
    for detector, digest in {row["detector"]: row["teacher_sha256"] for row in rows}.items():
        own = [row for row in rows if row["teacher_sha256"] == digest]
        same = [row for row in peers_of(data) if row["teacher_sha256"] == digest]
        done = {(row["kind"], row["seed"]) for row in own if row["kind"] != LATENCY}
        timed = [row for row in own if row["kind"] == LATENCY]
        figures[detector] = {
            "methods": {**methods_of(own), **{row["peer"]: {n: row[n] for n in PEER_FIGURES} for row in same}},
            "left": len(set(wanted_of(range(SEEDS))) - done),
            "latency_image": timed[-1].get("image") if timed else None,
            "core_seconds": round(sum(row.get("seconds", 0) for row in own)),
        }
    settings = {name: value for name, value in vars(BENCHES[data]).items() if name != "task"}
    parts = ("--seeds", "--latency")
    figures["command_of_latencies"] = command(parts) + " --latency"
    return write_result(f"table1_{data}", {**figures, "settings": settings, "quoted_from_the_paper": QUOTED}, parts)


def wanted_of(seeds: Sequence[int]) -> list[tuple[str, int]]:
    """Kinds and seeds of lines."""
    return [(kind, seed) for seed in seeds for kind in (PLANS, SEARCH)]


def main() -> None:
    """Run what is left."""
    parser = argparse.ArgumentParser(description="Make the paper's table.")
    parser.add_argument("--data", choices=list(BENCHES), default="embedded")
    parser.add_argument("--dataset", type=Path, default=Path("bccd"), help="the folder of bccd")
    parser.add_argument("--teachers", nargs="+", type=Path, help="of bccd, a part of the table for each")
    parser.add_argument("--work", type=Path, default=Path("runs/table1"), help="where files go")
    parser.add_argument("--seeds", nargs="+", type=int, choices=range(SEEDS), default=range(SEEDS), help="only these")
    parser.add_argument("--latency", action="store_true", help="time the files instead")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    embedded = arguments.data == "embedded"
    if embedded != (arguments.teachers is None):
        parser.error("give --teachers FILE... ('hsq teacher' makes them) with --data bccd, and with that alone")
    dataset = shapes_folder({"test": TEST_IMAGES}) if embedded else arguments.dataset
    with refusing(parser):
        runners = [Runner(arguments.data, dataset, file, arguments.work) for file in arguments.teachers or SHIPPED]
        if len({runner.detector for runner in runners}) < len(runners):
            parser.error("two of the teachers are of the same detector: give one of each")
        for runner in runners:
            if arguments.latency:
                time_files(runner)
            else:
                run(runner, wanted_of(arguments.seeds))
    print(f"wrote {write_summary(arguments.data)}")


def run(runner: Runner, wanted: Sequence[tuple[str, int]]) -> None:
    """What is not on record yet, and nobody else is at."""
    for kind, seed in wanted:
        with claimed(runner.place(kind, seed)) as free:
            if not free or (kind, seed) in {(line["kind"], line.get("seed")) for line in runner.own()}:
                continue
            line = runner.line(kind, seed)
            append_line(RUNS, line)
        for row in line["rows"]:
            print(f"{runner.detector} {row['method']} {seed}: {row['map']:.4f}, {row['bytes']:,} bytes", flush=True)
        write_summary(runner.data)


def time_files(runner: Runner) -> None:
    """One line of latencies, where the detector has an ONNX form."""
    try:
        check_exportable(runner.task.teacher, post_processing=False)
    except InputError as error:
        print(f"{runner.detector} is not timed: {error}", flush=True)
        return
    append_line(RUNS, runner.latency())
    write_summary(runner.data)


if __name__ == "__main__":
    main()
