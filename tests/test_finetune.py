"""Training without a search: every way of distilling through one trainer, and the command."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_task import TinyTask
from torch import Tensor

from agents.cli import main
from agents.finetune import DISTILLATIONS, finetune, plan_of
from detectors.errors import InputError
from detectors.teacher import freeze
from hsq_env.choices import Choice, Plan
from hsq_env.file import load_hsq
from hsq_env.layer_info import trace_layers
from hsq_env.student import evaluate
from restorers.teacher import RestorerSpec, teacher_bytes

# ---- plans


def test_plans_by_name_and_from_a_file(tiny: TinyTask, tmp_path: Path) -> None:
    infos = trace_layers(tiny)
    plan = plan_of("uniform4", infos)
    assert plan.choices == (Choice(4, 0.0),) * 7 and plan.layers == tuple(i.name for i in infos)
    (tmp_path / "plan.json").write_text(json.dumps(plan.to_json()))
    assert plan_of(str(tmp_path / "plan.json"), infos) == plan
    with pytest.raises(InputError, match="Unknown plan 'uniform5': give uniform2, uniform4, uniform8 or"):
        plan_of("uniform5", infos)
    with pytest.raises(InputError, match="cannot be read"):
        plan_of(str(tmp_path / "absent.json"), infos)
    (tmp_path / "other.json").write_text(json.dumps(Plan(("x",), (Choice(4, 0.0),)).to_json()))
    with pytest.raises(InputError, match="is for other layers"):
        plan_of(str(tmp_path / "other.json"), infos)


# ---- training


@pytest.mark.parametrize("distillation", [name for name in DISTILLATIONS if name != "wavelet"])
def test_every_way_trains_and_its_file_is_what_was_measured(distillation: str, tiny: TinyTask, tmp_path: Path) -> None:
    layers = tuple(info.name for info in trace_layers(tiny))
    (tmp_path / "harsh.json").write_text(json.dumps(Plan(layers, (Choice(2, 0.75),) * 7).to_json()))
    result = finetune(
        tiny, tmp_path / "run", str(tmp_path / "harsh.json"), distillation, 31, policy_every=10, say=lambda text: None
    )
    figures = result["figures"]
    assert figures["finetuned"] > figures["ptq"] and result["metric"] == "mAP"
    model = freeze(type(tiny.teacher)())
    load_hsq(tmp_path / "run" / "model.hsq", model)
    freeze(model)
    assert evaluate(tiny, tiny.stages(model), "test") == figures["finetuned"]
    assert result["bytes"] == (tmp_path / "run" / "model.hsq").stat().st_size
    assert result["ratio"] == (tmp_path / "run" / "teacher.safetensors").stat().st_size / result["bytes"]
    assert json.loads((tmp_path / "run" / "result.json").read_text()) == result
    assert Plan.read(tmp_path / "run" / "plan.json").choices[0] == Choice(2, 0.75)
    assert result["policy_updates"] == (3 if distillation == "spark" else 0)
    assert (tmp_path / "run" / "spark.pt").exists() == (distillation == "spark")


def test_no_steps_are_post_training_quantization(tiny: TinyTask, tmp_path: Path) -> None:
    result = finetune(tiny, tmp_path / "run", "uniform4", steps=0, say=lambda text: None)
    assert result["figures"]["finetuned"] == result["figures"]["ptq"]


def test_a_policy_goes_on(tiny: TinyTask, tmp_path: Path) -> None:
    def go(name: str, **more: Any) -> dict[str, Any]:
        return finetune(tiny, tmp_path / name, "uniform2", steps=5, policy_every=2, say=lambda text: None, **more)

    assert go("one")["policy_updates"] == 2
    assert go("two", policy=tmp_path / "one" / "spark.pt")["policy_updates"] == 4
    with pytest.raises(InputError, match="give --distillation spark"):
        go("three", policy=tmp_path / "one" / "spark.pt", distillation="akd")
    (tmp_path / "foreign.pt").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"foreign\.pt is not a SPARK policy"):
        go("four", policy=tmp_path / "foreign.pt")
    assert not (tmp_path / "three").exists() and not (tmp_path / "four").exists()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"distillation": "magic"}, "Unknown distillation 'magic': known are none, akd, spark, wavelet, attention."),
        ({"distillation": "wavelet"}, "'wavelet' compares images, and 'tiny' gives none: choose akd or spark."),
        ({"rounding": "down"}, "Unknown rounding 'down': known are nearest, compensated."),
        ({"alpha": 1.5}, "alpha is 1.5: give a share"),
        ({"steps": -1}, "-1 steps and a lesson every 5"),
        ({"policy_every": 0}, "300 steps and a lesson every 0"),
        ({"activation_bits": 16}, "activation_bits is 16: give 2 to 8"),
    ],
)
def test_settings_that_do_not_go(given: dict[str, Any], said: str, tiny: TinyTask, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=said):
        finetune(tiny, tmp_path / "run", "uniform4", **given)
    assert not (tmp_path / "run").exists()


class Falling(TinyTask):
    """The tiny task, whose loss is no number."""

    def __init__(self, tiny: TinyTask) -> None:
        self.__dict__.update(tiny.__dict__)

    def task_loss(self, outputs: dict[str, Any], batch: Any) -> Tensor:
        return super().task_loss(outputs, batch) * torch.nan


def test_a_training_that_falls_apart_writes_nothing(tiny: TinyTask, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="The training fell apart"):
        finetune(Falling(tiny), tmp_path / "run", "uniform4", steps=2, say=lambda text: None)
    assert not (tmp_path / "run").exists()


# ---- the command, with a restorer


@pytest.fixture
def restorer(tmp_path: Path) -> list[str]:
    """A teacher that was never trained and ten pictures."""
    spec = RestorerSpec("dncnn", 1, noise=25)
    (tmp_path / "teacher.safetensors").write_bytes(teacher_bytes(spec.build_folded(), spec))
    (tmp_path / "photos").mkdir()
    for i in range(10):
        pixels = np.random.default_rng(i).integers(0, 256, (24, 20), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{i}.png")
    return ["--teacher", str(tmp_path / "teacher.safetensors"), "--dataset", str(tmp_path / "photos")]


@pytest.mark.parametrize("distillation", ["spark", "wavelet"])
def test_the_command(
    distillation: str, restorer: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    main(
        ["finetune", *restorer, "--plan", "uniform4", "--steps", "3", "--policy-every", "2", "--patch", "16",
         "--batch-size", "2", "--distillation", distillation, "--out", str(out)]
    )  # fmt: skip
    result = json.loads((out / "result.json").read_text())
    assert result["metric"] == "PSNR" and result["policy_updates"] == (distillation == "spark")
    assert result["ratio"] > 5
    assert f"written to {out}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--patch", "64"], "is 20x24, but sides of 64 pixels are needed"),
        (["--patch", "9", "--splits", "a", "b", "c"], "There is no folder"),
        (["--plan", "nothing.json"], "nothing.json cannot be read"),
    ],
)
def test_bad_input_is_one_sentence(
    arguments: list[str], said: str, restorer: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {"--plan": "uniform4", "--patch": "16"} | dict(zip(arguments[:2:2], arguments[1:2:2], strict=True))
    rest = [*(word for pair in given.items() for word in pair), *arguments[2:]]
    with pytest.raises(SystemExit) as stop:
        main(["finetune", *restorer, *rest, "--steps", "1", "--out", str(tmp_path / "run")])
    assert stop.value.code == 2 and said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
