"""Damaged ``.hsq`` files: every one is refused with the one error, or read.

python -m benchmarks.fuzz --file model.hsq [--cases 10000]

Bytes are flipped, cut out, doubled and swapped; half of the cases repair the checksum afterwards, so that what lies
behind it is reached as well, and a third changes the JSON header instead. Each file goes through what ``hsq evaluate``
does before it measures: header, network, weights. A case fails by any other exception, by ten seconds of a processor,
or by more memory at its peak (of Python's and NumPy's allocations) than twice the honest file on top of what that one
takes. Tensors are made of what those hold, in the sizes of a network that is compared with the file before it is
built; how much the whole process grew is noted beside.
"""

import argparse
import json
import resource
import signal
import sys
import tempfile
import time
import tracemalloc
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import hsq_env  # noqa: F401 - before torch
from agents.model_task import load_model
from detectors.errors import InputError
from hsq_env.coding import restore, shrink

SECONDS = 10  # that a file may take of a processor
WARM_UP = 20  # honest and refused loads before memory is looked at
VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 1, 2, 3, 7, 255, 65_537, 2**31, 2**63, 2**70, 1e300, float("inf"), float("nan"), 0.5, "", "x",
    4.0, 8.0, 10**400, "fcos_resnet50", [], [[]], {}, [2**31, 2**31], [1] * 50, {"x": 1}, "a" * 5000,
)  # fmt: skip


def read_safetensors(content: bytes) -> tuple[dict[str, Any], bytes]:
    """The JSON header of a safetensors file, and what follows it."""
    size = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def write_safetensors(header: dict[str, Any], data: bytes) -> bytes:
    """The inverse."""
    described = json.dumps(header).encode()
    return len(described).to_bytes(8, "little") + described + data


def with_checksum(content: bytes) -> bytes:
    """A file of version 2 with the checksum that belongs to what is in it; unchanged where nothing can be read."""
    try:
        header, data = read_safetensors(content)
        top = json.loads(header["__metadata__"]["hsq"])
        (a, b), (c, d) = (header[name]["data_offsets"] for name in ("header", "data"))
        top["crc32"] = zlib.crc32(data[c:d], zlib.crc32(data[a:b]))
        header["__metadata__"]["hsq"] = json.dumps(top)
        return write_safetensors(header, data)
    except (ValueError, KeyError, TypeError, IndexError):
        return content


def change_bytes(rng: np.random.Generator, content: bytes) -> bytes:
    """Flip, cut, double, swap or overwrite."""
    data, size = bytearray(content), len(content)
    for _ in range(int(rng.choice([1, 1, 2, 8, 64]))):
        at = int(rng.integers(size) if rng.random() < 0.5 else rng.integers(min(size, 4096)))  # headers come first
        length = int(min(rng.choice([1, 1, 4, 64, 4096]), size - at))
        match rng.integers(5):
            case 0:
                data[at] = data[at] ^ (1 << int(rng.integers(8))) if at < len(data) else 0
            case 1:
                del data[at : at + length]
            case 2:
                data[at:at] = data[at : at + length]
            case 3:
                data[at : at + length] = rng.bytes(length)
            case _:
                data = data[: max(1, at)] if rng.random() < 0.2 else data
        size = len(data)
        if size < 2:
            break
    return bytes(data)


def change_json(rng: np.random.Generator, content: bytes) -> bytes:
    """Put something else at a place of one of the three headers."""
    header, data = read_safetensors(content)
    if rng.random() < 0.2:
        _change_at_random(rng, header)
        return write_safetensors(header, data)
    top = json.loads(header["__metadata__"]["hsq"])
    if rng.random() < 0.2 or top["version"] == 1:
        _change_at_random(rng, top)
        header["__metadata__"]["hsq"] = json.dumps(top)
        return write_safetensors(header, data)
    (a, b), (c, d) = (header[name]["data_offsets"] for name in ("header", "data"))
    inner = json.loads(restore(data[a:b], top["header_bytes"]))
    for _ in range(int(rng.choice([1, 1, 2, 5]))):
        _change_at_random(rng, inner)
    described = json.dumps(inner).encode()
    stored, body = shrink(described), data[c:d]
    top |= {"header_bytes": len(described), "crc32": zlib.crc32(body, zlib.crc32(stored))}
    kinds = {"dtype": "U8"}
    return write_safetensors(
        {
            "__metadata__": {"hsq": json.dumps(top)},
            "header": {**kinds, "shape": [len(stored)], "data_offsets": [0, len(stored)]},
            "data": {**kinds, "shape": [len(body)], "data_offsets": [len(stored), len(stored) + len(body)]},
        },
        stored + body,
    )


