"""What a student is worth: against a loop that keeps nothing."""

import copy
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from tiny_task import TinyNet, TinyTask
from torch import Tensor

from detectors.errors import InputError
from hsq_env.distillation import AKD, JUDGING_WEIGHTS
from hsq_env.judge import Judge, quick_form
from hsq_env.shortcuts import Shortcuts
from hsq_env.states import Route, run, straight
from hsq_env.task import Stage
from hsq_env.teacher import Teacher


class Quick(TinyTask):
    """The same metric from numbers."""

    def quick_predictions(self, outputs: dict[str, Any], batch: Any) -> Tensor:
        return self.predictions(outputs, batch).double()

    def quick_metric(self, predictions: Sequence[Any]) -> float:
        return torch.cat(list(predictions)).mean().item()


class OwnMetric(Quick):
    def metric(self, predictions: Sequence[Any], split: str) -> float:
        return super().metric(predictions, split) / 2


class OwnPredictions(Quick):
    def predictions(self, outputs: dict[str, Any], batch: Any) -> Tensor:
        return ~super().predictions(outputs, batch)


class BothForms(OwnMetric):
    def quick_metric(self, predictions: Sequence[Any]) -> float:
        return super().quick_metric(predictions) / 2


class AllInOne(TinyTask):
    """A metric of its own and its quick form."""

    def predictions(self, outputs: dict[str, Any], batch: Any) -> Tensor:
        return ~super().predictions(outputs, batch)

    def metric(self, predictions: Sequence[Any], split: str) -> float:
        return {"search": 1.0, "test": 2.0}[split] * super().metric(predictions, split)

    def quick_predictions(self, outputs: dict[str, Any], batch: Any) -> Tensor:
        return self.predictions(outputs, batch).double()

    def quick_metric(self, predictions: Sequence[Any]) -> float:
        return torch.cat(list(predictions)).mean().item()


class Restoring(TinyTask):
    def untreated_metric(self, split: str) -> float:
        return {"search": 0.25, "test": 0.5}[split]


class NoNumbers(TinyTask):
    """Its metric must not be asked about outputs that are no numbers."""

    def predictions(self, outputs: dict[str, Any], batch: Any) -> Tensor:
        assert outputs["logits"].isfinite().all()
        return super().predictions(outputs, batch)


def like(tiny: TinyTask, kind: type[TinyTask]) -> TinyTask:
    """Another kind of task with the same teacher and data."""
    made = object.__new__(kind)
    made.__dict__.update(vars(tiny))
    return made


def student(tiny: TinyTask, seed: int = 0, noise: float = 0.1) -> TinyNet:
    """The teacher with noise on every weight."""
    model = copy.deepcopy(tiny.teacher)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter += noise * torch.randn(parameter.shape, generator=generator)
    return model


def metric_of(task: TinyTask, stages: Sequence[Stage]) -> float:
    batches = task.evaluation("search")
    with torch.no_grad():
        found = [task.predictions(run(stages, {"images": batch.images}), batch) for batch in batches]
    return task.metric(found, "search")


def divergence_of(task: TinyTask, stages: Sequence[Stage], teacher: Sequence[Stage]) -> float:
    losses = []
    for batch in task.evaluation("search"):
        with torch.no_grad():
            own, expected = (task.distilled(run(s, {"images": batch.images})) for s in (stages, teacher))
            losses.append(AKD(weights=JUDGING_WEIGHTS).loss(own, expected).item())
    return sum(losses) / len(losses)


@pytest.mark.parametrize("switches", [Shortcuts(), Shortcuts.none()], ids=["shortcuts", "none"])
@pytest.mark.parametrize("kind", [TinyTask, Quick, OwnMetric, OwnPredictions, BothForms, AllInOne])
def test_accuracy_and_divergence(tiny: TinyTask, kind: type[TinyTask], switches: Shortcuts) -> None:
    task = like(tiny, kind)
    stages, teacher = task.stages(student(tiny)), task.stages(task.teacher)
    accuracy, divergence = Judge(Teacher(task), switches).measure(stages)
    assert accuracy == pytest.approx(metric_of(task, stages) / metric_of(task, teacher), rel=1e-6)
    assert 0 < accuracy != 1
    assert divergence == pytest.approx(divergence_of(task, stages, teacher), rel=1e-6) and divergence > 0


