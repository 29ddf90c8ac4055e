"""The tables of the README and of the documentation come from the result files."""

from typing import Any

from benchmarks.readme_tables import (
    PAGES,
    artifacts_table,
    coco_table,
    paper_table,
    peers_table,
    search_table,
    spark_table,
    with_tables,
)


def test_tables_are_those_of_the_result_files() -> None:
    for page in PAGES:
        text = page.read_text()
        assert with_tables(text) == text


def test_tables_of_comparisons_by_hand() -> None:
    """Losses, intervals of three seeds or more turned round, since the best mAP is the least loss."""
    several = {"iqm": 0.69, "ci": [0.685, 0.70], "points_lost": 1.0, "ratio": 14.01, "seeds": [0.68, 0.69, 0.70]}
    several["same_plans_as"] = []
    one = {"iqm": 0.68, "ci": [0.68, 0.68], "points_lost": 2.0, "ratio": 17.38, "seeds": [0.68], "same_plans_as": []}
    found = {**one, "ratio": 14.2, "same_plans_as": ["ilp_loads", "local"]}
    embedded = {"14": {"dqn": several, "tpe": found, "ilp": one}, "hardest": {"ilp": one}}
    assert search_table({"embedded": embedded, "bccd": {"10": {"ilp": one}, "14": {"dqn": one}}}).splitlines() == [
        "| points lost, seeds | 14x | 14x, photographs | 17.4x |",
        "|---|---:|---:|---:|",
        "| `dqn` | 1.00 (0.00 to 1.50), 3 | 2.00, 1, at 17.4x |  |",
        "| `tpe` | 2.00, 1, plans of `ilp_loads` and `local` |  |  |",
        "| `ilp` | 2.00, 1, at 17.4x |  | 2.00, 1 |",
    ]
    images: dict[str, Any] = {"qat_spark": {"iqm": 30.1, "ci": [30.0, 30.3], "lost": 0.3, "seeds": [30.0, 30.1, 30.3]}}
    images["qat_spark"]["over_qat_kd"] = {"iqm": 0.0125, "ci": [-0.01, 0.03], "seeds": [-0.01, 0.0125, 0.03]}
    found = {"teacher_psnr": {}, "dncnn": {"W2A8": images}, "detector": {"W2": {"qat": {**one, "lost": 0.02}}}}
    assert spark_table(found).splitlines() == [
        "| lost, seeds | SPARK | SPARK over uniform, by seed | ground truth |",
        "|---|---:|---:|---:|",
        "| dncnn W2A8, dB | 0.300 (0.100 to 0.400), 3 | +0.013 (-0.010 to +0.030) |  |",
        "| detector W2, points |  |  | 2.00, 1 |",
    ]


def test_the_papers_table_by_hand() -> None:
    methods = {
        "float32": {"map": 0.75, "bytes": 8000, "ratio": 1.0, "seeds": [0.75], "latency_ms": 9.0},
        "uniform4_finetuned": {"map": 0.74, "bytes": 1100, "ratio": 7.27, "seeds": [0.74], "latency_ms": None},
        "ilp_repaired-8": {
            "map": 0.745,
            "bytes": 990,
            "ratio": 8.08,
            "seeds": [0.745],
            "latency_ms": 5.0,
            "float32_ms": 8.0,
        },
        "hsq-8": {
            "map": 0.747,
            "bytes": 999,
            "ratio": 8.01,
            "seeds": [0.74, 0.75],
            "latency_ms": 4.96,
            "float32_ms": 9.0,
        },
        "mct": {"map": 0.7, "bytes": 8000, "ratio": 1.0},
    }
    quoted = {"float32": {"map": 0.453, "ratio": 1.0}, "hsq": {"map": 0.439, "ratio": 6.0}}
    result = {"command": "x", "fcos": {"methods": methods, "left": 0}, "quoted_from_the_paper": quoted}
    assert paper_table(result).splitlines()[2:] == [
        "| *fcos* | | | | | |",
        "| float32 | 0.7500 |  | 8,000 | 1.00x | 9.0 |",
        "| uniform 4 bit, fine-tuned | 0.7400 | 1.00 | 1,100 | 7.27x |  |",
        "| integer program, 8x | 0.7450 | 0.50 | 990 | 8.08x | 5.0 (1.60) |",
        "| **HSQ**, 8x (2 seeds) | 0.7470 | 0.30 | 999 | 8.01x | 5.0 (1.81) |",
        "| *quoted from the paper, COCO: float32* | 0.453 | | | 1x | |",
        "| *quoted from the paper, COCO: HSQ* | 0.439 | | | 6x | |",
    ]


