"""SPARK: places weighed, lessons that tell the truth, and a student that does not notice."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import random_plan
from tiny_task import Distilled, TinyTask
from torch import Tensor, nn

from detectors.errors import InputError
from hsq_env import lessons
from hsq_env.distillation import AKD
from hsq_env.distillation.akd import Places, box_divergence, channel_divergence
from hsq_env.distillation.policy import spread_over, weights_of
from hsq_env.distillation.spark import Spark, cell_losses, place_rewards
from hsq_env.env import HSQEnv
from hsq_env.file import save_hsq
from hsq_env.layer_info import trace_layers
from hsq_env.lessons import Begun, end, error_maps, lesson
from hsq_env.long_finetuning import finetune_all
from hsq_env.states import run
from hsq_env.student import Student


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def outputs(seed: int) -> list[Distilled]:
    """A detector's with two levels, 4x6 and 2x3."""
    return [
        Distilled("logits", "logits", noise(2, 30, 3, seed=seed)),
        Distilled("boxes", "boxes", noise(2, 30, 4, seed=seed + 1).abs()),
        Distilled("p3", "features", noise(2, 5, 4, 6, seed=seed + 2)),
        Distilled("p4", "features", noise(2, 5, 2, 3, seed=seed + 3)),
    ]


def test_equal_weights_change_nothing() -> None:
    student, teacher, criterion = outputs(0), outputs(50), AKD()
    plain, weighted = criterion.terms(student, teacher), criterion.terms(student, teacher, torch.ones(2, 8, 8))
    assert list(plain) == list(weighted) == ["logits", "boxes", "features"]
    for kind in plain:
        assert weighted[kind].item() == pytest.approx(plain[kind].item(), rel=1e-5)


def test_every_term_is_weighed_at_its_places() -> None:
    student, teacher, weights = outputs(0), outputs(50), weights_of(noise(2, 8, 8))
    found = AKD().terms(student, teacher, weights)
    fine, coarse = spread_over(weights, 4, 6), spread_over(weights, 2, 3)
    confidence = teacher[0].tensor.sigmoid().amax(dim=-1)
    places = torch.cat([fine.flatten(1), coarse.flatten(1)], dim=1)
    boxes = (box_divergence(student[1].tensor, teacher[1].tensor) * confidence * places).sum() / confidence.sum()
    assert found["boxes"].item() == pytest.approx(boxes.item(), rel=1e-5)
    maps = [
        channel_divergence(s.tensor, t.tensor, 1.0) * w
        for s, t, w in zip(student[2:], teacher[2:], (fine, coarse), strict=True)
    ]
    features = torch.stack([m.sum(dim=(1, 2)).mean() for m in maps]).mean()
    assert found["features"].item() == pytest.approx(features.item(), rel=1e-5)


def test_pixels_are_weighed_and_outputs_without_places_are_not() -> None:
    weights = weights_of(noise(1, 8, 8))
    student, teacher = [Distilled("x", "pixels", noise(1, 3, 16, 16))], [Distilled("x", "pixels", noise(1, 3, 16, 16))]
    student[0] = replace(student[0], tensor=student[0].tensor + noise(1, 1, 16, 16, seed=1))
    expected = ((student[0].tensor - teacher[0].tensor).square().mean(dim=1) * spread_over(weights, 16, 16)).mean()
    assert AKD().terms(student, teacher, weights)["pixels"].item() == pytest.approx(expected.item(), rel=1e-5)
    classes = [[Distilled("y", "logits", noise(1, 1, 5, seed=seed))] for seed in (0, 1)]
    assert torch.equal(AKD().loss(*classes, weights), AKD().loss(*classes))


def test_places_know_the_levels() -> None:
    values = torch.arange(60.0).reshape(2, 30)
    fine, coarse = Places(outputs(0)).maps(values)
    assert fine.shape == (2, 4, 6) and coarse.shape == (2, 2, 3)
    assert fine[0, 1, 0] == 6 and coarse[1, 1, 2] == 59
    assert Places(outputs(0)).maps(torch.zeros(2, 7)) == []


def test_cell_losses_are_parts_of_the_loss() -> None:
    """The loss is linear in weights that keep mean 1, up to the interpolation between cells."""
    student, teacher, criterion = outputs(0), outputs(50), AKD()
    cells = cell_losses(criterion, student, teacher, 8)
    np.testing.assert_allclose(cells.sum(dim=(1, 2)), 0, atol=1e-5)
    weights = 1 + 0.01 * noise(2, 8, 8)
    weights = weights / weights.mean(dim=(1, 2), keepdim=True)
    gain = criterion.loss(student, teacher, weights) - criterion.loss(student, teacher)
    assert ((weights - 1) * cells).sum().item() == pytest.approx(gain.item(), rel=0.05)


