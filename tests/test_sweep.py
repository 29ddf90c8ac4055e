"""Many searches at once: what is tried, what is refused, what lies on the front."""

import importlib
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import agents.sweep
from agents.commands.sweep import _arguments
from agents.tables import print_sweep
from detectors.errors import InputError
from detectors.progress import Work

pytest.importorskip("ray", reason="an extra: pip install -e '.[ray]'")

from agents.sweep import GRACE_EPISODES, AmongEquals, Sweep, _Trial, mark_front, name_of, row_of, run_sweep
from agents.trial_progress import TrialProgress


def test_every_combination_is_a_trial() -> None:
    sweep = Sweep({"target_ratio": [6.0, 10.0], "seed": [0, 1, 2]}, {})
    assert len(sweep.combinations) == 6 and {"target_ratio": 10.0, "seed": 2} in sweep.combinations
    assert len({name_of(combination) for combination in sweep.combinations}) == 6
    assert "/" not in name_of({"reward": "a/b"})


@pytest.mark.parametrize(
    ("sweep", "sentence"),
    [
        (Sweep({}, {}), "needs something that varies"),
        (Sweep({"seed": []}, {}), "needs something that varies"),
        (Sweep({"seed": [1, 1]}, {}), r"--seed stands there twice: \[1, 1\]"),
        (Sweep({"seed": [1]}, {}, trials=0), "no trials finds nothing"),
        (Sweep({"seed": [1]}, {}, at_once=0), "no trials finds nothing"),
    ],
)
def test_what_is_no_sweep_is_refused(sweep: Sweep, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=sentence):
        run_sweep(sweep, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "photo.png").touch()
    with pytest.raises(InputError, match="holds files that are no sweep's"):
        run_sweep(Sweep({"seed": [1]}, {}), tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}"])
def test_a_damaged_record_is_told(content: str, tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text(content)
    with pytest.raises(InputError, match=r"sweep\.json is damaged \(.*\): give another folder"):
        run_sweep(Sweep({"seed": [1]}, {}), tmp_path)


def test_flags_of_the_search_are_passed_on(tmp_path: Path) -> None:
    assert _arguments(("--episodes", "50", "--pareto", "6", "8", "--bfloat16")) == {
        "episodes": 50,
        "pareto": (6.0, 8.0),
        "bfloat16": True,
    }
    assert _arguments(("--dataset", str(tmp_path))) == {"dataset": str(tmp_path.resolve())}
    with pytest.raises(SystemExit):
        _arguments(("--no-such-flag",))


def finished(folder: Path, size: int, score: float, metric: str = "mAP") -> None:
    folder.mkdir()
    key = metric.lower()
    result = {
        "metric": metric,
        "teacher": {key: 0.7},
        "methods": {"uniform8": {}, "hsq": {key: score, "bytes": size, "ratio": 800 / size}},
        "history": [{"divergence": 1.0}],
    }
    (folder / "result.json").write_text(json.dumps(result))


def test_rows_and_front(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, size, score in (("a", 100, 0.69), ("b", 50, 0.65), ("c", 60, 0.64), ("d", 100, 0.69)):
        finished(tmp_path / name, size, score)
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "stopped").touch()
    (tmp_path / "h").mkdir()
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "error.txt").write_text("There is no file x.\n")
    rows = [row_of({"seed": number}, tmp_path / name) for number, name in enumerate("abcdefgh")]
    mark_front(rows)
    assert [row["front"] for row in rows] == [True, True, False, True, False, False, False, False]
    assert [row["state"] for row in rows] == ["finished"] * 4 + ["stopped", "failed", "not tried", "interrupted"]
    assert (
        rows[5]["error"] == "There is no file x." and rows[1]["ratio"] == 16 and rows[1]["lost"] == pytest.approx(0.05)
    )
    print_sweep(rows, tmp_path)
    assert "4 of 8 searches finished" in capsys.readouterr().out


def test_trials_are_stopped_among_equals_only(tmp_path: Path) -> None:
    scheduler = AmongEquals(tmp_path)
    trials = [
        SimpleNamespace(config={"target_ratio": r, "seed": s}, trial_id=f"{r}-{s}") for r in (6, 14) for s in range(4)
    ]
    decisions: dict[str, str] = {}
    for trial in trials:
        scheduler.on_trial_add(None, trial)
        (tmp_path / name_of(trial.config)).mkdir()
    for trial in trials:  # those of 14x are all worse than those of 6x; in each group the later the worse
        score = -float(trial.config["target_ratio"]) - trial.config["seed"]
        result: dict[str, Any] = {"score": score, "episodes": GRACE_EPISODES}
        decisions[trial.trial_id] = scheduler.on_trial_result(None, trial, result)
    assert decisions["6-0"] == decisions["14-0"] == "CONTINUE"
    assert decisions["6-3"] == decisions["14-3"] == "STOP"
    for trial in trials:  # for good
        row = row_of(trial.config, tmp_path / name_of(trial.config))
        assert row["state"] == ("stopped" if decisions[trial.trial_id] == "STOP" else "interrupted")


