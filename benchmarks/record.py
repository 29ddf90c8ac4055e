"""Writing a result: figures beside the command, versions and machine that made them."""

import argparse
import errno
import fcntl
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from agents.provenance import machine, versions
from detectors.errors import InputError
from detectors.files import write_json

RESULTS = Path(__file__).parent / "results"
PARTS_OF_RUNS = ("--shard", "--of")  # flags that make a part of a result


def command(without: Collection[str] = ()) -> str:
    """What was called, as one would call it again.

    :param without: flags to leave out with their values
    """
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    module = f"benchmarks.{Path(sys.argv[0]).stem}" if spec is None else spec.name
    words, left_out = [], False
    for word in sys.argv[1:]:
        if word.startswith("--"):
            left_out = word.partition("=")[0] in without
        if not left_out:
            words.append(word)
    return shlex.join(["python", "-m", module, *words])


def write_result(name: str, figures: dict[str, Any], without: Collection[str] = ()) -> Path:
    """Write ``benchmarks/results/<name>.json``, whoever else writes.

    :param without: flags that choose a part of what the file holds, besides those of shards; its command has none
    """
    made = command((*PARTS_OF_RUNS, *without))
    data = {"command": made, "versions": versions(), "machine": machine(), **figures}
    path = RESULTS / f"{name}.json"
    with _alone(path.parent):
        write_json(path, data)
    return path


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Inside, no other benchmark writes there."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a record to which runs add one line each.

    :raises InputError: for a line that is none
    """
    if not path.is_file():
        return []
    rows = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        try:
            rows += [json.loads(line)] if line.strip() else []
        except json.JSONDecodeError as error:
            raise InputError(f"Line {number} of {path} is torn ({error}): delete it, its run is made anew.") from error
    return rows


@contextmanager
def refusing(parser: argparse.ArgumentParser) -> Iterator[None]:
    """Bad input inside ends the program with its sentence and exit code 2."""
    try:
        yield
    except InputError as error:
        parser.error(str(error))


def check_same_teacher(path: Path, recorded: Iterable[float], found: float, tolerance: float) -> None:
    """A record goes on only with the teacher and the data that it was begun with.

    :param recorded: the teacher's score in its lines
    :param tolerance: that another machine may make
    :raises InputError: if it is another
    """
    other = next((score for score in recorded if abs(score - found) > tolerance), None)
    if other is not None:
        raise InputError(
            f"{path} holds runs of another teacher or other data ({other:.4f} there, {found:.4f} here): give the same, "
            "or move the file away."
        )


def _revision() -> str:
    """Of the code, "-dirty" where it is changed; results may be."""

    def asked(*words: str) -> str:
        call = ["git", "-C", str(Path(__file__).parent.parent), *words]
        return subprocess.run(call, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = asked("status", "--porcelain", "--untracked-files=no", "--", ".", ":(exclude)benchmarks/results")
        return asked("describe", "--always") + ("-dirty" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


REVISION = _revision()  # of what was imported, whatever is committed while it runs


def made_with() -> dict[str, Any]:
    """The revision, versions and machine that a line was made with: those of a record may differ."""
    return {"revision": REVISION, "torch": versions()["torch"], "machine": machine()}


def append_line(path: Path, row: dict[str, Any]) -> None:
    """Add a row and what it was made with, whole or not at all, whoever else writes.

    :raises OSError: if there is no room
    """
    line = (json.dumps({**row, "made_with": made_with()}) + "\n").encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    with _alone(path.parent), open(path, "ab", buffering=0) as file:
        before = file.seek(0, os.SEEK_END)
        try:
            if file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        except OSError:
            file.truncate(before)
            raise