@pytest.mark.parametrize("preconditioner", [1.0, 0.3])
def test_rewards_add_up_to_the_measured_gain(preconditioner: float) -> None:
    """Held-back loss after an unweighted update, less that after a weighted one, both really taken."""
    torch.manual_seed(0)
    net, teacher = (nn.Conv2d(1, 1, 3, padding=1).double() for _ in range(2))
    net.bias = None
    images, held_back = noise(2, 1, 16, 16, dtype=torch.float64), noise(2, 1, 16, 16, seed=1, dtype=torch.float64)
    target, rate = noise(2, 1, 16, 16, seed=2, dtype=torch.float64), 1e-4 * preconditioner
    weights, criterion, start = weights_of(noise(2, 8, 8, dtype=torch.float64)), AKD(), net.weight.detach().clone()

    def distilled(model: nn.Module) -> list[Distilled]:
        return [Distilled("x", "pixels", model(images))]

    def held_back_loss() -> Tensor:
        return (net(held_back) - target).square().mean()

    def after(loss: Tensor) -> float:
        (gradient,) = torch.autograd.grad(loss, [net.weight])
        net.weight.data = start - rate * gradient
        result = held_back_loss().item()
        net.weight.data = start.clone()
        return result

    expected = [Distilled("x", "pixels", teacher(images).detach())]
    gain = after(criterion.loss(distilled(net), expected)) - after(criterion.loss(distilled(net), expected, weights))
    before = cell_losses(criterion, distilled(net), expected, 8)
    (gradient,) = torch.autograd.grad(held_back_loss(), [net.weight])
    net.weight.data = start - rate * gradient
    rewards = place_rewards(weights, before, cell_losses(criterion, distilled(net), expected, 8))
    assert abs(gain) > 0
    assert rewards.sum().item() == pytest.approx(gain, rel=0.02)


def test_rewards_are_of_updates_of_equal_length() -> None:
    """As above, both updates cut to one length: a place gains nothing by making its batch's gradient longer."""
    torch.manual_seed(0)
    net, teacher = (nn.Conv2d(1, 1, 3, padding=1).double() for _ in range(2))
    net.bias = None
    images, held_back = noise(2, 1, 16, 16, dtype=torch.float64), noise(2, 1, 16, 16, seed=1, dtype=torch.float64)
    target, criterion, start = noise(2, 1, 16, 16, seed=2, dtype=torch.float64), AKD(), net.weight.detach().clone()
    weights = 1 + 1e-3 * noise(2, 8, 8, dtype=torch.float64)
    weights = weights / weights.mean(dim=(1, 2), keepdim=True)
    expected = [Distilled("x", "pixels", teacher(images).detach())]

    def distilled() -> list[Distilled]:
        return [Distilled("x", "pixels", net(images))]

    def held_back_loss() -> Tensor:
        return (net(held_back) - target).square().mean()

    def gradient_of(loss: Tensor) -> Tensor:
        return torch.autograd.grad(loss, [net.weight])[0]

    own, other = gradient_of(criterion.loss(distilled(), expected)), gradient_of(held_back_loss())

    def gain(update: Tensor) -> float:
        net.weight.data = start - 1e-5 * update / update.norm() * own.norm()
        result = held_back_loss().item()
        net.weight.data = start.clone()
        return result

    measured = gain(own) - gain(gradient_of(criterion.loss(distilled(), expected, weights)))
    before = cell_losses(criterion, distilled(), expected, 8)
    net.weight.data = start - 1e-5 * (other - (other * own).sum() / (own * own).sum() * own)
    rewards = place_rewards(weights, before, cell_losses(criterion, distilled(), expected, 8)).sum().item()
    assert abs(measured) > 0 and rewards == pytest.approx(measured, rel=0.05)


