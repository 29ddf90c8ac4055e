"""Run one peer in the environment that has it.

python -m benchmarks.peers.run PEER [--data bccd --dataset bccd/ --teacher bccd_teacher.safetensors]

Adds a line to ``benchmarks/results/peers_runs.jsonl``. What is there, of the same version and the same teacher, is not
run again. A peer may use the calibration images and the search split; nothing is fine-tuned.
"""

import argparse
import importlib
import time
from importlib.metadata import version
from pathlib import Path

import hsq_env  # noqa: F401 - before torch

# isort: split
import torch

from agents.run_folder import digest_of
from benchmarks.peers.given import Given
from benchmarks.record import RESULTS, append_line, read_lines
from detectors.errors import InputError
from detectors.task import SHAPES
from detectors.teacher import SHIPPED_TEACHER

RUNS = RESULTS / "peers_runs.jsonl"
PROTOCOL = 2  # raised when earlier lines must not be compared with new ones
PEERS = {  # the package of each
    "onnxruntime": "onnxruntime",
    "nncf": "nncf",
    "torchao": "torchao",
    "brevitas": "brevitas",
    "mct": "model-compression-toolkit",
    "aimet": "aimet-torch",
}


def main() -> None:
    """Compress, measure, write a line."""
    parser = argparse.ArgumentParser(description="Measure another library.")
    parser.add_argument("peer", choices=list(PEERS))
    parser.add_argument("--data", choices=["embedded", "bccd"], default="embedded")
    parser.add_argument("--dataset", type=Path, default=Path("bccd"), help="the folder of bccd")
    parser.add_argument("--teacher", type=Path, help="of bccd, an FCOS")
    arguments = parser.parse_args()
    embedded = arguments.data == "embedded"
    if embedded != (arguments.teacher is None):
        parser.error("give --teacher FILE with --data bccd, and with that alone")
    teacher = SHIPPED_TEACHER if embedded else arguments.teacher
    try:
        compress = importlib.import_module(f"benchmarks.peers.of_{arguments.peer}").compress
        used = version(PEERS[arguments.peer])
    except ModuleNotFoundError as error:
        parser.error(f"{arguments.peer} is not in this environment ({error}): run 'make peers'")
    if not teacher.is_file():
        parser.error(f"{teacher} is no file: give a teacher with --teacher")
    key = {"protocol": PROTOCOL, "data": arguments.data, "peer": arguments.peer, "version": used}
    key["teacher_sha256"] = digest_of(teacher)
    if any(all(row.get(name) == value for name, value in key.items()) for row in read_lines(RUNS)):
        print(f"{arguments.peer} {used} on {arguments.data} is measured already: {RUNS.name} has it")
        return
    torch.set_num_threads(1)
    try:
        given = Given(SHAPES if embedded else arguments.dataset, teacher)
    except InputError as error:
        parser.error(str(error))
    started = time.monotonic()
    made = compress(given)
    seconds = time.monotonic() - started
    nominal, whole = given.nominal_bytes(made.bits, made.scales), given.teacher_bytes()
    row = {
        **key,
        "detector": given.task.spec.detector,
        "map": given.score(made.run),
        "teacher_map": given.score(given.network),
        "bytes": made.bytes,
        "ratio": whole / made.bytes,
        "nominal_bytes": nominal,
        "nominal_ratio": whole / nominal,
        "teacher_bytes": whole,
        "bits": made.bits,
        "scales": made.scales,
        "latency_ms": made.latency_ms,
        "float32_ms": made.float32_ms,
        "seconds": round(seconds, 1),
        "note": made.note,
    }
    append_line(RUNS, row)
    print(
        f"{arguments.data} {arguments.peer} {used}: {row['map']:.4f} (teacher {row['teacher_map']:.4f}), "
        f"{row['bytes']:,} bytes written, {nominal:,} nominal, {seconds:.0f} s"
    )


if __name__ == "__main__":
    main()
