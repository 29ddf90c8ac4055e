"""Files that a stranger may have sent run no code when they are read."""

import base64
import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_task import TinyTask

import agents.search
from agents.checkpoint import Checkpoints
from agents.explorer import Explorer
from agents.finetune import finetune
from agents.monitor import read_run
from agents.replay import fill_replay, load_policy
from agents.validate import validate
from detectors.errors import InputError
from detectors.teacher import load_teacher
from detectors.zoo import coco_weights
from hsq_env.choices import Plan
from hsq_env.file import load_hsq
from hsq_env.kept_training import KeptTraining
from hsq_env.latency_table import LatencyTable
from restorers.teacher import load_teacher as load_restorer


class Evil:
    """Whoever unpickles it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    return tmp_path / "code was run"


def torch_file(content: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def archive(mark: Path, good: Path, weights: bytes | None = None) -> bytes:
    """An archive of SB3's with a pickle in its description, and perhaps with other weights."""
    file = io.BytesIO()
    pickled = base64.b64encode(pickle.dumps(Evil(mark))).decode()
    described = json.dumps({"policy_class": {":type:": "x", ":serialized:": pickled}}).encode()
    with zipfile.ZipFile(file, "w") as made, zipfile.ZipFile(good) as given:
        for name in given.namelist():
            content = described if name == "data" else given.read(name)
            made.writestr(name, weights if name == "policy.pth" and weights is not None else content)
    return file.getvalue()


def refused(read: Callable[[], object], mark: Path) -> None:
    with pytest.raises(InputError):
        read()
    assert not mark.exists()


def test_the_bait_bites(mark: Path) -> None:
    pickle.loads(pickle.dumps(Evil(mark)))
    assert mark.exists()


@pytest.mark.parametrize("inside", ["pickle", "torch"])
def test_models_teachers_plans_and_records(tmp_path: Path, mark: Path, tiny: TinyTask, inside: str) -> None:
    content = pickle.dumps(Evil(mark)) if inside == "pickle" else torch_file({"x": Evil(mark)})
    run = tmp_path / "run"
    run.mkdir()
    for name in ("model.hsq", "teacher.safetensors", "plan.json", "result.json", "latency.json", "weights.pth"):
        (run / name).write_bytes(content)
    refused(lambda: load_hsq(run / "model.hsq", tiny.teacher), mark)
    refused(lambda: load_teacher(run / "teacher.safetensors"), mark)
    refused(lambda: load_restorer(run / "teacher.safetensors"), mark)
    refused(lambda: Plan.read(run / "plan.json"), mark)
    refused(lambda: LatencyTable.read(run / "latency.json"), mark)
    refused(lambda: read_run(run), mark)
    refused(lambda: validate(run), mark)
    refused(lambda: coco_weights("fcos_resnet50_fpn", run / "weights.pth"), mark)


def test_policies_of_other_runs(tmp_path: Path, mark: Path, tiny: TinyTask) -> None:
    quiet: dict[str, Any] = {"target_ratio": 6.0, "finetune_steps": 0, "say": lambda line: None}
    path = tmp_path / "policy.zip"
    made: list[Any] = []
    explorer = Explorer("dqn", episodes=0, surrogate=False)
    with pytest.MonkeyPatch.context() as patch:
        run = Explorer.run
        patch.setattr(Explorer, "run", lambda self, *given: made.append(run(self, *given)) or made[0])
        agents.search.search(tiny, tmp_path / "run", explorer, **quiet)
    good = tmp_path / "run" / "policy.zip"
    path.write_bytes(archive(mark, good))
    load_policy(made[0], path)  # what describes the archive is not even looked at
    assert not mark.exists()
    path.write_bytes(archive(mark, good, torch_file({"x": Evil(mark)})))
    refused(lambda: load_policy(made[0], path), mark)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Explorer, "run", lambda self, *given: made.append(run(self, *given)) or made[1])
        agents.search.search(tiny, tmp_path / "fewer", explorer, **quiet, bits=(4, 8))
    with pytest.raises(InputError, match="holds no policy for this search"):
        load_policy(made[1], good)
    np.savez(tmp_path / "replay.npz", observations=np.array([Evil(mark)], dtype=object))
    refused(lambda: fill_replay(made[0].replay_buffer, tmp_path / "replay.npz"), mark)


def test_sparks_policy(tmp_path: Path, mark: Path, tiny: TinyTask) -> None:
    (tmp_path / "spark.pt").write_bytes(torch_file({"reinforce": Evil(mark)}))
    out = tmp_path / "out"
    refused(lambda: finetune(tiny, out, "uniform4", "spark", 1, policy=tmp_path / "spark.pt"), mark)


def test_kept_trainings(tmp_path: Path, mark: Path) -> None:
    parameter = torch.nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.Adam([parameter])
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    (tmp_path / "training").write_bytes(torch_file({"step": 1, "parameters": Evil(mark)}))
    assert KeptTraining(tmp_path / "training", 0.0).restore([parameter], optimizer, schedule) == 0
    assert not mark.exists()


def test_checkpoints_of_others(tmp_path: Path, mark: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = pickle.dumps(Evil(mark))
    monkeypatch.setenv("HSQ_CACHE", str(tmp_path / "stranger"))
    Checkpoints(tmp_path / "run").write(content)
    monkeypatch.setenv("HSQ_CACHE", str(tmp_path / "own"))
    with pytest.raises(InputError, match=r"was not written by you on this machine.*give --trust-checkpoints"):
        Checkpoints(tmp_path / "run").newest(print)
    assert Checkpoints(tmp_path / "run", trust=True).newest(print) == content
    Checkpoints(tmp_path / "run").write(b"own")
    assert Checkpoints(tmp_path / "run").newest(print) == b"own"
    assert (tmp_path / "own" / "checkpoint.key").stat().st_mode & 0o77 == 0
