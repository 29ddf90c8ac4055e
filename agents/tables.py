"""What the commands print."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from agents.output import print_json
from hsq_env.file import read_header
from hsq_env.size import encoding

LOST = {"mAP": ("points lost", 100.0), "PSNR": ("dB lost", 1.0)}
MOST_COLUMNS = 10_000  # of a line of a file
SHOWN_LAYERS = 10  # of a table of latencies
TITLES = {
    "uniform8": "uniform 8 bit",
    "uniform8_finetuned": "uniform 8 bit, fine-tuned",
    "uniform4": "uniform 4 bit",
    "uniform4_finetuned": "uniform 4 bit, fine-tuned",
    "hsq": "HSQ",
}


def title_of(method: str) -> str:
    """How tables and reports call a method of ``result.json``."""
    return TITLES.get(method, method.replace("hsq-", "HSQ, ") + "x")


def print_sweep(rows: list[dict[str, Any]], out: Path, as_json: bool = False) -> None:
    """The table of a sweep, the smallest models last, where a star marks the front; or sweep.json."""
    if as_json:
        print_json(json.loads((out / "sweep.json").read_text()))
        return
    done = sorted((row for row in rows if row["state"] == "finished"), key=lambda row: -row["bytes"])
    table = Table(title=f"{len(done)} of {len(rows)} searches finished")
    varied = [name for name in rows[0] if name in ("target_ratio", "seed", "reward", "detector", "algo")]
    for name in (*varied, "ratio", "bytes", "test", "lost", "front"):
        table.add_column(name.replace("_", " "), justify="right")
    for row in done:
        factor = LOST[row["metric"]][1]
        figures = (f"{row['ratio']:.2f}x", f"{row['bytes']:,}", f"{row['value']:.4f}", f"{factor * row['lost']:.2f}")
        table.add_row(*(str(row[name]) for name in varied), *figures, "*" if row["front"] else "")
    console = _shown(table)
    if done:
        console.print(f"lost: {LOST[done[0]['metric']][0]}; written to {out / 'sweep.json'}")


def print_table(result: dict[str, Any], out: Path, as_json: bool = False) -> None:
    """The table of a search, or JSON."""
    if as_json:
        print_json(result)
        return
    table = Table(title=f"{result['dataset']}, {result['split']} split")
    metric = result["metric"]
    key, (lost_in, factor) = metric.lower(), LOST.get(metric, ("lost", 1.0))
    for column in ("method", metric, lost_in, "bytes", "ratio"):
        table.add_column(column, justify="left" if column == "method" else "right")
    teacher = result["teacher"]
    table.add_row("teacher, FP32", f"{teacher[key]:.4f}", "", f"{teacher['bytes']:,}", "1.00x")
    for name, row in result["methods"].items():
        lost = factor * (teacher[key] - row[key])
        table.add_row(
            title_of(name),
            f"{row[key]:.4f}",
            f"{lost:.2f}",
            f"{row['bytes']:,}",
            f"{row['ratio']:.2f}x",
        )
    console = _shown(table)
    sources = " and ".join(dict.fromkeys(row["source"] for row in result["methods"].values() if "source" in row))
    count = result["episodes"]
    episodes = "1 episode" if count == 1 else f"{count} episodes"
    console.print(f"Plans from {sources}; {episodes}, {result['seconds']:.0f} s. Written to {out}.")


def print_teacher(best: dict[str, Any], as_json: bool) -> None:
    """One line, or JSON."""
    if as_json:
        print_json(best)
        return
    metric = best["metric"]
    score = f"{best[metric.lower()]:.{4 if metric == 'mAP' else 3}f}"
    print(
        f"wrote {best['file']}: {metric} {score} on the search split at epoch {best['epoch']}, {best['seconds']:.0f} s"
    )


def print_folder(done: str, folder: Path, as_json: bool) -> None:
    """One line about a COCO-layout folder that was made, or JSON."""
    if as_json:
        files = sorted((folder / "annotations").glob("instances_*.json"))
        images = {file.stem.removeprefix("instances_"): len(json.loads(file.read_text())["images"]) for file in files}
        print_json({"folder": str(folder), "images": images})
        return
    print(f"{done} {folder}")


def print_evaluation(result: dict[str, Any], as_json: bool) -> None:
    """One line, or JSON."""
    if as_json:
        print_json(result)
        return
    ratio = f", {result['ratio']:.2f}x" if "ratio" in result else ""
    where, metric = f"{result['dataset']} ({result['split']})", result["metric"]
    print(f"{result['file']}: {metric} {result[metric.lower()]:.4f} on {where}, {result['bytes']:,} bytes{ratio}")


def print_exported(exported: dict[str, Any], as_json: bool) -> None:
    """One line, or JSON."""
    if as_json:
        print_json(exported)
        return
    compared = f"{exported['metric']} {exported['runtime']:.4f} in onnxruntime, {exported['student']:.4f} in PyTorch"
    sizes = f"{exported['bytes']:,} bytes ({exported['hsq_bytes']:,} as .hsq)"
    print(f"wrote {exported['onnx']}, {sizes}, {exported['arithmetic']} arithmetic: {compared}")
    if not exported["agrees"]:
        print("The two are further apart than they should be: do not use this file.")


def print_bench(found: dict[str, Any], as_json: bool) -> None:
    """A table, or JSON."""
    if as_json:
        print_json(found)
        return
    height, width = found["image"]
    table = Table(title=f"{found['file']}, {height}x{width} pixels, median of {found['repeats']}")
    for column in ("threads", "float32", "compressed", "times faster"):
        table.add_column(column, justify="right")
    for row in found["speeds"]:
        milliseconds = (f"{1000 * row[name]:.1f} ms" for name in ("float32", "compressed"))
        table.add_row(str(row["threads"]), *milliseconds, f"{row['times']:.2f}")
    console = _shown(table)
    sizes, (integer, of) = found["bytes"], found["integer"]
    console.print(f"{sizes[0]:,} and {sizes[1]:,} bytes as ONNX; {integer} of {of} convolutions in integers")


def print_latency(found: dict[str, Any], as_json: bool = False) -> None:
    """The layers that take longest, and all together; or JSON."""
    if as_json:
        print_json(found)
        return
    height, width = found["image"]
    table = Table(title=f"{found['teacher']}, {height}x{width} pixels, {found['threads']} thread(s), ms")
    table.add_column("layer", no_wrap=True)
    shown = [key for key in found["seconds"] if "/" not in key]
    for key in shown:
        table.add_column("float32" if key == "32" else f"{key} bit", justify="right")
    longest = sorted(found["layers"], key=lambda layer: -layer["seconds"]["32"])[:SHOWN_LAYERS]
    for layer in longest:
        table.add_row(layer["name"], *(f"{1000 * layer['seconds'][key]:.3f}" for key in shown))
    table.add_row("all layers", *(f"{1000 * found['seconds'][key]:.2f}" for key in shown))
    console = _shown(table)
    shares = [key for key in found["seconds"] if "/" in key]
    for bits in dict.fromkeys(key.split("/")[0] for key in shares):
        own = [(key.split("/")[1], found["seconds"][key]) for key in shares if key.startswith(bits + "/")]
        rest = ", ".join(f"{1000 * seconds:.2f} without {float(share):.0%}" for share, seconds in own)
        console.print(f"all layers at {bits} bit without a share of their input channels: {rest}")


def print_leaderboard(rows: Sequence[dict[str, Any]], refused: dict[str, str]) -> None:
    """The table of ``hsq leaderboard``, and what could not be checked."""
    table = Table(title="checked runs")
    for column in ("run", "data", "lost", "bytes", "ratio", ""):
        table.add_column(column, justify="right" if column in ("lost", "bytes", "ratio") else "left")
    for row in rows:
        unit, factor = LOST.get(row["metric"], ("lost", 1.0))
        name = row["run"] if row["name"] == "hsq" else f"{row['run']} ({row['name'].removeprefix('hsq-')}x)"
        verdict = "best of its size" if row["front"] else "" if row["holds"] else "wrong: " + ", ".join(row["broken"])
        lost = f"{factor * row['lost']:.2f} {unit.removesuffix(' lost')}"
        table.add_row(name, row["dataset"], lost, f"{row['bytes']:,}", f"{row['ratio']:.2f}x", verdict)
    console = _shown(table)
    for sentence in refused.values():
        console.print(f"not checked: {sentence}")


def print_info(file: Path, as_json: bool) -> None:
    """The plan as a table, or JSON."""
    header = read_header(file)
    if as_json:
        print_json({"model": header.model, "pattern": header.pattern, **header.plan().to_json()})
        return
    table = Table(title=f"{file}, {file.stat().st_size:,} bytes")
    table.add_column("layer", no_wrap=True)
    for column in ("shape", "bits", "sparsity", "stored as", "inputs"):
        table.add_column(column, overflow="fold")
    table.caption = "inputs: bits of the activations that the layer takes"
    for entry in header.layers:
        shape = "x".join(map(str, entry.shape))
        if entry.choice is None:
            table.add_row(entry.name, shape, "32", "0%", "", "")
            continue
        kind = encoding(entry.shape, entry.choice, header.pattern).kind
        row = (entry.name, shape, str(entry.choice.bits), f"{entry.choice.sparsity:.0%}", kind)
        table.add_row(*row, str(entry.activation_bits or 32))
    _shown(table)


def _shown(table: Table) -> Console:
    """Print a table; what is printed to.

    Files and pipes get lines as long as it takes, a terminal those that it has room for.
    """
    console = Console()
    if not console.file.isatty():  # rich calls pipes terminals where FORCE_COLOR is set
        table.min_width = len(str(table.title or ""))
        console.width, console.soft_wrap = MOST_COLUMNS, True
    console.print(table)
    return console
