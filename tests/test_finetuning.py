"""Fine-tuning: what it changes, what it leaves alone, and that it helps."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import outputs, random_plan, student_logits
from tiny_task import TinyTask
from torch import Tensor, nn

from detectors.teacher import freeze
from hsq_env.choices import Choice, Plan
from hsq_env.distillation import AKD
from hsq_env.file import load_hsq, save_hsq
from hsq_env.finetuning import LearningRates, akd_loss, akd_loss_and_divergence, finetune_block
from hsq_env.layer_info import LayerInfo, trace_layers
from hsq_env.long_finetuning import WARMUP, finetune_all, long_pace
from hsq_env.states import run
from hsq_env.student import Student

RATES = LearningRates(weights=0.01, scales=0.003, biases=0.002)
HEAD = {"head.0.weight", "head.0.scale_factor", "head.1.weight", "head.1.bias", "logits.weight", "logits.bias"}


class BadLoss(TinyTask):
    """The tiny task with a loss that is no number, or has no gradient, from a call on."""

    def __init__(self, tiny: TinyTask, good_calls: int, value: float = math.nan) -> None:
        self.__dict__.update(tiny.__dict__)
        self.good_calls, self.value = good_calls, value

    def task_loss(self, outputs: dict[str, Any], batch: Any) -> Tensor:
        self.good_calls -= 1
        loss = super().task_loss(outputs, batch)
        return loss if self.good_calls >= 0 else loss * self.value


def parameters(student: Student) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in student.model.named_parameters()}


def changed(student: Student, before: dict[str, Tensor]) -> set[str]:
    return {name for name, p in student.model.named_parameters() if not torch.equal(p, before[name])}


def tune_block(student: Student, scope: str, index: int, steps: int = 2, stop_at_block: bool = True) -> bool:
    """The whole forward pass, the modules of a scope."""
    task = student.task

    def loss(batch: Any) -> tuple[Tensor, Tensor]:
        teacher = task.distilled(run(task.stages(task.teacher), {"images": batch.images}))
        return akd_loss_and_divergence(task, AKD(), 0.3, run(student.stages, {"images": batch.images}), batch, teacher)

    losses = [partial(loss, batch) for batch in task.finetuning()[:steps]]
    return bool(finetune_block(student, student.modules_of(scope, index), losses, RATES, stop_at_block))


def whole_loss(student: Student, alpha: float = 0.3) -> float:
    """The mean AKD loss over the pool."""
    task, losses = student.task, []
    with torch.no_grad():
        for batch in task.finetuning():
            teacher = task.distilled(run(task.stages(task.teacher), {"images": batch.images}))
            losses.append(akd_loss(task, AKD(), alpha, student.outputs(batch), batch, teacher).item())
    return sum(losses) / len(losses)


# ---- what is trained


@pytest.mark.parametrize(
    ("scope", "index", "expected"),
    [
        ("layer", 1, {"block1.conv1.weight", "block1.conv1.bias", "block1.conv1.scale_factor"}),
        (
            "block",
            1,
            {
                *("block1.conv1.weight", "block1.conv1.bias", "block1.conv1.scale_factor"),
                *("block1.conv2.weight", "block1.conv2.bias"),  # not chosen yet: no scale to learn
            },
        ),
        ("block", 5, HEAD),
    ],
)
def test_only_the_scope_changes(
    tiny: TinyTask, infos: tuple[LayerInfo, ...], scope: str, index: int, expected: set[str]
) -> None:
    student = Student(tiny, infos)
    student.compress(index, Choice(4, 0.5))
    before = parameters(student)
    assert tune_block(student, scope, index)
    assert changed(student, before) == expected


def test_scope_all_changes_everything_but_the_scales_of_unchosen_layers(
    tiny: TinyTask, infos: tuple[LayerInfo, ...]
) -> None:
    student = Student(tiny, infos)
    student.compress(2, Choice(2))
    before = parameters(student)
    assert tune_block(student, "all", 2)
    scales = {f"{info.name}.scale_factor" for info in infos if info.name != "block1.conv2"}
    assert changed(student, before) == set(before) - scales


@pytest.mark.parametrize("scope", ["layer", "block"])
def test_a_backward_pass_through_everything_trains_the_same(
    tiny: TinyTask, infos: tuple[LayerInfo, ...], scope: str
) -> None:
    stopped, whole = Student(tiny, infos), Student(tiny, infos)
    for student, stop in ((stopped, True), (whole, False)):
        for index in range(4):
            student.compress(index, Choice(4, 0.5))
        assert tune_block(student, scope, 3, stop_at_block=stop)
    assert changed(stopped, parameters(whole)) == set()
    everything = [*whole.model.parameters(), *(layer.stored_weight for layer in whole.layers[:4])]
    assert not any(t is not None and (t.requires_grad or t.grad is not None) for t in everything)


def test_going_through_everything_reaches_the_first_layer(
    tiny: TinyTask, infos: tuple[LayerInfo, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    student, reached = Student(tiny, infos), []
    for index in range(4):
        student.compress(index, Choice(4))
    step = torch.optim.Adam.step

    def look(self: torch.optim.Adam, *arguments: Any) -> Any:
        first = student.layers[0].stored_weight
        assert first is not None
        reached.append(first.grad is not None)
        return step(self, *arguments)

    monkeypatch.setattr(torch.optim.Adam, "step", look)
    for stop in (True, False):
        tune_block(student, "block", 3, steps=1, stop_at_block=stop)
    assert reached == [False, True]


def test_choices_and_first_scales_stay(tiny: TinyTask, infos: tuple[LayerInfo, ...]) -> None:
    student, plan = Student(tiny, infos), random_plan(infos, 0)
    student.apply(plan)
    before = [layer.base_scale.clone() for layer in student.layers]
    finetune_all(student, 3)
    assert student.plan() == plan
    assert all(torch.equal(layer.base_scale, b) for layer, b in zip(student.layers, before, strict=True))


def test_masks_stay_fixed(tiny: TinyTask, infos: tuple[LayerInfo, ...]) -> None:
    student = Student(tiny, infos)
    student.apply(Plan(tuple(i.name for i in infos), (Choice(8, 0.5),) * 7))
    before = [layer.mask.clone() for layer in student.layers if layer.mask is not None]
    assert finetune_all(student, 10)
    assert len(before) == 7
    for layer, mask in zip(student.layers, before, strict=True):
        weight = layer.weight_and_bias()[0]
        assert layer.mask is not None and torch.equal(layer.mask, mask)
        assert (weight[~mask] == 0).all() and weight[mask].count_nonzero() > 0.9 * mask.sum()


def test_what_is_computed_with_afterwards_is_what_was_learned(tiny: TinyTask, infos: tuple[LayerInfo, ...]) -> None:
    student = Student(tiny, infos)
    student.compress(1, Choice(8))
    layer = student.layers[1]
    start = layer.weight_and_bias()[0].clone()
    assert tune_block(student, "layer", 1)
    stored, bias = layer.weight_and_bias()
    assert not torch.equal(stored, start)
    assert layer.bias is not None and bias is not None and torch.equal(bias, layer.bias.half().float())
    step = layer.scale().reshape(-1, 1, 1, 1)
    clipped = layer.weight.clamp(-128 * step, 127 * step)
    assert (stored - clipped).abs().max() <= 0.5001 * step.max()
    assert torch.equal(stored, torch.round(stored / step) * step)


def test_nothing_asks_for_gradients_afterwards(tiny: TinyTask, infos: tuple[LayerInfo, ...]) -> None:
    student = Student(tiny, infos)
    student.apply(random_plan(infos, 1))
    finetune_all(student, 1)
    assert not any(p.requires_grad or p.grad is not None for p in student.model.parameters())
    assert not any(layer.tuning for layer in student.layers)


# ---- that it helps


@pytest.mark.parametrize("choice", [Choice(2), Choice(2, 0.5), Choice(4, 0.75)], ids=str)
def test_the_loss_goes_down(tiny: TinyTask, infos: tuple[LayerInfo, ...], choice: Choice) -> None:
    student = Student(tiny, infos)
    student.apply(Plan(tuple(i.name for i in infos), (choice,) * 7))
    before = whole_loss(student)
    assert finetune_all(student, 60, alpha=0.3, rates=LearningRates(weights=0.005, scales=3e-3, biases=1e-3), pace=1.0)
    assert whole_loss(student) < 0.8 * before


@pytest.mark.parametrize(("alpha", "asked"), [(1.0, 0), (0.5, 6)])
def test_the_ground_truth_alone_needs_no_teacher(
    tiny: TinyTask, infos: tuple[LayerInfo, ...], alpha: float, asked: int
) -> None:
    student = Student(tiny, infos)
    student.apply(random_plan(infos, 4))
    passes: list[object] = []
    first = next(module for module in tiny.teacher.modules() if isinstance(module, nn.Conv2d))
    with first.register_forward_pre_hook(lambda module, inputs: passes.append(inputs)):
        before = parameters(student)
        assert finetune_all(student, 6, alpha=alpha, pace=1.0, on_step=lambda step: step or passes.clear())
    assert len(passes) == asked
    assert changed(student, before)


def test_a_block_makes_up_for_its_layer(tiny: TinyTask, infos: tuple[LayerInfo, ...]) -> None:
    student = Student(tiny, infos)
    student.compress(3, Choice(2, 0.75))
    before = whole_loss(student)
    for _ in range(25):  # steps are short where little is to be repaired
        assert tune_block(student, "block", 3, steps=4)
    assert whole_loss(student) < 0.8 * before


def test_equal_students_learn_alike(tiny: TinyTask, infos: tuple[LayerInfo, ...]) -> None:
    made = []
    for _ in range(2):
        student = Student(tiny, infos)
        student.apply(random_plan(infos, 2))
        finetune_all(student, 5)
        made.append(student_logits(student))
    assert torch.equal(*made)


def test_bfloat16_learns_nearly_the_same_in_float32_weights(tiny: TinyTask, infos: tuple[LayerInfo, ...]) -> None:
    plan = Plan(tuple(i.name for i in infos), (Choice(4, 0.5),) * 7)
    full, half = Student(tiny, infos), Student(tiny, infos)
    for student in (full, half):
        student.apply(plan)
    start, before = whole_loss(full), parameters(full)
    assert finetune_all(full, 30) and finetune_all(half, 30, bfloat16=True)
    assert {p.dtype for p in half.model.parameters()} == {torch.float32}
    assert student_logits(half).dtype == torch.float32
    assert changed(half, before) == changed(full, before) and changed(half, parameters(full)) != set()
    assert whole_loss(half) < 0.8 * start
    assert whole_loss(half) == pytest.approx(whole_loss(full), rel=0.2)


# ---- losses that are no numbers


@pytest.mark.parametrize("good", [0, 2])
def test_a_loss_that_is_no_number_stops_before_its_step(
    tiny: TinyTask, infos: tuple[LayerInfo, ...], good: int
) -> None:
    student = Student(BadLoss(tiny, good), infos)
    student.apply(random_plan(infos, 3))
    steps: list[int] = []
    assert not finetune_all(student, 9, on_step=steps.append)
    assert steps == list(range(good + 1))
    assert all(p.isfinite().all() for p in student.model.parameters())
    assert not any(p.requires_grad for p in student.model.parameters())
    assert not any(layer.tuning for layer in student.layers)


def test_an_infinite_loss_stops_too(tiny: TinyTask, infos: tuple[LayerInfo, ...]) -> None:
    student = Student(BadLoss(tiny, 0, math.inf), infos)
    student.compress(0, Choice(4))
    before = parameters(student)
    assert not tune_block(student, "block", 0)
    assert changed(student, before) == set()


# ---- rates


def test_parameters_by_kind(tiny: TinyTask, infos: tuple[LayerInfo, ...]) -> None:
    student = Student(tiny, infos)
    student.compress(5, Choice(4))
    head, logits = student.layers[5], student.layers[6]
    norm: Any = student.model.get_submodule("head.1")
    groups = RATES.groups(student.modules_of("block", 5))
    rate_of = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert len(rate_of) == 6  # the scale of the unchosen linear layer is left out
    for layer in (head, logits):
        spread = layer.weight.double().std(correction=0).item()
        assert rate_of[id(layer.weight)] == pytest.approx(0.01 * spread, rel=1e-5)
    assert rate_of[id(head.scale_factor)] == 0.003
    assert logits.bias is not None
    assert {rate_of[id(p)] for p in (norm.weight, norm.bias, logits.bias)} == {0.002}


def test_no_group_is_empty(tiny: TinyTask, infos: tuple[LayerInfo, ...]) -> None:
    student = Student(tiny, infos)
    assert all(group["params"] for group in RATES.groups(student.modules_of("layer", 5)))
    assert RATES.groups([nn.ReLU()]) == []


def test_the_rate_rises_briefly_and_falls_to_zero(
    tiny: TinyTask, infos: tuple[LayerInfo, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[float] = []
    take = torch.optim.Adam.step

    def record(self: torch.optim.Adam, *arguments: Any, **options: Any) -> Any:
        seen.append(self.param_groups[-1]["lr"])
        return take(self, *arguments, **options)

    monkeypatch.setattr(torch.optim.Adam, "step", record)
    student = Student(tiny, infos)
    assert finetune_all(student, 40, rates=RATES, pace=1.0)
    warmup = round(WARMUP * 40)
    rising = [RATES.biases * (step + 1) / warmup for step in range(warmup)]
    falling = [RATES.biases * (1 + math.cos(math.pi * (s - warmup) / (40 - warmup))) / 2 for s in range(warmup, 40)]
    assert warmup == 2 and seen == pytest.approx(rising + falling)


@pytest.mark.parametrize("choice", [Choice(2), Choice(4)], ids=str)
def test_the_first_step_is_paced_by_the_damage(tiny: TinyTask, infos: tuple[LayerInfo, ...], choice: Choice) -> None:
    """Adam's first step is the rate times the gradient's sign, here times the root of the divergence."""
    student = Student(tiny, infos)
    student.compress(1, choice)
    before = parameters(student)
    batch = tiny.finetuning()[0]
    with torch.no_grad():
        teacher = tiny.distilled(run(tiny.stages(tiny.teacher), {"images": batch.images}))
        pace = AKD().loss(tiny.distilled(student.outputs(batch)), teacher).sqrt().item()
    assert 0.0 < pace < 1.0
    assert tune_block(student, "layer", 1, steps=1)
    after = parameters(student)
    bias = (after["block1.conv1.bias"] - before["block1.conv1.bias"]).abs()
    scale = (after["block1.conv1.scale_factor"] - 1).abs()
    for found, rate in ((bias, RATES.biases), (scale, RATES.scales)):
        assert found.median().item() == pytest.approx(pace * rate, rel=0.05)
        assert found.max().item() <= 1.05 * pace * rate


@pytest.mark.parametrize(("loss", "expected"), [(0.0, 0.3), (0.36, 0.3), (1.0, 0.5), (4.0, 1.0), (9.0, 1.0)])
def test_the_long_fine_tuning_is_paced_by_the_damage(
    tiny: TinyTask, infos: tuple[LayerInfo, ...], loss: float, expected: float
) -> None:
    class Constant(AKD):
        def loss(self, student: Any, teacher: Any) -> Tensor:
            return torch.tensor(loss)

    assert long_pace(Student(tiny, infos), Constant()) == pytest.approx(expected)


def test_the_pace_is_that_of_the_student(
    tiny: TinyTask, infos: tuple[LayerInfo, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fresh student is no damage: the smallest pace."""
    one, other = Student(tiny, infos), Student(tiny, infos)
    assert finetune_all(one, 3) and finetune_all(other, 3, pace=0.3)
    assert all(torch.equal(a, b) for a, b in zip(one.model.parameters(), other.model.parameters(), strict=True))


