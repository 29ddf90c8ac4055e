"""The comparison of ways of training: its arithmetic, and one tiny run of each way."""

from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from test_restoration_task import DENOISING, make

import benchmarks.spark as bench
from benchmarks.record import read_lines
from benchmarks.spark import BENCHES, Run, correlation, energy_of, plan_of_runs, summary
from benchmarks.spark_figure import draw
from benchmarks.statistics import interval
from hsq_env.distillation.difficulty import laplacian_variance
from restorers.task import RestorationBatch


def line(method: str, seed: int, score: float) -> dict[str, Any]:
    return {
        "network": "dncnn",
        "row": "W4A8",
        "method": method,
        "seed": seed,
        "score": score,
        "teacher": {"score": 30.4},
        "correlation_after": 0.5 + seed / 10,
    }


def test_the_summary_by_hand() -> None:
    scores = [30.0, 30.2, 30.1, 30.4, 30.3]
    found = summary([line("qat_spark", i, s) for i, s in enumerate(scores)])["W4A8"]["qat_spark"]
    assert found["seeds"] == scores and found["iqm"] == pytest.approx(30.2)
    assert found["lost"] == pytest.approx(0.2) and found["correlation_after"] == pytest.approx(0.7)
    low, high = found["ci"]
    assert 30.0 <= low < 30.2 < high <= 30.4


def test_gains_are_of_equal_seeds() -> None:
    """A seed that one way lacks says nothing."""
    ours = [line("qat_spark", seed, 30.0 + seed) for seed in (0, 1, 2)]
    theirs = [line("qat_kd", seed, score) for seed, score in ((3, 7.0), (2, 31.5), (0, 30.25))]
    found = summary([*ours, *theirs])["W4A8"]
    assert found["qat_spark"]["over_qat_kd"] == {"iqm": 0.125, "ci": [-0.25, 0.5], "seeds": [-0.25, 0.5]}
    assert "over_qat_kd" not in summary(ours)["W4A8"]["qat_spark"]


def test_an_interval_of_few_values_is_their_range() -> None:
    assert interval([2.0, 1.0]) == [1.0, 2.0] and interval([3.0, 3.0, 3.0]) == [3.0, 3.0]


def test_correlation_is_of_ranks_and_none_where_nothing_differs() -> None:
    energy = np.arange(8.0).reshape(2, 2, 2)
    assert correlation(np.exp(energy), energy) == pytest.approx(1.0)
    assert correlation(-energy, energy) == pytest.approx(-1.0)
    assert correlation(np.ones((2, 2, 2)), energy) == 0.0


@pytest.mark.parametrize("network", BENCHES)
def test_every_row_has_every_method_and_seed_once(network: str) -> None:
    runs = plan_of_runs(network)
    bench_of = BENCHES[network]
    trained = len(bench_of.methods) - 1
    assert len(runs) == len(set(runs)) == len(bench_of.rows) * (5 * trained + 1)
    assert set(bench_of.methods) == {"ptq", "qat", "qat_kd", "qat_spark", bench_of.rival}


@pytest.fixture
def tiny_bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The denoiser's, on stripes, with eleven steps."""
    rows = {name: replace(row, steps=11) for name, row in BENCHES["dncnn"].rows.items()}
    made = replace(BENCHES["dncnn"], make_task=lambda arguments, seed: make(DENOISING, seed=seed), rows=rows)
    monkeypatch.setitem(BENCHES, "dncnn", made)
    monkeypatch.setattr(bench, "RUNS", tmp_path / "runs.jsonl")
    monkeypatch.setattr(bench, "MAPS", tmp_path / "maps.npz")
    monkeypatch.setattr("benchmarks.record.RESULTS", tmp_path)
    monkeypatch.setattr(bench, "long_pace", lambda student, criterion: 3.0)  # a network that was never trained
    return tmp_path


def test_all_methods_start_alike_and_the_record_goes_on(tiny_bench: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["spark", "--networks", "dncnn", "--rows", "W2A8"]
    monkeypatch.setattr("sys.argv", arguments)
    monkeypatch.setattr(bench, "SEEDS", 1)
    bench.main()
    rows = read_lines(bench.RUNS)
    assert {row["method"] for row in rows} == {"ptq", "qat", "qat_kd", "qat_spark", "wavelet"}
    scores = {row["method"]: row["score"] for row in rows}
    assert len(set(scores.values())) == 5  # every way leads elsewhere
    policy = next(row for row in rows if row["method"] == "qat_spark")
    assert policy["lessons"] == 2 and policy["correlation_before"] == 0 != policy["correlation_after"]
    bench.main()
    assert read_lines(bench.RUNS) == rows
    with np.load(bench.MAPS) as kept:
        draw(dict(kept), tiny_bench / "maps.png")
    assert (tiny_bench / "maps.png").stat().st_size > 1000 and (tiny_bench / "spark.json").is_file()


def test_seeds_differ_and_equal_seeds_do_not(tiny_bench: Path) -> None:
    runner = bench.Runner("dncnn", Namespace())
    one, again, other = (runner.measure(Run("dncnn", "W4A8", "qat_spark", seed)) for seed in (0, 0, 1))
    assert one["score"] == again["score"] != other["score"]


def test_the_overhead_is_of_both_ways(tiny_bench: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the steps in which a policy has something to do."""
    taken: list[str] = []
    shares: set[float] = set()
    runner = bench.Runner("dncnn", Namespace())

    def train(student: Any, way: str, seed: int, steps: int, frozen_share: float) -> None:
        taken.append(way)
        shares.add(frozen_share)

    monkeypatch.setattr(runner, "train", train)
    runner.overhead()
    assert taken.count("akd") == taken.count("spark") == bench.ROUNDS + 1 and shares == {0.0}


def test_energy_is_of_clean_images_where_there_are_some() -> None:
    """A detector's batches have targets too, but those are no images."""
    images, clean = torch.rand(2, 1, 16, 16), torch.rand(2, 1, 16, 16)
    noisy, boxes = RestorationBatch(images, clean), SimpleNamespace(images=images, targets=({"boxes": []},))
    assert np.array_equal(energy_of([noisy], 8), laplacian_variance(clean, 8).numpy())
    assert np.array_equal(energy_of([boxes], 8), laplacian_variance(images, 8).numpy())
