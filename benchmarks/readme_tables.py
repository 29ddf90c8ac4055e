"""Write the tables of README.md and of the pages in docs from the JSON files in ``benchmarks/results``.

python -m benchmarks.readme_tables
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agents.tables import TITLES
from benchmarks.record import RESULTS

README = Path(__file__).parent.parent / "README.md"
PAGES = (README, *sorted((README.parent / "docs").glob("*.md")))
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


def _cell(figures: dict[str, Any], worth: float, digits: int = 2) -> str:
    """What is lost: the interquartile mean, the interval of three seeds or more, and how many there are."""
    teacher = figures["iqm"] * worth + figures["lost"]  # in the unit of what is lost
    lost = f"{figures['lost']:.{digits}f}"
    if len(figures["seeds"]) >= 3:
        high, low = (teacher - worth * bound for bound in figures["ci"])
        lost += f" ({low:.{digits}f} to {high:.{digits}f})"
    return f"{lost}, {len(figures['seeds'])}"


def _grid(corner: str, rows: dict[str, dict[str, str]]) -> list[str]:
    """Cells by row and column, blank where there are none."""
    columns = list(dict.fromkeys(name for cells in rows.values() for name in cells))
    head = [f"| {corner} | {' | '.join(columns)} |", f"|---|{'---:|' * len(columns)}"]
    return head + [f"| {title} | {' | '.join(cells.get(c, '') for c in columns)} |" for title, cells in rows.items()]


FURTHER = 1.02  # times a column's ratio, from which on a cell says its own


def search_table(result: dict[str, Any]) -> str:
    """The comparison of searches: points of mAP lost, by method and target."""
    rows: dict[str, dict[str, str]] = {}
    for target, methods in result["embedded"].items():
        column = target if target[0].isdigit() else f"{methods['ilp']['ratio']:.1f}"  # uniform plans overshoot
        for method, figures in methods.items():
            rows.setdefault(f"`{method}`", {})[f"{column}x"] = _search_cell(figures, column)
    for method, figures in result.get("bccd", {}).get("14", {}).items():
        rows.setdefault(f"`{method}`", {})["14x, photographs"] = _search_cell(figures, "14")
    return "\n".join(_grid("points lost, seeds", rows))


def _search_cell(figures: dict[str, Any], ratio: str) -> str:
    """What a search's plans lose; their ratio where it is another, and whose they are where they are not its own."""
    cell = _cell({**figures, "lost": figures["points_lost"]}, 100)
    if ratio != f"{figures['ratio']:.1f}" and figures["ratio"] > FURTHER * float(ratio):
        cell += f", at {figures['ratio']:.1f}x"
    if figures["same_plans_as"]:
        cell += ", plans of " + " and ".join(f"`{name}`" for name in figures["same_plans_as"])
    return cell


WAYS = {
    "ptq": "rounding alone",
    "qat": "ground truth",
    "qat_kd": "uniform distillation",
    "qat_spark": "SPARK",
    "wavelet": "wavelet distillation",
    "attention": "with a spatial mask",
}


def spark_table(result: dict[str, Any]) -> str:
    """The comparison of trainings: dB or points of mAP lost, by network, bits and way."""
    rows: dict[str, dict[str, str]] = {}
    for network in (name for name in ("dncnn", "edsr", "detector") if name in result):
        worth, unit, digits = (100, "points", 2) if network == "detector" else (1, "dB", 3)
        for bits, ways in result[network].items():
            cells = {
                WAYS[way]: _cell({**ways[way], "lost": worth * ways[way]["lost"]}, worth, digits)
                for way in WAYS
                if way in ways
            }
            gain = ways.get("qat_spark", {}).get("over_qat_kd")
            if gain is not None:
                cells["SPARK over uniform, by seed"] = _gain(gain, worth)
            rows[f"{network} {bits}, {unit}"] = cells
    return "\n".join(_grid("lost, seeds", rows))


def _gain(figures: dict[str, Any], worth: float) -> str:
    """A gain that was measured seed by seed; an interval from three seeds on."""
    text = f"{worth * figures['iqm']:+.3f}"
    if len(figures["seeds"]) > 2:
        low, high = (worth * end for end in figures["ci"])
        text += f" ({low:+.3f} to {high:+.3f})"
    return text


