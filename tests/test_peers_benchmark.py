"""What other libraries are given, and how they and HSQ are put side by side."""

import copy
import json
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import ROOT
from tiny_task import TinyTask
from torch import nn

import agents.explorer
import benchmarks.peers.given as given_module
import benchmarks.peers.run as run_module
import benchmarks.peers.summary as summary_module
import benchmarks.table1 as table
from agents.dyna import Dyna
from agents.run_folder import digest_of
from benchmarks.peers.given import CLEAREST, Compressed, Given
from benchmarks.peers.run import PEERS
from benchmarks.record import append_line, read_lines
from detectors.errors import InputError
from detectors.shapes import write_shapes
from detectors.stages import run_stages
from detectors.teacher import SHIPPED_TEACHER


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Given:
    """What others are given, from fewer images than there usually are."""
    few = write_shapes(tmp_path_factory.mktemp("few") / "shapes", {"train": 32, "val": 16, "test": 16})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(given_module, "shapes_folder", lambda counts: few)
        return Given(test_images=16)


def test_the_plain_network_puts_out_what_the_teacher_does(given: Given) -> None:
    batch = given.task.evaluation("test")[0]
    with torch.no_grad():
        expected = run_stages(given.task.stages(given.task.teacher), {"images": batch.images})
        found = given.joined(given.network(batch.images))
    for name in ("cls_logits", "bbox_regression", "bbox_ctrness"):
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-5)


def test_the_score_is_the_metric_and_tells_networks_apart(given: Given) -> None:
    task = given.task
    predictions = []
    with torch.no_grad():
        for batch in task.evaluation("test"):
            state = run_stages(task.stages(task.teacher), {"images": batch.images})
            predictions.append(task.predictions(state, batch))
    assert given.score(given.network) == pytest.approx(task.metric(predictions, "test"), abs=1e-6)
    assert given.score(lambda images: [torch.zeros_like(x) for x in given.network(images)]) < 0.1


def test_nominal_bytes_count_convolutions_at_their_bits(given: Given) -> None:
    layers = given.convolutions()
    weights = sum(layer.weight.numel() for layer in layers.values())
    assert given.nominal_bytes(dict.fromkeys(layers, 32.0), 0) == given.teacher_bytes()
    assert given.nominal_bytes(dict.fromkeys(layers, 8.0), 10) == given.teacher_bytes() - 3 * weights + 40
    first = next(iter(layers))
    fewer = {**dict.fromkeys(layers, 8.0), first: 4.0}
    assert given.nominal_bytes(fewer, 0) == given.teacher_bytes() - 3 * weights - layers[first].weight.numel() // 2
    assert given.channels() == sum(len(layer.weight) for layer in layers.values())


def test_copies_of_a_layer_count_at_their_widest(given: Given) -> None:
    """Found by their weights, whatever their names; the first layer has a copy of 8 bits here."""
    layers = list(given.convolutions().values())
    network = nn.Sequential(*copy.deepcopy(layers), copy.deepcopy(layers[0]))
    for layer in network:
        layer.width = 4.0
    network[-1].width = 8.0
    found = given.widths(network, lambda layer: layer.width)
    assert list(found) == list(given.convolutions()) and list(found.values()) == [8.0] + [4.0] * (len(layers) - 1)


def test_signal_to_noise_is_in_decibel(given: Given) -> None:
    """Of each output about its mean: outputs moved by a tenth of their spread have errors 20 dB below."""

    def moved(images: torch.Tensor) -> list[torch.Tensor]:
        outputs = given.network(images)
        spread = {name: own.std(correction=0) for name, own in given.joined(outputs).items()}
        return [x + 0.1 * list(spread.values())[i % 3] for i, x in enumerate(outputs)]

    assert given.signal_to_noise(moved) == pytest.approx(20, abs=1e-3)
    assert given.signal_to_noise(given.network) == CLEAREST


