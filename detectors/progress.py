"""How far long work is: told to whoever listens; a bar of tqdm on a terminal where nobody does.

Works nest: an epoch holds batches, a search holds episodes, which hold layers. Nothing here knows how they are shown.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

Item = TypeVar("Item")


@dataclass
class Work:
    """Something that takes long.

    :param what: for a person: "sensitivities", "epoch"
    :param total: how much there is to do; None where nobody can tell
    :param done: how much of it is done, in the beginning already where interrupted work goes on
    :param unit: "B" for bytes
    :param note: what else is worth showing: the best so far, a loss
    :param share: of the work that is done, in [0, 1], where it is not that of ``done`` in ``total``
    :param until: ``time.monotonic()`` at which it ends at the latest
    """

    what: str
    total: float | None = None
    done: float = 0
    unit: str = ""
    note: str = ""
    share: float | None = None
    until: float | None = None
    started: float = field(default_factory=lambda: time.monotonic())
    bar: Any = field(default=None, repr=False)  # tqdm's, where nobody listens

    def __post_init__(self) -> None:
        self.begun = self.share_done()

    def share_done(self, inside: float = 0.0) -> float:
        """How much of it is done, in [0, 1].

        :param inside: of the present one of ``total``, in [0, 1]
        """
        if self.share is not None:
            return self.share
        return min((self.done + inside) / self.total, 1.0) if self.total else 0.0

    def seconds_left(self, now: float, inside: float = 0.0) -> float | None:
        """As long as the rest takes at the pace so far, and no longer than to ``until``; None if nobody can tell."""
        share = self.share_done(inside)
        paced = (now - self.started) * (1 - share) / (share - self.begun) if share > self.begun else None
        ends = [seconds for seconds in (paced, None if self.until is None else self.until - now) if seconds is not None]
        return max(0.0, min(ends)) if ends else None

    def advance(self, count: float = 1) -> None:
        """So much more is done."""
        self.done += count
        if self.bar is not None:
            self.bar.update(count)
        self.changed()

    def say(self, note: str) -> None:
        """Change the note."""
        self.note = note
        if self.bar is not None:
            self.bar.set_postfix_str(note, refresh=False)
        self.changed()

    def changed(self) -> None:
        """Tell whoever listens."""
        if _listeners:
            _listeners[-1](_works)


Listener = Callable[[Sequence[Work]], object]  # is given all works that are going on, the outermost first
_works: list[Work] = []
_listeners: list[Listener] = []


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Inside, the listener is told of every change."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)
        _works.clear()


@contextmanager
def work(
    what: str, total: float | None = None, done: float = 0, unit: str = "", until: float | None = None
) -> Iterator[Work]:
    """Inside, the work is going on; see ``Work``."""
    made = Work(what, total, done, unit, until=until)
    if not _listeners and total is not None:
        made.bar = _bar(made)
    _works.append(made)
    made.changed()
    try:
        yield made
    finally:
        if made.bar is not None:
            made.bar.close()
        if made in _works:  # with what was left open inside
            del _works[_works.index(made) :]
        made.changed()


def each(items: Iterable[Item], what: str, total: int | None = None) -> Iterator[Item]:
    """The items, one by one, as work.

    :param total: how many there are, of those that have no length
    """
    count = len(items) if total is None and isinstance(items, Sized) else total
    with work(what, count) as going:
        for item in items:
            yield item
            going.advance()


def say(line: str) -> None:
    """Print a line, above a bar if there is one."""
    if _listeners:
        print(line, flush=True)  # who listens sees to the bar; a log is read while it grows
        return
    from tqdm import tqdm

    tqdm.write(line)


def _bar(made: Work) -> Any:
    from tqdm import tqdm  # takes time that 'hsq --help' need not

    return tqdm(
        total=made.total,
        initial=made.done,
        desc=made.what,
        unit=made.unit or "it",
        unit_scale=bool(made.unit),
        disable=None,  # shown on a terminal
        leave=False,
    )
