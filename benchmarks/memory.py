"""How much memory processes take, as Linux tells."""

import os
import threading
from pathlib import Path

MEGABYTE = 1e6


class Memory:
    """The largest memory of this process and its children, shared pages counted once."""

    def __enter__(self) -> "Memory":
        self.peak, self._stop = 0.0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._stop.wait(1.0):
            self.peak = max(self.peak, sum(_proportional_megabytes(pid) for pid in _family()))

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def _family() -> list[int]:
    task = Path(f"/proc/{os.getpid()}/task")
    children = [int(pid) for thread in task.iterdir() for pid in (thread / "children").read_text().split()]
    return [os.getpid(), *children]


def _proportional_megabytes(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:  # gone meanwhile
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) * 1024 / MEGABYTE


def status_megabytes(field: str) -> float:
    """A field of this process's status: VmRSS, what is resident, or VmHWM, the most that ever was."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(field + ":")) * 1024 / MEGABYTE
