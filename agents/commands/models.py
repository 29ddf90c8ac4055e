"""Commands for finished models: ``hsq monitor``, ``evaluate``, ``export``, ``bench``, ``validate`` and more."""

from pathlib import Path
from typing import Annotated, Literal

import tyro

from detectors.errors import InputError

EXIT_MISSED = 1


def monitor(
    run: Annotated[Path, tyro.conf.Positional],
    dataset: str | None = None,
    target_accuracy: float | None = None,
    splits: tuple[str, ...] | None = None,
    retrain: bool = False,
    out: Path | None = None,
    episodes: int = 5,
    evaluations: int | None = None,
    finetune_steps: int = 300,
    json: bool = False,
) -> None:
    """Measure a finished model on new images and, if asked to, search again from the old policy and replay.

    Exit code 0 if the target is met or a new search has ended, 1 if the target is missed.

    Example: hsq monitor runs/photos --dataset new_photos/
    Example: hsq monitor runs/photos --dataset new_photos/ --retrain --out runs/new_photos

    :param run: folder of a finished search
    :param dataset: new data of the run's kind, whose test split is measured; the embedded data if not given
    :param target_accuracy: the metric over the teacher's (of restorers: gains in PSNR over the images as they come); by
        default what the run measured less 0.01
    :param splits: names of the training, the search and, if there is one, the test split; by default the usual ones
    :param retrain: search again on the new data if the target is missed
    :param out: a new or empty folder for that search
    :param episodes: of that search
    :param evaluations: students that it may measure
    :param finetune_steps: gradient steps after it
    :param json: print {"dataset", "metric", "model", "teacher", "untreated" (images as they come), "accuracy",
        "target", "claimed", "meets", "search" (result.json of the new one, or null)}; all else goes to standard error
    """
    from agents.commands.search import begin
    from agents.monitor import agent_of_run, arguments_of
    from agents.monitor import monitor as measure
    from agents.output import aside, print_json
    from agents.run_folder import check_new_folder
    from agents.tables import print_table

    if retrain:
        if out is None:
            raise InputError("--retrain needs a folder for the new search: give --out FOLDER.")
        check_new_folder(out)
        agent_of_run(run)
    result = None
    with aside(json):
        verdict, task = measure(run, dataset, target_accuracy, splits)
        print(verdict.sentence(task.name))
        if retrain and out is not None and not verdict.meets:
            limits = {"episodes": episodes, "evaluations": evaluations, "finetune_steps": finetune_steps}
            data = {"dataset": dataset, "splits": splits, "teacher": run / "teacher.safetensors"}
            result = begin({**arguments_of(run), **data, **limits, "continue_from": run}, out)
    if json:
        print_json({**verdict.to_json(task.name), "search": result})
    elif result is not None and out is not None:
        print_table(result, out)
    if result is None and not verdict.meets:
        raise SystemExit(EXIT_MISSED)


def evaluate(
    file: Annotated[Path, tyro.conf.Positional],
    dataset: str | None = None,
    split: Literal["search", "test"] = "test",
    splits: tuple[str, ...] | None = None,
    json: bool = False,
) -> None:
    """Measure bytes and mAP or PSNR of a .hsq file again.

    Example: hsq evaluate runs/photos/model.hsq --dataset photos/
    Example: hsq evaluate runs/first/model.hsq --split search --json

    :param file: model.hsq of a search
    :param dataset: data of the model's kind; the embedded data if not given
    :param split: "test", or "search" for the whole split that rewards come from (of restorers 64 patches)
    :param splits: names of the training, the search and, if there is one, the test split; by default the usual ones
    :param json: print {"file", "dataset", "split", "map" or "psnr", "bytes", "ratio" (beside a teacher), "metric"}
    """
    from agents.evaluate import evaluate_file
    from agents.output import aside
    from agents.tables import print_evaluation

    with aside(json):
        result = evaluate_file(file, dataset, split, splits)
    print_evaluation(result, as_json=json)


