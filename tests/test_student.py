"""The student: what is known of its layers, what it takes and what it gives back."""

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from helpers import outputs, random_plan, student_logits
from pyramid_task import PyramidTask
from tiny_task import TinyStage, TinyTask
from torch import Tensor, nn

from detectors.errors import InputError
from hsq_env.choices import Choice, Plan
from hsq_env.file import student_bytes
from hsq_env.layer_info import LayerInfo, trace_layers
from hsq_env.layers import CompressedLayer
from hsq_env.long_finetuning import finetune_all
from hsq_env.quantizers import activation_range
from hsq_env.student import Student, evaluate


@pytest.fixture(scope="module")
def pyramid() -> PyramidTask:
    """Not to be changed."""
    return PyramidTask()


# ---- tracing


def test_layers_come_in_the_order_in_which_they_run(infos: tuple[LayerInfo, ...]) -> None:
    names = ["stem", "block1.conv1", "block1.conv2", "block2.conv1", "block2.conv2", "head.0", "logits"]
    assert [info.name for info in infos] == names
    assert [info.stage for info in infos] == [0, 1, 1, 2, 2, 3, 3]
    assert [info.block for info in infos] == ["stem", "block1", "block1", "block2", "block2", "head", "head"]


def test_order_is_not_that_of_registration(pyramid: PyramidTask) -> None:
    infos = trace_layers(pyramid)
    assert [(info.name, info.calls) for info in infos] == [("stem", 1), ("neck", 3), ("head", 3)]


def test_shapes_and_work(infos: tuple[LayerInfo, ...], pyramid: PyramidTask) -> None:
    stem, _, _, _, _, head, logits = infos
    assert (stem.shape, stem.has_bias, stem.stride, stem.groups) == ((16, 1, 3, 3), True, 2, 1)
    assert (head.shape, head.has_bias, logits.shape) == ((16, 16, 1, 1), False, (3, 16))
    # positions of the output per image times weights
    assert [stem.macs, head.macs, logits.macs] == [64 * 144, 64 * 256, 4 * 48]
    assert [info.macs for info in trace_layers(pyramid)] == [64 * 216, 3 * 64 * 64, (64 + 16 + 4) * 288]


class ChannelsLast(nn.Module):
    """A linear layer over a map whose channels come last, as in Swin and ConvNeXt."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mix = nn.Conv2d(1, 6, 3, stride=2, padding=1), nn.Linear(6, 10)


def test_work_of_a_linear_layer_over_a_map() -> None:
    class Task(TinyTask):
        def stages(self, model: nn.Module) -> Any:
            assert isinstance(model, ChannelsLast)
            mix = lambda state: {"x": model.mix(model.stem(state["images"]).permute(0, 2, 3, 1))}  # noqa: E731
            return [TinyStage("all", "all", frozenset({"images"}), mix)]

    task = Task()
    task.teacher = ChannelsLast()
    height, width = (side // 2 for side in task.calibration()[0].images.shape[2:])
    assert [info.macs for info in trace_layers(task)] == [height * width * 54, height * width * 60]


def test_input_statistics_equal_numpy(pyramid: PyramidTask) -> None:
    stem, neck, head = trace_layers(pyramid)
    images = np.concatenate([batch.images.numpy() for batch in pyramid.calibration()]).astype(np.float64)
    assert stem.input_ranges == ((images.min(), images.max()),)
    assert stem.input_mean == pytest.approx(images.mean(), rel=1e-9)
    assert stem.input_std == pytest.approx(images.std(), rel=1e-9)
    assert stem.input_zeros == 0.0
    with torch.no_grad():
        after = [torch.relu(pyramid.teacher.stem(batch.images)).numpy() for batch in pyramid.calibration()]
    top = max(x.max() for x in after)
    assert neck.input_ranges == tuple((0.0, float(top * np.float32(4) ** level)) for level in range(3))
    assert neck.input_zeros == pytest.approx(np.mean([(x == 0).mean() for x in after]))
    maps = [_levels(pyramid, batch.images) for batch in pyramid.calibration()]
    assert head.input_ranges == tuple(
        (min(x.min() for x in m), max(x.max() for x in m)) for m in zip(*maps, strict=True)
    )
    assert len({low for low, _ in head.input_ranges}) == 3
    everything = np.concatenate([x.ravel() for levels in maps for x in levels]).astype(np.float64)
    assert head.input_mean == pytest.approx(everything.mean(), rel=1e-6)
    assert head.input_std == pytest.approx(everything.std(), rel=1e-6)


def _levels(task: PyramidTask, images: torch.Tensor) -> list[np.ndarray]:
    """The head's three inputs."""
    state: dict[str, Any] = {"images": images}
    with torch.no_grad():
        for stage in task.stages(task.teacher)[:2]:
            state = stage.run(state)
    return [x.numpy() for x in state["levels"]]


