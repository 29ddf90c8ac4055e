"""How far long work is: reckoned, told, and shown in one line of a terminal."""

import fcntl
import io
import os
import pickle
import pty
import re
import struct
import sys
import termios
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT
from test_cli_resume import SCRIPT

import agents.progress
from agents.episode import Episode
from agents.progress import EVERY, Above, Line, LongWork, fitting, shown
from agents.search_log import SearchLog
from agents.training_progress import TrainingProgress
from detectors.progress import Work, each, listening, say, work
from hsq_env.choices import Choice, Plan

Captured = pytest.CaptureFixture[str]


def begun(what: str, total: float | None, done: float = 0, note: str = "", unit: str = "") -> Work:
    """A work that began at the hour 0 with nothing done."""
    made = Work(what, total, note=note, unit=unit, started=0.0)
    made.done = done
    return made


# ---- what is left


def test_the_rest_takes_as_long_as_the_pace_says() -> None:
    assert begun("a", 10, 4).seconds_left(8.0) == pytest.approx(12.0)
    assert begun("a", 10, 4).seconds_left(8.0, inside=0.5) == pytest.approx(8 * 5.5 / 4.5)
    assert begun("a", 10).seconds_left(8.0) is None and begun("a", None, 3).seconds_left(8.0) is None
    assert begun("a", 10, 12).seconds_left(8.0) == 0.0


def test_what_was_done_before_sets_no_pace() -> None:
    going = Work("a", 10, done=5, started=0.0)
    assert going.seconds_left(8.0) is None
    going.done = 7
    assert going.seconds_left(8.0) == pytest.approx(12.0)


def test_an_end_that_is_known() -> None:
    going = begun("a", 10, 1)
    going.until = 20.0
    assert going.seconds_left(8.0) == pytest.approx(12.0)  # at this pace it would be 72
    going.done = 8
    assert going.seconds_left(8.0) == pytest.approx(2.0)
    assert Work("a", until=5.0, started=0.0).seconds_left(8.0) == 0.0


def test_a_share_that_is_no_count() -> None:
    going = begun("a", 10, 1)
    going.share = 0.5
    assert going.seconds_left(8.0, inside=0.9) == pytest.approx(8.0)


# ---- who is told