def export(
    file: Annotated[Path, tyro.conf.Positional],
    onnx: Path,
    dataset: str | None = None,
    splits: tuple[str, ...] | None = None,
    post_processing: bool = False,
    arithmetic: Literal["auto", "integer", "float"] = "auto",
    json: bool = False,
) -> None:
    """Write a .hsq file's network as ONNX, for any runtime, and measure it beside the student in onnxruntime.

    Exit code 1 if the two figures are further apart than 0.2 points of mAP or 0.01 dB.

    Example: hsq export runs/photos/model.hsq --onnx photos.onnx --dataset photos/
    Example: hsq export runs/photos/model.hsq --onnx photos.onnx --post-processing --dataset photos/

    :param file: model.hsq of a search
    :param onnx: the file to write
    :param dataset: data of the model's kind, on whose test split both are measured; the embedded data if not given
    :param splits: names of the training, the search and, if there is one, the test split; by default the usual ones
    :param post_processing: of a detector: boxes, scores and labels of one image at a time (threshold and non-maximum
        suppression included) in place of the head's outputs
    :param arithmetic: integer: what convolutions put out is rounded as well, so that onnxruntime computes them in
        integers, several times faster; float: nothing is rounded that the student does not round; auto: integer where
        that costs no more than the same 0.2 points or 0.01 dB on the search split
    :param json: print {"onnx", "bytes", "hsq_bytes", "metric", "student" and "runtime" (by that metric), "outputs",
        "arithmetic", "agrees"}
    """
    from agents.export import export as write
    from agents.output import aside
    from agents.tables import print_exported

    with aside(json):
        exported = write(file, onnx, dataset, splits, post_processing, arithmetic)
    print_exported(exported.to_json(), as_json=json)
    if not exported.agrees:
        raise SystemExit(EXIT_MISSED)


def bench(
    file: Annotated[Path, tyro.conf.Positional],
    size: tuple[int, int] | None = None,
    threads: tuple[int, ...] = (1, 2),
    repeats: int = 20,
    json: bool = False,
) -> None:
    """Time a .hsq file's network beside the same one in float32, in onnxruntime on this machine's CPU.

    Nothing else should compute meanwhile.

    Example: hsq bench runs/photos/model.hsq
    Example: hsq bench runs/photos/model.hsq --size 320 320 --threads 1 4

    :param file: model.hsq of a search
    :param size: height and width of the image in pixels; a detector's own if not given, 96x96 for restorers
    :param threads: numbers of threads to time
    :param repeats: of which the median counts
    :param json: print {"file", "image", "repeats", "bytes", "integer", "speeds": [{"threads", "float32" and
        "compressed" (seconds), "times"}]}; bytes are of float32 and compressed, integer is convolutions in integers
        and all
    """
    from agents.bench import bench as measure
    from agents.output import aside
    from agents.tables import print_bench

    with aside(json):
        found = measure(file, size, threads, repeats)
    print_bench(found.to_json(), as_json=json)


def latency(
    out: Path,
    teacher: Path | None = None,
    size: tuple[int, int] | None = None,
    threads: int = 1,
    repeats: int = 10,
    sparsity_pattern: Literal["unstructured", "channels"] = "unstructured",
    json: bool = False,
) -> None:
    """Time every layer of a teacher at each bit-width, in onnxruntime on this machine's CPU, and write a table.

    Nothing else should compute meanwhile. 'hsq search --latency-table' takes the table.

    Example: hsq latency --out latency.json
    Example: hsq latency --sparsity-pattern channels --teacher photos.safetensors --out latency.json

    :param out: the JSON file to write
    :param teacher: written by 'hsq teacher'; the shipped detector's if not given
    :param size: height and width of the image in pixels; a detector's own if not given, 96x96 for restorers
    :param threads: that onnxruntime may use
    :param repeats: of which the median counts
    :param sparsity_pattern: channels times every layer without a share of its input channels too
    :param json: print what the file holds in place of a table; all else goes to standard error
    """

    from agents.latency import latency as measure
    from agents.output import aside
    from agents.provenance import machine, versions
    from agents.tables import print_latency
    from detectors.files import write_json
    from hsq_env.latency_table import LatencyTable

    if out.is_dir() or not out.parent.is_dir():
        raise InputError(f"{out} cannot be written: give a file in a folder that exists (--out FILE).")
    if out.exists() and not LatencyTable.is_one(out):
        raise InputError(f"{out} exists already and is no latency table: give another file (--out FILE).")
    with aside(json):
        found = measure(teacher, size, threads, repeats, sparsity_pattern)
    found["environment"] = {"versions": versions(), "machine": machine()}
    write_json(out, found)
    print_latency(found, as_json=json)
    if not json:
        print(f"wrote {out}")