def _change_at_random(rng: np.random.Generator, data: Any) -> None:
    """Walk into lists and dictionaries, and overwrite, remove or double an entry."""
    while True:
        keys: list[Any] = list(data) if isinstance(data, dict) else list(range(len(data)))
        if not keys:
            return
        key = keys[int(rng.integers(len(keys)))]
        if isinstance(data[key], list | dict) and data[key] and rng.random() < 0.85:
            data = data[key]
            continue
        match rng.integers(4):
            case 0 if isinstance(data, list):
                data.insert(key, data[key])
            case 1:
                del data[key]
            case 2 if isinstance(data[key], int) and not isinstance(data[key], bool):
                data[key] += int(rng.choice([-1, 1, 8, 2**20]))
            case _:
                data[key] = VALUES[int(rng.integers(len(VALUES)))]
        return


def mutated(rng: np.random.Generator, content: bytes) -> bytes:
    """One case."""
    kind = rng.random()
    if kind < 1 / 3:
        return change_json(rng, content)
    changed = change_bytes(rng, content)
    return with_checksum(changed) if kind < 2 / 3 else changed


class HangError(Exception):
    """A case took too long."""


def outcome(content: bytes, path: Path, read: Callable[[Path], object]) -> str:
    """ "read", "refused", or the name of what went wrong."""

    def ring(*_: object) -> None:
        raise HangError

    path.write_bytes(content)
    signal.signal(signal.SIGPROF, ring)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)  # of computing: what else the machine does is not the file's fault
    try:
        read(path)
    except InputError as error:
        return "refused" if "\n" not in str(error) and str(path) in str(error) else f"InputError: {error}"
    except (Exception, HangError) as error:  # whatever it is, it is what is looked for
        return f"{type(error).__name__}: {error}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return "read"


def resident() -> int:
    """Bytes of memory that the process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def peak_of(content: bytes, path: Path, read: Callable[[Path], object]) -> tuple[str, int]:
    """The outcome, and the bytes that Python and NumPy held at most."""
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    result = outcome(content, path, read)
    return result, tracemalloc.get_traced_memory()[1] - before


def fuzz(honest: bytes, cases: int, seed: int, read: Callable[[Path], object] = load_model) -> dict[str, Any]:
    """All cases.

    :return: how many there were, how many failed, and what came of them
    """
    rng, found, failures = np.random.default_rng(seed), Counter[str](), []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.hsq"
        for _ in range(WARM_UP):
            assert outcome(honest, path, read) == "read" and outcome(honest[:-1], path, read) == "refused"
        tracemalloc.start()
        try:
            before, allowed = resident(), peak_of(honest, path, read)[1] + 2 * len(honest)
            most = 0
            for case in range(cases):
                result, held = peak_of(mutated(rng, honest), path, read)
                found[result] += 1
                most = max(most, held)
                if result not in ("read", "refused"):
                    failures.append(f"case {case}: {result}"[:300])
                elif held > allowed:
                    failures.append(f"case {case}: {held} bytes, allowed {allowed}")
                if case % 1000 == 999:
                    print(f"{case + 1} cases, {dict(found.most_common(3))}, {len(failures)} failures", flush=True)
        finally:
            tracemalloc.stop()
    return {
        "fuzz_cases": cases,
        "fuzz_failures": len(failures),
        "fuzz_refused": found["refused"],
        "fuzz_read": found["read"],
        "fuzz_examples": failures[:20],
        "fuzz_peak_bytes": most,
        "fuzz_allowed_bytes": allowed,
        "fuzz_resident_growth": resident() - before,
        "fuzz_file_bytes": len(honest),
    }


def main() -> None:
    """Count."""
    parser = argparse.ArgumentParser(description="Read damaged files.")
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--file", type=Path, required=True, help="an honest model.hsq")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    started = time.monotonic()
    figures = fuzz(arguments.file.read_bytes(), arguments.cases, arguments.seed)
    figures["fuzz_seconds"] = round(time.monotonic() - started)
    print(json.dumps(figures, indent=1))
    sys.exit(1 if figures["fuzz_failures"] else 0)


if __name__ == "__main__":
    main()
