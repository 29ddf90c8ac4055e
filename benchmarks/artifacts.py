"""What the files are worth: bytes, speed, the same figures in another runtime, and what damaged files do.

python -m benchmarks.artifacts [--parts entropy onnx speed fuzz] [--bccd bccd/ --bccd-teacher bccd.safetensors]

Each part adds its figures to ``artifacts.json``; the others stay. ``speed`` must run while nothing else computes.

- ``entropy``: files of version 2 beside version 1, for the plans that the searches of ``benchmarks.search`` found, as
  quantized; the asymmetric numeral systems of ``constriction`` with a table per part beside Zstandard. Every file is
  read back and compared weight by weight.
- ``onnx``: bytes of dense plans beside version 1, the bits in which weights lie, and mAP of integer and float form.
- ``speed``: an 8-bit ResNet-50 FCOS of full width (random weights, 91 classes) at 320x320 pixels, backbone and head,
  beside float32 and beside onnxruntime's own ``quantize_static``, in turn.
- ``fuzz``: see ``benchmarks.fuzz``.
"""

import argparse
import copy
import json
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import nn

import hsq_env  # noqa: F401 - before torch
from agents.bench import integer_convolutions, medians, session
from agents.export import export
from agents.finetune import plan_of
from agents.provenance import machine, versions
from benchmarks.fuzz import fuzz
from benchmarks.record import RESULTS, command, write_result
from benchmarks.search import lines as searches
from detectors.folder import load_folder
from detectors.shapes import CLASS_NAMES, write_shapes
from detectors.task import DetectionTask, detection_task, shapes_folder
from detectors.teacher import SHIPPED_TEACHER, DetectorSpec, freeze
from hsq_env.choices import Choice, Plan
from hsq_env.env import HSQEnv
from hsq_env.file import load_hsq, save_hsq, student_bytes
from hsq_env.layer_info import trace_layers
from hsq_env.layers import CompressedLayer
from hsq_env.make import Made
from hsq_env.onnx_file import SIGNED, onnx_bytes
from hsq_env.onnx_integer import integer_form
from hsq_env.size import encoding
from hsq_env.student import Student
from restorers.images import PHOTOS
from restorers.task import restoration_task

PARTS = ("entropy", "onnx", "speed", "fuzz")
SIDE, CLASSES = 320, 91  # of the network that is timed
REPEATS, CASES = 15, 10_000


def merged(part: str, figures: dict[str, Any]) -> Path:
    """``artifacts.json`` with these figures in the place of older ones.

    Its ``command`` is the last one; ``made`` has that of every part, with versions and machine.
    """
    path = RESULTS / "artifacts.json"
    old = json.loads(path.read_text()) if path.is_file() else {}
    kept = {k: v for k, v in old.items() if k not in ("command", "versions", "machine")}
    made = {"command": command(), "versions": versions(), "machine": machine()}
    return write_result("artifacts", {**kept, **figures, "made": {**old.get("made", {}), part: made}})


def embedded_task() -> DetectionTask:
    """The embedded task with few images but those of the test split."""
    return detection_task(shapes_folder(), None, SHIPPED_TEACHER, pool_images=8, calibration_images=16)


# ---- entropy coding


def numeral_systems_bytes(student: Student) -> int:
    """Bytes of all codes and masks as ``constriction`` codes them, each part with a table of 12 bits for a symbol.

    Parts that get no smaller count as they are.
    """
    import constriction

    stream = constriction.stream
    total = 0
    for info, layer in zip(student.infos, student.layers, strict=True):
        assert layer.choice is not None and layer.codes is not None
        coded = encoding(info.shape, layer.choice, student.pattern)
        codes = layer.codes.cpu().numpy().reshape(-1).astype(np.int32) + 2 ** (layer.choice.bits - 1)
        if layer.mask is not None and coded.kind == "dense":  # pruned weights have the code of zero
            codes[~layer.mask.cpu().numpy().reshape(-1)] = 2 ** (layer.choice.bits - 1)
        parts = [(codes, layer.choice.bits, coded.code_bytes)]
        if coded.mask_bytes:
            assert layer.mask is not None
            mask = layer.mask.cpu().numpy().reshape(-1)
            parts = [(codes[mask], layer.choice.bits, coded.code_bytes), (mask.astype(np.int32), 1, coded.mask_bytes)]
        for symbols, bits, plain in parts:
            counts = np.bincount(symbols, minlength=2**bits).astype(np.float64)
            shares = np.maximum(np.round(counts / counts.sum() * 4095), counts > 0)
            coder = stream.stack.AnsCoder()
            if (counts > 0).sum() > 1:
                model = stream.model.Categorical(np.maximum(shares, 1e-9) / shares.sum(), perfect=False)
                coder.encode_reverse(symbols, model)
            table = math.ceil(len(counts) * 12 / 8) if bits > 1 else 2
            total += min(plain, 4 * len(coder.get_compressed()) + table)
    return total


