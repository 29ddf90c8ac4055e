"""What a ``.hsq`` file can suffer, and that it is refused by name."""

import json
import math
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import random_plan
from pyramid_task import PyramidNet
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_file import LargerNet
from tiny_task import TinyNet, TinyTask
from torch import nn

from benchmarks.fuzz import read_safetensors, write_safetensors
from detectors.errors import InputError
from hsq_env.coding import restore, shrink
from hsq_env.file import VERSION, load_hsq, read_header, student_bytes
from hsq_env.layer_info import LayerInfo
from hsq_env.student import Student


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


@pytest.fixture
def coded(student: Student, tmp_path: Path) -> Path:
    """A good file of version 2."""
    (tmp_path / "model.hsq").write_bytes(student_bytes(student))
    return tmp_path / "model.hsq"


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
