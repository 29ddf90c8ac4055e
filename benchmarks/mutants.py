"""Mutants: small changes in the pure modules of ``hsq_env``, and how many of them the tests notice.

python -m benchmarks.mutants           # from nothing, about an hour on one core
python -m benchmarks.mutants --keep    # those that were noticed before stand; the others are tried again

Which modules, which tests and what is left alone stands in the section ``mutmut`` of setup.cfg. A mutant is tried with
those tests that reach its function, and by ``mutmut show NAME`` it is shown.
"""

import argparse
import configparser
import os
import shutil
import subprocess
import sys
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.record import write_result

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "mutants"
NOTICED = ("killed", "timeout", "segfault")
# By the tool itself, beside the patterns of setup.cfg.
NEVER_CHANGED = (
    "what stands outside functions: constants, fields of dataclasses",
    "docstrings and annotations",
    "functions with a decorator other than staticmethod and classmethod",
    "calls of len and isinstance",
    "the text of f-strings",
)


def mutmut(*arguments: str) -> str:
    """Run the tool from the repository's root.

    :return: what it said, where it is asked for results
    """
    command = [str(Path(sys.executable).parent / "mutmut"), *arguments]
    asked = arguments[0] == "results"
    done = subprocess.run(command, cwd=ROOT, check=True, text=True, stdout=subprocess.PIPE if asked else None)
    return done.stdout if asked else ""


def not_noticed(results: str) -> list[str]:
    """Names of the mutants that have been tried in vain.

    :param results: as for ``by_module``
    """
    rows = [line.strip().partition(": ") for line in results.splitlines()]
    return [name for name, _, status in rows if status in ("survived", "no tests")]


def by_module(results: str) -> dict[str, dict[str, Any]]:
    """Counts of each module.

    :param results: lines ``hsq_env.module.x_function__mutmut_1: killed``
    """
    counts: dict[str, Counter[str]] = {}
    for line in results.splitlines():
        name, _, status = line.strip().partition(": ")
        if status:
            counts.setdefault(name.rpartition(".")[0], Counter())[status] += 1
    return {module: figures(found) for module, found in sorted(counts.items())}


def figures(found: Counter[str]) -> dict[str, Any]:
    """Total, share and counts of what was noticed, of what was not, and of what no test reaches.

    :raises ValueError: if some were not tried
    """
    unknown = set(found) - {*NOTICED, "survived", "no tests"}
    if unknown:
        raise ValueError(f"Mutants are {', '.join(sorted(unknown))}: run the benchmark again.")
    noticed = sum(found[status] for status in NOTICED)
    return {
        "mutants": found.total(),
        "noticed": noticed,
        "of_these_endless": found["timeout"] + found["segfault"],
        "survived": found["survived"],
        "unreached": found["no tests"],
        "share_noticed": round(noticed / found.total(), 4),
    }


def main() -> None:
    """Try the mutants and write ``benchmarks/results/mutants.json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", action="store_true", help="try those alone that were not noticed before")
    arguments = parser.parse_args()
    if not arguments.keep:
        shutil.rmtree(FOLDER, ignore_errors=True)
    os.environ.update(OMP_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE")  # mutants run in forks of one process
    os.environ.pop("PYTHONPATH", None)  # the changed copy is to be found, not this one
    mutmut("run", "--max-children", "1")
    if arguments.keep and (again := not_noticed(mutmut("results"))):
        mutmut("run", "--max-children", "1", *again)
    modules = by_module(mutmut("results", "--all", "true"))
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    total = {key: sum(row[key] for row in modules.values()) for key in next(iter(modules.values()))}
    total["share_noticed"] = round(total["noticed"] / total["mutants"], 4)
    write_result(
        "mutants",
        {
            "tools": {name: version(name) for name in ("mutmut", "pytest")},
            "left_alone": {
                "by_mutmut": list(NEVER_CHANGED),
                "lines_that_match": config["mutmut"]["do_not_mutate_patterns"].split("\n")[1:],
            },
            "total": total,
            "modules": modules,
        },
    )
    print(f"{total['noticed']} of {total['mutants']} mutants noticed ({total['share_noticed']:.1%})")


if __name__ == "__main__":
    main()
