"""Reading runs for a report."""

import json
from pathlib import Path
from typing import Any

import pytest
from report_runs import GRID, LAYERS, MIXED, layer, record, write_run
from stable_baselines3.common.logger import configure

from agents.report.run import read_run, read_runs
from detectors.errors import InputError
from hsq_env.choices import Choice


def test_the_record_is_what_the_report_says(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "one"))
    assert (run.name, run.metric, run.teacher_score, run.teacher_bytes) == ("one", "mAP", 0.8, 24_000)
    assert [(m.title, m.score, m.bytes, m.ratio, m.found) for m in run.models] == [
        ("uniform 8 bit", 0.79, 6_000, 4.0, False),
        ("uniform 4 bit", 0.6, 3_000, 8.0, False),
        ("HSQ", 0.78, 2_400, 10.0, True),
    ]
    assert run.models[2].choices == tuple(Choice(bits, sparsity) for bits, sparsity in MIXED)
    assert run.lost(run.models[1]) == pytest.approx(20.0)
    assert run.grid == tuple(Choice(bits, sparsity) for bits, sparsity in GRID)
    assert [list(layer.sensitivity) for layer in run.layers] == [row["sensitivity"] for row in LAYERS]
    assert [(t.number, t.source, t.target, t.ratio) for t in run.tried][:2] == [
        (1, "ilp", 8.0, 8.0),
        (2, "dqn", 8.0, 12.0),
    ]


def test_curves_leave_out_what_is_no_number(tmp_path: Path) -> None:
    curves = read_run(write_run(tmp_path / "one")).curves
    assert curves["rollout/exploration_rate"] == [(3.0, 0.5), (6.0, 0.25)]
    assert curves["train/loss"] == [(6.0, 0.1), (9.0, 0.2)]


def test_rows_of_the_logger_itself(tmp_path: Path) -> None:
    """Stable-Baselines3 writes the header anew when a name joins."""
    run = write_run(tmp_path / "one", diagnostics=None)
    logger = configure(str(run / "tensorboard"), ["csv"])
    for step in (10, 20):
        logger.record("time/total_timesteps", step)
        logger.record("train/loss", step / 100)
        logger.dump(step)
        logger.record("self_evaluation/alpha", step / 50)  # a row without a step is of the last one's
        logger.dump(step)
    logger.close()
    curves = read_run(run).curves
    assert curves["train/loss"] == [(10.0, 0.1), (20.0, 0.2)]
    assert curves["self_evaluation/alpha"] == [(10.0, 0.2), (20.0, 0.4)]


def test_what_came_after_a_checkpoint_is_gone_in_the_next_leg(tmp_path: Path) -> None:
    run = write_run(tmp_path / "one")
    (run / "tensorboard" / "resumed-1").mkdir()
    (run / "tensorboard" / "resumed-1" / "progress.csv").write_text("time/total_timesteps,train/loss\n7,0.7\n9,0.9\n")
    curves = read_run(run).curves
    assert curves["train/loss"] == [(6.0, 0.1), (7.0, 0.7), (9.0, 0.9)]
    assert curves["rollout/exploration_rate"] == [(3.0, 0.5), (6.0, 0.25)]


def test_runs_are_read_once_and_told_apart(tmp_path: Path) -> None:
    first, second, third = (write_run(tmp_path / name) for name in ("a/seed0", "b/seed0", "b/seed1"))
    assert [run.name for run in read_runs([first, second, third, first])] == ["a/seed0", "b/seed0", "seed1"]


def test_legs_of_a_resumed_search_follow_each_other(tmp_path: Path) -> None:
    run = write_run(tmp_path / "one")
    for number in (10, 2):
        (run / "tensorboard" / f"resumed-{number}").mkdir()
        text = f"time/total_timesteps,train/loss\n{10 * number},{number}\n"
        (run / "tensorboard" / f"resumed-{number}" / "progress.csv").write_text(text)
    assert read_run(run).curves["train/loss"][2:] == [(20.0, 2.0), (100.0, 10.0)]


def test_several_targets(tmp_path: Path) -> None:
    methods = {f"hsq-{t}": {"map": 0.7, "bytes": 1, "ratio": t, "source": "dqn", "choices": MIXED} for t in (6.0, 10.0)}
    run = read_run(write_run(tmp_path / "one", methods=methods, target_ratio=[6.0, 10.0]))
    assert [model.title for model in run.models] == ["HSQ, 6.0x", "HSQ, 10.0x"]


def test_old_records_know_less(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "one", layers=None, diagnostics=None, environment=None))
    assert run.layers == () and run.grid == ()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"teacher": {}}, "KeyError"),
        ({"teacher": {"map": float("nan"), "bytes": 1}}, "a figure is no number"),
        ({"methods": 3}, "AttributeError"),
        ({"methods": {"hsq": {"map": float("inf"), "bytes": 1, "ratio": 1.0}}}, "a figure is no number"),
        ({"methods": {"hsq": {"map": 0.5, "bytes": 1, "ratio": 1.0, "choices": [[3.5, 9]]}}}, "InputError"),
        ({"layers": {"choices": GRID, "rows": [{}]}}, "KeyError"),
        (
            {"layers": {"choices": GRID, "rows": [layer("stem", 8, [float("inf"), 0.0, 0.0])]}},
            "a sensitivity is no number",
        ),
        ({"diagnostics": {"self_evaluation": [{"alpha": 0.1}]}}, "KeyError"),
    ],
)
def test_records_that_lack_something(changed: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=said):
        read_run(write_run(tmp_path / "one", **changed))


def test_no_run_and_one_that_goes_on(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not the folder of a finished run"):
        read_run(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(InputError, match=f"has not ended: go on with hsq search --resume {tmp_path}"):
        read_run(tmp_path)
    (tmp_path / "result.json").write_text(json.dumps([record()]))
    with pytest.raises(InputError, match="is not the folder of a finished run"):
        read_run(tmp_path)