def validate(
    run: Annotated[Path, tyro.conf.Positional],
    dataset: str | None = None,
    splits: tuple[str, ...] | None = None,
    replay: bool = True,
    json: bool = False,
) -> None:
    """Check every figure of a search's table: files are measured anew, its plan is fine-tuned again from the teacher.

    Exit code 1 if a figure does not hold; it is named.

    Example: hsq validate runs/photos --dataset photos/
    Example: hsq validate runs/photos --no-replay --json

    :param run: folder of a finished search
    :param dataset: where its data lie here; the place in its record if not given
    :param splits: names of the training, the search and the test split; those in its record if not given
    :param replay: fine-tune again, as long as the search did
    :param json: print {"holds", "checks": [{"figure", "claimed", "found", "holds"}]}; all else goes to standard error
    """
    from dataclasses import asdict

    from agents.output import aside, print_json
    from agents.validate import validate as check

    with aside(json):
        checks = check(run, dataset, splits, replay, print)
    broken = [found.figure for found in checks if not found.holds]
    if json:
        print_json({"holds": not broken, "checks": [asdict(found) for found in checks]})
    elif broken:
        print(f"{run} claims what does not hold: {', '.join(broken)}.")
    else:
        print(f"{run}: everything that it claims holds.")
    if broken:
        raise SystemExit(EXIT_MISSED)


def leaderboard(
    folder: Annotated[Path, tyro.conf.Positional],
    dataset: str | None = None,
    splits: tuple[str, ...] | None = None,
    replay: bool = False,
    json: bool = False,
) -> None:
    """Check all finished searches in a folder and rank them.

    First come, for each data set, those that no other is both smaller and better than; last those whose claims do not
    hold, with the figures.

    Example: hsq leaderboard runs/
    Example: hsq leaderboard runs/ --replay --json

    :param folder: with a folder for each run
    :param dataset: where their data lie here; the places in their records if not given
    :param splits: names of the training, the search and the test split; those in their records if not given
    :param replay: fine-tune every plan again too
    :param json: print {"ranked": [{"run", "name", "dataset", "model", "metric", "lost", "ratio", "bytes", "holds",
        "broken", "front"}], "refused": {run: why}}
    """
    from agents.leaderboard import leaderboard_rows, ranked
    from agents.output import aside, print_json
    from agents.tables import print_leaderboard
    from agents.validate import validate as check
    from detectors.progress import each

    runs = sorted(path.parent for path in folder.glob("*/result.json"))
    if not runs:
        raise InputError(f"{folder} holds no finished search: give the folder above them (e.g. runs/).")
    rows, refused = [], {}
    with aside(json):
        for run in each(runs, "run"):
            try:
                rows += leaderboard_rows(run, check(run, dataset, splits, replay, lambda line: None))
            except InputError as error:
                refused[run.name] = str(error)
    if json:
        print_json({"ranked": ranked(rows), "refused": refused})
    else:
        print_leaderboard(ranked(rows), refused)


def info(file: Annotated[Path, tyro.conf.Positional], json: bool = False) -> None:
    """Print the plan of a .hsq file.

    Example: hsq info runs/photos/model.hsq
    Example: hsq info runs/photos/model.hsq --json

    :param file: model.hsq of a search
    :param json: print {"model", "pattern", "layers": [{"name", "bits", "sparsity"}]}
    """
    from agents.tables import print_info

    print_info(file, as_json=json)
