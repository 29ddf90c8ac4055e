"""Whole channels: who shares them, who drops which, and networks without those that nobody reads."""

import copy
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import random_plan
from tiny_task import TinyBatch, TinyStage, TinyTask
from torch import Tensor, nn
from torchvision.ops.misc import FrozenBatchNorm2d

from detectors.fcos import fcos_stages
from detectors.teacher import SHIPPED_TEACHER, load_teacher
from hsq_env import channels
from hsq_env.channels import ChannelGroup, channel_groups, channel_orders, dead_outputs, shrunk, unread_channels
from hsq_env.choices import Choice, Plan
from hsq_env.file import load_hsq, save_hsq, student_bytes
from hsq_env.layer_info import trace_layers
from hsq_env.long_finetuning import finetune_all
from hsq_env.onnx_file import onnx_bytes, outputs_of
from hsq_env.states import run
from hsq_env.student import Student
from restorers.teacher import RestorerSpec, restorer_stages


class Towers(nn.Module):
    """A stem, a residual block, a tower with a group norm (units of two) that runs on two sizes, and two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.inner, self.outer = nn.Conv2d(8, 12, 1), nn.Conv2d(12, 8, 3, padding=1)
        self.tower = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.GroupNorm(4, 8), nn.ReLU())
        self.boxes, self.scores = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.relu(self.stem(x))
        x = torch.relu(x + self.outer(torch.relu(self.inner(x))))
        levels = [self.tower(x), self.tower(nn.functional.max_pool2d(x, 2))]
        return (
            torch.cat([self.boxes(y).flatten(2) for y in levels], 2),
            torch.cat([self.scores(y).flatten(2) for y in levels], 2),
        )


class Task:
    """As much of a task as a student needs, for a network of two outputs in one stage."""

    name, metric_name = "towers", "none"

    def __init__(self, net: nn.Module) -> None:
        torch.manual_seed(0)
        for parameter in net.parameters():
            nn.init.normal_(parameter, std=0.3)
        self.teacher: Any = net.eval().requires_grad_(False)
        self.images = torch.randn(2, 3, 8, 8)

    def stages(self, model: Any) -> list[TinyStage]:
        return [TinyStage("all", "all", None, lambda state: dict(enumerate_outputs(model(state["images"]))))]

    def calibration(self) -> list[TinyBatch]:
        return [TinyBatch(self.images, torch.zeros(2, 4, dtype=torch.int64))]

    def describe(self) -> dict[str, Any]:
        return {"model": "towers"}


def enumerate_outputs(found: tuple[Tensor, ...]) -> list[tuple[str, Tensor]]:
    return [(f"y{i}", y) for i, y in enumerate(found)]


def compressed(task: Any, sparsities: dict[str, float], activation_bits: int | None = None, bits: int = 8) -> Student:
    """Channels dropped as said, none elsewhere."""
    student = Student(task, trace_layers(task), activation_bits, "channels")
    choices = tuple(Choice(bits, sparsities.get(info.name, 0.0)) for info in student.infos)
    student.apply(Plan(tuple(info.name for info in student.infos), choices))
    return student


def outputs(task: Any, model: nn.Module) -> dict[str, Tensor]:
    with torch.no_grad():
        state = task.stages(model)[0].run({"images": task.images})
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


def small(student: Student) -> Any:
    task = student.task
    return shrunk(student.model, task.stages, task.calibration()[0].images)


def assert_the_same(student: Student) -> Any:
    """The shrunk network's outputs are the student's; returns the network."""
    found = small(student)
    task: Any = student.task
    expected = outputs(task, student.model)
    for name, value in outputs(task, found).items():
        torch.testing.assert_close(value, expected[name], atol=1e-4, rtol=1e-4)
    return found


# ---- who shares channels


def test_groups_of_a_network() -> None:
    task = Task(Towers())
    groups = {g.producers: g for g in channel_groups(task.teacher, task.stages, task.images)}
    assert set(groups) == {("stem", "outer"), ("inner",), ("tower.0",)}
    assert set(groups["stem", "outer"].consumers) == {"inner", "tower.0"} and groups["inner",].consumers == ("outer",)
    tower = groups["tower.0",]
    assert set(tower.consumers) == {"boxes", "scores"} and tower.norms == ("tower.1",)
    assert (tower.channels, tower.unit, groups["inner",].unit) == (8, 2, 1)


@pytest.fixture(scope="module")
def detector() -> Student:
    """The shipped one in whole channels; finding its groups takes seconds."""
    model, _ = load_teacher(SHIPPED_TEACHER)

    class Detector(Task):
        def __init__(self) -> None:
            self.teacher, self.images = model, torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))

        def stages(self, model: Any) -> Any:
            return fcos_stages(model)

    task: Any = Detector()
    return Student(task, trace_layers(task), None, "channels")


def test_groups_of_the_detector(detector: Student) -> None:
    groups, model = detector.channel_groups, detector.task.teacher
    consumers = [name for group in groups for name in group.consumers]
    convolutions = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d)]
    assert len(consumers) == len(set(consumers))
    assert set(convolutions) - set(consumers) == {"backbone.body.conv1"}  # which reads the images
    producers = {name for group in groups for name in group.producers}
    heads = {f"head.{name}" for name in ("classification_head.cls_logits", "regression_head.bbox_reg")}
    assert set(convolutions) - producers == {*heads, "head.regression_head.bbox_ctrness"}
    levels = next(g for g in groups if "head.classification_head.conv.0" in g.consumers)
    assert {"head.regression_head.conv.0", "backbone.fpn.extra_blocks.p6"} <= set(levels.consumers)
    assert {f"backbone.fpn.layer_blocks.{i}.0" for i in range(3)} <= set(levels.producers)
    assert all(g.unit == 2 for g in groups if re.search(r"head\.conv", g.producers[0]))


def test_channels_that_reach_outputs_or_are_mixed_stay(tiny: TinyTask) -> None:
    """Of the tiny task features are put out, and a linear layer reads what was flattened."""
    groups = channel_groups(tiny.teacher, tiny.stages, tiny.calibration()[0].images)
    assert {g.producers for g in groups} == {("block1.conv1",), ("block2.conv1",)}

    class Grouped(Towers):
        def __init__(self) -> None:
            super().__init__()
            self.outer = nn.Conv2d(12, 8, 3, padding=1, groups=2)

    task = Task(Grouped())
    assert {g.producers for g in channel_groups(task.teacher, task.stages, task.images)} == {("tower.0",)}


class Plain(nn.Module):
    """Convolutions with batch norm, linear layers, and a tower with two group norms, side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Conv2d(8, 2, 1)
        self.c, self.d = nn.Linear(3, 6), nn.Linear(6, 2)
        self.tower = nn.Sequential(
            nn.Conv2d(3, 12, 1), nn.GroupNorm(4, 12), nn.ReLU(), nn.GroupNorm(6, 12), nn.Conv2d(12, 2, 1)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (
            self.b(torch.relu(self.norm(self.a(x)))),
            self.d(torch.relu(self.c(x.mean(dim=(2, 3))))),
            self.tower(x),
        )


def test_batch_norms_linear_layers_and_several_group_norms() -> None:
    task = Task(Plain())
    task.teacher.norm.running_mean += torch.arange(8.0)
    task.teacher.norm.running_var += torch.arange(8.0)
    groups = {g.producers: g for g in channel_groups(task.teacher, task.stages, task.images)}
    assert groups["a",] == ChannelGroup(("a",), ("norm",), ("b",), 8, 1)
    assert groups["c",] == ChannelGroup(("c",), (), ("d",), 6, 1)
    assert set(groups) == {("a",), ("c",), ("tower.0",)}
    assert set(groups["tower.0",].norms) == {"tower.1", "tower.3"} and groups["tower.0",].unit == 6
    found = assert_the_same(compressed(task, {"b": 0.25, "d": 0.5, "tower.4": 0.5}))
    assert found.a.weight.shape == (6, 3, 3, 3) and found.b.in_channels == found.a.out_channels == 6
    assert found.norm.num_features == 6 and found.norm.running_mean.shape == found.norm.running_var.shape == (6,)
    assert found.c.weight.shape == (3, 3) and (found.c.out_features, found.d.in_features) == (3, 3)
    assert (found.tower[1].num_groups, found.tower[3].num_groups, found.tower[4].in_channels) == (2, 3, 6)


def test_deep_networks_are_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """All groups together: what nobody reads does not grow from layer to layer until it is infinite."""
    layers = [module for _ in range(40) for module in (nn.Conv2d(6, 6, 3, padding=1), nn.ReLU())]

    class Deep(nn.Sequential):
        def forward(self, x: Tensor) -> tuple[Tensor]:
            return (super().forward(x),)

    task = Task(Deep(nn.Conv2d(3, 6, 1), *layers, nn.Conv2d(6, 2, 1)))
    for parameter in task.teacher.parameters():
        parameter *= 0.5
    asked: list[int] = []

    def works(model: nn.Module, stages: Any, images: Tensor, groups: Sequence[ChannelGroup]) -> bool:
        asked.append(len(groups))
        return trial(model, stages, images, groups)

    trial = channels._works
    monkeypatch.setattr(channels, "_works", works)
    found = channel_groups(task.teacher, task.stages, task.images)
    assert len(found) == 41 and asked == [41]


def test_channels_without_weights_are_disturbed_too() -> None:
    """A weight of zeros would hide that a channel is put out."""
    task = Task(Odd("put out first"))
    task.teacher.a.weight[:] = 0.0
    assert channel_groups(task.teacher, task.stages, task.images) == ()
    values = torch.tensor([[0.0, 2.0], [0.0, 0.0]])
    assert channels._disturbed(values).tolist() == [[0.0, -4.0], [1.5, 1.5]]
    assert channels._disturbed(values[0]).tolist() == [1.5, -2.5]


def test_nothing_is_changed_by_looking() -> None:
    task = Task(Towers())
    before = copy.deepcopy(task.teacher.state_dict())
    channel_groups(task.teacher, task.stages, task.images)
    assert not any(p.requires_grad or p.grad is not None for p in task.teacher.parameters())
    assert all(torch.equal(value, before[name]) for name, value in task.teacher.state_dict().items())


class Odd(nn.Module):
    """A convolution, something in between, and one that reads it; with something else to put out."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1)
        self.gate = nn.Conv2d(8, 1, 1)
        self.register_buffer("factors", torch.linspace(0.5, 2.0, 8).reshape(1, 8, 1, 1))
        if kind == "subclass":
            self.b = SpecialConv(8, 4, 1)
        if kind == "frozen":
            self.norm = FrozenBatchNorm2d(8)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.a(x)
        between: dict[str, Callable[[], Tensor]] = {
            "softmax": lambda: x.softmax(dim=1),
            "norm": lambda: nn.functional.group_norm(x, 2),
            "buffer": lambda: x * self.factors,
            "frozen": lambda: self.norm(x),
            "gate": lambda: x * self.gate(x).sigmoid(),
        }
        y = self.b(between.get(self.kind, x.relu)())
        return {"put out first": (x, y), "put out last": (y, x)}.get(self.kind, (y,))


class SpecialConv(nn.Conv2d):
    """Not ours to touch."""


@pytest.mark.parametrize(
    "kind", ["softmax", "norm", "buffer", "frozen", "gate", "subclass", "put out first", "put out last"]
)
def test_networks_that_must_stay_as_they_are(kind: str, tmp_path: Path) -> None:
    """Dropped channels are zeros in the weights alone, and files hold what is in memory."""
    task = Task(Odd(kind))
    assert not [g for g in channel_groups(task.teacher, task.stages, task.images) if "a" in g.producers]
    student = compressed(task, {"b": 0.5, "gate": 0.25})
    assert small(student).a.weight.shape == (8, 3, 3, 3)
    save_hsq(student, tmp_path / "model.hsq")
    loaded = copy.deepcopy(task.teacher)
    load_hsq(tmp_path / "model.hsq", loaded)
    expected = outputs(task, student.model)
    assert all(torch.equal(found, expected[name]) for name, found in outputs(task, loaded).items())


def test_the_plain_form_of_them_does_shrink() -> None:
    task = Task(Odd("none"))
    assert assert_the_same(compressed(task, {"b": 0.5})).a.weight.shape == (4, 3, 3, 3)


@pytest.mark.parametrize(
    ("name", "setting"), [("dncnn", {"noise": 25}), ("edsr", {"scale": 4}), ("srresnet", {"scale": 2})]
)
def test_restorers_keep_their_outputs(name: str, setting: dict[str, Any], tmp_path: Path) -> None:
    """EDSR's pixel shuffle turns 256 channels into 64."""

    class Restorer(Task):
        def stages(self, model: Any) -> Any:
            return restorer_stages(model)

    spec = RestorerSpec(name, 3, **setting)
    task: Any = Restorer(spec.build_folded())
    student = Student(task, trace_layers(task), None, "channels")
    student.apply(Plan(tuple(i.name for i in student.infos), (Choice(4, 0.5),) * len(student.infos)))
    found, images = small(student), task.images
    save_hsq(student, tmp_path / "model.hsq")
    loaded = spec.build_folded().eval()
    load_hsq(tmp_path / "model.hsq", loaded)
    with torch.no_grad():
        expected = run(task.stages(student.model), {"images": images})
        again = run(task.stages(loaded), {"images": images})
        shorter = run(task.stages(found), {"images": images})
    for key, value in expected.items():
        assert torch.equal(again[key], value)
        torch.testing.assert_close(shorter[key], value, rtol=1e-3, atol=1e-3 * float(value.abs().max()))
    counts = [sum(p.numel() for p in model.parameters()) for model in (found, student.model)]
    if name == "srresnet":  # the graph does not follow PReLU: everything stays
        assert counts[0] == counts[1]
    else:
        assert counts[0] < 0.5 * counts[1]


# ---- which go first


def test_the_least_important_channels_go_first() -> None:
    task = Task(Towers())
    with torch.no_grad():
        task.teacher.outer.weight[:, 5] *= 1e-3  # read with small weights
        task.teacher.inner.weight[7], task.teacher.inner.bias[7] = 0.0, 0.0  # nothing to read
    names = [info.name for info in trace_layers(task)]  # type: ignore[arg-type]
    groups = channel_groups(task.teacher, task.stages, task.images)
    orders = dict(zip(names, channel_orders(task, names, groups), strict=True))  # type: ignore[arg-type]
    assert orders["outer"][:2] == (7, 5)
    assert orders["inner"] == orders["tower.0"] and orders["boxes"] == orders["scores"]  # they read the same
    pairs = np.array(orders["boxes"]).reshape(-1, 2)
    assert (pairs[:, 1] - pairs[:, 0] == 1).all() and (pairs[:, 0] % 2 == 0).all()  # in the group norm's units
    assert all(sorted(order) == list(range(len(order))) for order in orders.values())


def test_importance_is_weights_times_inputs() -> None:
    task = Task(Towers())
    names = [info.name for info in trace_layers(task)]  # type: ignore[arg-type]
    order = channel_orders(task, names, ())[names.index("outer")]  # type: ignore[arg-type]
    with torch.no_grad():
        read = torch.relu(task.teacher.inner(torch.relu(task.teacher.stem(task.images))))
    energy = read.square().mean(dim=(0, 2, 3)) * task.teacher.outer.weight.square().sum(dim=(0, 2, 3))
    assert list(order) == energy.argsort().tolist()


# ---- networks without what nobody reads


@pytest.mark.parametrize("bits", [2, 8])
def test_a_shrunk_network_computes_the_same(bits: int) -> None:
    task = Task(Towers())
    half = dict.fromkeys(("inner", "outer", "tower.0", "boxes", "scores"), 0.5)
    found = assert_the_same(compressed(task, half, bits=bits))
    assert found.stem.weight.shape == (4, 3, 3, 3) and found.outer.weight.shape == (4, 6, 3, 3)
    assert found.tower[0].weight.shape == (4, 4, 3, 3) and found.boxes.weight.shape == (4, 4, 1, 1)
    assert (found.tower[1].num_groups, found.tower[1].num_channels) == (2, 4)
    assert (found.inner.in_channels, found.inner.out_channels) == (4, 6)
    assert all(getattr(m, "mask", None) is None for m in found.modules())


def test_what_one_layer_still_reads_stays() -> None:
    """``tower.0`` has dropped more than ``inner``, and ``scores`` nothing at all."""
    task = Task(Towers())
    student = compressed(task, {"inner": 0.25, "tower.0": 0.75, "boxes": 0.5})
    found = assert_the_same(student)
    assert found.stem.weight.shape[0] == 6 and found.tower[0].weight.shape == (8, 6, 3, 3)
    assert found.tower[0].mask is not None and int(found.tower[0].mask[0, :, 0, 0].sum()) == 2
    assert found.boxes.weight.shape[1] == found.scores.weight.shape[1] == 8
    group = next(g for g in student.channel_groups if "inner" in g.consumers)
    order = student.layers[1].channel_order
    assert order is not None and set(unread_channels(student.model, group)) == set(order[:2])


def test_a_group_norms_channels_go_in_whole_units() -> None:
    task = Task(Towers())
    student = compressed(task, dict.fromkeys(("boxes", "scores"), 0.5))
    for name in ("boxes", "scores"):  # drops another half: channels 0, 1, 2 and 4
        layer: Any = student.model.get_submodule(name)
        layer.channel_order = (0, 1, 2, 4, 3, 5, 6, 7)
        layer.compress(Choice(8, 0.5), (), "channels")
    found = assert_the_same(student)
    assert found.tower[0].weight.shape[0] == 6 and found.tower[1].num_groups == 3


def test_pruned_columns_of_any_pattern_are_taken_out() -> None:
    task = Task(Towers())
    with torch.no_grad():
        task.teacher.outer.weight[:, :6] *= 1e-6
    student = Student(task, trace_layers(task), None)  # type: ignore[arg-type]
    student.apply(Plan(tuple(i.name for i in student.infos), (Choice(8, 0.5),) * len(student.infos)))
    assert assert_the_same(student).inner.weight.shape[0] == 6


def test_a_dense_network_stays(tiny: TinyTask) -> None:
    student = compressed(tiny, {})
    found = small(student)
    shapes = [{name: p.shape for name, p in m.named_parameters()} for m in (found, student.model)]
    assert shapes[0] == shapes[1]


def test_the_detector_shrinks_exactly(detector: Student) -> None:
    """Without rounded activations, whose ties an order of sums decides."""
    task: Any = detector.task
    student = detector.copy()
    student.apply(random_plan(student.infos, 3))
    found, images = small(student), {"images": task.images}
    with torch.no_grad():
        ours, theirs = images, images
        for one, other in zip(task.stages(found), task.stages(student.model), strict=True):
            ours, theirs = one.run(ours), other.run(theirs)
    for name in ("cls_logits", "bbox_regression", "bbox_ctrness"):
        torch.testing.assert_close(ours[name], theirs[name], atol=1e-3, rtol=1e-3)
    counts = [sum(p.numel() for p in m.parameters()) for m in (found, student.model)]
    assert counts[0] < 0.95 * counts[1]


# ---- in files


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_channels_that_nobody_reads_take_no_bytes(tiny: TinyTask, tmp_path: Path, bits: int) -> None:
    student = compressed(tiny, {"block1.conv2": 0.75, "block2.conv2": 0.5}, 8, bits)
    assert finetune_all(student, 2)
    dead = dead_outputs(student.model, student.channel_groups)
    assert {name: len(channels) for name, channels in dead.items()} == {"block1.conv1": 12, "block2.conv1": 8}
    alive = compressed(tiny, {}, 8, bits)
    saved = [len(student_bytes(alive, coded)) - len(student_bytes(student, coded)) for coded in (False, True)]
    assert saved[1] > 1.4 * saved[0]  # columns in both, rows only where they are coded
    save_hsq(student, tmp_path / "model.hsq")
    loaded = copy.deepcopy(tiny.teacher)
    header = load_hsq(tmp_path / "model.hsq", loaded)
    assert header.pattern == "channels" and header.plan() == student.plan()
    images = tiny.evaluation("test")[0].images
    states = [{"images": images}, {"images": images}]
    with torch.no_grad():
        for stages in zip(tiny.stages(loaded), tiny.stages(student.model), strict=True):
            states = [stage.run(state) for stage, state in zip(stages, states, strict=True)]
    assert torch.equal(states[0]["logits"], states[1]["logits"])
    layer: Any = loaded.block1.conv1
    assert torch.equal(layer.stored_bias[dead["block1.conv1"]], torch.zeros(12))


@pytest.mark.parametrize("bits", [2, 8])
def test_an_onnx_file_leaves_them_out(bits: int) -> None:
    task = Task(Towers())
    half = dict.fromkeys(("inner", "outer", "tower.0", "boxes", "scores"), 0.5)
    sizes = []
    for dropped in ({}, half):
        student = compressed(task, dropped, bits=bits)
        content = onnx_bytes(student.model, task.stages, task.images)
        found = outputs_of(content)(task.images.numpy())
        for name, value in outputs(task, student.model).items():
            np.testing.assert_allclose(found[name], value.numpy(), atol=1e-4)
        sizes.append(len(content))
    assert sizes[1] < sizes[0]
