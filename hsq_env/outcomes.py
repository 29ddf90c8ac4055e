"""Outcomes of steps that somebody has measured: shared by workers, and what a resumed search need not measure again.

An outcome belongs to a problem (teacher, images, settings) and to the decisions that led to it, and its key is a hash
of both; equal steps give equal outcomes, so that it does not matter who measured them.
"""

import hashlib
import struct
import zlib
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

from hsq_env.prefixes import Decision, Outcome

KEY_BYTES = 16
RECORD = struct.Struct(f"<{KEY_BYTES}sdd?")  # key, accuracy, divergence, whether the fine-tuning stayed finite
MOST = 500_000  # outcomes kept in memory, 150 MB, and records in a file, 34 MB
LINE_BYTES = 2 * (RECORD.size + 4) + 1


class Outcomes(Protocol):
    """Where outcomes are looked up and put."""

    def get(self, key: bytes) -> Outcome | None:
        """What is known of a key."""

    def put(self, key: bytes, outcome: Outcome) -> None:
        """Let others know."""


def key_of(problem: bytes, decisions: Iterable[Decision]) -> bytes:
    """The key of the last of some decisions.

    :param problem: says what else an outcome depends on
    :return: ``KEY_BYTES`` bytes
    """
    digest = hashlib.blake2b(problem, digest_size=KEY_BYTES)
    for decision in decisions:
        digest.update(f"{decision.choice.bits}:{decision.choice.sparsity!r}:{decision.alpha!r};".encode())
    return digest.digest()


class KeptOutcomes:
    """Outcomes in memory, the most recently used ones.

    :param limit: how many
    """

    def __init__(self, limit: int = MOST) -> None:
        self.limit = limit
        self._known: OrderedDict[bytes, Outcome] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    def get(self, key: bytes) -> Outcome | None:
        """See ``Outcomes``."""
        found = self._known.get(key)
        if found is not None:
            self._known.move_to_end(key)
        return found

    def put(self, key: bytes, outcome: Outcome) -> None:
        """See ``Outcomes``."""
        self._known[key] = outcome
        self._known.move_to_end(key)
        if len(self._known) > self.limit:
            self._known.popitem(last=False)


class OutcomeFile:
    """Outcomes in a file that several processes of one machine append to and read.

    A line holds a record and its checksum in hexadecimal digits and is written by one call, so that lines of different
    processes do not mix. Lines that are torn or damaged are passed over. What cannot be written (a full disk) is not
    shared; the search does not need it.

    :param path: made if it is absent
    :param limit: outcomes in memory; the file stops growing at so many
    """

    def __init__(self, path: str | Path, limit: int = MOST) -> None:
        self.path, self.limit = Path(path), limit
        self._kept, self._read = KeptOutcomes(limit), 0

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: bytes) -> Outcome | None:
        """See ``Outcomes``; reads what others have added if the key is unknown."""
        found = self._kept.get(key)
        if found is None and self._catch_up():
            found = self._kept.get(key)
        return found

    def put(self, key: bytes, outcome: Outcome) -> None:
        """See ``Outcomes``."""
        self._kept.put(key, outcome)
        record = RECORD.pack(key, outcome.accuracy, outcome.divergence, outcome.finite)
        line = (record + zlib.crc32(record).to_bytes(4, "little")).hex() + "\n"
        try:
            with open(self.path, "ab", buffering=0) as file:
                if file.tell() < self.limit * LINE_BYTES:
                    # a line of its own behind one that was torn by a kill or a full disk
                    file.write(line.encode() if file.tell() % LINE_BYTES == 0 else b"\n" + line.encode())
        except OSError:
            pass

    def _catch_up(self) -> bool:
        """Read what is new in the file; whether there was anything."""
        try:
            if self.path.stat().st_size <= self._read:
                return False
            with open(self.path, "rb") as file:
                file.seek(self._read)
                new = file.read()
        except OSError:
            return False
        whole = new.rfind(b"\n") + 1
        self._read += whole
        for line in new[:whole].splitlines():
            record = _record(line)
            if record is not None:
                key, accuracy, divergence, finite = RECORD.unpack(record)
                self._kept.put(key, Outcome(accuracy, finite, divergence))
        return bool(whole)

    def __getstate__(self) -> dict[str, Any]:
        """Whoever unpickles one reads the file."""
        return {"path": self.path, "limit": self.limit}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]


def _record(line: bytes) -> bytes | None:
    """What a line holds; None if it is damaged."""
    try:
        data = bytes.fromhex(line.decode("ascii"))
    except ValueError:
        return None
    record, checksum = data[: RECORD.size], data[RECORD.size :]
    return record if len(checksum) == 4 and zlib.crc32(record).to_bytes(4, "little") == checksum else None