def same_network(one: nn.Module, other: nn.Module) -> bool:
    """Whether two loaded networks have the same weights, biases and rounding."""
    states = one.state_dict(), other.state_dict()
    ranges = [[m.activations for m in model.modules() if isinstance(m, CompressedLayer)] for model in (one, other)]
    equal = states[0].keys() == states[1].keys() and ranges[0] == ranges[1]
    return equal and all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


def entropy() -> dict[str, Any]:
    """Shares of version 1's bytes that version 2 saves, by target and method."""
    task = embedded_task()
    env = HSQEnv(task, sensitivities=np.zeros((len(trace_layers(task)), 12)))
    names = tuple(info.name for info in env.layers)
    savings: dict[str, dict[str, float]] = {}
    systems: dict[str, list[float]] = {}
    frames_of: dict[str, list[float]] = {}
    seen, lossless = set(), True
    own_lines = [row for row in searches() if row["task"] == "embedded"]
    hardest = np.mean([row["ratio"] for row in own_lines if row["target"] == "hardest" and row["method"] == "ilp"])
    for row in own_lines:
        choices, target = tuple(row["choices"]), f"{hardest:.1f}" if row["target"] == "hardest" else row["target"]
        if (target, choices) in seen:
            continue
        seen.add((target, choices))
        student = Student(task, env.layers, 8)
        student.apply(Plan(names, tuple(env.choices[i] for i in choices)))
        plain, small = student_bytes(student, coded=False), student_bytes(student)
        loaded = []
        with tempfile.TemporaryDirectory() as folder:
            for content in (plain, small):
                (Path(folder) / "model.hsq").write_bytes(content)
                model = task.spec.build_folded()
                header = load_hsq(Path(folder) / "model.hsq", model)
                loaded.append(model)
        lossless = lossless and same_network(*loaded)
        own = savings.setdefault(target, {})
        own[f"{row['method']} {row['seed']}"] = 1 - len(small) / len(plain)
        packed = sum(e.code_bytes + e.mask_bytes for e in _encodings(student))
        frames = sum(sum(entry.stored or ()) for entry in header.layers)
        for saved, kept in ((systems, numeral_systems_bytes(student)), (frames_of, frames)):
            saved.setdefault(target, []).append((packed - kept) / len(plain))
    return {
        "entropy_saving": float(np.mean(list(savings["6"].values()))),
        "entropy_saving_by_target": {t: float(np.mean(list(own.values()))) for t, own in savings.items()},
        "entropy_saving_by_plan": savings,
        "entropy_saving_of_codes_and_masks_by_constriction": {t: float(np.mean(own)) for t, own in systems.items()},
        "entropy_saving_of_codes_and_masks_by_zstandard": {t: float(np.mean(own)) for t, own in frames_of.items()},
        "entropy_lossless": lossless,
    }


def _encodings(student: Student) -> list[Any]:
    pairs = zip(student.infos, student.layers, strict=True)
    return [encoding(i.shape, layer.choice, student.pattern) for i, layer in pairs if layer.choice is not None]


# ---- ONNX


