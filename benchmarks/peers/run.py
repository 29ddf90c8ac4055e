"""Run one peer in the environment that has it.

python -m benchmarks.peers.run PEER [--dataset bccd/ --teacher bccd_teacher.safetensors]

Adds a line to ``benchmarks/results/peers_runs.jsonl``; what is there is not run again.
"""

import argparse
import importlib
import time
from importlib.metadata import version
from pathlib import Path

import hsq_env  # noqa: F401 - before torch

# isort: split
import torch

from benchmarks.peers.given import Given
from benchmarks.record import RESULTS, append_line, read_lines
from detectors.errors import InputError

RUNS = RESULTS / "peers_runs.jsonl"
PROTOCOL = 1  # raised when earlier lines must not be compared with new ones
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
    parser.add_argument("--dataset", default="shapes", help="the embedded data, or a COCO-layout folder")
    parser.add_argument("--teacher", type=Path, help="an FCOS trained on it")
    arguments = parser.parse_args()
    data = "embedded" if arguments.dataset == "shapes" else Path(arguments.dataset).name
    known = {(row["protocol"], row["data"], row["peer"]) for row in read_lines(RUNS)}
    if (PROTOCOL, data, arguments.peer) in known:
        print(f"{arguments.peer} on {data} is measured already: {RUNS.name} has it")
        return
    torch.set_num_threads(1)
    try:
        given = Given(arguments.dataset, arguments.teacher)
    except InputError as error:
        parser.error(str(error))
    started = time.monotonic()
    made = importlib.import_module(f"benchmarks.peers.of_{arguments.peer}").compress(given)
    seconds = time.monotonic() - started
    nominal, whole = given.nominal_bytes(made.bits), given.teacher_bytes()
    row = {
        "protocol": PROTOCOL,
        "data": data,
        "peer": arguments.peer,
        "version": version(PEERS[arguments.peer]),
        "detector": given.task.spec.detector,
        "map": given.score(made.run),
        "teacher_map": given.score(given.network),
        "bytes": made.bytes,
        "ratio": whole / made.bytes,
        "nominal_bytes": nominal,
        "nominal_ratio": whole / nominal,
        "teacher_bytes": whole,
        "bits": made.bits,
        "latency_ms": made.latency_ms,
        "seconds": round(seconds, 1),
        "note": made.note,
    }
    append_line(RUNS, row)
    print(
        f"{data} {row['peer']} {row['version']}: {row['map']:.4f} (teacher {row['teacher_map']:.4f}), {row['bytes']:,} "
        f"bytes written, {nominal:,} nominal, {seconds:.0f} s"
    )


if __name__ == "__main__":
    main()
