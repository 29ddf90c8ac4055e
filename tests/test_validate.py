"""Claims that hold, and one of each kind that does not."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import write_noise
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from agents.cli import main
from agents.leaderboard import leaderboard_rows, ranked
from agents.run_folder import digest_of
from agents.validate import METHODS, Check, read_record, validate
from detectors.errors import InputError
from hsq_env import compensation
from restorers.networks import DnCNN
from restorers.task import RestorationTask
from restorers.teacher import RESTORERS, RestorerSpec, teacher_bytes

ALL_FILES = ["teacher.safetensors", "model.hsq", *(f"baselines/{name}.hsq" for name in METHODS)]
FLAGS = "--patch 16 --search-images 2 --pool-images 2 --calibration-images 2 --episodes 0 --warm-start ilp"


@pytest.fixture(scope="module", autouse=True)
def small() -> Iterator[None]:
    """A DnCNN of six layers, whose rounding looks at two images: in searches and in what checks them alike."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(RESTORERS, "dncnn", lambda channels: DnCNN(channels, 6, 24))
        patch.setattr(compensation, "IMAGES", 2)
        yield


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_noise(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module")
def honest(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of an untrained DnCNN, not to be changed."""
    folder, spec = tmp_path_factory.mktemp("runs"), RestorerSpec("dncnn", 1, noise=25)
    teacher = folder.parent / "teacher.safetensors"
    torch.manual_seed(0)  # another network may have the very plan that is put into its record below
    teacher.write_bytes(teacher_bytes(spec.build_folded(), spec))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RestorationTask, "untreated_metric", lambda self, split: 0.0)
        patch.setenv("HSQ_CACHE", str(folder.parent / "cache"))
        flags = f"--dataset {photos} --teacher {teacher} --out {folder / 'a'} --target-ratio 6 --finetune-steps 2"
        main(["search", *flags.split(), *FLAGS.split()])
    return folder / "a"


@pytest.fixture
def run(honest: Path, tmp_path: Path) -> Path:
    """A copy."""
    shutil.copytree(honest, tmp_path / "runs" / "b")
    return tmp_path / "runs" / "b"


@pytest.fixture(scope="module")
def fast(honest: Path, photos: Path) -> Path:
    """A run of whole channels within a latency, not to be changed."""
    folder, teacher = honest.parent.parent, honest.parent.parent / "teacher.safetensors"
    table, channels = folder / "table.json", "--sparsity-pattern channels"
    main(["latency", "--teacher", str(teacher), *f"--size 16 16 --repeats 1 {channels} --out {table}".split()])
    content = json.loads(table.read_text())
    for row in content["layers"]:  # what a busy machine measures in one repeat may be anything
        row["seconds"] = {c: 1e-3 * (4 if c == "32" else 1 - float(c.partition("/")[2] or 0)) for c in row["seconds"]}
    table.write_text(json.dumps(content))
    limit = 0.75 * sum(1000 * row["seconds"]["8"] for row in content["layers"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RestorationTask, "untreated_metric", lambda self, split: 0.0)
        patch.setenv("HSQ_CACHE", str(folder / "cache"))
        flags = f"--dataset {photos} --teacher {teacher} --out {folder / 'fast'} --finetune-steps 2 {channels}"
        main(["search", *flags.split(), *FLAGS.split(), *f"--latency-table {table} --target-latency {limit}".split()])
    return folder / "fast"


def broken(run: Path, **settings: Any) -> list[str]:
    return [check.figure for check in validate(run, say=lambda line: None, **settings) if not check.holds]


def change(run: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    record = json.loads((run / "result.json").read_text())
    edit(record)
    (run / "result.json").write_text(json.dumps(record))


def test_what_a_search_wrote_holds(honest: Path) -> None:
    checks = validate(honest, say=lambda line: None)
    assert all(check.holds for check in checks), [check.sentence() for check in checks if not check.holds]
    names = [check.figure for check in checks]
    assert {"teacher.bytes", "teacher.psnr", "hsq.bytes", "hsq.ratio", "hsq.psnr", "hsq.choices"} < set(names)
    assert "uniform4_finetuned.psnr" in names and names[-1] == "hsq.psnr replayed"
    last = checks[-1]
    assert last.found == pytest.approx(last.claimed, abs=1e-6)  # the same machine goes the same way


@pytest.mark.parametrize(
    ("edit", "figure"),
    [
        (lambda r: r["teacher"].update(psnr=r["teacher"]["psnr"] + 0.1), "teacher.psnr"),
        (lambda r: r["teacher"].update(bytes=r["teacher"]["bytes"] + 1), "teacher.bytes"),
        (lambda r: r["methods"]["hsq"].update(psnr=r["methods"]["hsq"]["psnr"] + 0.1), "hsq.psnr"),
        (lambda r: r["methods"]["hsq"].update(bytes=r["methods"]["hsq"]["bytes"] - 1), "hsq.bytes"),
        (lambda r: r["methods"]["hsq"].update(ratio=r["methods"]["hsq"]["ratio"] * 1.01), "hsq.ratio"),
        (lambda r: r["methods"]["uniform8"].update(psnr=0.0), "uniform8.psnr"),
        (lambda r: r["methods"]["hsq"]["choices"].__setitem__(0, [2, 0.75]), "hsq.choices"),
        (lambda r: r["methods"]["hsq"]["choices"].pop(), "hsq.choices"),
        (lambda r: r["methods"]["hsq"].pop("choices"), "hsq.choices"),
        (lambda r: r["methods"]["hsq"]["choices"].__setitem__(0, [3, 0.75]), "hsq.choices"),
        (lambda r: r.update(split="train"), "split"),
        (lambda r: r.update(model="edsr"), "model"),
        (lambda r: r.update(dataset="coco"), "dataset"),
        (lambda r: r.update(target_ratio=60.0), "hsq.ratio beside its target"),
        (lambda r: r["methods"].pop("uniform4"), "methods"),
        (lambda r: r["sha256"].pop("model.hsq"), "model.hsq"),
        (lambda r: r["sha256"].clear() or r["methods"].pop("hsq"), "hsq.ratio beside its target"),
    ],
)
def test_a_figure_that_was_tampered_with_is_named(
    run: Path, edit: Callable[[dict[str, Any]], object], figure: str
) -> None:
    change(run, edit)
    found = set(broken(run, replay=False))
    assert figure in found and found <= {figure, *ALL_FILES}


def test_latencies_are_added_up_again(fast: Path, tmp_path: Path) -> None:
    assert broken(fast) == []
    checked = [check.figure for check in validate(fast, replay=False, say=lambda line: None)]
    assert {"latency.json", "latency.float32", "latency.hsq", "latency.hsq beside its target"} < set(checked)
    run = tmp_path / "run"
    shutil.copytree(fast, run)
    record = json.loads((run / "result.json").read_text())
    claimed, target = record["latency"], record["target_latency"]
    assert claimed["hsq"] <= target < claimed["float32"]
    for name in ("hsq", "float32"):
        change(run, lambda r, name=name: r.update(latency={**claimed, name: 0.8 * claimed["hsq"]}))  # type: ignore[misc]
        assert broken(run, replay=False) == [f"latency.{name}"]
        change(run, lambda r, name=name: r.update(latency={k: v for k, v in claimed.items() if k != name}))  # type: ignore[misc]
        assert broken(run, replay=False) == [f"latency.{name}"]
    change(run, lambda r: r.update(latency=claimed, target_latency=0.8 * claimed["hsq"]))
    assert broken(run, replay=False) == ["latency.hsq beside its target"]
    change(run, lambda r: r.update(target_latency=target))
    table = json.loads((run / "latency.json").read_text())
    assert "environment" in table and "image" in table  # where it was measured
    for row in table["layers"]:
        row["seconds"] = {column: seconds / 2 for column, seconds in row["seconds"].items()}
    (run / "latency.json").write_text(json.dumps(table))
    assert set(broken(run, replay=False)) == {"latency.json", "latency.hsq", "latency.float32"}
    (run / "latency.json").unlink()
    assert "latency.json" in broken(run, replay=False)


def test_data_that_lie_elsewhere(run: Path, photos: Path, tmp_path: Path) -> None:
    """Under another name too; what counts is what the record says of itself."""
    (tmp_path / "elsewhere").symlink_to(photos)
    assert broken(run, replay=False, dataset=str(tmp_path / "elsewhere")) == []


def test_a_larger_teachers_file_makes_no_ratio_larger(run: Path) -> None:
    """The network counts, not what else its file holds."""
    tensors = load_file(run / "teacher.safetensors")
    with safe_open(run / "teacher.safetensors", "pt") as file:
        metadata = {**file.metadata(), "more": "x" * 1_000_000}
    save_file(tensors, run / "teacher.safetensors", metadata)
    size = (run / "teacher.safetensors").stat().st_size

    def claim(record: dict[str, Any]) -> None:
        record["teacher"]["bytes"] = size
        record["sha256"]["teacher.safetensors"] = digest_of(run / "teacher.safetensors")
        for row in record["methods"].values():
            row["ratio"] = size / row["bytes"]

    change(run, claim)
    assert {"teacher.bytes", "hsq.ratio"} <= set(broken(run, replay=False))


@pytest.mark.parametrize(
    "edit",
    [
        lambda r: r["rebuild"].pop("task"),
        lambda r: r["rebuild"]["task"].pop("dataset"),
        lambda r: r["rebuild"]["task"].update(test_images=1),
        lambda r: r["rebuild"]["task"].update(dataset={}),
        lambda r: r["rebuild"].pop("bfloat16"),
        lambda r: r["rebuild"].update(activation_bits="abc"),
        lambda r: r.update(finetune_steps=0.5),
        lambda r: r.pop("target_ratio"),
        lambda r: r.pop("sha256"),
        lambda r: r["methods"]["hsq"].update(ratio="8x"),
        lambda r: r["methods"]["hsq"].update(psnr=None),
        lambda r: r["teacher"].update(psnr=float("nan")),
        lambda r: r.update(dataset=3),
        lambda r: r.update(methods=[]),
    ],
)
def test_records_that_say_nothing(run: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    change(run, edit)
    with pytest.raises(InputError):
        validate(run, say=lambda line: None)


def test_a_claim_that_the_plan_does_not_lead_to(run: Path) -> None:
    """Model and figures fit each other, but not the plan's fine-tuning."""
    record = read_record(run)
    shutil.copy(run / "baselines" / "uniform8.hsq", run / "model.hsq")
    assert {"model.hsq", "hsq.bytes", "hsq.ratio", "hsq.choices"} <= set(broken(run, replay=False))
    other = read_record(run)["methods"]["uniform8"]
    digest = digest_of(run / "model.hsq")
    change(run, lambda r: r.update(target_ratio=3.0))
    change(run, lambda r: r["methods"]["hsq"].update({k: other[k] for k in ("bytes", "ratio", "psnr")}))
    change(run, lambda r: r["methods"]["hsq"].update(choices=[[8, 0.0]] * len(r["methods"]["hsq"]["choices"])))
    change(run, lambda r: r["sha256"].update({"model.hsq": digest}))
    plan = json.loads((run / "plan.json").read_text())
    layers = [{**row, "bits": 8, "sparsity": 0.0} for row in plan["layers"]]
    (run / "plan.json").write_text(json.dumps({"layers": layers}))
    change(run, lambda r: r["sha256"].update({"plan.json": digest_of(run / "plan.json")}))
    assert broken(run) == []  # as if the search had found it: uniform8 loses next to nothing, fine-tuned or not
    change(run, lambda r: r["methods"]["hsq"].update(psnr=record["methods"]["uniform4"]["psnr"] - 1))
    assert {"hsq.psnr", "hsq.psnr replayed"} <= set(broken(run))


@pytest.mark.parametrize("name", ["model.hsq", "baselines/uniform4.hsq", "teacher.safetensors", "plan.json"])
def test_a_file_that_was_tampered_with(run: Path, name: str) -> None:
    content = bytearray((run / name).read_bytes())
    content[-20] ^= 255
    (run / name).write_bytes(content)
    found = broken(run, replay=False)
    assert found[0] == name
    if name == "plan.json":
        assert found == [name, "hsq.choices"]
    elif name.endswith(".hsq"):
        assert f"{'hsq' if name == 'model.hsq' else 'uniform4'}.psnr" in found


@pytest.mark.parametrize("name", ["model.hsq", "baselines/uniform4.hsq"])
def test_a_file_that_is_missing(run: Path, name: str) -> None:
    (run / name).unlink()
    assert f"{'hsq' if name == 'model.hsq' else 'uniform4'}.bytes" in broken(run, replay=False)


def test_plans_of_earlier_versions_are_not_replayed(run: Path, photos: Path) -> None:
    change(run, lambda record: record["rebuild"].update(activation_bits=4))
    change(run, lambda record: record["rebuild"].pop("picture_bits"))
    with pytest.raises(InputError, match=r"made by an earlier version, .*leave the replay out \(--no-replay\)"):
        validate(run)
    assert validate(run, replay=False)


def test_folders_that_cannot_be_checked(run: Path, photos: Path) -> None:
    with pytest.raises(InputError, match="not the folder of a finished search"):
        validate(run.parent)
    change(run, lambda record: record.pop("rebuild"))
    with pytest.raises(InputError, match="does not say how its task was made"):
        validate(run)


def test_the_command_says_what_is_wrong(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["validate", str(run), "--no-replay"])
    assert "everything that it claims holds" in capsys.readouterr().out
    change(run, lambda r: r["methods"]["hsq"].update(ratio=99.0))
    with pytest.raises(SystemExit) as ended:
        main(["validate", str(run), "--no-replay", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert ended.value.code == 1 and not found["holds"]
    assert [c["figure"] for c in found["checks"] if not c["holds"]] == ["hsq.ratio"]
    with pytest.raises(SystemExit):
        main(["validate", str(run), "--no-replay"])
    assert "claims what does not hold: hsq.ratio." in capsys.readouterr().out


def test_a_leaderboard(run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    for name in ("wrong", "foreign"):
        shutil.copytree(run, run.parent / name)
    change(run.parent / "wrong", lambda r: r["methods"]["hsq"].update(psnr=99.0))
    change(run.parent / "foreign", lambda r: r.pop("rebuild"))
    main(["leaderboard", str(run.parent)])
    text = capsys.readouterr().out
    assert "best of its size" in text and "wrong: hsq.psnr" in text and "not checked: " in text
    assert text.index(" b ") < text.index(" wrong ")
    main(["leaderboard", str(run.parent), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert [row["run"] for row in found["ranked"]] == ["b", "wrong"] and list(found["refused"]) == ["foreign"]


def test_ranks_by_hand() -> None:
    def row(run: str, lost: float, ratio: float, holds: bool = True, dataset: str = "d") -> dict[str, Any]:
        return {
            "run": run,
            "dataset": dataset,
            "model": "m",
            "metric": "mAP",
            "lost": lost,
            "ratio": ratio,
            "holds": holds,
        }

    rows = [
        row("liar", 0.0, 20.0, holds=False),
        row("beaten", 0.03, 8.0),
        row("small", 0.05, 14.0),
        row("good", 0.01, 8.0),
        row("alone", 0.5, 2.0, dataset="e"),
        row("twin", 0.01, 8.0),
    ]
    found = ranked(rows)
    assert [r["run"] for r in found] == ["good", "twin", "small", "beaten", "liar", "alone"]
    assert [r["front"] for r in found] == [True, True, True, False, False, True]


def test_standings_carry_what_is_broken(honest: Path) -> None:
    (row,) = leaderboard_rows(honest, validate(honest, replay=False, say=lambda line: None))
    record = read_record(honest)
    assert row["lost"] == record["teacher"]["psnr"] - record["methods"]["hsq"]["psnr"]
    assert row["holds"] and row["broken"] == [] and row["ratio"] == record["methods"]["hsq"]["ratio"]


def test_a_check_in_words() -> None:
    same, other = "ab" * 32, "cd" * 32
    assert Check("model.hsq", same, same, True).sentence() == "model.hsq: sha256 abababababab... holds"
    broken = "model.hsq: sha256 abababababab... does not hold (found sha256 cdcdcdcdcdcd...)"
    assert Check("model.hsq", same, other, False).sentence() == broken
    assert Check("hsq.map", 0.5, 0.5001, True).sentence() == "hsq.map: 0.5000 holds (found 0.5001)"
    assert Check("hsq.map", 0.5, 0.50001, True).sentence() == "hsq.map: 0.5000 holds"