def test_tracing_leaves_the_teacher_alone(pyramid: PyramidTask) -> None:
    trace_layers(pyramid)
    assert not any(module._forward_hooks for module in pyramid.teacher.modules())


# ---- choices


def test_a_fresh_student_is_the_teacher(tiny: TinyTask, infos: tuple[LayerInfo, ...]) -> None:
    expected = outputs(tiny, tiny.teacher, tiny.evaluation("test")[0].images)["logits"]
    assert torch.equal(student_logits(Student(tiny, infos)), expected)


def test_reset_restores_the_teacher_exactly(tiny: TinyTask, infos: tuple[LayerInfo, ...]) -> None:
    student = Student(tiny, infos)
    expected = student_logits(student)
    student.apply(random_plan(infos, 0))
    assert finetune_all(student, 2)
    assert not torch.equal(student_logits(student), expected)
    student.reset()
    assert torch.equal(student_logits(student), expected)
    assert all(layer.choice is None for layer in student.layers)


def test_a_student_does_not_change_the_teacher(tiny: TinyTask, infos: tuple[LayerInfo, ...]) -> None:
    before = {name: tensor.clone() for name, tensor in tiny.teacher.state_dict().items()}
    student = Student(tiny, infos)
    student.apply(random_plan(infos, 1))
    finetune_all(student, 2)
    after = tiny.teacher.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[name], before[name]) for name in before)


def test_apply_starts_from_the_teacher(tiny: TinyTask, infos: tuple[LayerInfo, ...]) -> None:
    first, second = Student(tiny, infos), Student(tiny, infos)
    first.apply(random_plan(infos, 2))
    finetune_all(first, 2)
    for student in (first, second):
        student.apply(random_plan(infos, 3))
    assert torch.equal(student_logits(first), student_logits(second))


def test_plan_is_what_was_applied(tiny: TinyTask, infos: tuple[LayerInfo, ...]) -> None:
    student, plan = Student(tiny, infos), random_plan(infos, 4)
    student.apply(plan)
    assert student.plan() == plan


def test_activations_have_a_range_per_call(pyramid: PyramidTask) -> None:
    infos = trace_layers(pyramid)
    student = Student(pyramid, infos)
    student.compress(1, Choice(4))
    lows_and_highs = infos[1].input_ranges
    assert student.layers[1].activations == tuple(activation_range(low, high, 8) for low, high in lows_and_highs)
    assert len({found.scale for found in student.layers[1].activations}) == 3


def test_ranges_follow_the_calls_over_several_batches(pyramid: PyramidTask) -> None:
    student = Student(pyramid, trace_layers(pyramid))
    for index in range(3):
        student.compress(index, Choice(8))
    first, _ = pyramid.evaluation("test")
    once, twice = student.outputs(first)["logits"], student.outputs(first)["logits"]
    assert torch.equal(once, twice)
    by_hand = []
    stem, neck, head = student.layers
    x = torch.relu(stem(first.images))
    for level in range(3):
        scaled = torch.nn.functional.conv2d(neck.activations[level](x * 4.0**level), *neck.weight_and_bias())
        pooled = torch.nn.functional.avg_pool2d(scaled, 2**level)
        y = torch.nn.functional.conv2d(head.activations[level](pooled), *head.weight_and_bias(), padding=1)
        by_hand.append(y.flatten(2).transpose(1, 2))
    assert torch.equal(once, torch.cat(by_hand, dim=1))


@pytest.mark.parametrize(("given", "expected"), [(8, [8, 8, 8]), (5, [8, 5, 5]), ("match", [8, 8, 4]), (None, [])])
def test_activation_bits(pyramid: PyramidTask, given: int | str | None, expected: list[int]) -> None:
    """The first layer's input is the picture, which keeps its 8 bits."""
    student = Student(pyramid, trace_layers(pyramid), given)
    student.apply(Plan(("stem", "neck", "head"), (Choice(2), Choice(8), Choice(4))))
    assert [layer.activations[0].bits for layer in student.layers if layer.activations] == expected


@pytest.mark.parametrize("given", [0, 1, 9, 16, -1, "all"])
def test_activation_bits_that_no_file_can_hold(pyramid: PyramidTask, given: int | str) -> None:
    with pytest.raises(InputError, match=f"activation_bits is {given!r}: give 2 to 8, 'match' or None"):
        Student(pyramid, trace_layers(pyramid), given)


# ---- scopes


def names_of(student: Student, scope: str, index: int) -> list[str]:
    by_module = {module: name for name, module in student.model.named_modules()}
    return [by_module[module] for module in student.modules_of(scope, index)]


def test_scopes(tiny: TinyTask, infos: tuple[LayerInfo, ...]) -> None:
    student = Student(tiny, infos)
    assert names_of(student, "layer", 1) == ["block1.conv1"]
    assert names_of(student, "block", 2) == ["block1.conv1", "block1.conv2"]
    assert names_of(student, "block", 5) == ["head.0", "head.1", "logits"]
    assert names_of(student, "all", 0) == [*[info.name for info in infos[:6]], "head.1", "logits"]