def test_ranges_are_learned_where_asked_for_and_written_with_the_file(tiny: TinyTask, tmp_path: Path) -> None:
    infos = trace_layers(tiny)
    students = []
    for ranges in (0.0, 0.05):
        student = Student(tiny, infos, activation_bits=4)
        student.apply(random_plan(infos, seed=0))
        before = [layer.activations for layer in student.layers]
        assert finetune_all(student, 6, rates=LearningRates(0.006, 2e-3, 6e-4, ranges), pace=1.0)
        changed = [a != b.activations for a, b in zip(before, student.layers, strict=True)]
        assert all(changed) if ranges else not any(changed)
        assert all(layer.range_factor is None for layer in student.layers)
        students.append(student)
    save_hsq(students[1], tmp_path / "model.hsq")
    model = freeze(type(tiny.teacher)())
    load_hsq(tmp_path / "model.hsq", model)
    images = tiny.evaluation("test")[0].images
    assert torch.equal(outputs(tiny, model, images)["logits"], student_logits(students[1]))


def test_a_gradient_that_is_no_number_is_noticed_in_the_last_step_too(
    tiny: TinyTask, infos: tuple[LayerInfo, ...]
) -> None:
    student = Student(tiny, infos)
    student.apply(random_plan(infos, 0))
    steps: list[int] = []

    def on_step(step: int) -> None:
        steps.append(step)
        if step == 4:
            parameter = next(p for p in student.model.parameters() if p.requires_grad)
            parameter.register_hook(lambda gradient: gradient * float("nan"))

    assert not finetune_all(student, 5, on_step=on_step)
    assert steps == [0, 1, 2, 3, 4]
    assert all(p.isfinite().all() for p in student.model.parameters())


