"""One line at the foot of the terminal: what is being done, the best so far, the time left.

Elsewhere, in a log say, a line for each kind of work that takes long, once.
"""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

from detectors.progress import Work, listening

EVERY = 0.1  # seconds between two drawings
USUAL_COLUMNS = 80
LONG = 60.0  # seconds after which work is worth a line of a log


@contextmanager
def shown() -> Iterator[None]:
    """Inside, long work is shown if standard error is a terminal; what is printed meanwhile goes above the line."""
    if not sys.stderr.isatty():
        with listening(LongWork(sys.stderr).note):
            yield
        return
    line, streams = Line(sys.stderr), (sys.stdout, sys.stderr)
    above: list[Any] = [Above(stream, line) if stream.isatty() else stream for stream in streams]
    sys.stdout, sys.stderr = above
    try:
        with listening(line.draw):
            yield
    finally:
        sys.stdout, sys.stderr = streams
        line.close()


class LongWork:
    """Writes a line when a kind of work has taken long, so that who reads a log knows what is going on.

    :param clock: in seconds
    """

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream, self._clock, self._owner = stream, clock, os.getpid()
        self._named: set[str] = set()

    def note(self, works: Sequence[Work]) -> None:
        """Write it, of the outermost work whose end can be told that has taken so long and was not named yet."""
        if os.getpid() != self._owner:
            return
        now = self._clock()
        for number, work in enumerate(works, start=1):
            begun = work.share_done() > work.begun or work.until is not None
            if begun and work.what not in self._named and now - work.started >= LONG:
                self._named.add(work.what)
                parts = (_place(work), work.note, _left(works[number - 1 :], now))
                print(" | ".join(part for part in parts if part), file=self._stream, flush=True)
                return


class Line:
    """Draws the works that are going on, in place.

    Only the process that made it draws: workers inherit the terminal, and have nothing to show there.

    :param clock: in seconds
    """

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self.stream, self.clock = stream, clock
        self._works: Sequence[Work] = ()
        self._bar: Any = None
        self._due = 0.0
        self._owner = os.getpid()
        self._inside_a_line = False  # of what somebody else prints
        self._lock = threading.RLock()

    def draw(self, works: Sequence[Work]) -> None:
        """Show them, unless that was done just now; nothing if there are none."""
        self._works = works
        if os.getpid() != self._owner:
            return
        with self._lock:
            if not works:
                self.close()
            elif self.clock() >= self._due and not self._inside_a_line:
                self._show()

    def print(self, text: str, stream: TextIO) -> int:
        """Write to another stream of the same terminal."""
        if os.getpid() != self._owner:
            return stream.write(text)
        with self._lock:
            if self._bar is not None and not self._inside_a_line:
                self._bar.clear()
            written = stream.write(text)
            stream.flush()
            if text:
                self._inside_a_line = not text.endswith("\n")
            if self._bar is not None and not self._inside_a_line:
                self._show()
            return written

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._bar is not None:
            self._bar.close()
            self._bar, self._due = None, 0.0

    def _show(self) -> None:
        from tqdm import tqdm  # takes time that 'hsq --help' need not

        if self._bar is None:
            self._bar = tqdm(bar_format="{desc}", file=self.stream, leave=False, position=0)
        now = self.clock()
        self._bar.display(fitting(self._works, _columns(self.stream) - 1, now))  # a full line would break
        self._due = now + EVERY


class Above:
    """A stream of the terminal whose text is written above the line.

    :param stream: the terminal's
    """

    def __init__(self, stream: TextIO, line: Line) -> None:
        self._stream, self._line = stream, line

    def write(self, text: str) -> int:
        """As the stream's."""
        return self._line.print(text, self._stream)

    def writelines(self, lines: Sequence[str]) -> None:
        """As the stream's."""
        for text in lines:
            self.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _columns(stream: TextIO) -> int:
    try:
        return os.get_terminal_size(stream.fileno()).columns or USUAL_COLUMNS
    except (OSError, ValueError):
        return USUAL_COLUMNS


def fitting(works: Sequence[Work], columns: int, now: float) -> str:
    """The works as a text of at most so many columns; what lies innermost is left out first.

    Works without a number of things to do are named while nothing goes on inside.

    :param now: as the works' clocks count
    """
    counted = [work for work in works if work.total is not None or work is works[-1]]
    places, notes = [_place(work) for work in counted], [work.note for work in works if work.note]
    left = _left(works, now)
    while True:
        text = " | ".join(part for part in (", ".join(places), ", ".join(notes), left) if part)
        if len(text) <= columns or (len(places) < 2 and not notes):
            return text[:columns]
        if len(notes) > 1 or len(places) < 2:
            notes.pop()
        else:
            places.pop()


def _place(work: Work) -> str:
    """Where a work is."""
    if work.total is None:
        return work.what
    if not work.unit:
        return f"{work.what} {work.done:,.0f}/{work.total:,.0f}"
    from tqdm import tqdm

    done, total = (tqdm.format_sizeof(number) for number in (work.done, work.total))
    return f"{work.what} {done}/{total}{work.unit}"


def _left(works: Sequence[Work], now: float) -> str:
    """The time left of the outermost work of which it can be told; works inside say how far it is in one of many."""
    inside, found = 0.0, None
    for work in reversed(works):
        seconds = work.seconds_left(now, inside)
        found = found if seconds is None else seconds
        inside = work.share_done(inside)
    if found is None:
        return ""
    from tqdm import tqdm

    return f"{tqdm.format_interval(found)} left"
