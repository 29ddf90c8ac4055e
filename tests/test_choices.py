"""Choices and plans."""

import json
from pathlib import Path

import pytest

from detectors.errors import InputError
from hsq_env.choices import BITS, SPARSITIES, Choice, Plan, choice_grid

PLAN = Plan(("stem", "head"), (Choice(8, 0.0), Choice(2, 0.75)))


def test_grid_is_bits_major() -> None:
    grid = choice_grid()
    assert len(grid) == 12
    for action, choice in enumerate(grid):
        assert (choice.bits, choice.sparsity) == (BITS[action // 4], SPARSITIES[action % 4])


def test_grid_of_fewer_values() -> None:
    assert choice_grid((8, 2), (0.5,)) == (Choice(8, 0.5), Choice(2, 0.5))


@pytest.mark.parametrize(("bits", "sparsity"), [(3, 0.0), (16, 0.0), (4, 0.3), (4, 1.0), (0, 0.0), (4, -0.25)])
def test_other_values_are_refused(bits: int, sparsity: float) -> None:
    with pytest.raises(
        InputError, match=rf"{bits} bits and sparsity {sparsity} .*\(2, 4, 8\).*\(0.0, 0.25, 0.5, 0.75\)"
    ):
        Choice(bits, sparsity)


def test_choice_reads_well() -> None:
    assert str(Choice(4)) == "4 bit"
    assert str(Choice(2, 0.75)) == "2 bit, 75% sparse"


def test_plan_needs_a_choice_per_layer() -> None:
    with pytest.raises(InputError, match="2 layers, 1 choices"):
        Plan(("a", "b"), (Choice(8),))


def test_plan_survives_json() -> None:
    data = PLAN.to_json()
    assert data == {
        "layers": [{"name": "stem", "bits": 8, "sparsity": 0.0}, {"name": "head", "bits": 2, "sparsity": 0.75}]
    }
    assert Plan.from_json(json.loads(json.dumps(data))) == PLAN


def test_plan_is_read_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(PLAN.to_json()))
    assert Plan.read(path) == PLAN


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe\x00\x81",
        b"[]",
        b"{}",
        b'{"layers": 3}',
        b'{"layers": [{"name": "a"}]}',
        b'{"layers": [{"name": "a", "bits": 5, "sparsity": 0}]}',
    ],
)
def test_what_is_no_plan_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(content)
    with pytest.raises(InputError) as error:
        Plan.read(path)
    assert str(path) in str(error.value)


def test_missing_plan_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nothing\.json"):
        Plan.read(tmp_path / "nothing.json")
