"""What stands in examples/ runs as it says."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from helpers import ROOT, outputs, random_plan
from PIL import Image
from tiny_task import TinyTask
from torchvision.models.detection import FCOS
from torchvision.transforms.functional import to_tensor

from agents.explore import SearchLog
from agents.find import Explorer
from agents.search import search
from detectors.backbone import fold_batch_norm
from detectors.coco import load_folder
from detectors.export import TraceableDetection
from detectors.shapes import CLASS_NAMES
from detectors.task import DetectionTask, detection_task
from detectors.teacher import SHIPPED_TEACHER, DetectorSpec, freeze
from hsq_env.choices import Choice, Plan
from hsq_env.env import HSQEnv
from hsq_env.file import load_hsq, save_hsq
from hsq_env.onnx_file import onnx_bytes, with_metadata
from hsq_env.student import Student, trace_layers

ZOO = """
import gymnasium as gym
from tiny_task import TinyTask
from hsq_env.env import HSQEnv

gym.register("HSQ-Tiny-v0", entry_point=lambda **arguments: HSQEnv(TinyTask(), finetune_steps=0, **arguments))
"""


def test_a_custom_agent_learns(tiny: TinyTask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    env = HSQEnv(tiny, target_ratio=9.0, finetune_steps=0, reward="divergence", beta=1.0)
    log, agents = SearchLog(lambda line: None), []
    explorer = Explorer("examples.custom_agent:make", episodes=30)
    explorer.check()
    agents.append(explorer.run(env, log))
    assert len(log.episodes) == 30 and all(e.ratio >= 9.0 for e in log.episodes)
    assert agents[0].baseline is not None and agents[0].episode == []
    returns = [e.total_reward for e in log.episodes]
    assert sum(returns[-10:]) > sum(returns[:10])  # seeded: it gets better


@pytest.mark.slow
def test_onnxruntime_alone_detects_what_torchvision_does(
    shapes_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shipped teacher at 8 bits, on a picture that it finds something in."""
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    example = importlib.import_module("detect_onnx")
    few = {"search_images": 2, "test_images": 2, "pool_images": 2, "calibration_images": 2}
    task = detection_task(shapes_folder, None, SHIPPED_TEACHER, **few)
    student = Student(task, trace_layers(task), 8)
    student.apply(Plan(tuple(i.name for i in student.infos), (Choice(8),) * len(student.infos)))
    content = onnx_bytes(student.model, task.stages, task.calibration()[0].images, TraceableDetection())
    (tmp_path / "model.onnx").write_bytes(with_metadata(content, task.describe()))
    picture = tmp_path / "picture.png"
    Image.open(sorted(shapes_folder.glob("test*/*.png"))[0]).resize((171, 128)).save(picture)
    found = example.detect(str(tmp_path / "model.onnx"), str(picture))
    with torch.no_grad():
        expected = student.model.eval()([to_tensor(Image.open(picture).convert("RGB"))])[0]
    sure = [row for row in found if row[1] > 0.3]
    assert len(sure) == int((expected["scores"] > 0.3).sum()) > 0
    for (name, score, box), label, other, corner in zip(
        sure, expected["labels"], expected["scores"], expected["boxes"], strict=False
    ):
        assert name == task.spec.classes[label] and abs(score - float(other)) < 0.05
        assert max(abs(a - b) for a, b in zip(box, corner.tolist(), strict=True)) < 2


@pytest.mark.slow
@pytest.mark.parametrize("pattern", ["unstructured", "n:m", "channels"])
def test_a_file_loads_into_torchvisions_detector(
    shapes_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    example = importlib.import_module("load_hsq")
    spec = DetectorSpec("fcos_resnet50", CLASS_NAMES, level_scale=0.25, min_size=64, max_size=107)
    torch.manual_seed(0)
    model = freeze(spec.build_folded())
    assert isinstance(model, FCOS)
    splits = load_folder(shapes_folder, spec.classes, spec.min_size, spec.max_size)
    task = DetectionTask("shapes", model, spec, splits, calibration_images=2, pool_images=2, batch_size=2)
    student = Student(task, trace_layers(task), 8, pattern)
    student.apply(random_plan(student.infos, 0))
    save_hsq(student, tmp_path / "model.hsq")
    images = task.evaluation("test")[0].images
    expected = outputs(task, student.model, images)
    backbone, head = (lambda loaded: (loaded.backbone, loaded.head))(example.detector(str(tmp_path / "model.hsq")))
    with torch.no_grad():
        found = head(list(backbone(images).values()))
    for name, tensor in found.items():
        difference = (tensor - expected[name]).abs().mean() / expected[name].std()
        assert difference < 0.02, name  # rounding: bias in the convolution or in the batch norm


@pytest.mark.slow
def test_rl_zoo3_trains_with_the_file(tmp_path: Path) -> None:
    """With the tiny task in place of the detector, whose file it otherwise is."""
    settings = yaml.safe_load((ROOT / "examples" / "rl_zoo3_dqn.yml").read_text())
    (tmp_path / "zoo.yml").write_text(yaml.safe_dump({"HSQ-Tiny-v0": settings["HSQ-ResNet50-v0"]}))
    (tmp_path / "tiny_zoo.py").write_text(ZOO)
    command = [sys.executable, "-m", "rl_zoo3.train", "--algo", "dqn", "--env", "HSQ-Tiny-v0", "--gym-packages"]
    command += ["tiny_zoo", "--conf-file", "zoo.yml", "-n", "14", "--eval-freq", "-1", "-P"]
    path = f"{tmp_path}:{ROOT}:{ROOT / 'tests'}"
    done = subprocess.run(
        command, cwd=tmp_path, env={**__import__("os").environ, "PYTHONPATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert list((tmp_path / "logs" / "dqn").glob("HSQ-Tiny-v0_*/HSQ-Tiny-v0.zip"))


def test_a_detector_of_ones_own_joins_by_its_adapter(
    shapes_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trained for a few steps on a few images: it learns, it is searched, its file holds it."""
    monkeypatch.syspath_prepend(str(ROOT))
    example = importlib.import_module("examples.own_detector")
    splits = load_folder(shapes_folder, CLASS_NAMES, example.SIDE, example.SIDE)
    few = {"search_images": 4, "test_images": 4, "pool_images": 4, "calibration_images": 4, "batch_size": 4}
    fresh, task = (example.own_task(steps, splits, **few) for steps in (1, 20))
    batch = task.evaluation("search")[0]
    losses = [t.task_loss(outputs(t, t.teacher, batch.images), batch).item() for t in (fresh, task)]
    assert losses[1] < 0.95 * losses[0]
    result = search(task, tmp_path / "run", Explorer("greedy"), 6.0, finetune_steps=2, say=lambda line: None)
    assert result["methods"]["hsq"]["ratio"] >= 6.0
    assert len(Plan.read(tmp_path / "run" / "plan.json").layers) == 8
    model = example.OneShot(len(CLASS_NAMES))
    load_hsq(tmp_path / "run" / "model.hsq", fold_batch_norm(model))
    with torch.no_grad():
        found = task.predictions(outputs(task, freeze(model), batch.images), batch)
    assert len(found) == 4 and all(row.keys() == {"boxes", "scores", "labels"} for row in found)
