"""Checked runs beside each other: what ``hsq leaderboard`` ranks."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agents.pareto import pareto_front
from agents.validate import Check, read_record


def leaderboard_rows(run: Path, checks: Sequence[Check]) -> list[dict[str, Any]]:
    """Rows of a leaderboard: a run's models, with what they lose and whether everything that it claims holds.

    :return: ``{"run", "name", "dataset", "model", "metric", "lost", "ratio", "bytes", "holds", "broken"}``
    """
    record = read_record(run)
    key = record["metric"].lower()
    broken = [check.figure for check in checks if not check.holds]
    return [
        {
            "run": run.name,
            "name": name,
            "dataset": record["dataset"],
            "model": record["model"],
            "metric": record["metric"],
            "lost": record["teacher"][key] - row[key],
            "ratio": row["ratio"],
            "bytes": row["bytes"],
            "holds": not broken,
            "broken": broken,
        }
        for name, row in record["methods"].items()
        if name == "hsq" or name.startswith("hsq-")
    ]


def ranked(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Best first within a data set: those that hold and that no other is both smaller and better than; then by loss.

    Adds ``"front"``: whether no row of the same data, model and metric that holds is both smaller and better.
    """
    marked = [{**row, "front": False} for row in rows]
    rivals: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in marked:
        if row["holds"]:
            rivals.setdefault((row["dataset"], row["model"], row["metric"]), []).append(row)
    for group in rivals.values():
        for index in pareto_front([(row["ratio"], -row["lost"]) for row in group]):
            group[index]["front"] = True
    return sorted(marked, key=lambda r: (r["dataset"], not r["holds"], not r["front"], r["lost"], -r["ratio"]))
