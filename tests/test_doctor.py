"""``hsq doctor``: what it says of things as they are, and of things that are missing or broken."""

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import ROOT

import agents.doctor
from agents.cli import main
from agents.doctor import (
    NOTE,
    OK,
    REINSTALL,
    WRONG,
    Finding,
    cache,
    devices,
    doctor,
    examine,
    packages,
    teachers,
    threads,
)
from detectors.teacher import SHIPPED_TEACHER

Captured = pytest.CaptureFixture[str]


def by_name(part: Callable[[], Any]) -> dict[str, Finding]:
    return {finding.name: finding for finding in part()}


@pytest.fixture
def required(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Versions of packages that are installed, by name, in place of the real ones."""
    installed = {"numpy": "2.1", "tqdm": "4.80", "ray": "2.60"}
    asked = ["numpy<3,>=2.0", "tqdm<5,>=4.70", 'ray[tune]<3,>=2.60; extra == "ray"', 'ruff<1; extra == "dev"']

    def found(name: str) -> Any:
        if name == agents.doctor.DISTRIBUTION:
            return SimpleNamespace(version="0.1", requires=asked, metadata={"Requires-Python": ">=3.11"})
        if name not in installed:
            raise PackageNotFoundError(name)
        return SimpleNamespace(version=installed[name])

    monkeypatch.setattr(agents.doctor, "distribution", found)
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace())
    return installed


def test_packages_that_fit(required: dict[str, str]) -> None:
    found = by_name(packages)
    assert list(found) == ["python", "numpy", "tqdm", "ray", "wandb", "mlflow-skinny"]
    assert found["numpy"] == Finding("packages", "numpy", OK, "2.1 (asked <3,>=2.0)")
    assert found["ray"] == Finding("packages", "ray", OK, "2.60 (asked <3,>=2.60)")
    assert found["python"].state == OK
    assert found["wandb"].state == NOTE and "--track wandb of hsq search" in found["wandb"].found


def test_packages_that_do_not_fit(required: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    required["numpy"] = "1.26"
    del required["tqdm"], required["ray"]
    found = by_name(packages)
    assert found["numpy"] == Finding("packages", "numpy", WRONG, "1.26 (asked <3,>=2.0)", REINSTALL)
    assert found["tqdm"] == Finding("packages", "tqdm", WRONG, "not installed (asked <5,>=4.70)", REINSTALL)
    missed = "not installed (asked <3,>=2.60); hsq sweep, and --ray of hsq search need it"
    assert found["ray"] == Finding("packages", "ray", NOTE, missed, "pip install -c constraints.txt -e '.[ray]'")
    monkeypatch.setattr(agents.doctor.platform, "python_version", lambda: "3.10.4")  # type: ignore[attr-defined]
    assert by_name(packages)["python"].state == WRONG


def test_a_package_that_is_broken(required: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> Any:
        raise OSError("libnothing.so: cannot open\nand so on")

    monkeypatch.setattr(importlib, "import_module", broken)
    found = by_name(packages)["numpy"]
    assert found.state == WRONG and "cannot be imported (OSError: libnothing.so: cannot open)" in found.found


def test_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "4096")
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    found = by_name(threads)
    assert found["OMP_NUM_THREADS"].state == NOTE and found["OMP_NUM_THREADS"].found == "4096"
    assert found["OMP_WAIT_POLICY"].state == NOTE and "PASSIVE" in found["OMP_WAIT_POLICY"].remedy
    assert found["torch"].found == f"{torch.get_num_threads()} threads"
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    assert {finding.state for finding in threads()} == {OK}
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert by_name(threads)["OMP_NUM_THREADS"] == Finding("threads", "OMP_NUM_THREADS", OK, "not set")


@pytest.mark.parametrize(
    ("times", "advice"),
    [
        (2.34, "2.3 times as fast as float32, measured: --bfloat16 helps"),
        (0.8, "0.8 times as fast"),
        (1.1, "1.1 times"),
    ],
)
def test_a_processor(monkeypatch: pytest.MonkeyPatch, times: float, advice: str) -> None:
    monkeypatch.setattr(agents.doctor, "_cpuinfo", {"model name": "Some CPU"}.get)
    monkeypatch.setattr(agents.doctor, "_times_faster_in_bfloat16", lambda: times)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(agents.doctor.shutil, "which", lambda name: None)  # type: ignore[attr-defined]
    found = by_name(devices)
    assert found["cpu"].found.startswith("Some CPU") and found["bfloat16"].found.startswith(advice)
    assert ("leave out" in found["bfloat16"].found) == (times < 1.2)


def test_bfloat16_is_really_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """4 seconds in float32, 1 in bfloat16."""
    now, rounds = [0.0], []
    forward = torch.nn.Conv2d.forward

    def slow(layer: torch.nn.Conv2d, images: torch.Tensor) -> torch.Tensor:
        made = forward(layer, images)
        rounds.append(made.dtype)
        now[0] += 1.0 if made.dtype == torch.bfloat16 else 4.0
        return made

    monkeypatch.setattr(torch.nn.Conv2d, "forward", slow)
    monkeypatch.setattr(agents.doctor.time, "perf_counter", lambda: now[0])  # type: ignore[attr-defined]
    assert agents.doctor._times_faster_in_bfloat16() == 4.0
    assert rounds == [torch.float32, torch.bfloat16] * agents.doctor.REPEATS


def test_a_gpu_that_torch_was_not_built_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(agents.doctor.shutil, "which", lambda name: f"/bin/{name}")  # type: ignore[attr-defined]
    found = by_name(devices)["cuda"]
    assert found.state == NOTE and found.remedy


def test_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    properties = SimpleNamespace(name="Some GPU", total_memory=24 * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: properties)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    found = by_name(devices)
    assert found["cuda:0"].found == "Some GPU, 24 GiB, used" and "CUDA_VISIBLE_DEVICES" in found["cuda:1"].found
    assert found["bfloat16"].found.startswith("fast")


def test_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "deep" / "cache"
    monkeypatch.setenv("HSQ_CACHE", str(folder))
    assert by_name(cache)[str(folder)] == Finding("cache", str(folder), OK, "not there yet")
    assert not folder.parent.exists()
    folder.mkdir(parents=True)
    (folder / "table.npy").write_bytes(bytes(3_000_000))
    assert by_name(cache)[str(folder)].found == "3 MB in 1 files"
    assert len(list(folder.iterdir())) == 1
    monkeypatch.setattr(agents.doctor.shutil, "disk_usage", lambda path: SimpleNamespace(free=1e9))  # type: ignore[attr-defined]
    low = by_name(cache)["free on its disk"]
    assert (low.state, low.found) == (NOTE, "1.0 GB")


def test_a_cache_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HSQ_CACHE", "/proc/hsq")  # nobody may, not even root
    found = by_name(cache)["/proc/hsq"]
    assert found.state == WRONG and "HSQ_CACHE" in found.remedy


def test_teachers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = by_name(teachers)
    assert list(found) == ["detector", "dncnn", "edsr"] and {finding.state for finding in found.values()} == {OK}
    damaged = tmp_path / "teacher.safetensors"
    damaged.write_bytes(SHIPPED_TEACHER.read_bytes()[:1000])
    monkeypatch.setattr("detectors.teacher.SHIPPED_TEACHER", damaged)
    found = by_name(teachers)
    assert found["detector"].state == WRONG and found["dncnn"].state == OK


def test_its_exit_code_and_text(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    good, note = Finding("cache", "a", OK, "fine"), Finding("cache", "b", NOTE, "so so", "do this")
    bad = Finding("threads", "c", WRONG, "broken", "do that")
    monkeypatch.setattr(agents.doctor, "examine", lambda: [good, note])
    doctor()
    text = capsys.readouterr().out
    assert "  ok     a: fine\n  note   b: so so\n         -> do this\n" in text
    assert text.endswith("\neverything that is needed is there; 1 to note\n")
    monkeypatch.setattr(agents.doctor, "examine", lambda: [good, bad])
    for arguments in (["doctor"], ["doctor", "--json"]):
        with pytest.raises(SystemExit) as end:
            main(arguments)
        assert end.value.code == 1
    text, _, document = capsys.readouterr().out.rpartition("\n1 wrong: see above\n")
    assert "\nthreads\n  wrong  c: broken\n" in text
    found = json.loads(document)
    assert found["ok"] is False and [row["state"] for row in found["findings"]] == ["ok", "wrong"]


def test_a_part_that_cannot_be_examined(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Any:
        raise RuntimeError("no such luck")

    monkeypatch.setattr(agents.doctor, "PARTS", {"devices": broken, "cache": cache})
    first, *others = examine()
    assert first == Finding("devices", "devices", WRONG, "RuntimeError: no such luck", REINSTALL) and others


WITHOUT = """
import sys
for name in ("torch", "tyro", "gymnasium", "numpy", "rich", "wandb"):
    sys.modules[name] = None
from agents.cli import main
main(["doctor", "--json"])
"""


def test_it_answers_where_nothing_is_installed(tmp_path: Path) -> None:
    """In a folder in which nothing can be written."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HSQ_CACHE": str(tmp_path)}
    command = [sys.executable, "-c", WITHOUT]
    done = subprocess.run(command, cwd="/proc", env=environment, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    found = {(row["part"], row["name"]): row for row in json.loads(done.stdout)["findings"]}
    for name in ("torch", "tyro", "gymnasium", "numpy"):
        assert found["packages", name]["state"] == WRONG
        assert found["packages", name]["found"].startswith(version(name)) and found["packages", name]["remedy"]
    assert found["packages", "tqdm"]["state"] == OK
    assert [found[part, part]["state"] for part in ("devices", "teachers")] == [WRONG, WRONG]
    assert found["cache", str(tmp_path)]["state"] == OK


@pytest.mark.slow
def test_what_tests_run_with_is_whole(capsys: Captured) -> None:
    main(["doctor", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] is True and found["version"] == version("hsq-env")
    torch_row = next(row for row in found["findings"] if row["name"] == "torch" and row["part"] == "packages")
    assert torch_row["found"].startswith(version("torch"))
