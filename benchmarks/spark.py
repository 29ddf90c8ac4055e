"""Does it pay to say where a student should follow its teacher? Quantization-aware training, five ways.

python -m benchmarks.spark [--denoise denoise/ --denoiser dncnn_s25.safetensors] [--networks dncnn edsr detector]
python -m benchmarks.spark --overhead  # on a machine that does nothing else

``ptq`` is the student as it is quantized, ``qat`` is trained from the ground truth alone, ``qat_kd`` with the teacher's
pull alike everywhere, ``qat_spark`` with a policy that learns where, and a published rival with a rule for where:
``wavelet`` for images, ``attention`` for features. All start from the same student, take the same number of steps on
the same batches and follow the same learning rates.

A run is a line of ``benchmarks/results/spark_runs.jsonl``; what is there is not run again, and several processes may
take a shard each. ``spark.json`` is made anew from the lines after every run.
"""

import argparse
import io
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import hsq_env  # noqa: F401 - before torch

# isort: split
import numpy as np
import torch
from scipy import stats

from agents.finetune import DISTILLATIONS, plan_of
from benchmarks.record import RESULTS, append_line, check_same_teacher, read_lines, refusing, write_result
from benchmarks.statistics import interquartile_mean, interval
from detectors.errors import InputError
from detectors.files import write_atomically
from detectors.task import detection_task
from hsq_env.compensation import apply_plan
from hsq_env.distillation.difficulty import laplacian_variance
from hsq_env.distillation.spark import Spark
from hsq_env.layer_info import trace_layers
from hsq_env.lessons import error_maps
from hsq_env.long_finetuning import finetune_all, long_pace
from hsq_env.make import Made
from hsq_env.states import run as run_stages
from hsq_env.student import Student, predictions_of
from hsq_env.task import Batch
from restorers.images import load_photos
from restorers.task import RestorationBatch, RestorationTask, restoration_task
from restorers.teacher import RestorerSpec, load_published

RUNS, MAPS = RESULTS / "spark_runs.jsonl", RESULTS / "spark_maps.npz"
SEEDS = 5
BATCH_SIZE = 2  # of restorers: few patches in many steps train better than many in few
METHODS = {"qat_kd": "akd", "qat_spark": "spark", "qat": "none"}  # and the rival; distillations of ``hsq finetune``
CROPS = 3  # of the figure
SAME = 0.01, 0.002  # dB and mAP by which a teacher may differ between machines
ROUNDS, ROUND_STEPS = 7, 12  # of the overhead


@dataclass(frozen=True)
class Row:
    """What is trained.

    :param bits: of weights
    :param activation_bits: of activations
    :param steps: of every training; few bits take more
    :param protocol: of its lines, if it is newer than the method's
    """

    bits: int
    activation_bits: int
    steps: int
    protocol: int = 0


@dataclass(frozen=True)
class Bench:
    """A network with its data.

    :param rows: by name, those that say most first
    :param protocols: of lines, by method; raised when earlier lines must not be compared with new ones
    """

    make_task: Callable[[argparse.Namespace, int], Made]
    rows: dict[str, Row]
    rival: str
    bfloat16: bool
    protocols: dict[str, int]

    @property
    def methods(self) -> dict[str, str | None]:
        """The distillation of each; None for no training."""
        return {**METHODS, self.rival: self.rival, "ptq": None}


def _dncnn(arguments: argparse.Namespace, seed: int) -> RestorationTask:
    spec = RestorerSpec("dncnn", channels=1, noise=25)
    if arguments.denoise is None or arguments.denoiser is None:
        raise InputError("The denoiser needs its images and its weights: give --denoise FOLDER and --denoiser FILE.")
    photos = load_photos(arguments.denoise, spec.channels, 48)
    model = load_published(arguments.denoiser, spec)
    return RestorationTask("denoise", model, spec, photos, batch_size=BATCH_SIZE, seed=seed)


def _edsr(arguments: argparse.Namespace, seed: int) -> RestorationTask:
    return restoration_task(network="edsr", batch_size=BATCH_SIZE, seed=seed)


def _detector(arguments: argparse.Namespace, seed: int) -> Made:
    return detection_task(seed=seed)


