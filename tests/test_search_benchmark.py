"""The arithmetic of the comparison of searches."""

from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_task import TinyTask

import benchmarks.search as bench
import benchmarks.self_evaluation as loops
from agents.explorer import Explorer
from agents.finalists import finetuned_student
from benchmarks.record import append_line, read_lines
from benchmarks.search import BENCHES, SETTINGS, Run, interquartile_mean, plan_of, summary
from benchmarks.search_figure import curve_of, draw, far_off
from hsq_env.choices import Plan
from hsq_env.env import HSQEnv
from hsq_env.student import Student


def row(method: str, seed: int, score: float, target: str = "14") -> dict[str, Any]:
    return {
        "protocol": bench.PROTOCOL,
        "task": "embedded",
        "target": target,
        "method": method,
        "seed": seed,
        "test_map": score,
        "teacher_map": 0.75,
        "test_map_standard": score + 0.02,
        "teacher_map_standard": 0.76,
        "ratio": 14.0,
        "evaluations": 400 + seed,
        "divergence": 1.0 + seed,
        "curve": [[72, 3.0], [100, 2.0 - seed]],
        "budget": 500,
        "search_seconds": 10.0,
        "finetune_seconds": 5.0,
    }


def test_the_interquartile_mean_is_that_of_the_middle_half() -> None:
    assert interquartile_mean(np.array([0.0, 1.0, 2.0, 3.0, 100.0])) == pytest.approx(2.0)
    assert interquartile_mean(np.arange(8.0)) == pytest.approx(3.5)


def test_the_summary_by_hand() -> None:
    scores = [0.70, 0.72, 0.71, 0.74, 0.73]
    found = summary([row("dqn", i, s) for i, s in enumerate(scores)])["14"]["dqn"]
    assert found["seeds"] == scores and found["iqm"] == pytest.approx(0.72)
    assert found["points_lost"] == pytest.approx(3.0) and found["points_lost_standard"] == pytest.approx(2.0)
    assert found["evaluations"] == 404 and found["ratio"] == 14.0
    low, high = found["ci"]
    assert 0.70 <= low < 0.72 < high <= 0.74


def test_equal_values_have_an_interval_of_no_width() -> None:
    assert summary([row("ilp", i, 0.7) for i in range(5)])["14"]["ilp"]["ci"] == [0.7, 0.7]


@pytest.mark.parametrize(
    ("name", "expected"), [("embedded", 4 * 4 * 5 + 3 * 4 * 3 + 3 * (3 + 3 + 1 + 1) + 9), ("bccd", 5 * 3)]
)
def test_every_run_is_planned_once(name: str, expected: int) -> None:
    bench_ = BENCHES[name]
    planned = plan_of(bench_)
    assert len(planned) == len(set(planned)) == expected
    assert {run.method for run in planned} == {*bench_.methods, *bench_.others} <= set(SETTINGS)
    assert {run.target for run in planned if run.method in bench_.others} <= {bench.OTHERS_TARGET}
    assert {run.target for run in planned if run.method == "dqn"} == set(bench_.targets) <= set(bench.TARGETS)
    assert sum(run.method == "random" and run.target == "10" for run in planned) == ("10" in bench_.targets)


@pytest.mark.parametrize(("method", "searches"), [("ilp", 1), ("random", 2)])
def test_deterministic_methods_search_once(
    tiny: TinyTask, monkeypatch: pytest.MonkeyPatch, method: str, searches: int
) -> None:
    """Every seed is fine-tuned on its own; with the tiny task in place of a detector."""
    seeds: list[int] = []

    def make_task(arguments: Any, seed: int, **settings: Any) -> TinyTask:
        seeds.append(seed)
        return tiny

    monkeypatch.setattr(bench, "TARGETS", ("6",))
    small = replace(BENCHES["embedded"], evaluations=21, finetune_steps=1, make_task=make_task)
    runner = bench.Runner(small, Namespace())
    ran: list[int] = []
    explore = Explorer.run
    monkeypatch.setattr(Explorer, "run", lambda self, *given: (ran.append(self.seed), explore(self, *given))[1])
    rows = [runner.measure(Run("embedded", "6", method, seed)) for seed in (0, 1)]
    assert seeds == [0, 0, 0, 1] and len(ran) == searches
    assert (rows[0]["choices"] == rows[1]["choices"]) is (searches == 1)
    for row in rows:
        assert row["ratio"] >= 6 and row["evaluations"] <= 21 and row["table_entries"] == 7 * 12
        assert 0 < row["test_map"] == row["test_map_standard"] <= 1  # the tiny task has one test split
        assert row["curve"][-1][1] == pytest.approx(row["divergence"], abs=1e-5)


