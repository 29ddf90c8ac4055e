"""Which search finds the better plan? All methods, the same evaluations, the same fine-tuning, images unseen before.

python -m benchmarks.search [--tasks embedded] [--methods dqn ilp] [--shard 0 --of 2]

Every method gets the same number of student evaluations: steps that the environment really measured. The two tables of
sensitivities (every choice of every layer alone, before and after a step's repair) come with the environment and are
free for everybody; what they cost is written beside the figures. Each method hands over the plan whose divergence on
the search images is smallest; that plan is fine-tuned at length from the teacher's weights, alike for all, and its mAP
is measured on the test split. Deterministic methods search once and repeat the fine-tuning alone. Where two methods
found the same plan, its fine-tuning with the same seed is not repeated (``finetuned_as``).

A step repairs with four minibatches of the embedded task and not with two, the environment's default, so that what a
search lowers is nearer to what the fine-tuning afterwards leaves.

On the 400 test images of the embedded task the luck of the images is as large as the differences between methods, and
the same for every seed of a plan. They are drawn by a generator: 2,400 of them are the test split here, the usual 400
first; figures that end in ``_standard`` are of those.

The agent and the integer programs run with every seed; local search and what needs no search with three; random
search, TPE and NSGA-II with three at the targets where methods differ and one elsewhere (``FEWER_SEEDS``). The agents
that are no default and the default with parts left out run at the target of 14 alone, with one seed. On the photographs
five methods run at the target of 14 with three seeds (two lines at 10 are of an earlier plan).

A run is a line of ``benchmarks/results/search_runs.jsonl``; what is there is not run again, so that the benchmark may
be stopped and continued, and several processes may take a shard each. After every run ``search.json`` is made anew
from the lines: interquartile means with 95 % bootstrap intervals.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

import hsq_env  # noqa: F401 - before torch
from agents.episode import Episode
from agents.explorer import Explorer
from agents.finalists import finetuned_student
from agents.search_log import SearchLog
from benchmarks.record import RESULTS, append_line, check_same_teacher, read_lines, refusing, write_result
from benchmarks.statistics import interquartile_mean, interval
from detectors.task import DetectionTask, detection_task, shapes_folder
from detectors.teacher import SHIPPED_TEACHER
from hsq_env.choices import Plan
from hsq_env.env import HSQEnv
from hsq_env.student import predictions_of
from hsq_env.task import Stage

RUNS = RESULTS / "search_runs.jsonl"
TARGETS = ("6", "10", "14", "hardest")
HARDEST = 0.9  # of the largest ratio that the grid reaches
OTHERS_TARGET, OTHERS_SEEDS = "14", 1
_BLIND = {"14": 3, "hardest": 3, "10": 1, "6": 1}
FEWER_SEEDS: dict[str, int | dict[str, int]] = {  # than the bench's, by method and perhaps target
    "local": 3,
    "greedy": 3,
    "uniform": 3,
    "random": _BLIND,
    "tpe": _BLIND,
    "nsga2": _BLIND,
}
TEST_IMAGES, STANDARD = 2400, 400  # of the embedded task; the first 400 are those that every other figure is of
SAME_MAP = 0.002  # by which a teacher's mAP may differ between machines
PROTOCOL = 4  # raised when earlier lines must not be compared with new ones


@dataclass(frozen=True)
class Bench:
    """A task and what is spent on it."""

    name: str
    seeds: int
    evaluations: int
    repair_steps: int  # minibatches in a step
    finetune_steps: int  # after the search
    methods: tuple[str, ...]
    others: tuple[str, ...]  # at OTHERS_TARGET, with OTHERS_SEEDS
    targets: tuple[str, ...]  # what says most first
    make_task: Callable[..., DetectionTask]
    standard_test_images: int | None = None  # the first of a test split that was made longer
    bfloat16: bool = False


def _embedded(arguments: argparse.Namespace, seed: int, **settings: Any) -> DetectionTask:
    return detection_task(
        shapes_folder({"test": TEST_IMAGES}), None, SHIPPED_TEACHER, search_images=64, pool_images=64,
        calibration_images=16, seed=seed, **settings,
    )  # fmt: skip


def _bccd(arguments: argparse.Namespace, seed: int, **settings: Any) -> DetectionTask:
    return detection_task(
        arguments.dataset, None, arguments.teacher, search_images=8, pool_images=16, calibration_images=8,
        batch_size=4, seed=seed, **settings,
    )  # fmt: skip


METHODS: dict[str, dict[str, Any]] = {  # arguments of Explorer; those that every bench compares come first
    "ilp": {},
    "ilp_repaired": {},
    "dqn": {},
    "ilp_loads": {},
    "local": {},
    "greedy": {},
    "uniform": {},
    "random": {},
    "tpe": {},
    "nsga2": {},
}
OTHERS: dict[str, dict[str, Any]] = {
    "planner": {},
    "dqn_without_surrogate": {"algo": "dqn", "surrogate": False},
    "dqn_without_warm_start": {"algo": "dqn", "warm_start": ()},
    "qrdqn": {},
    "maskable_ppo": {},
    "ppo": {},
    "sac": {},
    "td3": {},
    "ddpg": {},
}
SETTINGS = METHODS | OTHERS
DETERMINISTIC = ("uniform", "greedy", "ilp", "ilp_repaired", "ilp_loads")
BENCHES = {
    "embedded": Bench(
        "embedded", 5, 300, 4, 150, tuple(METHODS), tuple(OTHERS), ("14", "hardest", "10", "6"), _embedded, STANDARD
    ),
    "bccd": Bench("bccd", 3, 150, 2, 60, ("ilp", "ilp_repaired", "dqn", "greedy", "random"), (), ("14",), _bccd),
}


@dataclass
class CurveLog(SearchLog):
    """A log that keeps the best divergence against the evaluations spent."""

    env: HSQEnv | None = None
    curve: list[tuple[int, float]] = field(default_factory=list)

    def note(self, episode: Episode, info: dict[str, Any]) -> None:
        """As any log's, and a point of the curve."""
        super().note(episode, info)
        assert self.env is not None
        best = min([self.curve[-1][1] if self.curve else np.inf, episode.divergence])
        self.curve.append((self.env.evaluations, best))