def artifacts_table(result: dict[str, Any]) -> str:
    """What files are worth, a figure in each row."""
    saved = ", ".join(f"{share:.1%} at {t}" for t, share in _in_order(result["entropy_saving_by_target"]).items())
    one = result["int8_seconds_by_threads"]["1"]
    milliseconds = {name: f"{1000 * seconds:.0f} ms" for name, seconds in one.items()}
    sizes = {name: f"{count / 1e6:.1f} MB" for name, count in result["int8_bytes"].items()}
    times = {
        "hsq": result["int8_speedup"],
        "pruned": result["pruned_speedup"],
        "quantize_static": result["int8_speedup_of_quantize_static"],
    }
    kinds = {
        "hsq": "HSQ's file",
        "pruned": "half of the channels, random weights",
        "quantize_static": "onnxruntime's `quantize_static`",
    }
    integer, of = result["int8_convolutions"]["hsq"]
    gaps: dict[str, list[float]] = {}
    for found in result["onnx_maps"].values():
        gaps.setdefault(found["form"], []).append(100 * abs(found["runtime"] - found["student"]))
    apart = ", ".join(f"{max(own):.2f} with `{form}`" for form, own in gaps.items())
    rows = [
        ("bytes that entropy coding saves, by ratio of the plan", saved),
        ("ONNX file over packed bytes, full width, at most", f"{result['onnx_over_packed']:.3f}"),
        ("largest difference of mAP from PyTorch, in points", apart),
        ("full-width FCOS at 320x320, one thread, float32", f"{milliseconds['float32']}, {sizes['float32']}"),
        *(
            (f"the same at 8 bits, {title}", f"{milliseconds[name]}, {times[name]:.2f} times faster, {sizes[name]}")
            for name, title in kinds.items()
        ),
        ("convolutions that run in integers", f"{integer} of {of}"),
        ("damaged files read or refused, of them wrongly", f"{result['fuzz_cases']:,}, {result['fuzz_failures']}"),
    ]
    return "\n".join(["| | |", "|---|---:|", *(f"| {title} | {value} |" for title, value in rows)])


def _in_order(by_target: dict[str, float]) -> dict[str, float]:
    """By ratio, the largest last."""
    return {f"{target}x": by_target[target] for target in sorted(by_target, key=float)}


PEERS = {
    "onnxruntime": "onnxruntime, int8",
    "nncf": "nncf, int8",
    "torchao": "torchao, int4 weights",
    "brevitas": "brevitas, int4 weights",
    "mct": "model-compression-toolkit, mixed 2/4/8",
    "aimet": "aimet-torch, mixed 2/4/8",
}
OWN = {"float32": "float32", "uniform2": "uniform 2 bit", "uniform2_finetuned": "uniform 2 bit, fine-tuned", **TITLES}


def _method(name: str) -> str:
    """A row's title in the paper's table."""
    kind, _, target = name.partition("-")
    titles = {"hsq": "**HSQ**, {}x", "ilp_repaired": "integer program, {}x"}
    return titles[kind].format(target) if kind in titles else OWN.get(name, name)


def paper_table(result: dict[str, Any]) -> str:
    """The paper's table on one data set, detector by detector, and below it what the paper itself says."""
    rows = ["| | mAP (test) | points lost | bytes | ratio | ms (times faster) |", "|---|---:|---:|---:|---:|---:|"]
    for detector, own in result.items():
        if not isinstance(own, dict) or "methods" not in own:
            continue
        whole = own["methods"]["float32"]["map"] if "float32" in own["methods"] else None
        rows.append(f"| *{detector}* | | | | | |")
        for name, row in own["methods"].items():
            if name in PEERS:
                continue
            seeds = f" ({len(row['seeds'])} seeds)" if len(row["seeds"]) > 1 else ""
            time = "" if row["latency_ms"] is None else f"{row['latency_ms']:.1f}"
            if row["latency_ms"] is not None and name != "float32":  # than float32 just before it
                time += f" ({row['float32_ms'] / row['latency_ms']:.2f})"
            lost = "" if whole is None or name == "float32" else f"{100 * (whole - row['map']):.2f}"
            size = f"{row['bytes']:,} | {row['ratio']:.2f}x"
            rows.append(f"| {_method(name)}{seeds} | {row['map']:.4f} | {lost} | {size} | {time} |")
    for name, row in result["quoted_from_the_paper"].items():
        title = _method(name) if name != "hsq" else "HSQ"
        rows.append(f"| *quoted from the paper, COCO: {title}* | {row['map']:.3f} | | | {row['ratio']:.0f}x | |")
    return "\n".join(rows)