def full_width_task(folder: Path, side: int = SIDE) -> DetectionTask:
    """A detector of full width with random weights, on a few drawn pictures of that size."""
    spec = DetectorSpec("fcos_resnet50", tuple(f"class {i}" for i in range(CLASSES)), min_size=side, max_size=side)
    torch.manual_seed(0)
    model = spec.build_folded()
    with torch.no_grad():
        for name, parameter in model.named_parameters():  # folded biases of random networks are all zero
            if name.endswith("bias") and not parameter.any():
                parameter.normal_(std=0.01)
    freeze(model)
    write_shapes(folder, {"train": 8, "val": 2, "test": 2})
    splits = load_folder(folder, CLASS_NAMES, side, side)
    return DetectionTask(
        "full width",
        model,
        spec,
        splits,
        search_images=2,
        test_images=2,
        pool_images=2,
        calibration_images=4,
        batch_size=2,
    )


def quantized(task: DetectionTask, plan: str, pattern: str = "unstructured") -> Student:
    """A student with a uniform plan."""
    student = Student(task, trace_layers(task), 8, pattern)
    student.apply(plan_of(plan, student.infos))
    return student


def bits_stored(content: bytes) -> dict[str, int]:
    """Bytes of the weights of an ONNX file by the type that they are stored in."""
    found: dict[str, int] = {}
    names = {kind: f"INT{bits}" for bits, kind in SIGNED.items()}
    for tensor in onnx.load_from_string(content).graph.initializer:
        if tensor.data_type in names and len(tensor.dims) > 1:
            name = names[tensor.data_type]
            found[name] = found.get(name, 0) + len(tensor.raw_data)
    return found


