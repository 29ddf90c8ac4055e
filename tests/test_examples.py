"""What stands in examples/ runs as it says."""

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch
import yaml
from helpers import ROOT, outputs, play, random_plan, write_noise
from PIL import Image
from tiny_task import TinyTask
from torchvision.models.detection import FCOS
from torchvision.transforms.functional import to_tensor

from agents.explorer import Explorer
from agents.search import search
from agents.search_log import SearchLog
from detectors.backbone import fold_batch_norm
from detectors.export import TraceableDetection
from detectors.folder import load_folder
from detectors.shapes import CLASS_NAMES
from detectors.task import DetectionTask, detection_task
from detectors.teacher import SHIPPED_TEACHER, DetectorSpec, freeze, load_teacher
from hsq_env.choices import Choice, Plan
from hsq_env.env import HSQEnv
from hsq_env.file import load_hsq, save_hsq
from hsq_env.layer_info import trace_layers
from hsq_env.onnx_file import onnx_bytes, with_metadata
from hsq_env.student import Student, evaluate
from restorers.task import restoration_task

TINY = "HSQ-TinyExample-v0"
ZOO = """
import gymnasium as gym
from tiny_task import TinyTask
from hsq_env.env import HSQEnv

gym.register("HSQ-Tiny-v0", entry_point=lambda **arguments: HSQEnv(TinyTask(), step_minibatches=0, **arguments))
"""


def example(name: str) -> Any:
    """A file of the folder as a module, as Python runs it by its path."""
    return importlib.import_module(name)


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))


@pytest.fixture
def tiny_id(tiny: TinyTask) -> Iterator[str]:
    """The tiny task under an id."""

    def make(search_images: int, **arguments: Any) -> HSQEnv:
        assert search_images == 16  # that of real ids; the tiny task has its own
        return HSQEnv(tiny, **arguments)

    gym.register(TINY, entry_point=make)
    yield TINY
    del gym.registry[TINY]


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.name)
def test_every_example_begins_with_how_it_is_called(path: Path) -> None:
    said = importlib.import_module(path.stem).__doc__
    assert f"examples/{path.name} " in said or f"examples.{path.stem}" in said


