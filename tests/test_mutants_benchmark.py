"""What is counted of mutants and of covered lines."""

from collections import Counter

import pytest

from benchmarks.coverage import covered
from benchmarks.mutants import by_module, figures, not_noticed

RESULTS = """
    hsq_env.size.x__bytes__mutmut_1: killed
    hsq_env.size.x__bytes__mutmut_2: survived
    hsq_env.size.x_index_bits__mutmut_1: timeout
    hsq_env.distillation.akd.xǁAKDǁloss__mutmut_1: killed
    hsq_env.distillation.akd.xǁAKDǁgaps__mutmut_12: no tests
    hsq_env.distillation.akd.xǁAKDǁgaps__mutmut_13: segfault
"""


def test_mutants_are_counted_by_module() -> None:
    found = by_module(RESULTS)
    assert list(found) == ["hsq_env.distillation.akd", "hsq_env.size"]
    assert found["hsq_env.size"] == {
        "mutants": 3,
        "noticed": 2,
        "of_these_endless": 1,
        "survived": 1,
        "unreached": 0,
        "share_noticed": 0.6667,
    }
    assert found["hsq_env.distillation.akd"] == {
        "mutants": 3,
        "noticed": 2,
        "of_these_endless": 1,
        "survived": 0,
        "unreached": 1,
        "share_noticed": 0.6667,
    }


def test_those_that_were_not_noticed_are_tried_again() -> None:
    assert not_noticed(RESULTS) == [
        "hsq_env.size.x__bytes__mutmut_2",
        "hsq_env.distillation.akd.xǁAKDǁgaps__mutmut_12",
    ]


def test_mutants_that_were_not_tried_are_no_result() -> None:
    with pytest.raises(ValueError, match="not checked, suspicious: run the benchmark again"):
        figures(Counter({"killed": 3, "suspicious": 1, "not checked": 2}))


def test_lines_are_counted_by_file() -> None:
    summary = {"num_statements": 8, "covered_lines": 6}
    empty = {"num_statements": 0, "covered_lines": 0}
    report = {
        "totals": summary,
        "files": {
            "hsq_env/b.py": {"summary": summary, "missing_lines": [3, 9]},
            "hsq_env/a.py": {"summary": empty, "missing_lines": []},
        },
    }
    assert covered(report) == {
        "total": {"lines": 8, "covered": 6, "share": 0.75},
        "files": {
            "hsq_env/a.py": {"lines": 0, "covered": 0, "share": 1.0, "missing": []},
            "hsq_env/b.py": {"lines": 8, "covered": 6, "share": 0.75, "missing": [3, 9]},
        },
    }