@pytest.mark.parametrize("switches", [Shortcuts(), Shortcuts.none()], ids=["shortcuts", "none"])
def test_the_teacher_is_worth_one(tiny: TinyTask, switches: Shortcuts) -> None:
    judge = Judge(Teacher(tiny), switches)
    assert judge.measure(tiny.stages(tiny.teacher)) == (1.0, 0.0)


@pytest.mark.parametrize("switches", [Shortcuts(), Shortcuts.none()], ids=["shortcuts", "none"])
def test_accuracy_begins_where_no_network_ends(tiny: TinyTask, switches: Shortcuts) -> None:
    task = like(tiny, Restoring)
    stages = task.stages(student(tiny))
    own, whole = metric_of(task, stages), metric_of(task, task.stages(task.teacher))
    accuracy, _ = Judge(Teacher(task), switches).measure(stages)
    assert accuracy == pytest.approx((own - 0.25) / (whole - 0.25), rel=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("kind", [NoNumbers, Quick])
@pytest.mark.parametrize("layer", ["logits", "head.0"])
def test_outputs_that_are_no_numbers(tiny: TinyTask, kind: type[TinyTask], layer: str, bad: float) -> None:
    task, model = like(tiny, kind), student(tiny)
    model.get_submodule(layer).weight[0, 0] = bad
    accuracy, divergence = Judge(Teacher(task), Shortcuts()).measure(task.stages(model))
    assert math.isnan(accuracy) and math.isnan(divergence)


def test_one_bad_map_among_good_ones_is_enough(tiny: TinyTask) -> None:
    class Blind(Quick):
        def distilled(self, outputs: dict[str, Any]) -> list[Any]:
            logits, features = super().distilled(outputs)
            features.tensor[:, 3, 1, 2] *= self.factor
            return [logits, features]

    task = like(tiny, Blind)
    task.factor = 1.0
    judge = Judge(Teacher(task), Shortcuts())
    task.factor = math.nan
    accuracy, divergence = judge.measure(task.stages(student(tiny)))
    assert math.isnan(accuracy) and math.isnan(divergence)


@pytest.mark.parametrize("bad", [0, 1])
def test_one_bad_batch_among_good_ones_is_enough(tiny: TinyTask, bad: int) -> None:
    """Batches of 32 and of 16 images."""

    class Uneven(Quick):
        def distilled(self, outputs: dict[str, Any]) -> list[Any]:
            logits, features = super().distilled(outputs)
            if len(features.tensor) == self.spoilt:
                features.tensor[0, 0, 0, 0] = math.nan
            return [logits, features]

    task = like(tiny, Uneven)
    whole, other = tiny.evaluation("search")
    task._evaluation = {"search": [whole, type(other)(other.images[:16], other.labels[:16])]}
    task.spoilt = 0
    judge = Judge(Teacher(task), Shortcuts())
    assert judge.measure(task.stages(task.teacher)) == pytest.approx((1.0, 0.0))
    task.spoilt = (32, 16)[bad]
    accuracy, divergence = judge.measure(task.stages(student(tiny)))
    assert math.isnan(accuracy) and math.isnan(divergence)


def test_the_quick_form_must_belong_to_the_metric(tiny: TinyTask) -> None:
    kinds = (TinyTask, Quick, OwnMetric, OwnPredictions, BothForms, AllInOne)
    taken = {kind: quick_form(like(tiny, kind)) for kind in kinds}
    assert {kind: form is not None for kind, form in taken.items()} == {
        TinyTask: False,
        Quick: True,
        OwnMetric: False,
        OwnPredictions: False,
        BothForms: True,
        AllInOne: True,
    }
    assert isinstance(taken[Quick], Quick)


def test_the_quick_form_is_used_where_its_switch_is_on(tiny: TinyTask, monkeypatch: pytest.MonkeyPatch) -> None:
    task = like(tiny, Quick)
    on, off = (Judge(Teacher(task), Shortcuts(metric=switch)) for switch in (True, False))
    stages = task.stages(student(tiny))
    expected = on.measure(stages)
    monkeypatch.setattr(Quick, "quick_metric", lambda self, predictions: on.scale.teacher / 4)
    assert on.measure(stages) == (pytest.approx(0.25), expected[1])
    assert off.measure(stages)[0] == pytest.approx(expected[0], rel=1e-6)


def test_the_teacher_runs_again_where_its_switch_is_off(tiny: TinyTask) -> None:
    stages = tiny.stages(student(tiny))
    for switch in (True, False):
        judge = Judge(Teacher(tiny), Shortcuts(teacher=switch))
        expected = judge.measure(stages)
        judge.expected = [tiny.distilled(run(stages, {"images": batch.images})) for batch in judge.kept.batches]
        judge.scale = type(judge.scale)(judge.scale.teacher * 2, judge.scale.untreated)
        half = (expected[0] / 2, 0.0)
        assert judge.measure(stages) == (pytest.approx(half) if switch else expected)


def test_states_before_the_block_are_kept(tiny: TinyTask) -> None:
    one, other = student(tiny, 1), student(tiny, 2)
    judge = Judge(Teacher(tiny), Shortcuts())
    fresh = [judge.measure_anew(tiny.stages(model)) for model in (one, other)]
    judge.kept.enter(straight(2, 4))
    assert judge.measure(tiny.stages(one)) == fresh[0]
    mixed = copy.deepcopy(other)
    mixed.stem, mixed.block1 = one.stem, one.block1
    assert judge.measure(tiny.stages(other)) == judge.measure_anew(tiny.stages(mixed)) != fresh[1]
    assert judge.measure_anew(tiny.stages(other)) == fresh[1]  # nothing kept is used, and nothing kept is lost
    assert judge.measure(tiny.stages(other)) == judge.measure_anew(tiny.stages(mixed))
    assert judge.kept.route == Route(2, (), (2, 3))


def test_nothing_is_kept_where_its_switch_is_off(tiny: TinyTask) -> None:
    judge = Judge(Teacher(tiny), Shortcuts(resume=False))
    one, other = (tiny.stages(student(tiny, seed)) for seed in (1, 2))
    judge.kept.enter(straight(2, 4))
    judge.measure(one)
    assert judge.measure(other) == judge.measure_anew(other)


def test_forks_keep_states_of_their_own(tiny: TinyTask) -> None:
    judge = Judge(Teacher(tiny), Shortcuts())
    one, other = (tiny.stages(student(tiny, seed)) for seed in (1, 2))
    fork = judge.fork()
    assert fork.teacher is judge.teacher and fork.expected is judge.expected
    judge.kept.enter(straight(3, 4))
    first = judge.measure(one)
    fork.kept.enter(straight(3, 4))
    second = fork.measure(other)
    assert first == judge.measure_anew(one) == judge.measure(one)
    assert second == judge.measure_anew(other) == fork.measure(other)


def test_measuring_needs_no_gradients(tiny: TinyTask) -> None:
    model = student(tiny).requires_grad_(True)
    grown: list[bool] = []
    model.logits.register_forward_hook(lambda module, inputs, output: grown.append(output.requires_grad))
    Judge(Teacher(tiny), Shortcuts()).measure(tiny.stages(model))
    assert grown == [False, False]


def test_a_teacher_that_knows_nothing_is_refused(tiny: TinyTask) -> None:
    class Hopeless(TinyTask):
        def metric(self, predictions: Sequence[Any], split: str) -> float:
            return 0.0

    with pytest.raises(InputError, match="The teacher of task 'tiny' scores 0 on the search split"):
        Judge(Teacher(like(tiny, Hopeless)), Shortcuts())