def test_a_random_agent_meets_the_ratio(tiny: TinyTask, tiny_id: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = example("random_agent").main(["--env", tiny_id, "--target-ratio", "9", "--episodes", "3"])
    assert len({info["plan"] for info in found}) == 3 and all(info["ratio"] >= 9.0 for info in found)
    best = max(found, key=lambda info: info["accuracy"])
    env = HSQEnv(tiny, target_ratio=9.0)
    again = play(env, [env.choices.index(choice) for choice in best["plan"].choices])[-1][4]
    assert again["accuracy"] == best["accuracy"]
    said = capsys.readouterr().out
    assert f"accuracy {best['accuracy']:.4f} at {best['ratio']:.2f}x" in said
    assert all(
        f"{layer}: {c.bits} bits" in said for layer, c in zip(best["plan"].layers, best["plan"].choices, strict=True)
    )


@pytest.mark.slow
def test_twenty_lines_train_a_dqn(tiny_id: str, tmp_path: Path) -> None:
    module = example("sb3_dqn")
    source = Path(module.__file__).read_text().split('"""')[2]
    assert len([line for line in source.splitlines() if line.strip()]) <= 20
    assert module.main(tiny_id, "140", str(tmp_path / "dqn.zip")) >= 8.0
    assert module.DQN.load(tmp_path / "dqn.zip").num_timesteps == 140


def test_a_tree_search_improves_on_the_greedy_plan(tiny: TinyTask, tiny_id: str) -> None:
    module = example("tree_search")
    first, found = module.main(["--env", tiny_id, "--target-ratio", "9"])
    assert found["divergence"] < first["divergence"] and first["ratio"] >= 9.0 and found["ratio"] >= 9.0
    env = HSQEnv(tiny, target_ratio=9.0, alpha=0.0)
    again = play(env, [env.choices.index(choice) for choice in found["plan"].choices])[-1][4]
    assert again["divergence"] == found["divergence"]  # without a tree


@pytest.mark.parametrize("target", [5.0, 9.0, 12.0])
def test_the_greedy_plan_fits_and_a_tree_is_never_worse(tiny: TinyTask, target: float) -> None:
    module, env = example("tree_search"), HSQEnv(tiny, target_ratio=target, step_minibatches=0)
    greedy = module.play_greedy(env)
    for width, branches in ((1, 1), (1, 2), (2, 3)):
        assert module.beam_search(env, width, branches)["divergence"] <= greedy["divergence"]
    damage, bytes_ = env.sensitivities, env.costs
    env.reset()
    chosen, total, _ = module.greedy(env)
    rows = range(len(env.layers))
    assert sum(bytes_[row, choice] for row, choice in zip(rows, chosen, strict=True)) <= env.budget.limit
    assert total == pytest.approx(sum(damage[row, choice] for row, choice in zip(rows, chosen, strict=True)))


def test_a_custom_agent_learns(tiny: TinyTask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    env = HSQEnv(tiny, target_ratio=9.0, step_minibatches=0, reward="divergence", beta=1.0)
    log, agents = SearchLog(lambda line: None), []
    explorer = Explorer("examples.custom_agent:make", episodes=30)
    explorer.check()
    agents.append(explorer.run(env, log))
    assert len(log.episodes) == 30 and all(e.ratio >= 9.0 for e in log.episodes)
    assert agents[0].baseline is not None and agents[0].episode == []
    returns = [e.total_reward for e in log.episodes]
    assert sum(returns[-10:]) > sum(returns[:10])  # seeded: it gets better


@pytest.mark.slow
def test_onnxruntime_alone_detects_what_torchvision_does(shapes_folder: Path, tmp_path: Path) -> None:
    """The shipped teacher at 8 bits, on a picture that it finds something in."""
    few = {"search_images": 2, "test_images": 2, "pool_images": 2, "calibration_images": 2}
    task = detection_task(shapes_folder, None, SHIPPED_TEACHER, **few)
    student = Student(task, trace_layers(task), 8)
    student.apply(Plan(tuple(i.name for i in student.infos), (Choice(8),) * len(student.infos)))
    content = onnx_bytes(student.model, task.stages, task.calibration()[0].images, TraceableDetection())
    (tmp_path / "model.onnx").write_bytes(with_metadata(content, task.describe()))
    picture = tmp_path / "picture.png"
    Image.open(sorted(shapes_folder.glob("test*/*.png"))[0]).resize((171, 128)).save(picture)
    found = example("detect_onnx").detect(str(tmp_path / "model.onnx"), str(picture))
    with torch.no_grad():
        expected = student.model.eval()([to_tensor(Image.open(picture).convert("RGB"))])[0]
    sure = [row for row in found if row[1] > 0.3]
    assert len(sure) == int((expected["scores"] > 0.3).sum()) > 0
    for (name, score, box), label, other, corner in zip(
        sure, expected["labels"], expected["scores"], expected["boxes"], strict=False
    ):
        assert name == task.spec.classes[label] and abs(score - float(other)) < 0.05
        assert max(abs(a - b) for a, b in zip(box, corner.tolist(), strict=True)) < 2
    command = [sys.executable, str(ROOT / "examples" / "detect_onnx.py"), str(tmp_path / "model.onnx"), str(picture)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    said = [f"{name} {score:.2f} at {[round(side) for side in box]}" for name, score, box in found]
    assert done.stdout.splitlines() == said


@pytest.mark.slow
@pytest.mark.parametrize("pattern", ["unstructured", "n:m", "channels"])
def test_a_file_loads_into_torchvisions_detector(shapes_folder: Path, tmp_path: Path, pattern: str) -> None:
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
    backbone, head = (lambda loaded: (loaded.backbone, loaded.head))(
        example("load_hsq").detector(str(tmp_path / "model.hsq"))
    )
    with torch.no_grad():
        found = head(list(backbone(images).values()))
    for name, tensor in found.items():
        difference = (tensor - expected[name]).abs().mean() / expected[name].std()
        assert difference < 0.02, name  # rounding: bias in the convolution or in the batch norm


@pytest.mark.slow
@pytest.mark.long
def test_rl_zoo3_trains_with_the_file(tmp_path: Path) -> None:
    """With the tiny task in place of the detector, whose file it otherwise is; and shows what came of it."""
    settings = yaml.safe_load((ROOT / "examples" / "rl_zoo3_dqn.yml").read_text())
    (tmp_path / "zoo.yml").write_text(yaml.safe_dump({"HSQ-Tiny-v0": settings["HSQ-ResNet50-v0"]}))
    (tmp_path / "tiny_zoo.py").write_text(ZOO)

    def zoo(what: str, *flags: str) -> str:
        command = [sys.executable, "-m", f"rl_zoo3.{what}", "--algo", "dqn", "--env", "HSQ-Tiny-v0"]
        command += ["--gym-packages", "tiny_zoo", *flags]
        path = {"PYTHONPATH": f"{tmp_path}:{ROOT}:{ROOT / 'tests'}"}
        done = subprocess.run(command, cwd=tmp_path, env={**os.environ, **path}, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    zoo("train", "--conf-file", "zoo.yml", "-n", "14", "--eval-freq", "-1", "-P")
    assert list((tmp_path / "logs" / "dqn").glob("HSQ-Tiny-v0_*/HSQ-Tiny-v0.zip"))
    said = zoo("enjoy", "-f", "logs", "-n", "21", "--no-render")
    assert said.count("Episode Length 7") == 3


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


@pytest.mark.slow
@pytest.mark.long
def test_ones_own_folder_is_searched(shapes_folder: Path, tmp_path: Path) -> None:
    """With the shipped teacher; what is detected in the end is what the network of the file detects."""
    teacher, out = tmp_path / "teacher.safetensors", tmp_path / "run"
    teacher.write_bytes(SHIPPED_TEACHER.read_bytes())
    picture = sorted(shapes_folder.glob("test*/*.png"))[0]
    flags = ["--algo", "ilp", "--episodes", "1", "--target-ratio", "5", "--finetune-steps", "0", "--search-images", "4"]
    arguments = [str(shapes_folder), str(teacher), str(out), *flags, "--detect", str(picture)]
    result, found = example("own_folder").main(arguments)
    assert json.loads((out / "result.json").read_text()) == result
    row = result["methods"]["hsq"]
    sizes = [(out / name).stat().st_size for name in ("teacher.safetensors", "model.hsq")]
    assert row["ratio"] == sizes[0] / sizes[1] >= 5.0
    task = detection_task(shapes_folder, teacher=teacher)
    model, _ = load_teacher(teacher)
    load_hsq(out / "model.hsq", model)
    assert evaluate(task, task.stages(freeze(model)), "test") == row["map"]
    expected = task.predictions(outputs(task, model, task.evaluation("test")[0].images), task.evaluation("test")[0])[0]
    assert len(found) == 1 and len(found[0]["scores"]) > 0
    for key, values in expected.items():
        torch.testing.assert_close(found[0][key], values, rtol=1e-3, atol=1e-2)


@pytest.mark.slow
def test_spark_trains_a_denoiser_and_shows_where_it_looks(tmp_path: Path) -> None:
    """The shipped denoiser on pictures of noise: files, figures and map belong together."""
    pictures, out = write_noise(tmp_path / "pictures", 10), tmp_path / "run"
    flags = ["--dataset", str(pictures), "--plan", "uniform2", "--steps", "11", "--patch", "16", "--test-images", "2"]
    result, weights = example("spark_restoration").main([str(out), *flags])
    assert result["policy_updates"] > 0 and result["ratio"] > 10
    assert weights.shape == (1, 8, 8) and weights.mean().item() == pytest.approx(1) and weights.std() > 0
    task = restoration_task(pictures, patch=16, network="dncnn", test_images=2)
    model = freeze(task.spec.build_folded())
    load_hsq(out / "model.hsq", model)
    assert evaluate(task, task.stages(freeze(model)), "test") == result["figures"]["finetuned"]
    shown = Image.open(out / "weights.png")
    side = task.evaluation("test")[0].targets.shape
    assert shown.size == (2 * side[3], side[2])
