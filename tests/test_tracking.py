"""Searches that are tracked by the services' own packages, offline, and by services that fail."""

import csv
import json
import struct
import sys
from collections.abc import Callable, Iterator
from configparser import ConfigParser
from pathlib import Path
from typing import Any

import mlflow
import pytest
import wandb
from helpers import ROOT, python
from tiny_task import TinyTask

import agents.search
import agents.trackers
from agents.explorer import Explorer
from agents.trackers import MLflowWriter
from agents.tracking import TRACKERS, check_tracker, table_of
from detectors.errors import InputError
from hsq_env.env import HSQEnv

EXPLORER = Explorer(episodes=3, warm_start=("ilp",), surrogate=False, seed=2)
BLOCK = 32768  # bytes, of W&B's files
EPISODE = ("accuracy", "divergence", "ratio", "total_reward")


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No settings, keys or files of the user's, and no network."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in ("CONFIG", "CACHE", "DATA"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / "wandb_home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_SILENT", "true")  # which the tracker sets, too
    for name in ("WANDB_API_KEY", "WANDB_PROJECT", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    for name in ("MAX_RETRIES", "TIMEOUT"):  # which the tracker sets
        monkeypatch.setenv(f"MLFLOW_HTTP_REQUEST_{name}", "1")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def search(task: TinyTask, out: Path, track: str, lines: list[str] | None = None, **settings: Any) -> dict[str, Any]:
    say = (lambda line: None) if lines is None else lines.append
    return agents.search.search(task, out, EXPLORER, 7.0, finetune_steps=2, track=track, say=say, **settings)


@pytest.fixture(scope="module")
def plain(tiny: TinyTask, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The search that is tracked below, without a tracker."""
    return search(tiny, tmp_path_factory.mktemp("plain") / "run", "tensorboard")


def found(result: dict[str, Any]) -> Any:
    """What a search has found, without clocks."""
    history = [{name: row[name] for name in (*EPISODE, "choices")} for row in result["history"]]
    return history, result["methods"], result["sha256"]


def training(out: Path) -> dict[str, list[float]]:
    """What the logger of Stable-Baselines3 wrote, by name, in the order of steps."""
    files = [out / "tensorboard" / "progress.csv", *sorted(out.glob("tensorboard/resumed-*/progress.csv"))]
    rows = [row for file in files if file.is_file() for row in csv.DictReader(file.open())]
    names = sorted({name for row in rows for name in row})
    return {name: [float(row[name]) for row in rows if row.get(name)] for name in names}


# ---- before a search


def test_what_cannot_track_is_one_sentence(tiny: TinyTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"Unknown tracker 'comet': known are tensorboard, wandb, mlflow \(--track\)"):
        search(tiny, tmp_path / "run", "comet")
    for name in ("wandb", "mlflow"):
        monkeypatch.setitem(sys.modules, name, None)  # what a missing package looks like
        with pytest.raises(InputError, match=rf"Tracking with {name} needs a package .* pip install -e '\.\[{name}\]'"):
            search(tiny, tmp_path / "run", name)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_nobody_imports_a_tracker_unasked() -> None:
    script = "import sys, agents.cli, agents.search\nprint([n for n in ('wandb', 'mlflow') if n in sys.modules])"
    assert python(script).stdout == "[]\n"


def test_every_tracker_has_its_extra() -> None:
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    extras = config["options.extras_require"]
    for name in TRACKERS.keys() - {"tensorboard"}:
        assert extras[name].strip() in extras["dev"]
        check_tracker(name)


def test_the_writer_hands_on_numbers_that_are_meant_for_it() -> None:
    given: list[Any] = []
    writer = MLflowWriter(lambda values, step: given.append((values, step)))
    values = {"a": 1, "b": 0.5, "text": "x", "hidden": 3.0}
    writer.write(values, {"a": (), "b": ("stdout",), "text": (), "hidden": ("mlflow",)}, 7)
    assert given == [({"a": 1.0, "b": 0.5}, 7)]


# ---- Weights & Biases


def records(file: Path) -> Iterator[Any]:
    """The messages of a W&B file: a log of LevelDB's format behind seven bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, message = file.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if BLOCK - at % BLOCK < 7:
            at += BLOCK - at % BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        message, at = message + data[at + 7 : at + 7 + length], at + 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(message)
            message = b""


def items(rows: Any) -> dict[str, Any]:
    return {row.key or "/".join(row.nested_key): json.loads(row.value_json) for row in rows}


class Seen:
    """What a W&B file holds.

    :param file: of a run
    """

    def __init__(self, file: Path) -> None:
        self.config: dict[str, Any] = {}
        self.summary: dict[str, Any] = {}
        self.history: list[dict[str, Any]] = []
        self.exit_code = None
        wandb.teardown()  # its service may still be writing
        for record in records(file):
            kind = record.WhichOneof("record_type")
            if kind == "run":
                self.id, self.project = record.run.run_id, record.run.project
                self.config |= items(record.run.config.update)
            elif kind == "config":
                self.config |= items(record.config.update)
            elif kind == "summary":
                self.summary |= items(record.summary.update)
            elif kind == "history":
                self.history.append(items(record.history.item))
            elif kind == "exit":
                self.exit_code = record.exit.exit_code

    def episodes(self) -> dict[int, dict[str, float]]:
        rows = [row for row in self.history if "episode/number" in row]
        return {row["episode/number"]: {name: row[f"episode/{name}"] for name in EPISODE} for row in rows}


@pytest.mark.slow
def test_weights_and_biases_has_all_numbers(tiny: TinyTask, tmp_path: Path, plain: dict[str, Any]) -> None:
    out, lines = tmp_path / "run", []  # type: tuple[Path, list[str]]
    result = search(tiny, out, "wandb", lines)
    assert found(result) == found(plain) and not [line for line in lines if "fails" in line]
    (file,) = out.glob("wandb/offline-run-*/*.wandb")
    seen = Seen(file)
    assert seen.project == "hsq" and seen.exit_code == 0
    assert seen.episodes() == {n: {k: row[k] for k in EPISODE} for n, row in enumerate(result["history"], 1)}
    written = training(out)
    assert {"search/accuracy", "search/total_reward", "q_values/mean_max"} <= written.keys()
    hidden = {"train/n_updates", "time/total_timesteps"}  # from TensorBoard, where they are the axis
    for name, values in ((n, v) for n, v in written.items() if n not in hidden):
        synced = [row[name] for row in seen.history if name in row]
        assert synced == pytest.approx(values, rel=1e-6)  # TensorBoard's numbers are float32
    assert {name: seen.summary[name] for name in table_of(result)} == table_of(result)
    assert seen.summary["table/hsq/bytes"] == (out / "model.hsq").stat().st_size
    assert seen.config["target_ratio"] == 7.0 and seen.config["versions"] == result["environment"]["versions"]
    assert seen.config["learning_rate"] == 1e-3 and seen.config["algo"] == "dqn"  # of the agent, of the search
    assert wandb.run is None and not wandb.patched["tensorboard"]


class KilledError(Exception):
    """What takes the place of a kill."""


def killed_at(step: int, patch: pytest.MonkeyPatch) -> None:
    """Let the environment's step of this number raise."""
    take, steps = HSQEnv.step, [0]

    def counted(self: HSQEnv, action: Any) -> Any:
        steps[0] += 1
        if steps[0] == step:
            raise KilledError
        return take(self, action)

    patch.setattr(HSQEnv, "step", counted)


def search_in_two(task: TinyTask, out: Path, track: str, between: Callable[[], object]) -> dict[str, Any]:
    """A search that is killed in its third episode, and goes on."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KilledError):
        killed_at(18, patch)
        search(task, out, track, checkpoint_minutes=0.0)
    between()
    return search(task, out, track, checkpoint_minutes=0.0, resume=True)


@pytest.mark.slow
@pytest.mark.long
def test_a_resumed_search_goes_on_in_the_same_run_of_weights_and_biases(
    tiny: TinyTask, tmp_path: Path, plain: dict[str, Any]
) -> None:
    out = tmp_path / "run"
    result = search_in_two(tiny, out, "wandb", lambda: None)
    assert found(result) == found(plain)
    first, second = (Seen(file) for file in sorted(out.glob("wandb/offline-run-*/*.wandb")))
    assert first.id == second.id and (first.exit_code, second.exit_code) == (1, 0)
    episodes = {n: {k: row[k] for k in EPISODE} for n, row in enumerate(result["history"], 1)}
    assert first.episodes() | second.episodes() == episodes and first.episodes().keys() == {1, 2}
    assert {name: second.summary[name] for name in table_of(result)} == table_of(result)


@pytest.mark.slow
def test_weights_and_biases_without_a_key_is_kept_on_disk(
    tiny: TinyTask, tmp_path: Path, plain: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And TensorBoard's files are written even where W&B cannot hear of them."""
    monkeypatch.delenv("WANDB_MODE")
    out, lines = tmp_path / "run", []  # type: tuple[Path, list[str]]

    def deaf(*arguments: Any, **named: Any) -> None:
        raise ConnectionError("the service is gone")

    monkeypatch.setattr(wandb.Run, "_tensorboard_callback", deaf)
    result = search(tiny, out, "wandb", lines)
    assert found(result) == found(plain)
    said = [line for line in lines if "W&B" in line or "wandb" in line]
    assert "no API key is configured" in said[0] and f"send {out / 'wandb'} with wandb sync later" in said[0]
    assert said[1:] == [
        "Tracking with wandb fails (the service is gone): the search goes on, its folder has everything."
    ]
    (file,) = out.glob("wandb/offline-run-*/*.wandb")
    assert len(Seen(file).episodes()) == len(result["history"])
    assert list((out / "tensorboard").glob("events.*")) and training(out)["search/accuracy"]


# ---- MLflow


@pytest.mark.slow
def test_mlflow_has_all_numbers_and_a_resumed_search_the_same_run(
    tiny: TinyTask, tmp_path: Path, plain: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By default in the folder in which the search was begun, wherever it goes on."""
    out, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    elsewhere.mkdir()
    result = search_in_two(tiny, out, "mlflow", lambda: monkeypatch.chdir(elsewhere))
    assert found(result) == found(plain) and list(elsewhere.iterdir()) == []
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'here' / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("hsq").experiment_id])
    assert (run.info.status, run.info.run_name) == ("FINISHED", "run")
    logged = {
        name: {metric.step: metric.value for metric in client.get_metric_history(run.info.run_id, name)}
        for name in run.data.metrics
    }
    for name in EPISODE:
        assert logged[f"episode/{name}"] == {n: row[name] for n, row in enumerate(result["history"], 1)}
    for name, values in training(out).items():
        assert [logged[name][step] for step in sorted(logged[name])] == values
    assert {name: logged[name][0] for name in table_of(result)} == table_of(result)
    assert run.data.params["target_ratio"] == "7.0"
    assert run.data.params["versions.torch"] == result["environment"]["versions"]["torch"]


@pytest.mark.slow
@pytest.mark.long
def test_mlflow_keeps_what_a_service_does_not_take(
    tiny: TinyTask, tmp_path: Path, plain: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'own.db'}")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "own")
    monkeypatch.setattr(agents.trackers, "PAUSE_SECONDS", 0.0)
    take, calls, lines = mlflow.MlflowClient.log_batch, [0], []  # type: Any, list[int], list[str]

    def sometimes(self: Any, *arguments: Any, **named: Any) -> Any:
        calls[0] += 1
        if calls[0] % 2 == 0:
            raise ConnectionError("down")
        return take(self, *arguments, **named)

    monkeypatch.setattr(mlflow.MlflowClient, "log_batch", sometimes)
    result = search(tiny, tmp_path / "run", "mlflow", lines)
    assert found(result) == found(plain) and calls[0] > 6
    assert [line for line in lines if "fails" in line] == [
        "Tracking with mlflow fails (down): the search goes on, its folder has everything."
    ]
    client = mlflow.MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("own").experiment_id])
    history = client.get_metric_history(run.info.run_id, "episode/accuracy")
    assert [metric.value for metric in history] == [row["accuracy"] for row in result["history"]]
    assert {name: run.data.metrics[name] for name in table_of(result)} == table_of(result)
    assert list((tmp_path / "here").iterdir()) == []


def test_a_service_that_is_down_ends_no_search(
    tiny: TinyTask, tmp_path: Path, plain: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    lines: list[str] = []
    result = search(tiny, tmp_path / "run", "mlflow", lines)
    assert found(result) == found(plain)
    (line,) = [line for line in lines if "fails" in line]
    assert line.startswith("Tracking with mlflow fails (API request to http://127.0.0.1:1/")


# ---- the table


def test_the_table_by_hand() -> None:
    rows = {"hsq": {"psnr": 30.0, "bytes": 50, "ratio": 8.0, "source": "ilp"}}
    teacher = {"psnr": 32.0, "untreated_psnr": 22.0, "bytes": 400}
    result = {"metric": "PSNR", "teacher": teacher, "methods": rows, "episodes": 4, "steps": 9, "seconds": 1.5}
    assert table_of(result) == {
        "table/teacher/psnr": 32.0,
        "table/teacher/bytes": 400.0,
        "table/hsq/psnr": 30.0,
        "table/hsq/bytes": 50.0,
        "table/hsq/ratio": 8.0,
        "table/hsq/accuracy": 0.8,
        "episodes": 4.0,
        "steps": 9.0,
        "seconds": 1.5,
    }
    worthless = {**result, "teacher": {**teacher, "psnr": 20.0}}
    assert "table/hsq/accuracy" not in table_of(worthless)
