"""The ``hsq`` command's help, its version and what shells complete."""

import inspect
import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from helpers import ROOT

from agents.cli import main
from agents.commands import COMMANDS
from agents.parser import completion_script, described
from hsq_env import __version__

Captured = pytest.CaptureFixture[str]


def said(capsys: Captured, *arguments: str, code: int = 0) -> tuple[str, str]:
    with pytest.raises(SystemExit) as end:
        main(list(arguments))
    assert end.value.code == code
    captured = capsys.readouterr()
    return captured.out, captured.err


def test_help_lists_every_command_with_a_line(capsys: Captured) -> None:
    out, err = said(capsys, "--help")
    assert not err and "hsq doctor" in out and "Example" not in out
    for name, command in COMMANDS.items():
        first = (inspect.getdoc(command) or "").split("\n")[0]
        assert f"• {name}" in out and " ".join(first.split()[:3]) in out


def test_without_a_command_there_is_help(capsys: Captured) -> None:
    helped, _ = said(capsys, "--help")
    assert said(capsys, code=2) == ("", helped)


def test_the_version(capsys: Captured) -> None:
    main(["--version"])
    assert capsys.readouterr().out == f"hsq {__version__}\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_examples_that_it_understands(name: str, capsys: Captured) -> None:
    """Shown as they are, one to a line; every flag in them is one that the help of the command explains."""
    examples = re.findall(r"^ *Example: (.*)$", COMMANDS[name].__doc__ or "", re.MULTILINE)
    assert 1 <= len(examples) <= 3
    out, _ = said(capsys, name, "--help")
    explained = out.rpartition(examples[-1])[2]
    for example in examples:
        assert f"\n    {example}\n" in out and example.split()[:2] == ["hsq", name]
        own = example.partition(" -- ")[0].partition(" | ")[0]
        for flag in re.findall(r"(?<!\S)--[\w-]+", own):
            assert re.search(rf"{flag}\b", explained), flag


def test_examples_stand_under_the_prose() -> None:
    docstring = "Do it.\n\nAnd more.\n\nExample: hsq a --b\nExample: hsq a\n\n:param b: not this"
    assert described(docstring) == "Do it.\n\nAnd more.\n\nExamples:\n    hsq a --b\n    hsq a"
    assert described("Do it.\n\nExample: hsq a") == "Do it.\n\nExample:\n    hsq a"
    assert described("Do it.\n\n:param b: not this") == "Do it."


def test_help_loads_nothing_heavy() -> None:
    code = "import sys\nfrom agents.cli import main\ntry:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
    code += "print(sorted({'torch', 'numpy', 'gymnasium', 'rich', 'tqdm'} & set(sys.modules)), file=sys.stderr)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stderr == "[]\n" and "subcommands" in done.stdout


def test_a_reader_that_goes_away() -> None:
    """``hsq --help | true``."""
    reading, writing = os.pipe()
    os.close(reading)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "agents.cli", "--help"]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, env=environment)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


# ---- completion


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_script_for_every_shell(shell: str, capsys: Captured) -> None:
    main(["completion", shell])
    script = capsys.readouterr().out
    assert script == completion_script(shell)  # type: ignore[arg-type]
    assert "target-ratio" in script and "leaderboard" in script


def test_an_unknown_shell(capsys: Captured) -> None:
    assert "cmd" in said(capsys, "completion", "cmd", code=2)[1]


@pytest.fixture(scope="module")
def bash(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A terminal with a bash that has read the script, in a folder that holds the folder runs."""
    folder = tmp_path_factory.mktemp("bash")
    (folder / "runs").mkdir()
    (folder / "script").write_text(completion_script("bash"))
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(folder)
        os.environ.update(TERM="dumb", PS1="> ")
        os.execlp("bash", "bash", "--norc", "--noprofile", "-i")
    os.write(terminal, b"bind 'set bell-style none'; source ./script; echo read''y\n")
    read_until(terminal, "ready\r\n> ")
    yield terminal
    os.close(terminal)
    os.waitpid(child, 0)


def read_until(terminal: int, text: str) -> str:
    """What the terminal shows until the text has come."""
    shown, deadline = "", time.monotonic() + 60
    while text not in shown:
        assert time.monotonic() < deadline, shown
        if select.select([terminal], [], [], 1)[0]:
            shown += os.read(terminal, 65536).decode()
    return shown


@pytest.mark.parametrize(
    ("typed", "becomes"),
    [
        ("hsq sea", "search "),
        ("hsq search --target-r", "--target-ratio "),
        ("hsq search --sparsity-pattern cha", "channels "),
        ("hsq info ru", "runs/"),
        ("hsq search --out ru", "runs/"),
    ],
)
def test_tab_in_a_real_bash(bash: int, typed: str, becomes: str) -> None:
    os.write(bash, f"{typed}\t".encode())
    shown = read_until(bash, becomes)
    assert shown.split("\r")[-1].endswith(typed.rpartition(" ")[0] + " " + becomes)
    os.write(bash, b"\x15")  # Ctrl-U takes the line away