@pytest.mark.parametrize("steps", [0, 1])
def test_a_lesson_steps_along_what_its_batch_has_not_in_common(tiny: TinyTask, steps: int) -> None:
    """Losses after ``grad(h) - r u``, preconditioned as Adam would, against the same taken by hand."""
    student, spark = Student(tiny, trace_layers(tiny)), Spark()
    parameters = list(student.model.parameters())
    optimizer = torch.optim.Adam(parameters, lr=1e-3)
    generator = torch.Generator().manual_seed(0)
    for p in parameters:
        p.grad = torch.randn(p.shape, generator=generator)
    for _ in range(steps):
        optimizer.step()
    own, held_back = ([torch.randn(p.shape, generator=generator) for p in parameters] for _ in range(2))
    batch = tiny.finetuning()[0]
    expected = [replace(d, tensor=d.tensor + 1) for d in tiny.distilled(student.outputs(batch))]
    draw = spark.draw(torch.zeros(32, 4, 8, 8))
    roots = [(optimizer.state[p]["exp_avg_sq"] / 0.001).sqrt() + 1e-8 if steps else 1.0 for p in parameters]
    common = sum((h * u / root).sum() for h, u, root in zip(held_back, own, roots, strict=True))
    whole = sum((u * u / root).sum() for u, root in zip(own, roots, strict=True))
    share = max(0.0, float(common / whole))
    before = [p.detach().clone() for p in parameters]
    begun = Begun(draw, torch.zeros(32, 8, 8), batch, expected, own)
    found = end(begun, student, spark, optimizer, student.outputs, held_back)
    assert all(torch.equal(p, b) for p, b in zip(parameters, before, strict=True))
    for p, h, u, root in zip(parameters, held_back, own, roots, strict=True):
        p.data -= 1e-3 * (h - share * u) / root
    after = cell_losses(spark.criterion, tiny.distilled(student.outputs(batch)), expected, 8)
    torch.testing.assert_close(found.after, after, rtol=1e-3, atol=1e-6)
    assert found.draw is draw and spark.common_share(float("nan")) == pytest.approx(share, rel=1e-4)


def test_lessons_in_passing_know_their_own_gradient(tiny: TinyTask, monkeypatch: pytest.MonkeyPatch) -> None:
    """What stood in ``grad`` at the lesson's step, not at the next one, which is the held-back one."""
    seen: list[tuple[list[Any], list[Any]]] = []
    real = lessons.end

    def spied(begun: Begun, *arguments: Any) -> Any:
        seen.append((list(begun.own), list(arguments[-1])))
        return real(begun, *arguments)

    monkeypatch.setattr(lessons, "end", spied)
    tuned(tiny, Spark(every=2), 5)
    assert len(seen) == 2
    for own, held_back in seen:
        assert len(own) == len(held_back) and all(
            u is not None and h is not None for u, h in zip(own, held_back, strict=True)
        )
        assert not all(torch.equal(u, h) for u, h in zip(own, held_back, strict=True))