def onnx_files(arguments: argparse.Namespace) -> dict[str, Any]:
    """Sizes and agreement."""
    sizes: dict[str, float] = {}
    stored: dict[str, dict[str, int]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for width, task in (("quarter", embedded_task()), ("full", full_width_task(Path(folder) / "pictures"))):
            for plan in ("uniform8", "uniform4", "uniform2"):
                student = quantized(task, plan)
                content = onnx_bytes(student.model, task.stages, task.calibration()[0].images, widen=True)
                content = integer_form(content, _images(task))
                sizes[f"{width} {plan}"] = len(content) / len(student_bytes(student, coded=False))
                stored[f"{width} {plan}"] = bits_stored(content)
        gaps = _gaps(arguments, Path(folder))
    return {
        "onnx_over_packed": max(value for name, value in sizes.items() if name.startswith("full")),
        "onnx_over_packed_by_plan": sizes,
        "onnx_bytes_of_weights": stored,
        "onnx_map_gap": max(abs(gap["runtime"] - gap["student"]) for gap in gaps.values() if gap["form"] == "auto"),
        "onnx_maps": gaps,
    }


def _images(task: DetectionTask) -> list[NDArray[np.float32]]:
    return [batch.images.cpu().numpy() for batch in task.calibration()]


def _gaps(arguments: argparse.Namespace, folder: Path) -> dict[str, dict[str, Any]]:
    """mAP on the test split in onnxruntime and in PyTorch."""
    gaps: dict[str, dict[str, Any]] = {}
    kinds: list[tuple[str, str | None, DetectionTask]] = [("embedded", None, embedded_task())]
    if arguments.bccd is not None:
        few: dict[str, Any] = {"search_images": 8, "pool_images": 8, "calibration_images": 8}
        kinds.append(("bccd", str(arguments.bccd), detection_task(arguments.bccd, None, arguments.bccd_teacher, **few)))
    for name, dataset, task in kinds:
        for plan in ("uniform8", "uniform4"):
            save_hsq(quantized(task, plan), folder / "model.hsq")
            for form in ("auto", "float"):
                made = export(folder / "model.hsq", folder / "model.onnx", dataset, arithmetic=form)
                row = {"student": made.student, "runtime": made.runtime, "form": form, "arithmetic": made.arithmetic}
                gaps[f"{name} {plan} {form}"] = row
                print(name, plan, row, flush=True)
    return gaps


# ---- speed


def half_of_the_channels(task: DetectionTask) -> Student:
    """A student at 8 bits whose layers drop half of their input channels."""
    student = quantized(task, "uniform8", "channels")
    student.apply(Plan(tuple(i.name for i in student.infos), (Choice(8, 0.5),) * len(student.infos)))
    return student


def speed() -> dict[str, Any]:
    """Medians in turn: float32, the student's file, the same without half of the channels, onnxruntime's own form."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        task = full_width_task(folder / "pictures")
        student, images = quantized(task, "uniform8"), task.calibration()[0].images[:1]
        plain = onnx_bytes(copy.deepcopy(task.teacher), task.stages, images)
        ours = integer_form(onnx_bytes(student.model, task.stages, images, widen=True), _images(task))
        pruned = half_of_the_channels(task)
        halved = integer_form(onnx_bytes(pruned.model, task.stages, images, widen=True), _images(task))
        packed = {"hsq": len(student_bytes(student)), "pruned": len(student_bytes(pruned))}
        theirs = quantize_static_bytes(plain, _images(task), folder)
    files = {"float32": plain, "hsq": ours, "pruned": halved, "quantize_static": theirs}
    rows: dict[str, Any] = {}
    for threads in (1, 2):
        runs = [session(content, threads, images.numpy()) for content in files.values()]
        rows[str(threads)] = dict(zip(files, medians(runs, REPEATS), strict=True))
    one = rows["1"]
    return {
        "int8_speedup": one["float32"] / one["hsq"],
        "int8_speedup_of_quantize_static": one["float32"] / one["quantize_static"],
        "int8_seconds_by_threads": rows,
        "int8_bytes": {name: len(content) for name, content in files.items()},
        "int8_convolutions": {name: integer_convolutions(content) for name, content in files.items()},
        "int8_image": [SIDE, SIDE],
        "int8_hsq_bytes": packed,
        "pruned_speedup": one["float32"] / one["pruned"],
    }


def quantize_static_bytes(content: bytes, images: Sequence[NDArray[np.float32]], folder: Path) -> bytes:
    """onnxruntime's own: QDQ form, weights per channel, ranges from the same images."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter([{"images": batch} for batch in images])

        def get_next(self) -> Any:
            return next(self.left, None)

    given, prepared, made = (folder / f"{name}.onnx" for name in ("given", "prepared", "made"))
    given.write_bytes(content)
    quant_pre_process(str(given), str(prepared), skip_symbolic_shape=True)
    settings: dict[str, Any] = {"quant_format": QuantFormat.QDQ, "per_channel": True}
    settings |= {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
    quantize_static(str(prepared), str(made), Reader(), **settings)
    return made.read_bytes()


# ---- damaged files


def fuzzing(arguments: argparse.Namespace) -> dict[str, Any]:
    """Half of the cases are a denoiser, which loads quickly, a quarter the same without half of its channels, the
    others a detector; all at 4 bits.
    """
    restorer = restoration_task(PHOTOS, None, None, "dncnn", pool_images=4, calibration_images=4)
    kinds: tuple[tuple[Made, str, float, float], ...] = (
        (restorer, "unstructured", 0.0, 0.5),
        (restorer, "channels", 0.5, 0.25),
        (embedded_task(), "unstructured", 0.0, 0.25),
    )
    found = []
    for task, pattern, sparsity, share in kinds:
        student = Student(task, trace_layers(task), 8, pattern)
        student.apply(Plan(tuple(i.name for i in student.infos), (Choice(4, sparsity),) * len(student.infos)))
        found.append(fuzz(student_bytes(student), round(share * arguments.cases), 0))
    counted = ("fuzz_cases", "fuzz_failures", "fuzz_refused", "fuzz_read")
    return {**{name: sum(own[name] for own in found) for name in counted}, "fuzz_of_each": found}


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description="Measure files.")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--bccd", type=Path, help="a folder with BCCD's photographs; none are measured without it")
    parser.add_argument("--bccd-teacher", type=Path)
    parser.add_argument("--cases", type=int, default=CASES)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "entropy": entropy,
        "onnx": lambda: onnx_files(arguments),
        "speed": speed,
        "fuzz": lambda: fuzzing(arguments),
    }
    for name in arguments.parts:
        started = time.monotonic()
        path = merged(name, parts[name]())
        print(f"{name}: {time.monotonic() - started:.0f} s, wrote {path}", flush=True)


if __name__ == "__main__":
    main()
