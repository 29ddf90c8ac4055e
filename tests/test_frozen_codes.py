"""The end of a long fine-tuning: codes stay as they are, everything around them is fitted to them."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import outputs, random_plan, student_logits
from test_restoration_task import DENOISING, make
from tiny_task import TinyTask
from torch import Tensor

import hsq_env.long_finetuning as long_finetuning
from detectors.teacher import freeze
from hsq_env.choices import Choice, Plan
from hsq_env.distillation.spark import Spark
from hsq_env.file import load_hsq, save_hsq
from hsq_env.finetuning import LearningRates
from hsq_env.layer_info import LayerInfo, trace_layers
from hsq_env.layers import tuning
from hsq_env.long_finetuning import Schedule, finetune_all
from hsq_env.quantizers import dequantize, quantize, weight_levels
from hsq_env.student import Student

Codes = list[Tensor | None]
RATES = LearningRates(weights=0.006, scales=0.02, biases=6e-4)  # scales move so far that codes would follow them


def planned(tiny: TinyTask, seed: int = 0) -> Student:
    student = Student(tiny, trace_layers(tiny))
    student.apply(random_plan(student.infos, seed))
    return student


def trained(student: Student, steps: int, **settings: Any) -> dict[int, Codes]:
    """The codes in use at every step with frozen ones."""
    seen: dict[int, Codes] = {}

    def on_step(step: int) -> None:
        if all(layer.frozen for layer in student.layers):
            seen[step] = [None if layer.codes is None else layer.codes.clone() for layer in student.layers]
        else:
            assert not any(layer.frozen for layer in student.layers)

    assert finetune_all(student, steps, on_step=on_step, pace=1.0, **settings)
    return seen


def test_learning_rates_rise_and_fall_twice() -> None:
    schedule = Schedule(steps=120, frozen=20, pace=0.5, frozen_pace=0.2)
    factors = [schedule.factor(step) for step in range(120)]
    assert schedule.freeze_at == 100
    assert factors[:5] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])  # 5 % of 100 steps
    assert factors[52] == pytest.approx(0.5 * 0.5 * (1 + math.cos(math.pi * 47 / 95)))
    assert factors[99] < 0.001 and factors[100] == pytest.approx(0.2) == max(factors[100:])
    assert factors[119] < 0.01 * 0.2
    once = Schedule(steps=120, frozen=0, pace=0.5, frozen_pace=0.2)
    assert max(once.factor(step) for step in range(60, 120)) == once.factor(60)


def test_codes_stay_and_scales_and_biases_go_on(tiny: TinyTask) -> None:
    student = planned(tiny)
    before = [layer.codes.clone() for layer in student.layers if layer.codes is not None]
    seen = trained(student, 10, frozen_share=0.4)
    assert list(seen) == [6, 7, 8, 9]
    assert len(before) == len(student.layers)
    for i, layer in enumerate(student.layers):
        assert layer.choice is not None and layer.codes is not None
        assert all(torch.equal(codes[i], layer.codes) for codes in seen.values())  # type: ignore[arg-type]
        assert not torch.equal(layer.scale_factor, torch.ones_like(layer.scale_factor))
    last = [layer.codes for layer in student.layers]
    assert any(not torch.equal(a, b) for a, b in zip(before, last, strict=True))  # type: ignore[arg-type]


def test_codes_are_those_that_scales_had_led_to(tiny: TinyTask, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scales count anew from where they are, with an optimizer that knows nothing of the gradients that they had."""
    student, remembered = planned(tiny), []
    bases = [layer.base_scale.clone() for layer in student.layers]
    step_of = torch.optim.Adam.step

    def stepped(self: torch.optim.Adam, *arguments: Any) -> Any:
        remembered.append(len(self.state))
        return step_of(self, *arguments)

    monkeypatch.setattr(torch.optim.Adam, "step", stepped)

    def on_step(step: int) -> None:
        for layer, base in zip(student.layers, bases, strict=True):
            assert layer.choice is not None and layer.codes is not None
            if step == 6:
                assert torch.equal(layer.scale_factor, torch.ones_like(base))
                assert not torch.equal(layer.base_scale, base)
                levels = weight_levels(layer.choice)
                assert torch.equal(layer.codes, quantize(layer.weight, layer.scale(), levels))
            if step == 9:  # with scales as the file holds them
                expected = dequantize(layer.codes, layer.scale(), weight_levels(layer.choice))
                assert not torch.equal(layer.scale(), layer.base_scale * layer.scale_factor)
                expected = expected if layer.mask is None else expected * layer.mask
                assert torch.equal(layer.weight_and_bias()[0], expected)

    assert finetune_all(student, 10, rates=RATES, on_step=on_step, pace=1.0, frozen_share=0.4)
    assert remembered[0] == remembered[6] == 0 and min(remembered[5], remembered[9]) > 0


@pytest.mark.parametrize("share", [-0.1, 1.5])
def test_shares_that_are_none(tiny: TinyTask, share: float) -> None:
    student = planned(tiny)
    with pytest.raises(ValueError, match=rf"frozen_share is {share}: give a share of the steps, in \[0, 1\]"):
        finetune_all(student, 4, frozen_share=share)


