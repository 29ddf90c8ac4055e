"""The documentation says what is so: its code runs, its commands and flags exist, nothing public is left out."""

import functools
import importlib.util
import inspect
import itertools
import pkgutil
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import tyro
from docstring_parser import parse
from pages import PAGES, ROOT, blocks_of, name_of, prose_of, text_of
from tiny_task import TinyTask

from agents.commands import COMMANDS
from agents.explorer import Explorer
from agents.search import search
from agents.search_log import SearchLog
from hsq_env.env import HSQEnv

WITH_PYTHON = [page for page in PAGES if blocks_of(page, "python")]
PACKAGES = ("detectors", "restorers", "hsq_env", "agents")


# ---- code


@pytest.fixture(scope="module")
def folder(tiny: TinyTask, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a reader works: with the run that the tour begins with, of the tiny task."""
    path = tmp_path_factory.mktemp("reader")
    search(tiny, path / "runs" / "first", Explorer("ilp"), 8.0, finetune_steps=2, say=lambda line: None)
    return path


def check_readme(names: dict[str, Any], printed: str) -> None:
    accuracy, ratio = map(float, printed.split()[:2])
    assert accuracy > 0.5 and ratio >= 8.0


def check_tour(names: dict[str, Any], printed: str) -> None:
    assert names["agent"].num_timesteps == 2 * 7
    assert "times smaller" in printed


def check_agents(names: dict[str, Any], printed: str) -> None:
    assert len(names["accuracies"]) == 3 and names["inner"].index == 1
    assert names["model"].num_timesteps == 200


CHECKS: dict[str, Callable[[dict[str, Any], str], None]] = {  # what a page promises
    "README.md": check_readme,
    "docs/tour.md": check_tour,
    "docs/agents.md": check_agents,
}


@pytest.mark.parametrize("page", WITH_PYTHON, ids=name_of)
def test_python_runs(
    page: Path, folder: Path, tiny: TinyTask, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the tiny task in place of detectors, which take minutes."""
    make = gym.make

    def make_tiny(name: str, **arguments: Any) -> Any:
        return make(name, task=tiny, **arguments)

    monkeypatch.setattr(gym, "make", make_tiny)
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {"task": tiny}  # what else they use they must import
    for code in blocks_of(page, "python"):  # each goes on where the last one ended
        exec(compile(code, name_of(page), "exec"), names)
    CHECKS.get(name_of(page), lambda names, printed: None)(names, capsys.readouterr().out)


def test_the_agent_of_the_pages_searches(folder: Path, tiny: TinyTask, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written to a file, it goes where an agent's name goes."""
    (code,) = [code for code in blocks_of(ROOT / "docs" / "agents.md", "python") if "class Careful" in code]
    (folder / "my_module.py").write_text(code)
    monkeypatch.syspath_prepend(str(folder))
    env, log = HSQEnv(tiny, target_ratio=9.0, step_minibatches=0), SearchLog(lambda line: None)
    agent = Explorer("my_module:make", episodes=2).run(env, log)
    assert len(log.episodes) == 2 and all(episode.ratio >= 9.0 for episode in log.episodes)
    assert agent.returns == pytest.approx(sum(episode.total_reward for episode in log.episodes))


# ---- commands


def lines_of(page: Path) -> Iterator[str]:
    """What a reader would type, continued lines joined."""
    for code in blocks_of(page, "bash"):
        yield from filter(None, map(str.strip, code.replace("\\\n", " ").splitlines()))


def parses(words: list[str]) -> None:
    """:raises SystemExit: if the ``hsq`` command would not take these arguments"""
    behind: list[str] = []
    words = list(itertools.takewhile(lambda word: word not in ("|", ">"), words))  # the rest is the shell's
    if words[0] == "sweep" and "--" in words:
        words, behind = words[: words.index("--")], words[words.index("--") + 1 :]
        parses(["search", "--out", "somewhere", *behind])
    stubs = {name: functools.wraps(command)(lambda *given, **named: None) for name, command in COMMANDS.items()}
    tyro.extras.subcommand_cli_from_dict(stubs, prog="hsq", args=words)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_shell_lines_would_be_taken(page: Path) -> None:
    for line in lines_of(page):
        words = shlex.split(line, comments=True)
        program = words[0].removeprefix("venv/bin/").removeprefix(".venv/bin/")
        if program == "hsq" and words[-1] != "--help":
            parses(words[1:])
        elif program == "hsq":
            assert words[1] in COMMANDS
        elif program == "make":
            assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), line
        elif words[1:2] == ["-m"]:
            assert importlib.util.find_spec(words[2]), line
        elif program == "python":
            assert (ROOT / words[1]).is_file(), line
        elif program == "export":
            assert re.fullmatch(r"[A-Z_]+=\w+", words[1]), line
        else:
            assert program == "python3.11", line


def test_wrong_lines_would_not_be_taken() -> None:
    for wrong in (["search", "--no-such-flag"], ["sweep", "--out", "x", "--", "--no-such-flag"], ["no-such-command"]):
        with pytest.raises(SystemExit):
            parses(wrong)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_and_flags_in_the_text_exist(page: Path) -> None:
    flags = {"--help", "--resume"} | {
        f"--{no}{name.replace('_', '-')}"
        for command in COMMANDS.values()
        for name in inspect.signature(command).parameters
        for no in ("", "no-")
    }
    for code in re.findall(r"`([^`]+)`", prose_of(page)):
        words = code.replace("\n", " ").split()
        if words[0] == "hsq" and len(words) > 1 and words[1] != "COMMAND":
            assert words[1] in COMMANDS, code
        if words[0] == "hsq" or words[0].startswith("--"):
            assert {word for word in words if word.startswith("--") and word != "--"} <= flags, code
        if words[:2] == ["python", "-m"]:
            assert importlib.util.find_spec(words[2]), code


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_says_what_it_does_and_what_each_flag_means(name: str) -> None:
    said = parse(inspect.getdoc(COMMANDS[name]) or "")
    assert said.short_description
    told = {parameter.arg_name: parameter.description for parameter in said.params}
    assert list(told) == list(inspect.signature(COMMANDS[name]).parameters)
    assert all(told.values())
    for line in re.findall(r"^Example: (.*)$", said.long_description or "", re.MULTILINE):
        parses(shlex.split(line)[1:])


# ---- what is made from the code


def test_the_page_of_commands_has_all_of_them() -> None:
    page = text_of(ROOT / "docs" / "commands.md")
    parts = dict(re.findall(r"^## hsq (\w+)\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL))
    assert list(parts) == list(COMMANDS)
    first = re.findall(r"^`--([\w-]+)`.*\n: ", parts["search"], re.MULTILINE)
    assert [name.replace("-", "_") for name in first] == list(inspect.signature(COMMANDS["search"]).parameters)
    assert "`--finetune-steps` integer, by default `300`\n: gradient steps for each finalist" in parts["search"]
    assert "`--return-to-best`, `--no-return-to-best` on by default\n: " in parts["search"]
    assert "`--distillation` `akd` or `spark` or `akd+spark`, by default `akd`\n: " in parts["search"]
    assert "`FILE` path, required\n: model.hsq of a search" in parts["info"]
    examples = "hsq data coco --out coco/\nhsq data coco --out coco/ --splits val2017 --images 500\n"
    assert f"```bash\n{examples}```" in parts["data"]


def test_the_page_of_the_environment_is_its_docstring() -> None:
    page = text_of(ROOT / "docs" / "environment.md")
    assert page.count("## Observation Space\n") == 1 and "\n| 40-51 |" in page
    for name in ("HSQ-ResNet50-v0", "HSQ-SRResNet-v0"):
        assert f"| `{name}` |" in page
    assert "<!-- generated" not in page


def test_the_page_of_examples_has_all_of_them() -> None:
    files = {path.name for path in (ROOT / "examples").glob("*.py")} - {"__init__.py"}
    assert set(re.findall(r"^## (\S+)$", text_of(ROOT / "docs" / "examples.md"), re.MULTILINE)) == files


@pytest.mark.parametrize("package", PACKAGES)
def test_a_reference_has_every_module(package: str) -> None:
    found = importlib.import_module(package)
    modules = {package, *(m.name for m in pkgutil.walk_packages(found.__path__, f"{package}."))}
    page = text_of(ROOT / "docs" / "api" / f"{package}.md")
    assert set(re.findall(r"^\.\. automodule:: (\S+)$", page, re.MULTILINE)) == modules


def documented(package: str) -> Iterator[tuple[str, Any]]:
    """Public functions, classes and methods, by name."""
    found = importlib.import_module(package)
    for module in [package, *(m.name for m in pkgutil.walk_packages(found.__path__, f"{package}."))]:
        for name, thing in vars(importlib.import_module(module)).items():
            if name.startswith("_") or getattr(thing, "__module__", None) != module:
                continue
            if inspect.isfunction(thing) or inspect.isclass(thing):
                yield f"{module}.{name}", thing
            for own, method in vars(thing).items() if inspect.isclass(thing) else ():
                method = getattr(method, "__func__", method)
                if inspect.isfunction(method) and not own.startswith("_"):
                    yield f"{module}.{name}.{own}", method


@pytest.mark.parametrize("package", PACKAGES)
def test_docstrings_name_parameters_that_exist(package: str) -> None:
    """That there are docstrings is for ruff to see (D100 to D106 in pyproject.toml)."""
    for name, thing in documented(package):
        told = {parameter.arg_name for parameter in parse(thing.__doc__ or "").params}
        if told:
            assert told <= set(inspect.signature(thing).parameters), name


@pytest.mark.slow
@pytest.mark.long
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sphinx", "-W", "-q", "-b", "html", "-d", str(tmp_path / "trees")]
    done = subprocess.run([*command, str(ROOT / "docs"), str(tmp_path / "html")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    index = (tmp_path / "html" / "index.html").read_text()
    site = [page for page in PAGES if page.is_relative_to(ROOT / "docs")]
    pages = {str(page.relative_to(ROOT / "docs").with_suffix(".html")) for page in site}
    assert pages - {"index.html"} <= set(re.findall(r'href="([\w/]+\.html)', index))
