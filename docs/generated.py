"""What pages take from the code: a line ``<!-- generated: NAME ARGUMENT -->`` is replaced when the page is read."""

import ast
import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args, get_origin

import tyro
from docstring_parser import parse

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"
MARK = re.compile(r"^<!-- generated: (\w+)(?: ([\w.]+))? -->$", re.MULTILINE)
FOREIGN = r"(?!(hsq_env|agents|detectors|restorers)\b).*"  # names that are not this project's


def environment() -> str:
    """The docstring of ``HSQEnv``, which is Markdown."""
    from hsq_env.env import HSQEnv

    summary, _, sections = inspect.cleandoc(HSQEnv.__doc__ or "").partition("\n\n")
    return f"{summary}\n\n{sections}"


def ids() -> str:
    """A table of the registered environments: what they are made by, with which arguments."""
    from hsq_env import _IDS

    rows = ["| id | made by | with |", "|---|---|---|"]
    for name, (entry, arguments) in _IDS.items():
        given = ", ".join(f"`{key}={value!r}`" for key, value in arguments.items())
        rows.append(f"| `{name}` | `hsq_env.make.{entry}` | {given} |")
    return "\n".join(rows)


def commands() -> str:
    """Every command of ``hsq``: its description, its examples, its flags."""
    from agents.commands import COMMANDS

    return "\n\n".join(_command(name, function) for name, function in COMMANDS.items())


def _command(name: str, function: Callable[..., object]) -> str:
    said = parse(inspect.getdoc(function) or "")
    blocks = re.split(r"\n\s*\n", "\n\n".join(filter(None, (said.short_description, said.long_description))))
    prose, shown = [], []
    for block in blocks:
        lines = block.strip().splitlines()
        shown += [line.removeprefix("Example: ") for line in lines if line.startswith("Example: ")]
        prose.append("\n".join(line for line in lines if not line.startswith("Example: ")))
    about = {parameter.arg_name: " ".join((parameter.description or "").split()) for parameter in said.params}
    hints = inspect.get_annotations(function, eval_str=True)
    items = [
        f"{flag(parameter, hints[parameter.name])} {_kind(hints[parameter.name])}{_default(parameter.default)}\n"
        f": {_text(about.get(parameter.name, ''))}"
        for parameter in inspect.signature(function).parameters.values()
    ]
    parts = [f"## hsq {name}", *(text for text in prose if text)]
    if shown:
        parts.append("```bash\n" + "\n".join(shown) + "\n```")
    return "\n\n".join([*parts, *items])


def _plain(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    """A type without its marks, and these."""
    found, *marks = get_args(hint) if hasattr(hint, "__metadata__") else (hint,)
    return found, (*marks, *getattr(hint, "__metadata__", ()))


def flag(parameter: inspect.Parameter, hint: Any) -> str:
    """How a parameter is given on the command line, as code."""
    kind, marks = _plain(hint)
    name = parameter.name.replace("_", "-")
    if tyro.conf.Positional in marks or any("Positional" in repr(mark) for mark in marks):
        return f"`{name.upper()}`"
    return f"`--{name}`, `--no-{name}`" if kind is bool else f"`--{name}`"


def _kind(hint: Any) -> str:
    """A type in words."""
    kind, _ = _plain(hint)
    if kind is bool:
        return ""
    if get_origin(kind) is tuple:
        inner = [_kind(part) for part in get_args(kind) if part is not Ellipsis]
        return f"{inner[0]} ..." if Ellipsis in get_args(kind) else " ".join(inner)
    options = [part for part in get_args(kind) if part is not type(None)]
    if options and all(isinstance(part, str | int) for part in options):  # a Literal
        return " or ".join(f"`{part}`" for part in options)
    if options:
        return " or ".join(_kind(part) for part in options)
    names = {"str": "text", "Path": "path", "int": "integer", "float": "number"}
    return names.get(getattr(kind, "__name__", str(kind)), str(kind))


def _default(value: Any) -> str:
    if value is inspect.Parameter.empty:
        return ", required"
    if value is None or value == ():
        return ""
    if isinstance(value, bool):
        return "on by default" if value else "off by default"
    return f", by default `{' '.join(map(str, value)) if isinstance(value, tuple) else value}`"


def _text(text: str) -> str:
    """Flags in it as code."""
    return re.sub(r"(?<![\w`-])(--[a-z][\w-]*)", r"`\1`", text)


def examples() -> str:
    """Every file in ``examples/``: its docstring's first paragraph, and the file."""
    parts = []
    for path in sorted(EXAMPLES.glob("*.py")):
        if path.name == "__init__.py":
            continue
        said = inspect.cleandoc(ast.get_docstring(ast.parse(path.read_text())) or path.stem)
        first = said.partition("\n\n")[0].replace("\n", " ")
        parts.append(
            f"## {path.name}\n\n{first}\n\n```{{literalinclude}} ../examples/{path.name}\n:language: python\n```"
        )
    return "\n\n".join(parts)


def api(package: str) -> str:
    """Every public module of a package, documented by autodoc."""
    found = importlib.import_module(package)
    names = [package, *(module.name for module in pkgutil.walk_packages(found.__path__, f"{package}."))]
    public = [name for name in names if not any(part.startswith("_") for part in name.split("."))]
    return "\n\n".join(f"## {name}\n\n```{{eval-rst}}\n.. automodule:: {name}\n   :members:\n```" for name in public)


PARTS: dict[str, Callable[..., str]] = {
    "environment": environment,
    "ids": ids,
    "commands": commands,
    "examples": examples,
    "api": api,
}


def expand(text: str) -> str:
    """A page's text with everything that it takes from the code."""

    def made(match: re.Match[str]) -> str:
        name, argument = match.groups()
        return PARTS[name](*([argument] if argument else []))

    return MARK.sub(made, text)


def shorten_markdown(app: Any, what: str, name: str, found: Any, options: Any, lines: list[str]) -> None:
    """The environment's docstring is Markdown, and a page of its own: autodoc gets its first line."""
    if name == "hsq_env.env.HSQEnv":
        lines[:] = [lines[0], "", "Its sections are the page :doc:`/environment`.", ""]
