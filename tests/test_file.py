"""The ``.hsq`` file: what is written comes back bit for bit, and what cannot be read is refused by name."""

import errno
import json
import math
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import outputs, random_plan, student_logits
from pyramid_task import PyramidNet, PyramidTask
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_task import TinyNet, TinyTask
from torch import nn

import hsq_env.file
from benchmarks.fuzz import read_safetensors, write_safetensors
from detectors.errors import InputError
from hsq_env.choices import Choice
from hsq_env.coding import restore, shrink
from hsq_env.file import VERSION, load_hsq, read_header, save_hsq, student_bytes
from hsq_env.layer_info import LayerInfo, trace_layers
from hsq_env.long_finetuning import finetune_all
from hsq_env.pruning import magnitude_mask
from hsq_env.student import Student


class LargerNet(TinyNet):
    """The tiny network with a layer more."""

    def __init__(self) -> None:
        super().__init__()
        self.extra = nn.Linear(3, 3)


@pytest.fixture(scope="module")
def student(tiny: TinyTask, infos: tuple[LayerInfo, ...]) -> Student:
    """Not to be changed."""
    made = Student(tiny, infos)
    made.apply(random_plan(infos, 0))
    return made


@pytest.fixture(params=[1, 2], ids=["version 1", "version 2"])
def path(student: Student, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A good file of either version."""
    (tmp_path / "model.hsq").write_bytes(student_bytes(student, coded=request.param == 2))
    return tmp_path / "model.hsq"


# ---- what comes back


@pytest.mark.parametrize("activation_bits", [8, 4, None, "match"])
@pytest.mark.parametrize("pattern", ["unstructured", "n:m", "channels"])
@pytest.mark.parametrize("seed", [1, 2])
def test_reloaded_outputs_are_bit_identical(
    tiny: TinyTask,
    infos: tuple[LayerInfo, ...],
    tmp_path: Path,
    seed: int,
    pattern: str,
    activation_bits: int | str | None,
) -> None:
    student = Student(tiny, infos, activation_bits, pattern)
    plan = random_plan(infos, seed)
    student.apply(plan)
    assert finetune_all(student, 3)  # scales and biases away from where they started
    size = save_hsq(student, tmp_path / "model.hsq")
    model = TinyNet().requires_grad_(False)
    header = load_hsq(tmp_path / "model.hsq", model)
    assert size == (tmp_path / "model.hsq").stat().st_size
    assert header.plan() == plan and header.pattern == pattern and header.model == tiny.describe()
    assert {entry.activation_bits for entry in header.layers} == (
        {c.bits for c in plan.choices} if activation_bits == "match" else {activation_bits}
    )
    for split in ("search", "test"):
        expected = student_logits(student, split)
        assert torch.equal(outputs(tiny, model, tiny.evaluation(split)[0].images)["logits"], expected)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("sparsity", [0.0, 0.25, 0.5, 0.75])
@pytest.mark.parametrize("pattern", ["unstructured", "n:m"])
def test_reloaded_weights_are_those_of_the_student(
    tiny: TinyTask, infos: tuple[LayerInfo, ...], tmp_path: Path, bits: int, sparsity: float, pattern: str
) -> None:
    student = Student(tiny, infos, pattern=pattern)
    for index in range(len(infos)):
        student.compress(index, Choice(bits, sparsity))
    save_hsq(student, tmp_path / "model.hsq")
    model = TinyNet()
    load_hsq(tmp_path / "model.hsq", model)
    for info, layer in zip(infos, student.layers, strict=True):
        loaded: Any = model.get_submodule(info.name)
        assert torch.equal(loaded.weight_and_bias()[0], layer.weight_and_bias()[0])
        if sparsity:
            assert (loaded.weight_and_bias()[0] == 0).sum() >= round(sparsity * layer.weight.numel())


def test_unchosen_layers_and_other_tensors_come_back_exactly(
    tiny: TinyTask, infos: tuple[LayerInfo, ...], tmp_path: Path
) -> None:
    student = Student(tiny, infos)
    student.compress(1, Choice(4, 0.5))
    student.compress(5, Choice(2))
    with torch.no_grad():
        student.model.get_parameter("head.1.weight").mul_(1.25)  # a group norm
    save_hsq(student, tmp_path / "model.hsq")
    model = TinyNet().requires_grad_(False)
    header = load_hsq(tmp_path / "model.hsq", model)
    assert [entry.choice for entry in header.layers] == [None, Choice(4, 0.5), None, None, None, Choice(2), None]
    for name in ("stem.weight", "stem.bias", "logits.weight", "head.1.weight"):
        assert torch.equal(model.get_parameter(name), student.model.get_parameter(name))
    expected = student_logits(student)
    assert torch.equal(outputs(tiny, model, tiny.evaluation("test")[0].images)["logits"], expected)
    with pytest.raises(InputError, match="no plan"):
        header.plan()


def test_a_model_that_carried_another_plan_is_overwritten(
    tiny: TinyTask, infos: tuple[LayerInfo, ...], path: Path
) -> None:
    model = TinyNet().requires_grad_(False)
    load_hsq(path, model)
    untouched = Student(tiny, infos)
    save_hsq(untouched, path)
    load_hsq(path, model)
    assert torch.equal(outputs(tiny, model, tiny.evaluation("test")[0].images)["logits"], student_logits(untouched))


def test_layers_that_a_second_file_leaves_alone(
    tiny: TinyTask, infos: tuple[LayerInfo, ...], path: Path, tmp_path: Path
) -> None:
    """Its header names one layer less, whose weights are then among the rest."""
    model = TinyNet().requires_grad_(False)
    load_hsq(path, model)
    fewer = Student(tiny, infos[:-1])
    fewer.compress(0, Choice(4))
    save_hsq(fewer, tmp_path / "fewer.hsq")
    load_hsq(tmp_path / "fewer.hsq", model)
    fresh = TinyNet().requires_grad_(False)
    load_hsq(tmp_path / "fewer.hsq", fresh)
    images = tiny.evaluation("test")[0].images
    assert torch.equal(outputs(tiny, model, images)["logits"], outputs(tiny, fresh, images)["logits"])


@pytest.mark.parametrize("coded", [False, True])
def test_a_layer_without_survivors(tmp_path: Path, coded: bool) -> None:
    """One weight, pruned: a mask and no codes, between layers that have some."""
    small = nn.Sequential(nn.Conv2d(3, 1, 3), nn.Conv2d(1, 1, 1), nn.Conv2d(1, 8, 3))
    entries = [["0", [1, 3, 3, 3], True, 4, 0.0, None, 0], ["1", [1, 1, 1, 1], True, 2, 0.75, None, 0]]
    entries.append(["2", [8, 1, 3, 3], True, 8, 0.0, None, 0])
    layers = [(b"", bytes(range(14))), (b"\x00", b""), (b"", bytes(range(72)))]
    joined = {"scales": torch.ones(10, dtype=torch.bfloat16), "biases": torch.ones(10, dtype=torch.float16)}
    parts = [(np.frombuffer(mask, np.uint8), np.frombuffer(codes, np.uint8)) for mask, codes in layers]
    content = hsq_env.file._Content({"model": {}, "pattern": "unstructured", "layers": entries}, parts, joined, {})
    (tmp_path / "x.hsq").write_bytes((hsq_env.file._coded if coded else hsq_env.file._plain)(content))
    load_hsq(tmp_path / "x.hsq", small)
    assert small.get_submodule("1").weight.item() == 0.0
    assert small.get_submodule("2").weight[0, 0, 0].tolist() == [-128.0, -127.0, -126.0]


def test_layers_that_run_several_times_or_never(tmp_path: Path) -> None:
    task = PyramidTask()
    infos = trace_layers(task)
    student = Student(task, infos)
    student.apply(random_plan(infos, 3))
    save_hsq(student, tmp_path / "model.hsq")
    model = PyramidNet().requires_grad_(False)
    header = load_hsq(tmp_path / "model.hsq", model)
    assert [(entry.name, entry.ranges) for entry in header.layers] == [("stem", 1), ("neck", 3), ("head", 3)]
    assert torch.equal(outputs(task, model, task.evaluation("test")[1].images)["logits"], _second_batch(student))
    assert torch.equal(model.spare.weight, task.teacher.spare.weight)


def _second_batch(student: Student) -> torch.Tensor:
    with torch.no_grad():
        logits = student.outputs(student.task.evaluation("test")[1])["logits"]
    assert isinstance(logits, torch.Tensor)
    return logits


def test_masks_are_those_of_magnitude_pruning(tiny: TinyTask, infos: tuple[LayerInfo, ...], tmp_path: Path) -> None:
    student = Student(tiny, infos, pattern="n:m")
    student.compress(1, Choice(8, 0.5))
    save_hsq(student, tmp_path / "model.hsq")
    model = TinyNet()
    load_hsq(tmp_path / "model.hsq", model)
    loaded: Any = model.block1.conv1
    mask = magnitude_mask(tiny.teacher.block1.conv1.weight, 0.5, "n:m")
    assert mask is not None and torch.equal(loaded.mask, mask)


def test_equal_students_give_equal_bytes(tiny: TinyTask, infos: tuple[LayerInfo, ...], student: Student) -> None:
    again = Student(tiny, infos)
    again.apply(random_plan(infos, 0))
    assert student_bytes(again) == student_bytes(student)


# ---- what is refused


def refusal(path: Path, model: nn.Module | None = None) -> str:
    """The one sentence with which a file is refused, by both readers unless only a model shows what is wrong."""
    texts = []
    readers: list[Callable[[], object]] = [lambda: load_hsq(path, TinyNet() if model is None else model)]
    if model is None:
        readers.append(lambda: read_header(path))
    for reader in readers:
        with pytest.raises(InputError) as error:
            reader()
        texts.append(str(error.value))
    assert len(set(texts)) == 1 and str(path) in texts[0] and "\n" not in texts[0]
    return texts[0]


def rewrite(path: Path, change: Callable[[dict[str, Any]], object], data: Callable[[bytes], bytes] = bytes) -> None:
    """Change the JSON header of a good file, version included, and what follows it; the checksum stays right."""
    with safe_open(path, "pt") as file:
        top = json.loads(file.metadata()["hsq"])
    tensors = load_file(path)
    if top["version"] == 1:
        change(top)
        save_file(tensors, path, {"hsq": json.dumps(top)})
        return
    header = json.loads(restore(tensors["header"].numpy().tobytes(), top["header_bytes"]))
    header["version"] = top.pop("version")
    change(header)
    if "version" in header:
        top["version"] = header.pop("version")
    described, body = json.dumps(header).encode(), data(tensors["data"].numpy().tobytes())
    stored = shrink(described)
    top |= {"header_bytes": len(described), "crc32": zlib.crc32(body, zlib.crc32(stored))}
    found = {name: np.frombuffer(part, np.uint8).copy() for name, part in (("header", stored), ("data", body))}
    save_file({name: torch.from_numpy(part) for name, part in found.items()}, path, {"hsq": json.dumps(top)})


def test_a_missing_file() -> None:
    assert "no file" in refusal(Path("nowhere") / "model.hsq")


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 100, 900, 0.5, 0.9, -8, -1])
def test_a_truncated_file(path: Path, length: float) -> None:
    content = path.read_bytes()
    kept = int(length * len(content)) if 0 < length < 1 else int(length)
    path.write_bytes(content[:kept])
    assert "not a complete .hsq file" in refusal(path)


def test_garbage(path: Path) -> None:
    path.write_bytes(np.random.default_rng(0).bytes(5000))
    assert "not a complete .hsq file" in refusal(path)


def test_a_foreign_safetensors_file(tiny: TinyTask, path: Path) -> None:
    path.write_bytes(tiny.teacher_file())
    assert "not a .hsq file" in refusal(path)


def test_a_newer_version(path: Path) -> None:
    rewrite(path, lambda header: header.update(version=VERSION + 1))
    assert f"format version {VERSION + 1}" in refusal(path) and "update hsq" in refusal(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda header: header.pop("layers"),
        lambda header: header.pop("version"),
        lambda header: header.update(version="new"),
        lambda header: header.update(layers=[3]),
        lambda header: header["layers"][2].pop(),
        lambda header: header["layers"][2].__setitem__(3, 5),
    ],
    ids=["no layers", "no version", "version of text", "layer of a number", "short layer", "unknown bits"],
)
def test_a_damaged_header(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    rewrite(path, change)
    assert "damaged header" in refusal(path)


NOT_SIZES = (None, -1, 1.5, "x", [[]], 1e300)
IMPOSSIBLE = {
    0: (None, -1, [[]]),
    1: (*NOT_SIZES, True, [], [-4], [0], [2**70], [1, 1, 1, 1, 1, 1]),
    2: NOT_SIZES,
    3: (*NOT_SIZES, 4.0, 8.0),
    4: NOT_SIZES,
    5: (*NOT_SIZES, True, 1, 9, 8.0),
    6: (*NOT_SIZES, True, 2000),
}


@pytest.mark.parametrize(("field", "value"), [(f, v) for f, values in IMPOSSIBLE.items() for v in values])
def test_a_layer_of_an_impossible_kind(path: Path, field: int, value: Any) -> None:
    def change(header: dict[str, Any]) -> None:
        header["layers"][2][field] = value

    rewrite(path, change)
    with pytest.raises(InputError) as error:
        load_hsq(path, TinyNet())
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_metadata_of_nothing(path: Path) -> None:
    header, data = read_safetensors(path.read_bytes())
    header["__metadata__"] = None
    path.write_bytes(write_safetensors(header, data))
    assert refusal(path)


@pytest.mark.parametrize("path", [1], indirect=True)
@pytest.mark.parametrize(
    ("place", "value"), [(0, 0.0), (0, -1.0), (0, float("nan")), (1, 255.6), (1, 256.0), (1, -1.0)]
)
def test_a_range_that_cannot_be(path: Path, place: int, value: float) -> None:
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors["ranges"][place] = value
    save_file(tensors, path, metadata)
    assert "impossible activation range" in refusal(path, TinyNet())


@pytest.mark.parametrize("path", [1], indirect=True)
def test_a_tensor_that_nobody_needs(path: Path) -> None:
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    save_file({**load_file(path), "junk": torch.zeros(9)}, path, metadata)
    assert "more 'junk'" in refusal(path, TinyNet())


def test_a_header_nested_without_end(path: Path) -> None:
    save_file(load_file(path), path, {"hsq": '{"version":' + "[" * 100_000})
    assert "damaged header" in refusal(path)


def test_a_header_that_is_no_json(path: Path) -> None:
    save_file(load_file(path), path, {"hsq": "{"})
    assert "damaged header" in refusal(path)


@pytest.mark.parametrize("model", [TinyNet(channels=8), PyramidNet(), LargerNet()], ids=lambda m: type(m).__name__)
def test_another_model(path: Path, model: nn.Module) -> None:
    assert "belongs to another model or is damaged" in refusal(path, model)


@pytest.mark.parametrize("path", [1], indirect=True)
@pytest.mark.parametrize("name", ["codes", "masks", "scales", "biases", "ranges"])
def test_a_tensor_that_is_too_short_or_too_long_or_of_another_type(path: Path, name: str) -> None:
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    save_file({**tensors, name: tensors[name][:-1].clone()}, path, metadata)
    assert f"ends within '{name}'" in refusal(path, TinyNet())
    save_file({**tensors, name: torch.cat([tensors[name], tensors[name][:1]])}, path, metadata)
    assert f"more '{name}'" in refusal(path, TinyNet())
    save_file({**tensors, name: tensors[name].to(torch.int64)}, path, metadata)
    assert f"ends within '{name}'" in refusal(path, TinyNet())


# ---- version 2


@pytest.fixture
def coded(student: Student, tmp_path: Path) -> Path:
    """A good file of version 2."""
    (tmp_path / "model.hsq").write_bytes(student_bytes(student))
    return tmp_path / "model.hsq"


def test_both_versions_hold_the_same_student(student: Student, tmp_path: Path) -> None:
    states = []
    for coded in (False, True):
        (tmp_path / "model.hsq").write_bytes(student_bytes(student, coded))
        model = TinyNet()
        header = load_hsq(tmp_path / "model.hsq", model)
        states.append({**model.state_dict(), "masks": [getattr(m, "mask", None) for m in model.modules()]})
        assert header.plan() == student.plan()
    for name, value in states[0].items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, states[1][name]), name


def test_the_smaller_version_is_written(student: Student) -> None:
    plain, small = student_bytes(student, coded=False), student_bytes(student)
    assert len(small) < len(plain) and b'"version\\":2' in small[:400] and b'"version\\":1' in plain[:400]


def test_one_code_everywhere_takes_next_to_nothing(tiny: TinyTask, infos: tuple[LayerInfo, ...]) -> None:
    student = Student(tiny, infos)
    for index in range(len(infos)):
        student.compress(index, Choice(4))
    before = len(student_bytes(student))
    for layer in student.layers:
        assert layer.codes is not None
        layer.codes.zero_()
    assert len(student_bytes(student)) < before - sum(layer.weight.numel() for layer in student.layers) / 3


def test_a_changed_byte_is_seen(coded: Path) -> None:
    content = bytearray(coded.read_bytes())
    content[-10] ^= 1
    coded.write_bytes(content)
    assert "checksum" in refusal(coded)


def _longer(header: dict[str, Any]) -> None:
    header["layers"][3][8] += 1


def _shifted(header: dict[str, Any]) -> None:
    header["layers"][3][8] += 1
    header["layers"][4][8] -= 1


def _no_lengths(header: dict[str, Any]) -> None:
    header["layers"] = [layer[:7] for layer in header["layers"]]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (_longer, "bytes of parts"),
        (_no_lengths, "without lengths"),
        (lambda h: h["parts"].update(scales=-1), "lengths of parts"),
        (lambda h: h["parts"].update(jokes=0), "lengths of parts"),
        (lambda h: h.pop("rest"), "damaged header"),
    ],
    ids=["longer", "no lengths", "negative", "unknown part", "no rest"],
)
def test_lengths_that_cannot_be(coded: Path, change: Callable[[dict[str, Any]], object], text: str) -> None:
    rewrite(coded, change)
    assert text in refusal(coded)


@pytest.mark.parametrize(
    "change",
    [
        _shifted,
        lambda h: h["rest"].update(dict.fromkeys(list(h["rest"])[:1], 0)),
        lambda h: h.update(rest=dict(reversed(h["rest"].items()))),
        lambda h: h["layers"].append(h["layers"][0]),
        lambda h: h.update(layers=h["layers"][:-1]),
    ],
    ids=["shifted", "empty rest", "order of the rest", "layer twice", "layer missing"],
)
def test_parts_that_do_not_fit_the_model(coded: Path, change: Callable[[dict[str, Any]], object]) -> None:
    rewrite(coded, change)
    with pytest.raises(InputError) as error:
        load_hsq(coded, TinyNet())
    assert str(coded) in str(error.value)


def test_a_header_that_would_fill_the_memory(coded: Path) -> None:
    bomb = shrink(b" " * 10**8)
    assert len(bomb) < 20_000
    metadata = {"version": 2, "header_bytes": 10**8, "crc32": zlib.crc32(bomb)}
    tensors = {
        "header": torch.frombuffer(bytearray(bomb), dtype=torch.uint8),
        "data": torch.zeros(0, dtype=torch.uint8),
    }
    save_file(tensors, coded, {"hsq": json.dumps(metadata)})
    assert "damaged header" in refusal(coded)


# ---- writing


def test_a_full_disk_leaves_the_old_file(
    student: Student, infos: tuple[LayerInfo, ...], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = path.read_bytes()
    other = Student(student.task, infos)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        save_hsq(other, path)
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == ["model.hsq"]


@pytest.mark.parametrize("coded", [False, True], ids=["version 1", "version 2"])
@pytest.mark.parametrize("value", [math.nan, math.inf, 0.0, -1.0])
def test_a_scale_that_cannot_be(
    tiny: TinyTask, infos: tuple[LayerInfo, ...], tmp_path: Path, coded: bool, value: float
) -> None:
    made = Student(tiny, infos)
    made.apply(random_plan(infos, 0))
    layer: Any = made.layers[2]
    layer.scale = lambda: torch.full((len(layer.weight),), value)
    (tmp_path / "model.hsq").write_bytes(student_bytes(made, coded))
    assert f"impossible scales in '{infos[2].name}'" in refusal(tmp_path / "model.hsq", TinyNet().requires_grad_(False))


@pytest.mark.parametrize("chosen", [True, False])
def test_a_bias_that_is_no_number(tiny: TinyTask, infos: tuple[LayerInfo, ...], tmp_path: Path, chosen: bool) -> None:
    made = Student(tiny, infos)
    if chosen:
        made.apply(random_plan(infos, 0))
    with torch.no_grad():
        made.layers[2].bias[0] = math.nan  # type: ignore[index]
    (tmp_path / "model.hsq").write_bytes(student_bytes(made))
    assert f"impossible biases in '{infos[2].name}'" in refusal(tmp_path / "model.hsq", TinyNet().requires_grad_(False))


def test_a_bias_too_large_for_the_file_is_cut(tiny: TinyTask, infos: tuple[LayerInfo, ...], tmp_path: Path) -> None:
    made = Student(tiny, infos)
    made.apply(random_plan(infos, 0))
    with torch.no_grad():
        made.layers[2].bias[:2] = torch.tensor([7e4, -7e4])  # type: ignore[index]
    made.layers[2].store()
    (tmp_path / "model.hsq").write_bytes(student_bytes(made))
    model = TinyNet().requires_grad_(False)
    load_hsq(tmp_path / "model.hsq", model)
    loaded: Any = model.get_submodule(infos[2].name)
    assert loaded.stored_bias[:2].tolist() == made.layers[2].stored_bias[:2].tolist() == [65504.0, -65504.0]  # type: ignore[index]