PICTURES_OF_8_BITS = 6  # protocol since which the first layer reads them so
IMAGE_ROWS = {
    "W2A8": Row(2, 8, 1800),
    "W4A4": Row(4, 4, 1800, PICTURES_OF_8_BITS),
    "W4A8": Row(4, 8, 1800),
    "W8A8": Row(8, 8, 600),
}
SLOW_ROWS = {name: replace(row, steps=row.steps // 2) for name, row in IMAGE_ROWS.items()}
IMAGE_PROTOCOLS = {"overhead": 4, "ptq": 3, "qat": 5, "qat_kd": 5, "qat_spark": 5, "wavelet": 5}
BENCHES = {
    "dncnn": Bench(_dncnn, IMAGE_ROWS, "wavelet", True, IMAGE_PROTOCOLS),
    "edsr": Bench(_edsr, SLOW_ROWS, "wavelet", True, IMAGE_PROTOCOLS),
    "detector": Bench(
        _detector,
        {"W2": Row(2, 8, 100), "W4": Row(4, 8, 100)},
        "attention",
        False,
        {"overhead": 4, "ptq": 3, "qat": 3, "qat_kd": 3, "qat_spark": 4, "attention": 4},
    ),
}


@dataclass(frozen=True)
class Run:
    """One line of the record."""

    network: str
    row: str
    method: str
    seed: int


def protocol_of(network: str, row: str | None = None, method: str | None = None) -> int:
    """Of a line; without row and method it is of the policy's overhead."""
    bench = BENCHES[network]
    if row is None or method is None:
        return bench.protocols["overhead"]
    return max(bench.protocols[method], bench.rows[row].protocol)


def lines() -> list[dict[str, Any]]:
    """What has been run, under the present protocols."""
    found = read_lines(RUNS)
    return [
        line for line in found if line["protocol"] == protocol_of(line["network"], line.get("row"), line.get("method"))
    ]


def plan_of_runs(network: str) -> list[Run]:
    """All runs in the order in which they say most; what is not trained has no seeds."""
    bench = BENCHES[network]
    return [
        Run(network, row, method, seed)
        for seed in range(SEEDS)
        for row in bench.rows
        for method, way in bench.methods.items()
        if way is not None or seed == 0
    ]


def correlation(maps: np.ndarray, energy: np.ndarray) -> float:
    """Spearman's, over all cells of all images; 0 for maps that are the same everywhere."""
    return float(stats.spearmanr(maps.ravel(), energy.ravel()).statistic) if np.ptp(maps) > 0 else 0.0


@torch.no_grad()
def mean_maps(spark: Spark, student: Student, batches: Sequence[Batch]) -> np.ndarray:
    """The weights that the policy gives on average, without its draws, (images, grid, grid)."""
    task, teacher = student.task, student.task.stages(student.task.teacher)
    found = []
    for batch in batches:
        outputs = student.outputs(batch)
        expected = task.distilled(run_stages(teacher, {"images": batch.images}))
        errors = error_maps(task, outputs, batch)
        found.append(spark.means(spark.signals(batch.images, errors, task.distilled(outputs), expected)))
    return np.concatenate([weights.cpu().numpy() for weights in found])


def energy_of(batches: Sequence[Any], grid: int) -> np.ndarray:
    """High-frequency energy per cell: the variance of the Laplacian, of clean images where there are some."""
    clean = [batch.targets if isinstance(batch, RestorationBatch) else batch.images for batch in batches]
    return np.concatenate([laplacian_variance(images, grid).cpu().numpy() for images in clean])


class Runner:
    """A network's task, its quantized students, and what is done with them."""

    def __init__(self, network: str, arguments: argparse.Namespace) -> None:
        self.network, self.bench, self.arguments = network, BENCHES[network], arguments
        self.task = self.bench.make_task(arguments, 0)
        self.infos = trace_layers(self.task)
        self.teacher = self.scores(self.task.stages(self.task.teacher))
        self._starts: dict[str, Student] = {}

    def scores(self, stages: Sequence[Any]) -> dict[str, float]:
        """The metric on the test split, and SSIM for images."""
        found = predictions_of(self.task, stages, "test")
        scores = {"score": self.task.metric(found, "test")}
        if isinstance(self.task, RestorationTask):
            scores["ssim"] = self.task.structural_similarity(found)
        return scores

    def start(self, row: str) -> Student:
        """A row's quantized student, untrained; the same for all methods and seeds."""
        if row not in self._starts:
            given = self.bench.rows[row]
            student = Student(self.task, self.infos, given.activation_bits)
            apply_plan(student, plan_of(f"uniform{given.bits}", self.infos))
            self._starts[row] = student
        return self._starts[row].copy()

    def train(
        self, student: Student, distillation: str, seed: int, steps: int, frozen_share: float | None = None
    ) -> Spark | None:
        """Train in place; the policy, where there is one."""
        way = DISTILLATIONS[distillation]
        spark = Spark(way.criterion, seed=seed) if way.spark else None
        pace = long_pace(student, DISTILLATIONS["akd"].criterion)  # the same for all
        student.task = self.task if seed == 0 else self.bench.make_task(self.arguments, seed)
        finite = finetune_all(
            student,
            steps,
            way.criterion,
            way.alpha,
            bfloat16=self.bench.bfloat16,
            pace=pace,
            spark=spark,
            frozen_share=frozen_share,
        )
        student.task = self.task
        if not finite:
            raise InputError(f"{self.network}: the training with '{distillation}' fell apart.")
        return spark

    def measure(self, run: Run) -> dict[str, Any]:
        """One line."""
        student, distillation = self.start(run.row), self.bench.methods[run.method]
        steps = 0 if distillation is None else self.bench.rows[run.row].steps
        started = time.monotonic()
        spark = None if distillation is None else self.train(student, distillation, run.seed, steps)
        seconds = time.monotonic() - started
        return {
            "protocol": protocol_of(run.network, run.row, run.method),
            **vars(run),
            **self.scores(student.stages),
            "teacher": self.teacher,
            "steps": steps,
            "seconds": round(seconds, 1),
            **({} if spark is None else self._policy_figures(run, spark, student)),
        }

    def _policy_figures(self, run: Run, spark: Spark, student: Student) -> dict[str, Any]:
        """What has become of the policy; the maps of the first run with the fewest bits go to the figure."""
        batches = self.task.evaluation("search")
        energy = energy_of(batches, spark.grid)
        fresh = Spark(spark.criterion, seed=run.seed)
        maps = mean_maps(spark, student, batches)
        if (run.network, run.row, run.seed) == ("dncnn", "W2A8", 0):
            self._keep_crops(student, batches, maps)
        return {
            "lessons": spark.reinforce.updates,
            "correlation_before": correlation(mean_maps(fresh, student, batches), energy),
            "correlation_after": correlation(maps, energy),
            "weights": [float(q) for q in np.quantile(maps, (0.0, 0.05, 0.5, 0.95, 1.0))],
            "spread": spark.log[-1]["spread"] if spark.log else None,
        }

    @torch.no_grad()
    def _keep_crops(self, student: Student, batches: Sequence[Any], maps: np.ndarray) -> None:
        kept: dict[str, list[np.ndarray]] = {"inputs": [], "outputs": [], "targets": []}
        for batch in batches:
            restored = student.outputs(batch)["restored"]
            for name, shown in (("inputs", batch.images), ("outputs", restored), ("targets", batch.targets)):
                kept[name] += [image.cpu().numpy().astype(np.float16) for image in shown]
        crops = {name: np.stack(images[:CROPS]) for name, images in kept.items()}
        packed = io.BytesIO()
        np.savez_compressed(packed, maps=maps[:CROPS], **crops)  # type: ignore[arg-type]
        write_atomically(MAPS, packed.getvalue())

    def overhead(self) -> float:
        """How much longer a step with the policy takes: the median of ratios of neighbouring rounds, less one."""
        ratios = []
        for number in range(ROUNDS + 1):
            seconds = {}
            for way in ("akd", "spark") if number % 2 else ("spark", "akd"):
                student = self.start(next(iter(self.bench.rows)))
                started = time.monotonic()
                self.train(student, way, 0, ROUND_STEPS, frozen_share=0.0)  # a policy has nothing to do after it
                seconds[way] = time.monotonic() - started
            ratios.append(seconds["spark"] / seconds["akd"])
        return statistics.median(ratios[1:]) - 1  # the first warms up


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Per row and method, see the module."""
    result: dict[str, Any] = {}
    for line in sorted(rows, key=lambda line: line["seed"]):
        result.setdefault(line["row"], {}).setdefault(line["method"], []).append(line)
    found = {row: {method: _figures(own) for method, own in methods.items()} for row, methods in result.items()}
    for row, methods in result.items():
        gains = _gains(methods.get("qat_spark", []), methods.get("qat_kd", []))
        if gains:
            found[row]["qat_spark"]["over_qat_kd"] = {
                "iqm": float(interquartile_mean(gains)),
                "ci": interval(gains),
                "seeds": gains,
            }
    return found


def _gains(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> list[float]:
    """Differences seed by seed: the same batches in the same order, so that what they do to both drops out."""
    scores = {line["seed"]: line["score"] for line in theirs}
    return [line["score"] - scores[line["seed"]] for line in ours if line["seed"] in scores]


def _figures(own: list[dict[str, Any]]) -> dict[str, Any]:
    values = [line["score"] for line in own]
    figures: dict[str, Any] = {
        "iqm": float(interquartile_mean(values)),
        "ci": interval(values),
        "seeds": values,
        "lost": float(own[0]["teacher"]["score"] - interquartile_mean(values)),
    }
    for name in ("ssim", "correlation_before", "correlation_after"):
        if name in own[0]:
            figures[name] = float(interquartile_mean([line[name] for line in own]))
    return figures


def write_summary() -> Path:
    """``spark.json`` from the lines."""
    rows = lines()
    timed = {line["network"]: line["overhead"] for line in rows if "overhead" in line}
    measured = [line for line in rows if "overhead" not in line]
    networks = [name for name in BENCHES if any(line["network"] == name for line in measured)]
    of = {name: [line for line in measured if line["network"] == name] for name in networks}
    figures: dict[str, Any] = {
        "teacher_psnr": {name: of[name][0]["teacher"]["score"] for name in networks if name != "detector"},
        "policy_overhead": timed,
    }
    if "detector" in of:
        figures["teacher_map"] = of["detector"][0]["teacher"]["score"]
    for name in networks:
        done = {Run(line["network"], line["row"], line["method"], line["seed"]) for line in of[name]}
        figures[name] = summary(of[name])
        figures[name + "_settings"] = {
            "steps": {row: given.steps for row, given in BENCHES[name].rows.items()},
            "bfloat16": BENCHES[name].bfloat16,
            "core_seconds": round(sum(line["seconds"] for line in of[name])),
            "left": len(set(plan_of_runs(name)) - done),
        }
    return write_result("spark", figures, without=("--networks", "--rows", "--methods", "--overhead"))


def run_left(network: str, arguments: argparse.Namespace) -> None:
    """What is left of a network, or its policy's overhead."""
    if arguments.overhead:
        found = Runner(network, arguments).overhead()
        append_line(RUNS, {"protocol": protocol_of(network), "network": network, "overhead": found})
        print(f"{network}: a step with the policy takes {100 * found:.1f} % longer")
        return
    runner = None
    wanted = [run for run in plan_of_runs(network) if not arguments.rows or run.row in arguments.rows]
    wanted = [run for run in wanted if not arguments.methods or run.method in arguments.methods]
    for run in wanted[arguments.shard :: arguments.of]:
        if any(all(line.get(k) == v for k, v in vars(run).items()) for line in lines()):
            continue
        if runner is None:
            runner = Runner(network, arguments)
            recorded = (
                line["teacher"]["score"] for line in lines() if line["network"] == network and "teacher" in line
            )
            check_same_teacher(RUNS, recorded, runner.teacher["score"], SAME[network == "detector"])
        line = runner.measure(run)
        append_line(RUNS, line)
        print(
            f"{network} {run.row} {run.method} {run.seed}: {line['score']:.4f} (teacher "
            f"{line['teacher']['score']:.4f}), {line['seconds']:.0f} s",
            flush=True,
        )
        write_summary()


def main() -> None:
    """Run what is left."""
    parser = argparse.ArgumentParser(description="Compare ways of quantization-aware training.")
    parser.add_argument("--networks", nargs="+", choices=list(BENCHES), default=list(BENCHES))
    parser.add_argument("--rows", nargs="+", help="only these")
    parser.add_argument("--methods", nargs="+", help="only these")
    parser.add_argument("--denoise", type=Path, help="images of the denoiser: a folder with train and val")
    parser.add_argument("--denoiser", type=Path, help="its published weights, safetensors")
    parser.add_argument("--overhead", action="store_true", help="time the policy instead")
    parser.add_argument("--shard", type=int, default=0, help="take every --of-th run, beginning with this one")
    parser.add_argument("--of", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with refusing(parser):
        for network in arguments.networks:
            run_left(network, arguments)
    print(f"wrote {write_summary()}; draw it with python -m benchmarks.spark_figure")


if __name__ == "__main__":
    main()