def test_the_same_plan_is_finetuned_once(tiny: TinyTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The program's plan is what the local search begins with, and here there are no evaluations for another."""
    monkeypatch.setattr(bench, "RUNS", tmp_path / "runs.jsonl")
    monkeypatch.setattr(bench, "TARGETS", ("6",))
    small = replace(
        BENCHES["embedded"], evaluations=7, finetune_steps=1, make_task=lambda arguments, seed, **settings: tiny
    )
    runner = bench.Runner(small, Namespace())
    tuned: list[str] = []
    finetune = finetuned_student

    def note(env: HSQEnv, plan: Plan, steps: int, label: str) -> Student:
        tuned.append(label)
        return finetune(env, plan, steps, label)

    monkeypatch.setattr(bench, "finetuned_student", note)
    for method, seed in (("ilp", 0), ("local", 0), ("local", 1)):
        append_line(bench.RUNS, runner.measure(Run("embedded", "6", method, seed)))
    rows = bench.lines()
    assert [r["finetuned_as"] for r in rows] == ["ilp", "ilp", "local"] and len(tuned) == 2
    assert rows[0]["test_map"] == rows[1]["test_map"] and rows[0]["choices"] == rows[1]["choices"]


def test_what_was_run_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "RUNS", tmp_path / "runs.jsonl")
    assert bench.lines() == []
    append_line(bench.RUNS, row("dqn", 0, 0.7))
    append_line(bench.RUNS, {**row("dqn", 1, 0.7), "protocol": bench.PROTOCOL - 1})
    append_line(bench.RUNS, row("ilp", 0, 0.7))
    assert bench.done(bench.lines()) == {Run("embedded", "14", "dqn", 0), Run("embedded", "14", "ilp", 0)}
    assert len(read_lines(bench.RUNS)) == 3


def test_curves_are_means_over_seeds() -> None:
    rows = [row("dqn", 0, 0.7), row("dqn", 1, 0.7)]
    found = curve_of(rows, np.array([0.0, 72.0, 99.0, 100.0, 500.0]))
    assert np.isnan(found[0]) and found[1:].tolist() == [3.0, 3.0, 1.5, 1.5]


def test_what_is_far_off_is_written_and_not_drawn() -> None:
    lost = {"dqn": 0.1, "ilp": 0.2, "greedy": 0.9, "random": 9.0, "uniform": 1.7}
    assert far_off(lost) == {"random": 9.0}  # the median is 0.9
    assert far_off({"dqn": -1.4, "ilp": -1.3, "random": 5.0}) == {"random": 5.0}
    hardest = {"dqn": 4.2, "ilp": 4.4, "greedy": 4.4, "uniform": 57.0, "random": 38.0}
    assert list(far_off(hardest)) == ["random", "uniform"]


def test_the_figure_is_drawn(tmp_path: Path) -> None:
    rows = [row(m, i, 0.7 + 0.01 * i, t) for m in ("dqn", "ilp") for i in range(3) for t in ("14", "6")]
    draw("embedded", summary(rows), rows, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_of_the_self_evaluation_benchmark(tiny: TinyTask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loops, "EPISODES", 8)
    monkeypatch.setattr(loops, "LAST", 2)
    task: Any = tiny
    looped, fixed = loops.measure(loops.Run(None, 0), task), loops.measure(loops.Run((0.1, 0.5), 0), task)
    assert (fixed["alpha"], fixed["beta"]) == (0.1, 0.5) != (looped["alpha"], looped["beta"])
    for row in (looped, fixed):
        assert len(row["mse"]) == 8 and row["mse_of_the_best"] == pytest.approx(min(row["mse"]), abs=1e-5)
        assert row["mse_at_the_end"] == pytest.approx(np.mean(row["mse"][-2:]), abs=1e-5)
    found = loops.summary([looped, fixed])
    assert found["best_fixed"] == "alpha 0.1, beta 0.5" and found["left"] == 48
    assert set(found["means"]) == {"loop", "alpha 0.1, beta 0.5"}
