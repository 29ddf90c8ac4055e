"""The table of layers' latencies: what is timed computes what it should."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import agents.latency
from agents.cli import main
from agents.latency import calls_of, columns_of, conv_model, latency, without_inputs
from detectors.errors import InputError
from restorers.teacher import RestorerSpec, teacher_bytes


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained DnCNN."""
    spec, path = RestorerSpec("dncnn", 1, noise=25), tmp_path_factory.mktemp("teacher") / "dncnn.safetensors"
    path.write_bytes(teacher_bytes(spec.build_folded(), spec))
    return path


def ran(content: bytes, images: np.ndarray, optimized: Path | None = None) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    made = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    found: np.ndarray = made.run(None, {"images": images})[0]
    return found


@pytest.mark.parametrize("bits", [None, 8, 4, 2])
@pytest.mark.parametrize(("stride", "groups", "dilation"), [(1, 1, 1), (2, 2, 1), (1, 1, 2)])
def test_the_timed_layer_is_the_layer(
    tmp_path: Path, bits: int | None, stride: int, groups: int, dilation: int
) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 8, 3, stride, padding=1, dilation=dilation, groups=groups, bias=False).requires_grad_(False)
    content = conv_model(layer, (1, 4, 10, 12), bits)
    rng = np.random.default_rng(0)
    if bits is None:
        images = rng.random((1, 4, 10, 12), np.float32)
        np.testing.assert_allclose(ran(content, images), layer(torch.from_numpy(images)).numpy(), atol=1e-5)
        return
    codes = rng.integers(0, 256, (1, 4, 10, 12), dtype=np.uint8)
    found = ran(content, codes, tmp_path / "optimized.onnx")
    model = onnx.load_from_string(content)
    numbers = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    weight = torch.from_numpy(numbers["codes"].astype(np.float32) * numbers["ws"][:, None, None, None])
    images = torch.from_numpy(codes.astype(np.float32) * numbers["xs"])
    expected = F.conv2d(images, weight, None, layer.stride, layer.padding, layer.dilation, groups).numpy()
    assert np.abs((found.astype(np.float32) - 128) * numbers["ys"] - expected).max() <= 0.51 * numbers["ys"]
    assert np.abs(expected).max() > 5 * numbers["ys"]
    kinds = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert "QLinearConv" in kinds and "Conv" not in kinds


def test_calls_are_counted_with_their_shapes() -> None:
    shared = nn.Conv2d(1, 1, 3, padding=1)

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.unused = shared, nn.Conv2d(1, 1, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.head(x)[:, :, ::2])

    found = calls_of(Twice(), torch.zeros(1, 1, 8, 6))
    assert {name: shapes for name, (_, shapes) in found.items()} == {"head": [(1, 1, 8, 6), (1, 1, 4, 6)]}
    assert not shared._forward_pre_hooks


def test_seconds_add_up_over_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = nn.Conv2d(1, 1, 1)
    monkeypatch.setattr(agents.latency, "medians", lambda runs, repeats: [0.25, 1.25, 0.75, 0.5, 0.2])
    shapes = [(1, 1, 4, 4), (1, 1, 2, 2), (1, 1, 4, 4)]
    found = agents.latency._seconds(layer, shapes, columns_of("unstructured"), 1, 1)
    assert found == {"32": 3.0, "8": 1.5, "4": 0.75, "2": pytest.approx(3e-6)}  # less what a call takes, 0.25


def test_the_command_writes_a_table(teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "latency.json"
    main(["latency", "--teacher", str(teacher), "--size", "16", "20", "--repeats", "1", "--out", str(out)])
    found = json.loads(out.read_text())
    assert len(found["layers"]) == 17 and found["image"] == [16, 20]
    assert found["layers"][1]["inputs"] == [[1, 64, 16, 20]]
    for key in ("32", "8", "4", "2"):
        assert found["seconds"][key] == pytest.approx(sum(layer["seconds"][key] for layer in found["layers"]))
        assert all(layer["seconds"][key] > 0 for layer in found["layers"])
    assert "all layers" in capsys.readouterr().out


def test_layers_are_timed_without_a_share_of_their_inputs(teacher: Path, tmp_path: Path) -> None:
    out = tmp_path / "latency.json"
    size = ["--size", "24", "24", "--repeats", "1", "--sparsity-pattern", "channels"]
    main(["latency", "--teacher", str(teacher), *size, "--out", str(out)])
    found = json.loads(out.read_text())
    columns = ["32", *(f"{bits}{share}" for bits in (8, 4, 2) for share in ("", "/0.25", "/0.5", "/0.75"))]
    assert list(found["seconds"]) == columns
    assert all(list(layer["seconds"]) == columns for layer in found["layers"])
    assert found["layers"][3]["shape"] == [64, 64, 3, 3]


@pytest.mark.parametrize("groups", [1, 2])
def test_a_layer_without_some_inputs(groups: int) -> None:
    layer = nn.Conv2d(8, 4, 3, groups=groups)
    small = without_inputs(layer, 3)
    assert small.weight.shape[1] == 8 // groups - 3 and layer.weight.shape[1] == 8 // groups
    x = torch.randn(1, 8, 6, 6).unflatten(1, (groups, -1))
    zeroed = torch.cat([x[:, :, :-3], torch.zeros_like(x[:, :, -3:])], dim=2).flatten(1, 2)
    torch.testing.assert_close(small(x[:, :, :-3].flatten(1, 2)), layer(zeroed))
    assert without_inputs(layer, 0) is layer


def test_what_cannot_be_timed(teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for settings in ({"repeats": 0}, {"threads": 0}, {"size": (4, 100)}):
        with pytest.raises(InputError, match="give"):
            latency(teacher, **settings)  # type: ignore[arg-type]
    with pytest.raises(SystemExit) as ended:
        main(["latency", "--teacher", str(teacher), "--out", str(tmp_path)])
    assert ended.value.code == 2 and "give a file in a folder that exists" in capsys.readouterr().err
    before = teacher.read_bytes()
    with pytest.raises(SystemExit) as ended:
        main(["latency", "--teacher", str(teacher), "--out", str(teacher)])
    assert ended.value.code == 2 and teacher.read_bytes() == before