def test_weights_of_places_say_where_and_not_how_much(tiny: TinyTask, infos: tuple[LayerInfo, ...]) -> None:
    """The loss is that of uniform distillation, its gradient in proportion to the weighted one."""
    batch, criterion = tiny.finetuning()[0], AKD()
    outputs = Student(tiny, infos).outputs(batch)
    noise = torch.randn(outputs["features"].shape, generator=torch.Generator().manual_seed(0))
    features = (outputs["features"] + noise).requires_grad_(True)
    state, expected = {**outputs, "features": features}, tiny.distilled(outputs)
    weights = torch.linspace(0.1, 1.9, 64).reshape(1, 8, 8).repeat(len(batch.images), 1, 1)
    plain = criterion.loss(tiny.distilled(state), expected)
    heavy = criterion.loss(tiny.distilled(state), expected, weights)
    loss, divergence = akd_loss_and_divergence(
        tiny, criterion, 0.25, state, batch, expected, lambda *arguments: weights
    )
    assert divergence == plain and heavy != plain
    assert loss.item() == pytest.approx(0.75 * plain.item() + 0.25 * tiny.task_loss(state, batch).item(), rel=1e-5)
    alone = akd_loss_and_divergence(tiny, criterion, 0.0, state, batch, expected, lambda *arguments: weights)[0]
    wanted = torch.autograd.grad(heavy, features)[0] * (plain / heavy).item()
    torch.testing.assert_close(torch.autograd.grad(alone, features)[0], wanted)