def test_an_interrupted_sweep_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C ends the program, and what it interrupted is no hopeless trial: its search is resumed."""
    seeds = Sweep({"seed": [1, 2]}, {}, at_once=1)

    class Interrupted:
        def __init__(self, *given: Any, **named: Any) -> None:
            assert os.environ["TUNE_DISABLE_SIGINT_HANDLER"] == "1"

        def fit(self) -> None:
            (tmp_path / "out" / "seed_1" / "checkpoints").mkdir(parents=True)
            (tmp_path / "out" / "seed_1" / "checkpoints" / "settings.json").write_text("{}")
            raise KeyboardInterrupt

    monkeypatch.setenv("TUNE_DISABLE_SIGINT_HANDLER", "0")
    monkeypatch.setattr(agents.sweep, "connect", lambda *given: False)
    monkeypatch.setattr(agents.sweep.tune, "Tuner", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_sweep(seeds, tmp_path / "out")
    assert row_of({"seed": 1}, tmp_path / "out" / "seed_1")["state"] == "interrupted"
    called: list[tuple[str, Path]] = []
    reports: list[dict[str, Any]] = []
    search = importlib.import_module("agents.commands.search")
    monkeypatch.setattr(search, "resume_run", lambda run, told: called.append(("resume", run)))
    monkeypatch.setattr(search, "begin", lambda asked, run, told: called.append(("begin", run)))
    monkeypatch.setattr(agents.sweep.tune, "report", reports.append)
    trial = _Trial({}, tmp_path / "out")
    for seed in (1, 2):
        trial({"seed": seed})
    assert called == [("resume", tmp_path / "out" / "seed_1"), ("begin", tmp_path / "out" / "seed_2")]
    (tmp_path / "out" / "seed_1" / "stopped").touch()
    trial({"seed": 1})
    assert len(called) == 2 and len(reports) == 1


@pytest.mark.long
def test_a_sweep_runs_goes_on_and_says_what_failed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = {"search_images": 4, "pool_images": 4, "calibration_images": 2, "finetune_steps": 0, "warm_start": ()}
    sweep = Sweep({"target_ratio": [6.0, 500.0], "algo": ["greedy"]}, small, at_once=1)
    rows = run_sweep(sweep, tmp_path / "out")
    assert [row["state"] for row in rows] == ["finished", "failed"] and rows[0]["ratio"] >= 6
    assert "1 of 2 trials failed" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "sweep.json").read_text())["trials"] == rows
    before = (tmp_path / "out" / rows[0]["run"] / "result.json").stat().st_mtime_ns
    assert run_sweep(sweep, tmp_path / "out") == rows
    assert (tmp_path / "out" / rows[0]["run"] / "result.json").stat().st_mtime_ns == before


def test_how_far_trials_are() -> None:
    going = Work("sweep, trial", 4, started=0.0)
    told = TrialProgress(going, 10, name_of)
    one, two = (SimpleNamespace(trial_id=str(seed), config={"seed": seed}) for seed in (1, 2))
    told.on_trial_result(1, [], one, {"score": -0.2, "episodes": 2})
    assert (going.done, going.share, going.note) == (0, 0.2 / 4, "1 running, 2 episodes")
    told.on_trial_result(2, [], two, {"score": -0.1, "episodes": 5, "ratio": 8.02, "accuracy": 0.991})
    assert going.share == 0.7 / 4
    assert going.note == "2 running, 7 episodes; seed_2: best 8.02x, accuracy 0.9910"
    told.on_trial_complete(3, [], two)
    assert going.note == "1 running, 2 episodes; seed_2: best 8.02x, accuracy 0.9910"
    told.on_trial_error(4, [], one)
    assert (going.done, going.share, going.note) == (2, 0.5, "seed_2: best 8.02x, accuracy 0.9910")
    assert going.seconds_left(30.0) == pytest.approx(30.0)
    unbounded = TrialProgress(Work("sweep, trial", 2, started=0.0), None, name_of)
    unbounded.on_trial_result(1, [], one, {"score": -0.2, "episodes": 2})
    assert unbounded.going.share == 0.0
