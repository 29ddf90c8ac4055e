"""Imports go one way: detectors <- restorers <- hsq_env <- agents <- benchmarks."""

import ast
from pathlib import Path

import pytest
from helpers import ROOT

OURS = {"detectors", "restorers", "hsq_env", "agents", "benchmarks", "tests"}
MAY_IMPORT = {
    "detectors": set(),
    "restorers": {"detectors"},  # errors, teacher files, folding
    "hsq_env": {"detectors", "restorers"},
    "agents": {"detectors", "restorers", "hsq_env"},
    "benchmarks": {"detectors", "restorers", "hsq_env", "agents"},
}
AGENT_LIBRARIES = {"stable_baselines3", "sb3_contrib", "ray", "optuna", "tensorboard", "wandb", "mlflow"}
FILES = [path for package in MAY_IMPORT for path in sorted((ROOT / package).rglob("*.py"))]


def imported(source: str) -> set[str]:
    """First names of all modules that a source imports, also within functions and by ``import_module``."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found.add((node.module or "").split(".")[0])
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            first, dot, _ = node.value.partition(".")
            found |= {first} if dot and first in OURS and " " not in node.value else set()
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_direction(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    seen = imported(path.read_text())
    assert seen & OURS <= MAY_IMPORT[package] | {package}
    if package not in ("agents", "benchmarks"):
        assert not seen & AGENT_LIBRARIES
    if package in ("detectors", "restorers"):
        assert "gymnasium" not in seen


def test_the_check_sees_every_form() -> None:
    source = (
        "import agents.dqn as d\nfrom hsq_env import env\ndef f():\n    from detectors.batches import Batch\n"
        "NAMES = {'Env': 'benchmarks.table'}\nTEXT = 'restorers. And so on'\n"
    )
    assert imported(source) == {"agents", "hsq_env", "detectors", "benchmarks"}


def test_every_package_is_looked_at() -> None:
    looked_at = {path.relative_to(ROOT).parts[0] for path in FILES}
    assert {"detectors", "restorers", "hsq_env", "agents"} <= looked_at
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert packages <= OURS
