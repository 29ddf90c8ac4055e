"""Teacher files: what is written comes back, and what cannot be read is refused by name."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save
from torchvision.models.detection import FCOS

from detectors.errors import InputError
from detectors.fcos import fcos_stages, head_outputs
from detectors.files import write_atomically
from detectors.stages import run_stages
from detectors.teacher import FORMAT, DetectorSpec, freeze, load_teacher, spec_from_json, teacher_bytes
from detectors.zoo import ZOO

SPEC = DetectorSpec("fcos_resnet50_quarter", ("cell", "plate", "other"), level_scale=0.25, min_size=64, max_size=96)


@pytest.fixture(scope="module")
def model() -> FCOS:
    torch.manual_seed(0)
    detector = SPEC.build_folded()
    freeze(detector)
    return detector


@pytest.fixture(scope="module")
def content(model: FCOS) -> bytes:
    return teacher_bytes(model, SPEC)


def _refusal(path: Path) -> str:
    with pytest.raises(InputError) as error:
        load_teacher(path)
    text = str(error.value)
    assert str(path) in text and "\n" not in text
    return text


def _file(folder: Path, content: bytes) -> Path:
    path = folder / "teacher.safetensors"
    path.write_bytes(content)
    return path


# ---- what comes back


@torch.no_grad()
def test_round_trip_is_exact(model: FCOS, content: bytes, tmp_path: Path) -> None:
    loaded, spec = load_teacher(_file(tmp_path, content))
    assert spec == SPEC
    expected, state = model.state_dict(), loaded.state_dict()
    assert state.keys() == expected.keys()
    assert all(tensor.dtype == torch.float32 and torch.equal(tensor, expected[key]) for key, tensor in state.items())
    images = torch.randn(2, 3, 64, 96)
    own, other = (head_outputs(run_stages(fcos_stages(m), {"images": images})) for m in (loaded, model))
    assert all(torch.equal(own[name], other[name]) for name in other)
    assert len(teacher_bytes(loaded, spec)) == len(content)


def test_half_precision_loads_as_rounded_float32(model: FCOS, content: bytes, tmp_path: Path) -> None:
    half = teacher_bytes(model, SPEC, torch.float16)
    assert len(half) < 0.55 * len(content)
    loaded, _ = load_teacher(_file(tmp_path, half))
    expected = model.state_dict()
    assert all(torch.equal(tensor, expected[key].half().float()) for key, tensor in loaded.state_dict().items())


def test_loaded_teacher_is_frozen(content: bytes, tmp_path: Path) -> None:
    loaded, _ = load_teacher(_file(tmp_path, content))
    assert not any(module.training for module in loaded.modules())
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_spec_survives_json() -> None:
    assert spec_from_json(json.loads(json.dumps(SPEC.as_json()))) == SPEC


def test_unknown_detector_is_told_the_known_ones() -> None:
    with pytest.raises(InputError, match=f"Unknown detector 'yolo': known are {', '.join(ZOO)}"):
        DetectorSpec("yolo", ("cell",)).build()


# ---- what is refused


def test_missing_file(tmp_path: Path) -> None:
    path = tmp_path / "none.safetensors"
    assert _refusal(path) == f"There is no teacher file {path}: train one with 'hsq teacher --out {path}'."
    assert "There is no teacher file" in _refusal(tmp_path)  # a folder


@pytest.mark.parametrize("kept", [0, 4, 100, -100])
def test_truncated_file(content: bytes, tmp_path: Path, kept: int) -> None:
    assert "is not a complete safetensors file" in _refusal(_file(tmp_path, content[:kept]))


def test_file_of_another_kind(tmp_path: Path) -> None:
    assert "is not a complete safetensors file" in _refusal(_file(tmp_path, b"PK\x03\x04" * 1000))


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_foreign_safetensors(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    path = _file(tmp_path, save({"weight": torch.zeros(3)}, metadata))
    assert "is not a teacher written by 'hsq teacher'" in _refusal(path)


@pytest.mark.parametrize("spec", [None, "{", "[]", "{}", '{"detector": "fcos_resnet50", "classes": [], "depth": 3}'])
def test_header_without_a_usable_description(tmp_path: Path, spec: str | None) -> None:
    metadata = {"format": FORMAT} | ({} if spec is None else {"spec": spec})
    path = _file(tmp_path, save({"weight": torch.zeros(3)}, metadata))
    assert "does not describe its detector" in _refusal(path)


def test_header_with_an_unknown_detector(tmp_path: Path) -> None:
    spec = json.dumps({"detector": "yolo", "classes": ["cell"]})
    path = _file(tmp_path, save({"weight": torch.zeros(3)}, {"format": FORMAT, "spec": spec}))
    assert "Unknown detector 'yolo'" in _refusal(path)


def test_other_shape(model: FCOS, tmp_path: Path) -> None:
    four_classes = DetectorSpec(SPEC.detector, (*SPEC.classes, "more"), SPEC.level_scale)
    text = _refusal(_file(tmp_path, teacher_bytes(model, four_classes)))
    assert "'head.classification_head.cls_logits.bias' is (3,), expected (4,)." in text


@pytest.mark.parametrize(("removed", "added"), [("backbone.body.conv1.bias", ""), ("", "backbone.body.conv2.bias")])
def test_other_names(model: FCOS, tmp_path: Path, removed: str, added: str) -> None:
    tensors = {name: tensor for name, tensor in model.state_dict().items() if name != removed}
    if added:
        tensors[added] = torch.zeros(1)
    path = _file(tmp_path, save(tensors, {"format": FORMAT, "spec": json.dumps(asdict(SPEC))}))
    has, lacks = ("the file", "the network") if added else ("the network", "the file")
    assert _refusal(path) == f"{path} does not fit the network: {has} has '{added or removed}', {lacks} has not."


# ---- writing


def test_atomic_write_makes_folders_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "file"
    for content in (b"first", b"second"):
        write_atomically(path, content)
        assert path.read_bytes() == content
    assert [entry.name for entry in path.parent.iterdir()] == ["file"]


@pytest.mark.parametrize("failing", ["os.fsync", "pathlib.Path.replace"])
def test_failed_write_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    def full_disk(*args: object) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "file"
    path.write_bytes(b"old")
    monkeypatch.setattr(failing, full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
