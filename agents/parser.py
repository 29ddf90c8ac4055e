"""The parser of the ``hsq`` command: its subcommands are functions, its help their docstrings."""

import contextlib
import inspect
import io
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, Union

import tyro

from agents.commands import COMMANDS
from agents.flags import plain

Shell = Literal["bash", "zsh", "fish"]

EXAMPLE = "Example: "
OR_FILES: dict[str, str] = {  # added to tyro's scripts, which complete no files in place of positional arguments
    "bash": """
_hsq() {
  _tyro_hsq "$@"
  [[ ${#COMPREPLY[@]} -eq 1 && -z ${COMPREPLY[0]} ]] && COMPREPLY=()
  return 0
}
complete -o bashdefault -o default -o filenames -F _hsq hsq""",
    "zsh": " || _files",
    "fish": "",
}
DESCRIPTION = """Make a trained detector or restorer small.
    hsq doctor                                     is everything there?
    hsq search --episodes 2 --out runs/first       the first search, on data that comes with the package
    hsq info runs/first/model.hsq                  what it found
    hsq search --help                              what a command does, its flags, examples

hsq --version prints the version, hsq completion a script with which Tab completes commands and flags.
"""


def call(arguments: Sequence[str]) -> None:
    """Run the command that the arguments name.

    :raises SystemExit: after help, and for arguments that make no sense
    """
    name, *rest = arguments
    command = COMMANDS.get(name)
    if command is None:
        tyro.cli(_any_of(COMMANDS), prog="hsq", description=DESCRIPTION, args=list(arguments))
    else:  # alone: for a mistyped flag, its own flags are proposed and its own help named
        tyro.cli(plain(command), prog=f"hsq {name}", description=described(inspect.getdoc(command) or ""), args=rest)


def completion_script(shell: Shell) -> str:
    """What a shell has to read so that it completes commands and flags."""
    script = io.StringIO()
    with contextlib.redirect_stdout(script), contextlib.suppress(SystemExit):
        tyro.cli(_any_of(COMMANDS), prog="hsq", args=["--tyro-write-completion", shell, "-"])
    return script.getvalue().rstrip("\n") + OR_FILES[shell] + "\n"


def _any_of(commands: dict[str, Callable[..., Any]]) -> Any:
    """A type for tyro: one of the commands, each described by a line."""
    made = []
    for name, command in commands.items():
        line = (inspect.getdoc(command) or "").split("\n")[0]
        made.append(Annotated[Any, tyro.conf.subcommand(name, constructor=plain(command), description=line)])
    return Union[tuple(made)]  # noqa: UP007 - made at run time


def described(docstring: str) -> str:
    """A command's docstring as its help shows it: without parameters, each ``Example:`` on a line of its own."""
    lines = docstring.partition("\n:param ")[0].strip().splitlines()
    examples = [line.removeprefix(EXAMPLE) for line in lines if line.startswith(EXAMPLE)]
    prose = "\n".join(line for line in lines if not line.startswith(EXAMPLE)).strip()
    if not examples:
        return prose
    return "\n".join([f"{prose}\n\nExample{'s' * (len(examples) > 1)}:", *(f"    {line}" for line in examples)])