def test_a_detector_of_another_kind_is_refused(given: Given, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Other:
        teacher = nn.Identity()
        spec = type("Spec", (), {"detector": "ssdlite"})

    monkeypatch.setattr(given_module, "detection_task", lambda *args, **settings: Other())
    with pytest.raises(InputError, match="Peers are given FCOS"):
        Given(str(tmp_path), tmp_path / "ssd.safetensors")


def test_onnxruntimes_own_form_loses_little(given: Given) -> None:
    """The one peer that needs no environment of its own."""
    from benchmarks.peers.of_onnxruntime import compress

    made = compress(given)
    assert set(made.bits.values()) == {8.0} and made.latency_ms is not None and made.latency_ms > 0
    assert given.teacher_bytes() / 4 < made.bytes < given.teacher_bytes() / 2.5
    assert given.score(made.run) > given.score(given.network) - 0.05


def test_a_peer_is_measured_once(given: Given, record: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a library that calls all weights 4 bits and changes nothing."""
    calls: list[Given] = []

    def compress(own: Given) -> Compressed:
        calls.append(own)
        return Compressed(own.network, 1000, dict.fromkeys(own.convolutions(), 4.0), 0, "does nothing")

    monkeypatch.setitem(sys.modules, "benchmarks.peers.of_torchao", SimpleNamespace(compress=compress))
    monkeypatch.setattr(run_module, "Given", lambda *arguments: given)
    monkeypatch.setattr(run_module, "version", lambda package: "0.0")
    monkeypatch.setattr("sys.argv", ["run", "torchao"])
    run_module.main()
    run_module.main()
    (row,) = read_lines(run_module.RUNS)
    assert len(calls) == 1 and row["peer"] == "torchao" and row["data"] == "embedded"
    assert row["map"] == row["teacher_map"] > 0.5 and row["bytes"] == 1000
    assert row["nominal_bytes"] == given.nominal_bytes(row["bits"], 0) and row["ratio"] > row["nominal_ratio"] > 7


def peer_row(**more: Any) -> dict[str, Any]:
    return {
        "protocol": run_module.PROTOCOL,
        "data": "embedded",
        "detector": "fcos_resnet50_quarter",
        "peer": "mct",
        "map": 0.7,
        "teacher_map": 0.71,
        "bytes": 900,
        "ratio": 8000 / 900,
        "nominal_bytes": 800,
        "nominal_ratio": 10.0,
        "latency_ms": None,
        "float32_ms": None,
        "seconds": 1.0,
        "version": "1",
        "teacher_sha256": "t",
        "note": "",
        **more,
    }


def line(kind: str, seed: int, **scores: tuple[float, int]) -> dict[str, Any]:
    rows = [{"method": name.replace("_", "-"), "map": score, "bytes": size} for name, (score, size) in scores.items()]
    return {
        "protocol": table.PROTOCOL,
        "data": "embedded",
        "detector": "fcos_resnet50_quarter",
        "kind": kind,
        "seed": seed,
        "rows": rows,
        "teacher_bytes": 8000,
        "teacher_sha256": "t",
        "seconds": 10.0,
    }


@pytest.fixture
def record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Results of their own."""
    monkeypatch.setattr(table, "RUNS", tmp_path / "table1.jsonl")
    monkeypatch.setattr(table, "PEERS_RUNS", tmp_path / "peers.jsonl")
    monkeypatch.setattr(run_module, "RUNS", tmp_path / "peers.jsonl")
    monkeypatch.setattr("benchmarks.record.RESULTS", tmp_path)
    return tmp_path


def test_hsq_stands_beside_a_peer_with_no_more_bytes(record: Path) -> None:
    """The smaller of what a peer writes and what its bits would weigh is what counts; plans without a search do not."""
    for seed, score in enumerate((0.70, 0.72, 0.74)):
        append_line(
            table.RUNS, line("search", seed, hsq_4=(score + 0.01, 1000), hsq_8=(score, 790 + seed), hsq_16=(0.6, 400))
        )
    append_line(table.RUNS, line("plans", 0, float32=(0.75, 8000), uniform4=(0.69, 795)))
    append_line(run_module.RUNS, peer_row())
    append_line(run_module.RUNS, peer_row(peer="aimet", nominal_bytes=300))
    append_line(run_module.RUNS, peer_row(peer="nncf", bytes=1000, nominal_bytes=2000))
    append_line(run_module.RUNS, peer_row(peer="torchao", data="bccd"))
    append_line(run_module.RUNS, peer_row(peer="onnxruntime", bytes=1000, teacher_sha256="of another teacher"))
    append_line(run_module.RUNS, peer_row(peer="brevitas", protocol=run_module.PROTOCOL - 1))
    append_line(table.RUNS, {**line("search", 0, hsq_8=(0.9, 10)), "protocol": table.PROTOCOL - 1})
    made = summary_module.summary("embedded")
    assert list(made) == ["onnxruntime", "nncf", "mct", "aimet"] and made["onnxruntime"]["hsq_map"] is None
    assert made["mct"]["hsq_map"] == pytest.approx(0.72) and made["mct"]["hsq_ratio"] == pytest.approx(
        8000 / 791, rel=1e-4
    )
    assert made["mct"]["hsq_seeds"] == [0.70, 0.72, 0.74]
    assert made["nncf"]["hsq_map"] == pytest.approx(0.73)
    assert made["aimet"]["hsq_map"] is None  # no file is as small


def test_the_table_by_hand(record: Path) -> None:
    for seed, score in enumerate((0.70, 0.72, 0.77)):
        append_line(table.RUNS, line("search", seed, hsq_8=(score, 1000 + seed)))
    append_line(table.RUNS, line("plans", 0, float32=(0.75, 8000)))
    latency = line("latency", 0)
    del latency["seconds"]
    latency["rows"] = [{"method": "hsq-8", "ms": 3.0, "float32_ms": 4.0}]
    append_line(table.RUNS, latency)
    append_line(run_module.RUNS, peer_row())
    table.write_summary("embedded")
    made = json.loads((record / "table1_embedded.json").read_text())
    own = made["fcos_resnet50_quarter"]
    assert own["left"] == 2 and own["core_seconds"] == 40  # the plans of two more seeds
    hsq = own["methods"]["hsq-8"]
    assert hsq["map"] == pytest.approx(0.73) and hsq["bytes"] == 1001 and hsq["latency_ms"] == 3.0
    assert own["methods"]["float32"]["ratio"] == 1.0 and own["methods"]["float32"]["latency_ms"] is None
    assert own["methods"]["mct"]["nominal_bytes"] == 800
    assert made["quoted_from_the_paper"]["hsq"] == {"map": 0.439, "ratio": 6.0}


def test_every_peer_has_its_file_and_its_exact_versions() -> None:
    folder = ROOT / "benchmarks" / "peers"
    for peer, package in PEERS.items():
        assert (folder / f"of_{peer}.py").is_file()
        if peer != "onnxruntime":  # the project has it
            pins = (folder / "requirements" / f"{peer}.txt").read_text().split()
            assert all("==" in pin for pin in pins)
            assert package.replace("-", "_") in [pin.partition("==")[0].replace("-", "_") for pin in pins]


def test_a_table_is_made_and_gone_on_with(
    tiny: TinyTask,
    record: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """All rows of a tiny network: plans once, a search for each seed, nothing twice, and torn runs anew."""
    monkeypatch.setattr(tiny, "spec", SimpleNamespace(detector="tiny"), raising=False)
    monkeypatch.setattr(table, "TARGETS", (4.0, 6.0))
    monkeypatch.setitem(table.BENCHES, "embedded", table.Bench({}, 30, 1, 2, 1))
    monkeypatch.setattr(table.Runner, "_task", lambda self, dataset, seed: tiny)
    monkeypatch.setattr(table, "shapes_folder", lambda counts: tmp_path)
    monkeypatch.setattr(table, "check_exportable", lambda model, post_processing: None)
    monkeypatch.setattr(agents.explorer, "Dyna", partial(Dyna, first=4, each=2, gradient_steps=3))  # little practice
    work = tmp_path / "work"
    files = work / f"embedded-tiny-{digest_of(SHIPPED_TEACHER)[:8]}"
    (files / "seed1").mkdir(parents=True)
    (files / "seed1" / "teacher.safetensors").write_text("of a run that was interrupted")
    monkeypatch.setattr("sys.argv", ["table1", "--work", str(work)])
    table.main()
    rows = table.lines("embedded")
    assert [(row["kind"], row["seed"]) for row in rows] == [(k, seed) for seed in range(3) for k in ("plans", "search")]
    own = json.loads((record / "table1_embedded.json").read_text())["tiny"]
    methods = own["methods"]
    uniform = {f"uniform{bits}{tuned}" for bits in (8, 4, 2) for tuned in ("", "_finetuned")}
    assert set(methods) == {"float32", *uniform, "ilp_repaired-4", "ilp_repaired-6", "hsq-4", "hsq-6"}
    assert own["left"] == 0 and methods["float32"]["ratio"] == 1.0
    for name in ("ilp_repaired-4", "hsq-4", "ilp_repaired-6", "hsq-6"):
        assert methods[name]["ratio"] >= float(name[-1])
    assert {len(row["seeds"]) for name, row in methods.items() if name[0] in "hi" or "finetuned" in name} == {3}
    assert {len(methods[name]["seeds"]) for name in ("float32", "uniform4")} == {1}
    for seed in range(3):
        assert (files / f"seed{seed}" / "model-6.hsq").is_file() and (files / f"plans{seed}").is_dir()
    table.main()
    assert table.lines("embedded") == rows
    monkeypatch.setattr("sys.argv", ["table1", "--work", str(tmp_path / "elsewhere"), "--latency"])
    with pytest.raises(SystemExit) as stop:
        table.main()
    assert stop.value.code == 2 and table.lines("embedded") == rows
    assert "has no files to time" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--data", "bccd"], "give --teachers FILE"),
        (["--teachers", "some.safetensors"], "with --data bccd, and with that alone"),
        (["--data", "bccd", "--dataset", "no/folder", "--teachers", "a.safetensors"], "There is no data folder"),
    ],
)
def test_bad_input_of_the_table(
    given: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["table1", *given])
    with pytest.raises(SystemExit) as stop:
        table.main()
    assert stop.value.code == 2 and said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["mct"], "make peers"),
        (["onnxruntime", "--data", "bccd"], "give --teacher FILE"),
        (["onnxruntime", "--teacher", "some.safetensors"], "give --teacher FILE with --data bccd"),
        (["onnxruntime", "--data", "bccd", "--teacher", "absent.safetensors"], "absent.safetensors is no file"),
    ],
)
def test_bad_input_of_a_peer(
    given: list[str], said: str, record: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["run", *given])
    with pytest.raises(SystemExit) as stop:
        run_module.main()
    assert stop.value.code == 2 and said in capsys.readouterr().err and not run_module.RUNS.exists()
