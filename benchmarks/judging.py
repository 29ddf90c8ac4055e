"""Which weights of the distillation loss's terms lead to the best plans?

python -m benchmarks.judging [--shard 0 --of 2]

What every choice of every layer alone does after its repair is measured term by term, on 64 training images that the
repair does not see. For each set of weights and target, an integer program over these damages makes a plan; the plan is
fine-tuned at length from the teacher's weights, as ``hsq search`` does it, and its mAP measured on 2,048 generated
images that are neither of the search split nor of the test split: the latter has no say in how students are judged.
Programs rather than correlations over given plans: a judge has to be good where a search takes it.

A plan is a line of ``benchmarks/results/judging_runs.jsonl`` and is not measured again; ``judging.json`` is made anew
after each.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import hsq_env  # noqa: F401 - before torch
from agents.baselines.plans import integer_program
from agents.finalists import finetuned_student
from agents.surrogate import POWER
from benchmarks.record import RESULTS, append_line, read_lines, write_result
from benchmarks.search import HARDEST
from detectors.task import DetectionTask, detection_task, shapes_folder
from detectors.teacher import SHIPPED_TEACHER
from hsq_env.choices import Plan
from hsq_env.distillation import AKD, JUDGING_WEIGHTS
from hsq_env.env import HSQEnv
from hsq_env.states import KeptStates, run
from hsq_env.student import evaluate
from hsq_env.table_cache import kept_table, table_digest
from hsq_env.task import Batch

RUNS = RESULTS / "judging_runs.jsonl"
TARGETS = ("14", "hardest", "10")
SEEDS, FINETUNE_STEPS = 2, 150
USUAL_IMAGES, HELD_BACK = 128, 2048  # of the search split's generator: the usual ones first
DAMAGE_IMAGES = slice(192, 256)  # of the training images, behind the pool of the repair
PROTOCOL = 1  # raised when earlier lines must not be compared with new ones; the first lines have none
KINDS = ("logits", "boxes", "centerness", "features")
Weights = tuple[float, ...]  # of the kinds
WEIGHTINGS: tuple[Weights, ...] = (
    (1.0, 10.0, 10.0, 0.1),
    (0.1, 10.0, 10.0, 0.1),
    (0.4, 10.0, 10.0, 0.1),
    (2.0, 10.0, 10.0, 0.1),
    (4.0, 10.0, 10.0, 0.1),
    (1.0, 10.0, 300.0, 0.1),
    (1.0, 0.0, 0.0, 0.0),
    (0.0, 1.0, 0.0, 0.0),
    (0.0, 0.0, 1.0, 0.0),
    (0.0, 0.0, 0.0, 1.0),
)


@dataclass(frozen=True)
class Run:
    """A plan and a seed of its fine-tuning."""

    target: str
    weights: Weights
    seed: int


def plan_of() -> list[Run]:
    """All runs, seed by seed."""
    return [Run(t, w, seed) for seed in range(SEEDS) for t in TARGETS for w in WEIGHTINGS]


def lines() -> list[dict[str, Any]]:
    """What has been run, under the present protocol."""
    return [row for row in read_lines(RUNS) if row.get("protocol") == PROTOCOL]


def done(rows: list[dict[str, Any]]) -> set[Run]:
    """What has been run."""
    return {Run(r["target"], tuple(r["weights"]), r["seed"]) for r in rows}


class Judge:
    """The tasks, and the damage of every choice term by term."""

    def __init__(self) -> None:
        self.held_back = self._task(search_images=None)
        split = self.held_back._splits["search"]
        self.held_back._splits["search"] = split.only(split.image_ids[USUAL_IMAGES:])
        self.plain = HSQEnv(self._task(), reward="divergence", alpha=0.0, beta=1.0)
        self.teacher_map = evaluate(self.held_back, self.held_back.stages(self.held_back.teacher), "search")
        self.damages = self._kept_damages()

    @staticmethod
    def _task(search_images: int | None = 8, seed: int = 0) -> DetectionTask:
        return detection_task(
            shapes_folder({"val": USUAL_IMAGES + HELD_BACK}), None, SHIPPED_TEACHER, search_images=search_images,
            pool_images=64, calibration_images=16, seed=seed,
        )  # fmt: skip

    def _kept_damages(self) -> NDArray[np.float64]:
        """The damages, from the cache if they were measured before: they take minutes."""
        env, task = self.plain, self.plain.task
        train = self.held_back._train
        batches = train.only(train.image_ids[DAMAGE_IMAGES]).batches(8)
        settings = ("terms", KINDS, env.compressor.infos, env.choices, env.compressor.repair_settings())
        digest = table_digest(task, settings, [*task.calibration(), *task.finetuning(), *batches])
        return kept_table(digest, lambda: self._damages(batches))

    @torch.no_grad()
    def _damages(self, batches: Sequence[Batch]) -> NDArray[np.float64]:
        """Unweighted terms with one layer compressed and repaired, (layers, choices, kinds)."""
        env, task = self.plain, self.plain.task
        own, stages = env.compressor.fork(), task.stages(task.teacher)
        kept = KeptStates(batches)
        teacher = [task.distilled(run(stages, {"images": batch.images})) for batch in batches]
        table = np.zeros((len(env.layers), len(env.choices), len(KINDS)))
        for index in range(len(env.layers)):
            for column, choice in enumerate(env.choices):
                with own.alone(index, choice, 0.0) as (student, route):
                    kept.enter(route)
                    for i, expected in enumerate(teacher):
                        found = task.distilled(route.finish(student.stages, kept.state(student.stages, i)))
                        terms = AKD().terms(found, expected)
                        table[index, column] += [terms[kind].item() / len(batches) for kind in KINDS]
        return np.maximum(table, 0.0)

    def measure(self, run_: Run) -> dict[str, Any]:
        """The plan that a weighting leads to, fine-tuned."""
        plain = self.plain
        ratio = HARDEST * plain.budget.largest_ratio if run_.target == "hardest" else float(run_.target)
        env = HSQEnv(
            self._task(seed=run_.seed), reward="divergence", alpha=0.0, beta=1.0, target_ratio=ratio,
            sensitivities=plain.sensitivities,
        )  # fmt: skip
        costs = (self.damages @ np.array(run_.weights)) ** POWER
        chosen = integer_program(costs / costs.max(), env.costs, env.budget.limit)
        plan = Plan(tuple(info.name for info in env.layers), tuple(env.choices[c] for c in chosen))
        tuned = finetuned_student(env, plan, FINETUNE_STEPS, str(run_))
        sums = self.damages[np.arange(len(chosen)), chosen].sum(axis=0)
        return {
            "protocol": PROTOCOL,
            **vars(run_),
            "map": evaluate(self.held_back, tuned.stages, "search"),
            "teacher_map": self.teacher_map,
            "damages": dict(zip(KINDS, sums.tolist(), strict=True)),
            "choices": chosen.tolist(),
        }


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Points of mAP lost per target and weights, mean over the seeds of the fine-tuning."""
    lost: dict[str, dict[str, float]] = {}
    for target in TARGETS:
        for weights in WEIGHTINGS:
            own = [r for r in rows if (r["target"], tuple(r["weights"])) == (target, weights)]
            if own:
                points = [100 * (r["teacher_map"] - r["map"]) for r in own]
                lost.setdefault(target, {})[", ".join(map(str, weights))] = float(np.mean(points))
    return {
        "kinds": KINDS,
        "judging_weights": [JUDGING_WEIGHTS[kind] for kind in KINDS],
        "points_lost": lost,
        "left": len(set(plan_of()) - done(rows)),
    }


def main() -> None:
    """Measure what is left."""
    parser = argparse.ArgumentParser(description="Which judge leads a search to the best plans?")
    parser.add_argument("--shard", type=int, default=0, help="take every --of-th run, beginning with this one")
    parser.add_argument("--of", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    judge: Judge | None = None
    for run_ in plan_of()[arguments.shard :: arguments.of]:
        if run_ in done(lines()):
            continue
        judge = judge or Judge()
        append_line(RUNS, judge.measure(run_))
        print(run_, lines()[-1]["map"], flush=True)
        write_result("judging", summary(lines()))
    print(f"wrote {write_result('judging', summary(lines()))}")


if __name__ == "__main__":
    main()