class Told:
    """Notes the works that it is told of, as texts."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def __call__(self, works: Sequence[Work]) -> None:
        self.seen.append("; ".join(f"{going.what} {going.done:g} {going.note}".strip() for going in works))


def test_works_nest() -> None:
    told = Told()
    with listening(told), work("outer") as outer:
        for letter in each("ab", "letter"):
            outer.say(letter)
    assert told.seen == [
        "outer 0",
        "outer 0; letter 0",
        "outer 0 a; letter 0",
        "outer 0 a; letter 1",
        "outer 0 b; letter 1",
        "outer 0 b; letter 2",
        "outer 0 b",
        "",
    ]


def test_what_is_left_open_ends_with_what_is_around_it() -> None:
    told = Told()
    with listening(told):
        left = each("abc", "letter")
        with work("outer"):
            next(left)
        assert told.seen[-1] == ""
        with pytest.raises(KeyboardInterrupt), work("other"):
            raise KeyboardInterrupt
        assert told.seen[-1] == ""
        left.close()
        assert told.seen[-1] == ""


def test_the_last_listener_is_told() -> None:
    first, second = Told(), Told()
    with listening(first), listening(second), work("a"):
        pass
    assert not first.seen and second.seen == ["a 0", ""]


def test_things_without_a_length_may_be_counted() -> None:
    seen: list[float | None] = []
    with listening(lambda works: seen.extend(going.total for going in works)):
        assert list(each(iter("ab"), "letter", 2)) == ["a", "b"] and set(seen) == {2}
        seen.clear()
        assert list(each(iter("ab"), "letter")) == ["a", "b"] and set(seen) == {None}


def test_nothing_is_written_where_nobody_listens_and_there_is_no_terminal(capsys: Captured) -> None:
    assert list(each([1, 2], "number")) == [1, 2]
    with work("a", 3, unit="B") as going:
        going.advance(2)
        going.say("note")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")
    say("a line")
    assert capsys.readouterr().out == "a line\n"


# ---- one line


def test_a_line_by_hand() -> None:
    works = [
        begun("search", None, note="best 8.02x"),
        begun("dqn, episode", 10, 2),
        begun("layer", 4, 2, note="loss 3"),
    ]
    line = "dqn, episode 2/10, layer 2/4 | best 8.02x, loss 3 | 00:30 left"
    assert fitting(works, 100, 10.0) == line  # 2.5 of 10 episodes took 10 s
    assert fitting(works, len(line), 10.0) == line
    assert fitting(works, len(line) - 1, 10.0) == "dqn, episode 2/10, layer 2/4 | best 8.02x | 00:30 left"
    assert fitting(works, 50, 10.0) == "dqn, episode 2/10 | best 8.02x | 00:30 left"
    assert fitting(works, 40, 10.0) == "dqn, episode 2/10 | 00:30 left"
    assert fitting(works, 10, 10.0) == "dqn, episo"
    assert fitting(works[:1], 100, 10.0) == "search | best 8.02x"
    assert fitting([begun("fetching", 2e9, 5e8, unit="B")], 100, 3600.0) == "fetching 500M/2.00GB | 3:00:00 left"


class Terminal(io.StringIO):
    """Says that it is one."""

    def isatty(self) -> bool:
        return True

    def rows(self) -> list[str]:
        """What stands on it in the end."""
        rows, column = [""], 0
        for letter in self.getvalue():
            if letter == "\n":
                rows.append("")
            column = 0 if letter in "\r\n" else column + 1
            if letter not in "\r\n":
                rows[-1] = rows[-1][: column - 1].ljust(column - 1) + letter + rows[-1][column:]
        return [row.rstrip() for row in rows]


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def terminal() -> Terminal:
    return Terminal()


def test_the_line_is_drawn_in_place(terminal: Terminal) -> None:
    clock = Clock()
    line, works = Line(terminal, clock), [begun("layer", 100)]
    line.draw(works)
    assert terminal.rows() == ["layer 0/100"]
    works[0].done = 2
    line.draw(works)
    assert terminal.rows() == ["layer 0/100"]  # drawn just now
    clock.now += EVERY
    line.draw(works)
    assert terminal.rows() == ["layer 2/100 | 1:21:44 left"]
    works[0].total = None
    clock.now += EVERY
    line.draw(works)
    assert terminal.rows() == ["layer"]
    line.draw([])
    assert terminal.rows() == [""]
    line.draw(works)  # at once
    assert terminal.rows() == ["layer"]
    line.close()
    line.close()
    assert terminal.rows() == [""] and "\n" not in terminal.getvalue()


def test_what_is_printed_stands_above(terminal: Terminal) -> None:
    line = Line(terminal, Clock())
    out: Any = Above(terminal, line)
    print("before", file=out)
    line.draw([begun("layer", 100)])
    print("one line", file=out)
    assert terminal.rows() == ["before", "one line", "layer 0/100"]
    out.write("half a ")
    line.draw([begun("layer", 100)])  # must not tear it
    assert terminal.rows() == ["before", "one line", "half a"]
    out.writelines(["line\n", "last\n"])
    assert terminal.rows() == ["before", "one line", "half a line", "last", "layer 0/100"]
    line.close()
    assert terminal.rows() == ["before", "one line", "half a line", "last", ""]
    assert out.isatty()


def test_other_processes_leave_the_line_alone(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    line = Line(terminal, Clock())
    line.draw([begun("layer", 100)])
    own = terminal.getvalue()
    monkeypatch.setattr(agents.progress.os, "getpid", lambda: -1)  # type: ignore[attr-defined]
    line.draw([begun("other", 100)])
    assert terminal.getvalue() == own
    line.print("a warning\n", terminal)
    assert terminal.getvalue() == own + "a warning\n"


def test_streams_are_put_back(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()  # hsq ... > file: the line is drawn, and lines of the file stay in the file
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", terminal)
    with pytest.raises(KeyboardInterrupt), shown():
        for _ in each(range(3), "step"):
            print("to the file")
            print("to the terminal", file=sys.stderr)
            raise KeyboardInterrupt
    assert (sys.stdout, sys.stderr) == (out, terminal)
    assert out.getvalue() == "to the file\n" and terminal.rows() == ["to the terminal", ""]
    assert "step 0/3" in terminal.getvalue()


def test_a_log_names_long_work_once() -> None:
    log, now = io.StringIO(), [0.0]
    long_work = LongWork(log, clock=lambda: now[0])
    search, episodes, layers = begun("search", None, note="best 8x"), begun("episode", 10), begun("layer", 4)
    for now[0], episodes.done, layers.done in ((59.0, 1, 1), (60.0, 2, 1), (61.0, 2, 2), (70.0, 3, 0), (90.0, 3, 1)):
        long_work.note([search, episodes, layers])
    long_work.note([])
    assert log.getvalue().splitlines() == ["episode 2/10 | 03:26 left", "layer 2/4 | 01:01 left"]


def test_a_log_of_a_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its layers take less than a minute each time; without a number of episodes its evaluations tell the end."""
    log, now = io.StringIO(), [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    long_work = LongWork(log, clock=lambda: now[0])
    with listening(long_work.note), work("search"), TrainingProgress(4, "dqn", None, 100, None) as progress:
        for number in range(1, 21):
            progress({"measured": 1, **({"plan": None} if number % 4 == 0 else {})})
            now[0] += 10.0
    assert log.getvalue() == "dqn, episode | 13:17 left\n"


def test_a_log_does_not_name_work_of_which_nothing_is_done() -> None:
    log = io.StringIO()
    LongWork(log, clock=lambda: 100.0).note([begun("step", 10)])
    assert not log.getvalue()


def test_only_the_process_of_the_command_writes_to_a_log(monkeypatch: pytest.MonkeyPatch) -> None:
    log = io.StringIO()
    long_work = LongWork(log, clock=lambda: 100.0)
    monkeypatch.setattr(agents.progress.os, "getpid", lambda: -1)  # type: ignore[attr-defined]
    long_work.note([begun("step", 10, 1)])
    assert not log.getvalue()


def test_without_a_terminal_nothing_is_shown(capsys: Captured) -> None:
    with shown():
        for _ in each(range(3), "step"):
            say("a line")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("a line\n" * 3, "")


# ---- a search


def step(measured: int, plan: bool = False) -> dict[str, Any]:
    return {"measured": measured, **({"plan": None} if plan else {})}


def test_a_training_ends_with_what_is_used_up_first() -> None:
    told = Told()
    with listening(told), TrainingProgress(2, "dqn", 10, 5, None) as progress:
        progress(step(1))
        assert told.seen[-1] == "dqn, episode 0; layer 1" and progress.share == 1 / 5
        progress(step(0, plan=True))
        assert told.seen[-1] == "dqn, episode 1; layer 2" and progress.share == 1 / 5
        for _ in range(3):
            progress(step(0))
            progress(step(0, plan=True))
        assert progress.share == 4 / 10
    assert told.seen[-1] == ""
    unlimited = TrainingProgress(2, "dqn", None, None, None)
    unlimited(step(1))
    assert unlimited.share == 0.0
    unlimited.close()


def test_a_training_goes_on_from_a_checkpoint() -> None:
    with TrainingProgress(2, "dqn", 4, None, time.monotonic() + 50) as progress:
        progress(step(1))
        progress(step(1, plan=True))
        copy = pickle.loads(pickle.dumps(progress))
    seen: list[tuple[float, float, float | None]] = []
    with listening(lambda works: seen.extend((w.done, w.begun, w.until) for w in works[:1])):
        copy(step(1))
        copy.close()
    done, first, until = seen[-1]
    assert (done, first) == (1, 1 / 4) and until is not None and 40 < until - time.monotonic() <= 50


def test_the_best_plan_so_far_in_words() -> None:
    def episode(ratio: float, divergence: float, target: float | None) -> Episode:
        plan = Plan(("a",), (Choice(8 if divergence > 0.2 else 4, 0.0),))
        return Episode("dqn", plan, -divergence, 0.9912, ratio, 1.0, divergence, target)

    log = SearchLog(lambda line: None)
    assert log.best_so_far() == ""
    log.episodes += [episode(8.1, 0.5, 8.0), episode(8.0212, 0.125, 8.0)]
    assert log.best_so_far() == "best 8.02x, accuracy 0.9912, reward -0.125"
    log.episodes.append(episode(10.1, 0.4, 10.0))
    assert log.best_so_far() == "best for 10x 10.10x, accuracy 0.9912, reward -0.400"
    log.episodes.append(episode(11.0, 0.4, 12.0))
    assert log.best_so_far() == ""


# ---- a real terminal


@pytest.mark.slow
def test_a_search_on_a_terminal_and_ctrl_c(tmp_path: Path) -> None:
    """One line in place, above which lines are printed whole; Ctrl-C takes it away."""
    start = f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'tests')!r}]\n"
    flags = ["--target-ratio", "6", "--episodes", "4000", "--no-surrogate"]
    arguments = [sys.executable, "-c", start + SCRIPT, "search", "--out", str(tmp_path / "run"), *flags]
    child, descriptor = pty.fork()
    if child == 0:
        os.environ["HSQ_CACHE"] = str(tmp_path / "cache")  # tables are measured
        os.execv(sys.executable, arguments)
    fcntl.ioctl(descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))
    terminal, stopped = Terminal(), False
    while True:
        try:
            terminal.write(os.read(descriptor, 65536).decode(errors="replace"))
        except OSError:  # it has ended
            break
        if not stopped and "dqn, episode 3/4,000" in terminal.getvalue():
            stopped = os.write(descriptor, b"\x03") == 1
    os.close(descriptor)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 130
    drawn = [row for row in terminal.getvalue().replace("\n", "\r").split("\r") if " | " in row]
    assert any(re.match(r"repaired sensitivities of layer [1-7]/7 \| [\d:]+ left", row) for row in drawn)
    assert all(len(row.rstrip("^C")) < 120 for row in drawn)
    last = [row for row in drawn if row.startswith("dqn, episode 3/4,000")][-1]
    assert "| best 6." in last and ", accuracy " in last and ", reward " in last and " left" in last
    rows = terminal.rows()
    assert all(" | " not in row and not row.startswith("dqn, episode") for row in rows)
    assert sum(row.startswith("episode ") for row in rows) == len({row for row in rows if row.startswith("episode ")})
    assert rows[-1] == "" and rows[-2].startswith("hsq: Interrupted: ")