@dataclass(frozen=True)
class Run:
    """One line of the record."""

    task: str
    target: str
    method: str
    seed: int


def lines() -> list[dict[str, Any]]:
    """What has been run, under the present protocol."""
    return [row for row in read_lines(RUNS) if row["protocol"] == PROTOCOL]


def done(rows: list[dict[str, Any]]) -> set[Run]:
    """As runs."""
    return {Run(r["task"], r["target"], r["method"], r["seed"]) for r in rows}


class Runner:
    """Makes the environment of a task once and runs what is left on it."""

    def __init__(self, bench: Bench, arguments: argparse.Namespace) -> None:
        self.bench, self.arguments = bench, arguments
        self.task = bench.make_task(arguments, 0)
        started = time.monotonic()
        self.plain = self._env(self.task, None)
        _ = self.plain.repaired_sensitivities
        self.table_seconds = time.monotonic() - started  # little if the disk had them
        self.ratios = {t: HARDEST * self.plain.budget.largest_ratio if t == "hardest" else float(t) for t in TARGETS}
        self.tests = {"": self.task}  # by what the figure's name ends in
        if bench.standard_test_images is not None:
            self.tests["_standard"] = bench.make_task(arguments, 0, test_images=bench.standard_test_images)
        self.teacher_maps = {f"teacher_map{n}": s for n, s in self._maps(self.task.stages(self.task.teacher)).items()}
        self.found: dict[tuple[str, str], dict[str, Any]] = {}  # of deterministic methods, by target and method

    def _env(self, task: DetectionTask, target: float | None, action_space: str = "discrete") -> HSQEnv:
        return HSQEnv(
            task,
            action_space=action_space,
            reward="divergence",
            alpha=0.0,
            beta=1.0,
            target_ratio=target,
            step_minibatches=self.bench.repair_steps,
            bfloat16=self.bench.bfloat16,
        )

    def search(self, run: Run) -> dict[str, Any]:
        """The plan that a method finds, and what it spent."""
        key = (run.target, run.method)
        if key in self.found:
            return self.found[key]
        settings = SETTINGS[run.method]
        explorer = Explorer(
            **{
                "algo": run.method,
                "seed": run.seed,
                "episodes": None,
                "evaluations": self.bench.evaluations,
                **settings,
            }
        )
        env = self._env(self.task, self.ratios[run.target], explorer.action_space())
        log = CurveLog(lambda line: None, env=env)
        started = time.monotonic()
        explorer.run(env, log)
        best = log.best_plans(1, self.ratios[run.target])[0]
        assert env.evaluations <= self.bench.evaluations, run
        found = {
            "evaluations": env.evaluations,
            "search_seconds": round(time.monotonic() - started, 1),
            "episodes": len(log.episodes),
            "divergence": best.divergence,
            "search_accuracy": best.accuracy,
            "curve": [[n, round(d, 5)] for n, d in log.curve],
            "choices": [env.choices.index(c) for c in best.plan.choices],
            "ratio": best.ratio,
            "plan": best.plan,
        }
        if run.method in DETERMINISTIC:
            self.found[key] = found
        return found

    def measure(self, run: Run) -> dict[str, Any]:
        """Search, fine-tune, test."""
        found = dict(self.search(run))
        plan = found.pop("plan")
        same = self._finetuned_before(run, found["choices"])
        started = time.monotonic()
        scores = self._score(run, plan) if same is None else {n: same[n] for n in same if n.startswith("test_map")}
        return {
            "protocol": PROTOCOL,
            **vars(run),
            **scores,
            **self.teacher_maps,
            **found,
            "finetuned_as": run.method if same is None else same["finetuned_as"],
            "finetune_seconds": round(time.monotonic() - started, 1),
            "finetune_steps": self.bench.finetune_steps,
            "budget": self.bench.evaluations,
            "table_entries": self.plain.sensitivities.size,
            "table_seconds": round(self.table_seconds, 1),
        }

    def _score(self, run: Run, plan: Plan) -> dict[str, float]:
        """The fine-tuned plan's mAP on the test split."""
        env = self.plain
        env.task = self.bench.make_task(self.arguments, run.seed)  # the seed of the fine-tuning's batches
        student = finetuned_student(env, plan, self.bench.finetune_steps, str(run))
        return {f"test_map{name}": score for name, score in self._maps(student.stages).items()}

    def _maps(self, stages: Sequence[Stage]) -> dict[str, float]:
        found = predictions_of(self.task, stages, "test")  # of which other test splits are the first
        return {n: t.metric(found[: len(t.evaluation("test"))], "test") for n, t in self.tests.items()}

    def _finetuned_before(self, run: Run, choices: list[int]) -> dict[str, Any] | None:
        """The line in which the same plan was fine-tuned with the same seed, which would give the same again."""
        asked = (run.task, run.seed, choices, self.bench.finetune_steps)
        rows = (r for r in lines() if "finetuned_as" in r)
        return next((r for r in rows if (r["task"], r["seed"], r["choices"], r["finetune_steps"]) == asked), None)