def test_what_is_computed_with_afterwards_is_what_was_fitted(tiny: TinyTask, tmp_path: Path) -> None:
    """The weights of the last steps are the stored ones to the last bit, and another fine-tuning begins with them."""
    student = planned(tiny)
    trained(student, 10, frozen_share=0.4)
    for layer in student.layers:
        assert layer.choice is not None and layer.codes is not None and layer.stored_weight is not None
        expected = dequantize(layer.codes, layer.scale(), weight_levels(layer.choice))
        expected = expected if layer.mask is None else expected * layer.mask
        assert torch.equal(layer.stored_weight, expected) and torch.equal(layer.weight, expected)
        assert not layer.frozen
    stored = [layer.stored_weight.clone() for layer in student.layers if layer.stored_weight is not None]
    with tuning(student.layers):
        pass  # rounds the latent weights again
    assert all(torch.equal(a, b.stored_weight) for a, b in zip(stored, student.layers, strict=True))  # type: ignore[arg-type]
    save_hsq(student, tmp_path / "model.hsq")
    model = freeze(type(tiny.teacher)())
    load_hsq(tmp_path / "model.hsq", model)
    images = tiny.evaluation("test")[0].images
    assert torch.equal(outputs(tiny, model, images)["logits"], student_logits(student))


@pytest.mark.parametrize("choice", [Choice(2), Choice(2, 0.25), Choice(4, 0.5), Choice(8)], ids=str)
def test_the_gradient_of_a_scale_is_what_it_does_to_the_weights(
    tiny: TinyTask, infos: tuple[LayerInfo, ...], choice: Choice
) -> None:
    """Not LSQ's, which looks at how far latent weights are from their codes."""
    student = Student(tiny, infos)
    student.compress(1, choice)
    layer = student.layers[1]
    layer.scale_factor.requires_grad_(True)
    factors = torch.randn(layer.weight.shape, generator=torch.Generator().manual_seed(0))
    layer.tuning = True
    with torch.enable_grad():
        layer.freeze_codes()
        (layer.weight_and_bias()[0] * factors).sum().backward()
    assert layer.codes is not None and layer.scale_factor.grad is not None and layer.weight.grad is None
    moved = (layer.codes.float() + weight_levels(choice).offset) * layer.base_scale.reshape(-1, 1, 1, 1) * factors
    moved = moved if layer.mask is None else moved * layer.mask
    torch.testing.assert_close(layer.scale_factor.grad, moved.flatten(1).sum(dim=1))


def test_a_layer_without_a_choice_is_not_frozen(tiny: TinyTask, infos: tuple[LayerInfo, ...]) -> None:
    student = Student(tiny, infos)
    student.compress(1, Choice(4))
    before = student.layers[0].weight.clone()
    assert finetune_all(student, 4, pace=1.0, frozen_share=1.0)
    assert not any(layer.frozen for layer in student.layers)
    assert not torch.equal(student.layers[0].weight, before) and student.layers[0].choice is None


def test_images_end_with_frozen_codes_and_detections_do_not(tiny: TinyTask) -> None:
    assert trained(planned(tiny), 20) == {}
    task = make(DENOISING)
    student = Student(task, trace_layers(task))
    student.apply(Plan(tuple(i.name for i in student.infos), (Choice(4),) * len(student.infos)))
    assert list(trained(student, 40)) == [34, 35, 36, 37, 38, 39]
    assert trained(student, 20) == {}  # three steps could not rise and fall


def test_frozen_codes_are_fitted_in_float32(tiny: TinyTask, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[bool] = []
    given = long_finetuning.float32_outputs

    def spied(forward: Any, device: torch.device, bfloat16: bool) -> Any:
        used.append(bfloat16)
        return given(forward, device, bfloat16)

    monkeypatch.setattr(long_finetuning, "float32_outputs", spied)
    trained(planned(tiny), 4, frozen_share=0.5, bfloat16=True)
    assert used == [True] * 4 + [False] * 4  # teacher and student at each step


def test_places_count_alike_in_the_end_and_teach_nothing(tiny: TinyTask, monkeypatch: pytest.MonkeyPatch) -> None:
    """What no longer changes its codes is fitted to the mean over all places, as metrics are."""
    spark, weighed = Spark(every=1), []
    signals = spark.signals

    def spied(*arguments: Any) -> Tensor:
        weighed.append(arguments)
        return signals(*arguments)

    monkeypatch.setattr(spark, "signals", spied)
    trained(planned(tiny), 8, frozen_share=0.5, spark=spark)
    assert len(weighed) == 4 and spark.reinforce.updates == 3  # the last lesson before the change is not ended


def test_it_lowers_the_loss_that_the_trained_student_is_left_with(tiny: TinyTask, infos: tuple[LayerInfo, ...]) -> None:
    """All steps with frozen codes: what scales and biases alone can repair."""
    student = Student(tiny, infos)
    student.apply(Plan(tuple(i.name for i in infos), (Choice(4),) * len(infos)))

    def gap() -> float:
        with torch.no_grad():
            batches = tiny.evaluation("search")
            wanted = [outputs(tiny, tiny.teacher, b.images)["logits"] for b in batches]
            pairs = zip(batches, wanted, strict=True)
            return float(sum((student.outputs(b)["logits"] - t).square().mean() for b, t in pairs))  # type: ignore[operator]

    before = gap()
    codes = [layer.codes.clone() for layer in student.layers if layer.codes is not None]
    assert finetune_all(student, 60, alpha=0.0, frozen_share=1.0)
    assert gap() < 0.9 * before
    assert all(torch.equal(a, b.codes) for a, b in zip(codes, student.layers, strict=True))  # type: ignore[arg-type]