def test_blocks_are_ranges_of_stages(tiny: TinyTask, infos: tuple[LayerInfo, ...], pyramid: PyramidTask) -> None:
    assert Student(tiny, infos).block("block2") == range(2, 3)
    student = Student(pyramid, trace_layers(pyramid))
    assert student.block("body") == range(0, 2) and student.block("head") == range(2, 3)


# ---- measuring and moving


def test_evaluate_is_the_metric_of_all_batches(tiny: TinyTask) -> None:
    right = [
        outputs(tiny, tiny.teacher, batch.images)["logits"].argmax(dim=-1) == batch.labels
        for batch in tiny.evaluation("test")
    ]
    found = evaluate(tiny, tiny.stages(tiny.teacher), "test")
    assert found == torch.stack(right).float().mean().item()
    assert 0.9 < found < 1.0


def test_a_pickled_student_goes_on_alike(tiny: TinyTask, infos: tuple[LayerInfo, ...]) -> None:
    student = Student(tiny, infos, pattern="n:m")
    student.apply(random_plan(infos, 5))
    finetune_all(student, 2)
    copy = pickle.loads(pickle.dumps(student))
    assert torch.equal(student_logits(copy), student_logits(student))
    for one in (student, copy):
        one.compress(3, Choice(2, 0.5))
        finetune_all(one, 2)
    assert torch.equal(student_logits(copy), student_logits(student))
    copy.reset()
    assert torch.equal(student_logits(copy), student_logits(Student(tiny, infos)))


# ---- blocks, copies, variants


def test_a_packed_block_comes_back(tiny: TinyTask, infos: tuple[LayerInfo, ...]) -> None:
    """The head has a convolution, a group norm and a linear layer; another block's changes stay."""
    one, other = Student(tiny, infos), Student(tiny, infos)
    plan = random_plan(infos, 7)
    for student in (one, other):
        student.apply(plan)
    finetune_all(one, 3)
    for index in (0, 1, 3, 5):  # the first layer of every block
        other.unpack_block(index, one.pack_block(index))
    assert torch.equal(student_logits(other), student_logits(one))
    norm, expected = other.model.get_submodule("head.1"), one.model.get_submodule("head.1")
    assert isinstance(norm.weight, Tensor) and torch.equal(norm.weight, expected.weight)  # type: ignore[arg-type]
    assert student_bytes(other) == student_bytes(one)
    assert one.pack_block(5).nbytes < sum(layer.weight.nbytes for layer in one.layers[5:]) * 2


def test_resetting_modules_leaves_the_others(tiny: TinyTask, infos: tuple[LayerInfo, ...]) -> None:
    student, expected = Student(tiny, infos), Student(tiny, infos)
    student.apply(random_plan(infos, 8))
    finetune_all(student, 2)
    kept = student.pack_block(1)
    for index in (0, 3, 5):
        student.reset_modules(student.modules_of("block", index))
    expected.unpack_block(1, kept)
    assert torch.equal(student_logits(student), student_logits(expected))
    assert [layer.choice is None for layer in student.layers] == [True, False, False, True, True, True, True]


def test_a_copy_is_independent(tiny: TinyTask, infos: tuple[LayerInfo, ...]) -> None:
    student = Student(tiny, infos, keep_variants=True)
    student.apply(random_plan(infos, 9))
    before = student_logits(student)
    copy = student.copy()
    assert torch.equal(student_logits(copy), before) and copy.plan() == student.plan()
    finetune_all(copy, 2)
    copy.compress(0, Choice(2, 0.75))
    assert torch.equal(student_logits(student), before) and not torch.equal(student_logits(copy), before)
    copy.reset()
    assert torch.equal(student_logits(copy), student_logits(Student(tiny, infos)))


def test_variants_of_untouched_layers_are_made_once(
    tiny: TinyTask, infos: tuple[LayerInfo, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    student, plain = Student(tiny, infos, keep_variants=True), Student(tiny, infos)
    made: list[CompressedLayer] = []
    variant = CompressedLayer.variant

    def note(self: CompressedLayer, choice: Choice, pattern: str) -> Any:
        made.append(self)
        return variant(self, choice, pattern)

    for choice in (Choice(2, 0.5), Choice(4)):
        for _ in range(3):
            plain.compress(1, choice)
            with monkeypatch.context() as patch:
                patch.setattr(CompressedLayer, "variant", note)
                student.reset()
                student.compress(1, choice)
            assert torch.equal(student_logits(student), student_logits(plain))
            plain.reset()
    assert len(made) == 2
    with monkeypatch.context() as patch:
        patch.setattr(CompressedLayer, "variant", note)
        student.touch([student.layers[1]])
        student.compress(1, Choice(4))
        student.reset_modules([student.layers[1]])
        student.compress(1, Choice(4))
        student.touch(student.modules_of("block", 1))
        student.reset()
        student.compress(1, Choice(4))
    assert len(made) == 3
