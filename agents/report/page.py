"""One HTML file from some runs."""

import os
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from agents.report.curves import curve_drawings, rewards_drawing
from agents.report.detections import SHOWN_SCORE
from agents.report.figures import Drawing, models_drawing, plans_drawing
from agents.report.layers import explained, layer_rows, layers_drawing
from agents.report.pictures import pictures_of
from agents.report.run import Run, read_runs
from detectors.errors import InputError
from detectors.files import write_atomically
from detectors.progress import each

BEGINS = b"<!DOCTYPE html"  # of every report
IMAGES, SHOWN = 64, 6  # test images that are looked at, and of these the ones in the page


def write_report(
    runs: Sequence[Path],
    out: Path,
    dataset: str | None = None,
    splits: Sequence[str] | None = None,
    images: int = IMAGES,
    shown: int = SHOWN,
) -> int:
    """Write a report of finished runs; of several, one that compares them.

    :param runs: their folders
    :param out: the HTML file, which is written whole or not at all
    :param dataset: where their data lie here; the places in their records when None
    :param splits: names of the splits; those in their records when None
    :param images: of the test split on which teacher and student are compared; 0 leaves that out
    :param shown: how many of them the page shows, those that differ most
    :return: its size in bytes
    :raises InputError: if one cannot be read, they have different metrics, or the file cannot be written
    """
    _check_out(out)
    if images < 0 or shown < 1:
        raise InputError(f"{images} images, {shown} of them shown: give --images 0 or more and --shown 1 or more.")
    read = read_runs(runs)
    if not read:
        raise InputError("There is nothing to report: give folders of finished runs.")
    metrics = sorted({run.metric for run in read})
    if len(metrics) > 1:
        raise InputError(f"The runs have different metrics ({' and '.join(metrics)}): report on them apart.")
    pictures = []
    for run in each(read if images else [], "reports"):
        pictures.append((run, pictures_of(run, dataset, splits, images, shown)))
    content = page(read, pictures).encode()
    try:
        write_atomically(out, content)
    except OSError as error:
        raise InputError(f"{out} cannot be written ({error.strerror}): give another place with --out.") from error
    return len(content)


def _check_out(out: Path) -> None:
    """Refuse what is no place for a report, above all another file: a run's would be lost.

    :raises InputError: if so
    """
    folder = out.absolute().parent
    try:
        taken = out.exists() and not (out.is_file() and out.read_bytes().startswith(BEGINS))
    except OSError as error:
        raise InputError(f"{out} cannot be written ({error.strerror}): give another place with --out.") from error
    if out.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise InputError(f"{out} cannot be written: give a file in a folder that exists (--out FILE).")
    if taken:
        raise InputError(f"{out} exists and is no report: give another file with --out.")


def page(runs: Sequence[Run], pictures: Sequence[Any] = ()) -> str:
    """The HTML.

    :param pictures: pairs of a run and its ``Pictures``
    """
    environment = Environment(
        loader=PackageLoader("agents.report", ""), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    style, script = (files("agents.report").joinpath(name).read_text() for name in ("page.css", "page.js"))
    return environment.get_template("page.html").render(
        runs=runs,
        title=" and ".join(run.name for run in runs) if len(runs) < 4 else f"{len(runs)} runs",
        summary=[summary(run) for run in runs],
        drawings=_drawings(runs),
        plans=[_explanation(run, place) for place, run in enumerate(runs)],
        curves=curve_drawings(runs),
        evaluations=[run for run in runs if run.adjustments],
        differing=differing(runs),
        pictures=pictures,
        sure=SHOWN_SCORE,
        style=style,
        script=script,
    )


def summary(run: Run) -> str:
    """What came of a run, in a sentence."""
    found = [model for model in run.models if model.found]
    if not found:
        return f"{run.name}: nothing was found."
    unit, _ = run.lost_in
    said = [f"{m.ratio:.2f} times smaller ({m.bytes:,} bytes) at {run.lost(m):.2f} {unit}" for m in found]
    return f"{run.name}: {'; '.join(said)}."


def _drawings(runs: Sequence[Run]) -> list[Drawing]:
    """Accuracy against size, and rewards where there were episodes."""
    drawings = [models_drawing(runs)]
    searched = [run for run in runs if run.tried]
    if searched:
        drawings += [plans_drawing(searched), plans_drawing(searched, "divergence"), rewards_drawing(searched)]
    return drawings


def _explanation(run: Run, place: int) -> dict[str, Any]:
    """Per found plan a drawing and a table of its layers."""
    plans = [
        {"model": model, "drawing": layers_drawing(run, model, f"layers{place}-{i}"), "rows": layer_rows(run, model)}
        for i, model in enumerate(explained(run))
    ]
    return {"run": run, "plans": plans}


def differing(runs: Sequence[Run]) -> list[str]:
    """What runs do not have in common that figures depend on: their losses are then not comparable."""
    told: dict[str, set[Any]] = {
        "data": {str(run.record.get("dataset")) for run in runs},
        "network": {str(run.record.get("model")) for run in runs},
        "teacher": {(run.teacher_score, run.teacher_bytes) for run in runs},
    }
    return [name for name, values in told.items() if len(values) > 1]