def _lost(teacher: float, values: Any) -> float:
    """Points of mAP below the teacher."""
    return float(100 * (teacher - interquartile_mean(np.array(values))))


def _same_plans_as(method: str, own: Sequence[dict[str, Any]]) -> list[str]:
    """The other methods that found all of a method's plans before; none if it has one that no other has."""
    others = {row.get("finetuned_as", method) for row in own}
    return [] if method in others else sorted(others)


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Per target and method: interquartile mean of the test mAP, its interval, and what was spent."""
    result: dict[str, Any] = {}
    for target in TARGETS:
        for method in SETTINGS:
            own = sorted((r for r in rows if r["target"] == target and r["method"] == method), key=lambda r: r["seed"])
            if not own:
                continue
            values = np.array([r["test_map"] for r in own])
            standard = [r["test_map_standard"] for r in own if "test_map_standard" in r]
            result.setdefault(target, {})[method] = {
                "iqm": float(interquartile_mean(values)),
                "ci": interval(values.tolist()),
                "points_lost": _lost(own[0]["teacher_map"], values),
                **({"points_lost_standard": _lost(own[0]["teacher_map_standard"], standard)} if standard else {}),
                "ratio": float(np.mean([r["ratio"] for r in own])),
                "seeds": values.tolist(),
                "same_plans_as": _same_plans_as(method, own),
                "evaluations": max(r["evaluations"] for r in own),
                "divergence": float(np.mean([r["divergence"] for r in own])),
            }
    return result


def write_summary() -> Path:
    """``search.json`` from the lines."""
    rows = lines()
    figures: dict[str, Any] = {}
    for name, bench in BENCHES.items():
        own = [r for r in rows if r["task"] == name]
        if own:
            figures[name] = summary(own)
            figures[name + "_settings"] = {
                "evaluations": bench.evaluations,
                "repair_steps": bench.repair_steps,
                "finetune_steps": bench.finetune_steps,
                **{name: own[0][name] for name in own[0] if name.startswith("teacher_map")},
                # of each of both tables, and the seconds of both where the disk did not have them yet
                "sensitivity_entries": own[0]["table_entries"],
                "sensitivity_seconds": max(r["table_seconds"] for r in own),
                "runs": len(own),
                "core_seconds": round(sum(r["search_seconds"] + r["finetune_seconds"] for r in own)),
                "left": len(plan_of(bench)) - len(done(own) & set(plan_of(bench))),
            }
    return write_result("search", figures, without=("--tasks", "--methods", "--targets"))


def seeds_of(bench: Bench, method: str, target: str) -> int:
    """How many seeds a method gets."""
    fewer = FEWER_SEEDS.get(method, bench.seeds)
    return min(bench.seeds, fewer if isinstance(fewer, int) else fewer[target])


def plan_of(bench: Bench) -> list[Run]:
    """All runs in the order in which they say most; an odd number of methods first, so that two shards share them."""
    return [
        *(
            Run(bench.name, target, method, seed)
            for some in (bench.methods[:5], bench.methods[5:])
            for seed in range(bench.seeds)
            for target in bench.targets
            for method in some
            if seed < seeds_of(bench, method, target)
        ),
        *(Run(bench.name, OTHERS_TARGET, method, seed) for seed in range(OTHERS_SEEDS) for method in bench.others),
    ]


def run_left(name: str, arguments: argparse.Namespace) -> None:
    """What a task has left."""
    bench, runner = BENCHES[name], None
    wanted = [r for r in plan_of(bench) if r.target in arguments.targets]
    wanted = [r for r in wanted if not arguments.methods or r.method in arguments.methods]
    for run in wanted[arguments.shard :: arguments.of]:
        if run in done(lines()):
            continue
        if runner is None:
            runner = Runner(bench, arguments)
            recorded = (row["teacher_map"] for row in lines() if row["task"] == name)
            check_same_teacher(RUNS, recorded, runner.teacher_maps["teacher_map"], SAME_MAP)
        row = runner.measure(run)
        append_line(RUNS, row)
        print(
            f"{run.task} {run.target} {run.method} {run.seed}: {row['test_map']:.4f} at {row['ratio']:.2f}x, "
            f"divergence {row['divergence']:.4f}, {row['evaluations']} evaluations, {row['search_seconds']:.0f} + "
            f"{row['finetune_seconds']:.0f} s",
            flush=True,
        )
        write_summary()


def main() -> None:
    """Run what is left."""
    parser = argparse.ArgumentParser(description="Compare searches at equal budgets.")
    parser.add_argument("--tasks", nargs="+", choices=list(BENCHES), default=["embedded"])
    parser.add_argument("--methods", nargs="+", choices=list(SETTINGS), help="only these")
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--shard", type=int, default=0, help="take every --of-th run, beginning with this one")
    parser.add_argument("--of", type=int, default=1)
    parser.add_argument("--dataset", default="bccd/", help="of the task bccd")
    parser.add_argument("--teacher", type=Path, default=Path("bccd_teacher.safetensors"), help="of the task bccd")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with refusing(parser):
        for name in arguments.tasks:
            run_left(name, arguments)
    print(f"wrote {write_summary()}; draw it with python -m benchmarks.search_figure")


if __name__ == "__main__":
    main()