def peers_table(result: dict[str, Any]) -> str:
    """Other libraries beside HSQ in no more bytes."""
    rows = [
        "| after training | points lost | bytes written | if packed | HSQ in no more bytes, points lost | ratio |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for data in (name for name in ("embedded", "bccd") if name in result):
        rows.append(f"| *{data}* | | | | | |")
        for name, row in result[data].items():
            lost, ours = (
                "" if score is None else f"{100 * (row['teacher_map'] - score):.2f}"
                for score in (row["map"], row["hsq_map"])
            )
            packed = f"{row['nominal_bytes']:,} ({row['nominal_ratio']:.2f}x)"
            written = f"{row['bytes']:,} ({row['ratio']:.2f}x)"
            ratio = "" if row["hsq_ratio"] is None else f"{row['hsq_ratio']:.2f}x"
            rows.append(f"| {PEERS[name]} {row['version']} | {lost} | {written} | {packed} | {ours} | {ratio} |")
    return "\n".join(rows)


def coco_table(result: dict[str, Any]) -> str:
    """What one search on COCO takes, part by part."""
    speed, hours = result["images_per_second"], result["hours_at_most"]
    where = f"{result['device'].upper()}, {result['threads']} threads"
    parts = ", ".join(f"{name} {own:.0f}" for name, own in hours.items())
    return (
        f"Measured ({where}): {speed['forward']:.2f} images per second forward, {speed['training']:.2f} in training. "
        f"Derived, at most: {result['hours_at_most_in_all']:.0f} hours ({parts})."
    )


def faults_table(result: dict[str, Any]) -> str:
    """What searches have survived; parts that were not run are left out."""
    rows = ["| | |", "|---|---:|"]

    def add(title: str, key: str, show: Callable[[Any], str]) -> None:
        if key in result:
            rows.append(f"| {title} | {show(result[key])} |")

    def yes(value: bool) -> str:
        return "yes" if value else "no"

    add("searches killed at three random moments", "resumed_searches", str)
    add("all ended with the plans, rewards and weights of ones that ran through", "resume_equal", yes)
    add("the same on the embedded task, one search", "embedded_resume_equal", yes)
    add("kills and resumes of one search", "kills", str)
    add("of them with a damaged newest checkpoint", "damaged_checkpoints", str)
    add("searches lost", "lost_runs", str)
    add("steps measured twice", "steps_measured_twice", str)
    add("oldest checkpoint at a kill", "seconds_since_checkpoint", lambda found: f"{found['largest']:.1f} s")
    add("seconds between checkpoints", "interval_seconds", lambda seconds: f"{seconds:g} s")
    add("workers of a Ray search that were killed", "killed_workers", lambda found: str(found["workers_killed"]))
    add("steps in its replay", "killed_workers", lambda found: f"{found['steps_in_replay']:,}")
    add("of them not as they were measured", "killed_workers", lambda found: str(found["steps_not_as_measured"]))
    add("steps per second of two Ray workers over one", "ray_two_workers", lambda times: f"{times:.2f}")
    add("what Ray adds to a step", "ray_step_overhead_ms", lambda ms: f"{ms:.1f} ms")
    return "\n".join(rows)


def scaling_table(result: dict[str, Any]) -> str:
    """What a search on COCO computes and moves, and simulated speedups."""
    cost, coco = result["coco_cost"], result["coco_two_cores"]
    images = {way: sum(part[way] for part in cost["images"].values()) for way in ("forward", "training")}
    first = (
        f"A table for COCO: {images['forward']:,} images forward and {images['training']:,} in training, "
        f"{cost['multiply_accumulates_per_image'] / 1e9:.0f} billion multiply-accumulates each in a forward pass, "
        f"{cost['flops_in_all'] / 1e15:,.0f} petaflop in all; {coco['bytes_per_node'] / 1e9:.1f} GB to each node once "
        f"({coco['seconds_to_send_to_a_node']:.1f} s over 10 gigabits) and {result['bytes_of_a_step']:,} bytes a step."
    )
    cases = {name: found for name, found in result.items() if isinstance(found, dict) and "workers" in found}
    counts = list(next(iter(cases.values()))["workers"])
    rows = [f"| workers | {' | '.join(counts)} | learner takes half at |", f"|---|{'---:|' * (len(counts) + 1)}"]
    for name, found in cases.items():
        speedups = " | ".join(f"{found['workers'][count]['speedup']:.1f}" for count in counts)
        rows.append(
            f"| {name.replace('_', ' ')}, {found['seconds_per_step']:.2g} s a step | {speedups} | "
            f"{found['workers_where_the_learner_takes_half']:,.0f} |"
        )
    rows += ["", "| hours of 1000 episodes | " + " | ".join(counts) + " |", f"|---|{'---:|' * len(counts)}"]
    for name, found in cases.items():
        hours = " | ".join(f"{found['hours_of_1000_episodes'][count]:,.1f}" for count in counts)
        rows.append(f"| {name.replace('_', ' ')} | {hours} |")
    return "\n".join([first, "", *rows])


TABLES = {
    "artifacts.json": artifacts_table,
    "speed.json": speed_table,
    "search.json": search_table,
    "spark.json": spark_table,
    "table1_embedded.json": paper_table,
    "table1_bccd.json": paper_table,
    "peers.json": peers_table,
    "coco_cost_cpu.json": coco_table,
    "faults.json": faults_table,
    "scaling.json": scaling_table,
}


def with_tables(text: str) -> str:
    """``text`` with every marked table made anew."""

    def block(match: re.Match[str]) -> str:
        name = match.group(1)
        return (
            f"<!-- table: {name} -->\n{TABLES.get(name, table)(json.loads((RESULTS / name).read_text()))}\n<!-- end -->"
        )

    return BLOCK.sub(block, text)


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(with_tables(page.read_text()))