def test_the_table_of_other_libraries_by_hand() -> None:
    row = {"map": 0.70, "teacher_map": 0.75, "bytes": 8000, "ratio": 1.0, "nominal_bytes": 1000, "nominal_ratio": 8.0}
    mct = {**row, "version": "2.6", "hsq_map": 0.745, "hsq_ratio": 8.1}
    nncf = {**row, "version": "3.4", "hsq_map": None, "hsq_ratio": None}
    assert peers_table({"embedded": {"nncf": nncf, "mct": mct}}).splitlines()[2:] == [
        "| *embedded* | | | | | |",
        "| nncf, int8 3.4 | 5.00 | 8,000 (1.00x) | 1,000 (8.00x) |  |  |",
        "| model-compression-toolkit, mixed 2/4/8 2.6 | 5.00 | 8,000 (1.00x) | 1,000 (8.00x) | 0.50 | 8.10x |",
    ]


def test_what_coco_takes_by_hand() -> None:
    speed = {"forward": 0.514, "training": 0.149}
    hours = {"tables": 41.6, "test": 16.4}
    made = {"device": "cpu", "threads": 2, "images_per_second": speed, "hours_at_most": hours}
    assert coco_table({**made, "hours_at_most_in_all": 58.0}) == (
        "Measured (CPU, 2 threads): 0.51 images per second forward, 0.15 in training. Derived, at most: 58 hours "
        "(tables 42, test 16)."
    )


def test_table_of_files_by_hand() -> None:
    result = {
        "entropy_saving_by_target": {"17.4": 0.16, "10": 0.1, "6": 0.093},
        "onnx_over_packed": 1.0012,
        "onnx_maps": {
            "one": {"form": "auto", "runtime": 0.7, "student": 0.7004},
            "two": {"form": "auto", "runtime": 0.5002, "student": 0.5},
            "three": {"form": "float", "runtime": 0.6, "student": 0.605},
        },
        "int8_seconds_by_threads": {"1": {"float32": 0.42, "hsq": 0.13, "pruned": 0.05, "quantize_static": 0.139}},
        "int8_bytes": {"float32": 129_211_138, "hsq": 32_449_305, "pruned": 8_247_039, "quantize_static": 33_115_575},
        "int8_speedup": 3.221,
        "pruned_speedup": 8.4,
        "int8_speedup_of_quantize_static": 3.023,
        "int8_convolutions": {"hsq": [100, 116]},
        "fuzz_cases": 10_000,
        "fuzz_failures": 0,
    }
    assert artifacts_table(result).splitlines() == [
        "| | |",
        "|---|---:|",
        "| bytes that entropy coding saves, by ratio of the plan | 9.3% at 6x, 10.0% at 10x, 16.0% at 17.4x |",
        "| ONNX file over packed bytes, full width, at most | 1.001 |",
        "| largest difference of mAP from PyTorch, in points | 0.04 with `auto`, 0.50 with `float` |",
        "| full-width FCOS at 320x320, one thread, float32 | 420 ms, 129.2 MB |",
        "| the same at 8 bits, HSQ's file | 130 ms, 3.22 times faster, 32.4 MB |",
        "| the same at 8 bits, half of the channels, random weights | 50 ms, 8.40 times faster, 8.2 MB |",
        "| the same at 8 bits, onnxruntime's `quantize_static` | 139 ms, 3.02 times faster, 33.1 MB |",
        "| convolutions that run in integers | 100 of 116 |",
        "| damaged files read or refused, of them wrongly | 10,000, 0 |",
    ]
