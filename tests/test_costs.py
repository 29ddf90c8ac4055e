"""The tables of what every choice costs."""

import json
from pathlib import Path

import numpy as np
import pytest
from tiny_task import TinyTask

from detectors.errors import InputError
from hsq_env.choices import Choice, choice_grid
from hsq_env.costs import LayerCosts
from hsq_env.file import fixed_bytes
from hsq_env.latency_table import LatencyTable
from hsq_env.layer_info import LayerInfo
from hsq_env.operations import operation_shares
from hsq_env.size import layer_bytes
from hsq_env.student import Student

CHOICES = choice_grid()
TEACHER_BYTES = 43210
SHARED = ("block1.conv2", "block2.conv2")  # whose input channels can be taken out of the network


@pytest.fixture(scope="module")
def table(infos: tuple[LayerInfo, ...]) -> LatencyTable:
    """Microseconds: as many as bits, times the layer's number; fewer for fewer channels."""
    shares = {f"{b}/{s:g}": (b, 1 - s) for b in (2, 4, 8) for s in (0.25, 0.5, 0.75)}
    columns = {**{str(b): (b, 1.0) for b in (2, 4, 8, 32)}, **shares}
    seconds = {
        info.name: {name: 1e-6 * bits * kept * (layer + 1) for name, (bits, kept) in columns.items()}
        for layer, info in enumerate(infos)
    }
    return LatencyTable("table", seconds)


def costs(
    tiny: TinyTask,
    infos: tuple[LayerInfo, ...],
    pattern: str = "unstructured",
    bits: int | str | None = 8,
    table: LatencyTable | str | Path | None = None,
) -> LayerCosts:
    return LayerCosts(Student(tiny, infos, bits, pattern), CHOICES, TEACHER_BYTES, table)


@pytest.mark.parametrize("pattern", ["unstructured", "n:m", "channels"])
@pytest.mark.parametrize("bits", [None, 8, "match"])
def test_bytes_and_operations(
    tiny: TinyTask, infos: tuple[LayerInfo, ...], pattern: str, bits: int | str | None
) -> None:
    found = costs(tiny, infos, pattern, bits)
    expected = [[layer_bytes(info, c, pattern, bits is not None) for c in CHOICES] for info in infos]
    assert found.sizes.tolist() == expected and found.teacher_bytes == TEACHER_BYTES
    assert found.float_sizes == [layer_bytes(info, None) for info in infos]
    assert np.array_equal(found.operation_shares, operation_shares(infos, CHOICES, bits, pattern))
    assert found.fixed_bytes == fixed_bytes(Student(tiny, infos, bits, pattern), CHOICES, found.sizes)
    assert found.table is found.latencies is None
    assert found.latency_shares.shape == (7, 12) and not found.latency_shares.any()


def test_shares_of_the_model_are_one_on_average(tiny: TinyTask, infos: tuple[LayerInfo, ...]) -> None:
    found = costs(tiny, infos)
    shares = [found.model_share(layer) for layer in range(7)]
    assert np.mean(shares) == pytest.approx(1)
    assert shares[1] / shares[0] == pytest.approx(layer_bytes(infos[1], None) / layer_bytes(infos[0], None))


@pytest.mark.parametrize("kind", ["table", "path", "text"])
def test_latencies_from_a_table_or_its_file(
    tiny: TinyTask, infos: tuple[LayerInfo, ...], table: LatencyTable, tmp_path: Path, kind: str
) -> None:
    (tmp_path / "latency.json").write_text(json.dumps(table.to_json()))
    given = {"table": table, "path": tmp_path / "latency.json", "text": str(tmp_path / "latency.json")}[kind]
    found = costs(tiny, infos, "channels", table=given)
    assert found.table is not None and found.table.seconds == table.seconds
    assert found.latencies is not None
    assert np.array_equal(found.latencies, table.nanoseconds(infos, CHOICES, "channels", frozenset(SHARED)))
    assert found.float_latencies.tolist() == [32000 * (layer + 1) for layer in range(7)]
    whole = 32000 * (1 + 2 + 3 + 4 + 5 + 6 + 7)
    np.testing.assert_allclose(found.latency_shares, found.latencies * 7 / whole, rtol=1e-12)


def test_one_budget_or_none(tiny: TinyTask, infos: tuple[LayerInfo, ...], table: LatencyTable) -> None:
    found = costs(tiny, infos, table=table)
    bounded, budgets = found.budgets(4.0, None)
    assert bounded is found.sizes and list(budgets) == [4.0]
    assert budgets[4.0].limit == pytest.approx(TEACHER_BYTES / 4 - found.fixed_bytes)
    _, budgets = found.budgets((3.0, 4.0), None)
    assert {target: budget.share for target, budget in budgets.items()} == {3.0: 1 / 3, 4.0: 1 / 4}
    bounded, budgets = found.budgets(None, None)
    assert bounded is found.sizes and list(budgets) == [None] and budgets[None].limit == np.inf
    bounded, budgets = found.budgets(None, 0.5)
    assert bounded is found.latencies and list(budgets) == [None]
    assert budgets[None].limit == pytest.approx(0.5e6) and budgets[None].share == pytest.approx(0.5e6 / 896000)


def test_budgets_that_do_not_go(tiny: TinyTask, infos: tuple[LayerInfo, ...], table: LatencyTable) -> None:
    timed, plain = costs(tiny, infos, table=table), costs(tiny, infos)
    with pytest.raises(InputError, match=r"one budget: give target_ratio or target_latency \(--target"):
        timed.budgets(4.0, 0.5)
    with pytest.raises(InputError, match=r"target_latency needs a table: give the file of hsq latency"):
        plain.budgets(None, 0.5)
    with pytest.raises(InputError, match="target_ratio is empty: give a ratio, several, or None for no budget"):
        plain.budgets((), None)
    with pytest.raises(InputError, match=r"A latency of 0\.01 ms cannot be reached"):
        timed.budgets(None, 0.01)
    with pytest.raises(InputError, match="A target ratio of 400 cannot be reached"):
        plain.budgets((4.0, 400.0), None)


def test_a_table_of_another_network_is_refused(tiny: TinyTask, infos: tuple[LayerInfo, ...]) -> None:
    with pytest.raises(InputError, match="The latencies other lack the layer 'stem'"):
        costs(tiny, infos, table=LatencyTable("other", {"conv": {"8": 1e-6}}))


def test_the_student_is_left_as_it_is(tiny: TinyTask, infos: tuple[LayerInfo, ...]) -> None:
    student = Student(tiny, infos)
    student.compress(2, Choice(4, 0.5))
    LayerCosts(student, CHOICES, TEACHER_BYTES)
    assert [layer.choice for layer in student.layers] == [None, None, Choice(4, 0.5), None, None, None, None]
