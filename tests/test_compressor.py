"""What a step does to the student, without an environment."""

import math
from typing import Any

import pytest
import torch
from test_finetuning import BadLoss, changed, parameters
from tiny_task import TinyNet, TinyTask
from torch import Tensor, nn

from detectors.errors import InputError
from hsq_env.choices import Choice
from hsq_env.compressor import Compressor
from hsq_env.layers import CompressedLayer
from hsq_env.prefixes import Outcome
from hsq_env.repair import FINETUNE_SCOPES
from hsq_env.shortcuts import Shortcuts
from hsq_env.student import evaluate

CHOICES = (Choice(8), Choice(2, 0.5), Choice(4, 0.75), Choice(2), Choice(4), Choice(2, 0.25), Choice(8, 0.5))


class BadGradient(TinyTask):
    """A task loss that is a number, with a gradient that is none."""

    def __init__(self, tiny: TinyTask) -> None:
        self.__dict__.update(tiny.__dict__)

    def task_loss(self, outputs: dict[str, Any], batch: Any) -> Tensor:
        x = outputs["logits"]
        return super().task_loss(outputs, batch) + (x - x.detach()).abs().sum().sqrt()


def walk(compressor: Compressor) -> list[float]:
    """Compress every layer; the accuracies."""
    compressor.reset()
    accuracies = []
    for choice in CHOICES:
        accuracies.append(step(compressor, choice).accuracy)
    return accuracies


def step(compressor: Compressor, choice: Choice, alpha: float = 0.3) -> Outcome:
    """One layer, looked up or computed."""
    known = compressor.revisit(choice, alpha)
    if known is not None:
        return known
    compressor.compress(choice)
    finite = compressor.finetune(alpha)
    assert finite
    return compressor.measure(choice, alpha, finite)


def test_accuracy_is_the_metric_over_the_teachers(tiny: TinyTask) -> None:
    compressor = Compressor(tiny)
    teacher = evaluate(tiny, tiny.stages(tiny.teacher), "search")
    assert compressor.judge.scale.teacher == teacher
    assert compressor.judge.measure(compressor.student.stages) == (1.0, 0.0)
    accuracies = walk(compressor)
    assert accuracies[-1] == evaluate(tiny, compressor.student.stages, "search") / teacher
    assert len(set(accuracies)) > 2


@pytest.mark.parametrize("scope", FINETUNE_SCOPES)
def test_kept_states_change_nothing(tiny: TinyTask, scope: str) -> None:
    kept = Compressor(tiny, finetune_scope=scope)
    recomputed = Compressor(tiny, finetune_scope=scope, shortcuts=Shortcuts.none())
    assert walk(kept) == walk(recomputed)
    for name, parameter in kept.student.model.named_parameters():
        assert torch.equal(parameter, recomputed.student.model.get_parameter(name))


def test_reset_gives_the_same_episode_again(tiny: TinyTask) -> None:
    compressor = Compressor(tiny)
    first = walk(compressor)
    after = parameters(compressor.student)
    assert walk(compressor) == first
    assert changed(compressor.student, after) == set()


def test_without_steps_only_the_layer_is_compressed(tiny: TinyTask) -> None:
    compressor = Compressor(tiny, step_minibatches=0)
    before = parameters(compressor.student)
    compressor.compress(Choice(2, 0.5))
    assert compressor.finetune(0.3)
    assert changed(compressor.student, before) == set()
    assert compressor.student.layers[0].choice == Choice(2, 0.5)


def test_minibatches_depend_on_the_layer_alone(tiny: TinyTask) -> None:
    """Three steps each on a pool of four: layer 2 takes batches 2, 3 and 0."""
    seen: list[int] = []

    class Noting(TinyTask):
        def __init__(self) -> None:
            self.__dict__.update(tiny.__dict__)

        def task_loss(self, outputs: dict[str, Any], batch: Any) -> Tensor:
            seen.append(next(i for i, other in enumerate(self.finetuning()) if other is batch))
            return super().task_loss(outputs, batch)

    compressor = Compressor(Noting(), step_minibatches=3)
    for _ in range(3):
        step(compressor, Choice(4))
    assert seen == [0, 1, 2, 3, 0, 1, 2, 3, 0]


@pytest.mark.parametrize("kind", ["loss", "gradient"])
def test_a_diverged_block_is_put_back(tiny: TinyTask, kind: str) -> None:
    task = BadLoss(tiny, 3) if kind == "loss" else BadGradient(tiny)  # the loss fails in the second layer's second step
    compressor = Compressor(task, step_minibatches=2)
    compressor.compress(Choice(4, 0.5))
    finite = compressor.finetune(0.3)
    assert bool(finite) is (kind == "loss")
    compressor.measure(Choice(4, 0.5), 0.3, finite)
    compressor.compress(Choice(2))
    before, judged = parameters(compressor.student), compressor.judge.measure(compressor.student.stages)
    stored = _stored(compressor)
    finite = compressor.finetune(0.3)
    assert not finite
    assert changed(compressor.student, before) == set()
    assert all(torch.equal(a, b) for a, b in zip(_stored(compressor), stored, strict=True))
    outcome = compressor.measure(Choice(2), 0.3, finite)
    assert outcome == Outcome(judged[0], False, judged[1])
    compressor.reset()
    compressor.revisit(Choice(4, 0.5), 0.3)
    assert compressor.revisit(Choice(2), 0.3) == outcome


def _stored(compressor: Compressor) -> list[Tensor]:
    return [layer.weight_and_bias()[0].clone() for layer in compressor.student.layers]


def test_outputs_that_are_no_numbers_have_no_accuracy(tiny: TinyTask) -> None:
    compressor = Compressor(tiny)
    layer = compressor.student.layers[6]
    assert isinstance(layer, CompressedLayer) and layer.bias is not None
    layer.bias.fill_(math.inf)
    assert all(map(math.isnan, compressor.judge.measure(compressor.student.stages)))


def test_a_model_without_layers_is_refused(tiny: TinyTask) -> None:
    class Layerless(TinyTask):
        def __init__(self) -> None:
            self.__dict__.update(tiny.__dict__)

        def stages(self, model: nn.Module) -> list:  # type: ignore[type-arg]
            return []

    with pytest.raises(InputError, match=r"'tiny' has no Conv2d or Linear layer"):
        Compressor(Layerless())


def test_a_teacher_that_scores_nothing_is_refused(tiny: TinyTask) -> None:
    class Hopeless(TinyTask):
        def __init__(self) -> None:
            self.__dict__.update(tiny.__dict__)

        def metric(self, predictions: Any, split: str) -> float:
            return self.score

        score = 0.0

    task = Hopeless()
    with pytest.raises(InputError, match="'tiny' scores 0 on the search split"):
        Compressor(task)
    task.score = math.nan
    with pytest.raises(InputError, match="'tiny' scores nan on the search split"):
        Compressor(task)


def test_the_teacher_stays_as_it_is(tiny: TinyTask) -> None:
    before = {name: p.clone() for name, p in tiny.teacher.named_parameters()}
    walk(Compressor(tiny, finetune_scope="all"))
    assert isinstance(tiny.teacher, TinyNet)
    assert all(torch.equal(p, before[name]) for name, p in tiny.teacher.named_parameters())