def test_lessons_in_passing_step_from_where_losses_were_found(tiny: TinyTask, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the optimizer has done since is no merit of any place."""
    differences: list[float] = []

    def spied(begun: Begun, student: Student, spark: Spark, optimizer: Any, forward: Any, held_back: Any) -> Any:
        nowhere = [None] * len(held_back)  # a step of no length
        for weights in (begun.weights, ()):
            found = end(replace(begun, own=(), weights=weights), student, spark, optimizer, forward, nowhere)
            differences.append((found.after - begun.before).abs().max().item())
        return end(begun, student, spark, optimizer, forward, held_back)

    monkeypatch.setattr(lessons, "end", spied)
    tuned(tiny, Spark(every=2), 3)
    stood, went = differences
    assert stood < 1e-7 < 1e-6 < went


def test_the_common_share_is_a_running_mean_between_none_and_all() -> None:
    spark = Spark()
    assert spark.common_share(float("nan")) == 0.0
    assert spark.common_share(0.5) == pytest.approx(0.5)
    assert spark.common_share(0.1) == pytest.approx((0.9 * 0.1 * 0.5 + 0.1 * 0.1) / 0.19)
    assert spark.common_share(1e6) == 1.0 and spark.common_share(-1e9) == 0.0


def tuned(tiny: TinyTask, spark: Spark | None, steps: int) -> Student:
    student = Student(tiny, trace_layers(tiny))
    student.apply(random_plan(student.infos, seed=0))
    assert finetune_all(student, steps, spark=spark)
    return student


def test_training_with_spark_teaches_the_policy_and_leaves_no_trace_in_the_file(tiny: TinyTask, tmp_path: Path) -> None:
    """Same tensors, same shapes, same bytes on disk as a student trained without; only values differ."""
    spark = Spark(every=4)
    with_policy, without = tuned(tiny, spark, 21), tuned(tiny, None, 21)  # a lesson ends a step later
    assert len(spark.log) == 5 and spark.reinforce.updates == 5
    shapes = [{n: (t.shape, t.dtype) for n, t in s.model.state_dict().items()} for s in (with_policy, without)]
    assert shapes[0] == shapes[1]
    assert [type(m) for m in with_policy.model.modules()] == [type(m) for m in without.model.modules()]
    sizes = [save_hsq(s, tmp_path / f"{i}.hsq") for i, s in enumerate((with_policy, without))]
    assert sizes[0] == sizes[1]
    values = zip(with_policy.model.parameters(), without.model.parameters(), strict=True)
    assert any(not torch.equal(a, b) for a, b in values)


class LogitsAlone(TinyTask):
    """Without the feature maps that give its logits places."""

    def distilled(self, outputs: Any) -> Any:
        return [item for item in super().distilled(outputs) if item.kind == "logits"]


def test_a_policy_needs_places() -> None:
    task = LogitsAlone()
    said = r"what is distilled here \(logits\) has none: let the task distil its feature maps too, or choose akd"
    with pytest.raises(InputError, match=said):
        HSQEnv(task, distillation="akd+spark", sensitivities=np.zeros((7, 12)))
    with pytest.raises(InputError, match=said):
        finetune_all(Student(task, trace_layers(task)), 3, spark=Spark())
    assert finetune_all(Student(task, trace_layers(task)), 3)


def test_a_policy_that_has_not_learned_distils_like_akd(tiny: TinyTask) -> None:
    """All weights are 1 then, up to rounding."""
    one, other = tuned(tiny, Spark(learning=False), 3), tuned(tiny, None, 3)
    for a, b in zip(one.model.parameters(), other.model.parameters(), strict=True):
        np.testing.assert_allclose(a.detach(), b.detach(), rtol=1e-4, atol=1e-5)


def test_same_seed_same_student(tiny: TinyTask) -> None:
    one, same, other = (tuned(tiny, Spark(every=3, seed=seed), 8) for seed in (1, 1, 2))
    pairs = zip(one.model.parameters(), same.model.parameters(), other.model.parameters(), strict=True)
    equal = [(torch.equal(a, b), torch.equal(a, c)) for a, b, c in pairs]
    assert all(a for a, _ in equal) and not all(b for _, b in equal)


def test_a_lesson_leaves_the_student_as_it_was(tiny: TinyTask) -> None:
    student = Student(tiny, trace_layers(tiny))
    parameters = list(student.model.parameters())
    for parameter in parameters:
        parameter.requires_grad_(True)
    before = [p.detach().clone() for p in parameters]
    spark = Spark()
    batch, held_back = tiny.finetuning()[:2]
    optimizer = torch.optim.Adam(parameters, lr=1e-3)

    def forward(given: Any) -> dict[str, Any]:
        return run(student.stages, {"images": given.images})

    def teacher(given: Any) -> list[Distilled]:
        return [replace(d, tensor=d.tensor + 1) for d in tiny.distilled(forward(given))]

    found = lesson(student, spark, optimizer, forward, teacher, batch, held_back)
    assert all(torch.equal(p, b) and p.grad is None for p, b in zip(parameters, before, strict=True))
    assert found.draw.weights.shape == found.before.shape == found.after.shape == (32, 8, 8)
    assert not torch.equal(found.before, found.after)


def test_a_task_that_cannot_tell_errors_shows_none(tiny: TinyTask) -> None:
    batch = tiny.finetuning()[0]
    state = run(tiny.stages(tiny.teacher), {"images": batch.images})
    (errors,) = error_maps(tiny, state, batch)
    assert errors.shape == (32, 1, 1) and not errors.any()


@dataclass
class Located(TinyTask):
    """The tiny task with errors per quarter."""

    def __init__(self, tiny: TinyTask) -> None:
        self.__dict__.update(tiny.__dict__)

    def error_maps(self, outputs: dict[str, Any], batch: Any) -> list[Tensor]:
        wrong = outputs["logits"].argmax(dim=-1) != batch.labels
        return [wrong.float().unflatten(1, (2, 2))]


def test_a_task_that_can_tell_errors_is_asked(tiny: TinyTask) -> None:
    task = Located(tiny)
    spark, seen = Spark(every=100), []
    signals = spark.signals
    spark.signals = lambda images, errors, *rest: (seen.append(errors[0]), signals(images, errors, *rest))[1]  # type: ignore
    tuned(task, spark, 2)
    assert [tuple(e.shape) for e in seen] == [(32, 2, 2)] * 2 and seen[0].any()


def test_a_policy_that_has_learned_nothing_trains_as_uniform_distillation_does(tiny: TinyTask) -> None:
    """The means are all alike at first, and draws that explore do not reach the student."""
    student, uniform = tuned(tiny, Spark(every=100), 6), tuned(tiny, None, 6)
    for a, b in zip(student.model.parameters(), uniform.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_state_goes_on_exactly(tiny: TinyTask) -> None:
    one, other = Spark(every=2, seed=1), Spark(every=2, seed=5)
    tuned(tiny, one, 5)
    other.load_state_dict(one.state_dict())
    students = [tuned(tiny, spark, 5) for spark in (one, other)]
    for a, b in zip(students[0].model.parameters(), students[1].model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert one.reinforce.updates == other.reinforce.updates == 4
