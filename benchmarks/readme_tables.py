"""Write the tables of README.md from the JSON files in ``benchmarks/results``.

python -m benchmarks.readme_tables
"""

import json
import re
from pathlib import Path
from typing import Any

from agents.report import TITLES
from benchmarks.record import RESULTS

README = Path(__file__).parent.parent / "README.md"
BLOCK = re.compile(r"<!-- table: (\S+) -->\n.*?<!-- end -->", re.DOTALL)


def table(result: dict[str, Any]) -> str:
    """A search's result as Markdown."""
    teacher = result["teacher"]
    rows = [
        "| method | mAP (test) | points lost | bytes | ratio |",
        "|---|---:|---:|---:|---:|",
        f"| teacher, FP32 | {teacher['map']:.4f} | | {teacher['bytes']:,} | 1.00x |",
    ]
    for name, row in result["methods"].items():
        lost = 100 * (teacher["map"] - row["map"])
        title = f"**{TITLES[name]}**" if name == "hsq" else TITLES[name]
        rows.append(f"| {title} | {row['map']:.4f} | {lost:.2f} | {row['bytes']:,} | {row['ratio']:.2f}x |")
    source = result["methods"]["hsq"]["source"].replace("_", " ")
    rows += ["", f"The plan came from: {source}. `{result['environment']['command']}`, {result['seconds']:.0f} s."]
    return "\n".join(rows)


def speed_table(result: dict[str, Any]) -> str:
    """The figures of ``benchmarks.speed`` as Markdown."""
    names = [name for name in ("embedded", "bccd") if name in result]

    def row(title: str, key: str, form: str, unit: str = "") -> str:
        cells = [f"{result[n][key]:{form}}{unit}" if key in result[n] else "" for n in names]
        return f"| {title} | {' | '.join(cells)} |"

    rows = [
        f"| | {' | '.join(names)} |",
        f"|---|{'---:|' * len(names)}",
        row("one random episode, reference path", "reference_s", ".1f", " s"),
        row("the same with all shortcuts, nothing visited before", "fast_s", ".1f", " s"),
        row("times faster", "speedup", ".2f"),
        row("a step over its bare torch calls", "floor_ratio", ".3f"),
        row("episodes of a DQN's training", "train100_episodes", "d"),
        row("the training on the reference path (from its one episode)", "train100_reference_s", ",.0f", " s"),
        row("the training with all shortcuts", "train100_fast_s", ",.0f", " s"),
        row("times faster", "train100_speedup", ".1f"),
        row("steps answered by the table of visited prefixes", "hit_rate", ".0%"),
        row("steps per second of two workers over one", "two_workers", ".2f"),
        row("memory with two workers", "peak_mb", ",.0f", " MB"),
    ]
    return "\n".join(rows)


TABLES = {"speed.json": speed_table}


def with_tables(text: str) -> str:
    """``text`` with every marked table made anew."""

    def block(match: re.Match[str]) -> str:
        name = match.group(1)
        return (
            f"<!-- table: {name} -->\n{TABLES.get(name, table)(json.loads((RESULTS / name).read_text()))}\n<!-- end -->"
        )

    return BLOCK.sub(block, text)


if __name__ == "__main__":
    README.write_text(with_tables(README.read_text()))
