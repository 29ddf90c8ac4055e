"""The drawings of a report."""

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from report_runs import MIXED, SMALL, episode, write_run

from agents.report.curves import curve_drawings, rewards_drawing
from agents.report.figures import Drawing, models_drawing, plans_drawing
from agents.report.layers import explained, layer_rows, layers_drawing
from agents.report.run import Run, read_run
from agents.report.svg import MARKERS, ROLES, SERIES, new_figure, style, to_svg


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return read_run(write_run(tmp_path / "one"))


def tips(drawing: Drawing) -> list[str]:
    """What its marks say, in the order of the drawing."""
    root = ElementTree.fromstring(drawing.svg)
    return [said for element in root.iter() if (said := element.get("data-tip"))]


def test_finished_models(run: Run) -> None:
    said = tips(models_drawing([run]))
    assert said == [
        "uniform 8 bit: mAP 0.7900, 1.00 points lost, 6,000 bytes, 4.00x",
        "uniform 4 bit: mAP 0.6000, 20.00 points lost, 3,000 bytes, 8.00x",
        "HSQ: mAP 0.7800, 2.00 points lost, 2,400 bytes, 10.00x, plan from dqn",
    ]


def test_every_plan_is_a_mark_and_those_that_are_no_numbers_are_none(run: Run) -> None:
    said = tips(plans_drawing([run]))
    assert [text[:9] for text in said] == ["episode 1", "episode 2", "episode 3", "Handed ov"]
    assert said[0] == "episode 1 (ilp): accuracy 0.9900, 8.00x, divergence 0.010, reward -0.010"
    assert said[3] == "Handed over. " + said[0]


def test_several_runs_are_told_apart(run: Run, tmp_path: Path) -> None:
    other = read_run(write_run(tmp_path / "two"))
    said = tips(plans_drawing([run, other], "divergence"))
    names = ["one", "one", "one", "two", "two", "two", "Handed over. one", "Handed over. two"]
    assert [text.split(",")[0] for text in said] == names
    svg = models_drawing([run, other]).svg
    assert "var(--series-1)" in svg and "var(--series-2)" in svg


def test_thousands_of_plans_are_thinned_out_but_for_the_front(tmp_path: Path) -> None:
    many = [episode("dqn", 5 + 0.001 * i, 0.9 - 0.0001 * i, SMALL) for i in range(4000)]
    many.append(episode("dqn", 9.5, 0.95, MIXED))
    drawn = plans_drawing([read_run(write_run(tmp_path / "many", history=many))])
    said = tips(drawn)
    assert len(said) <= 1505
    assert len(tips(rewards_drawing([read_run(tmp_path / "many")]))) <= 1505
    assert any(text.startswith("episode 4001 ") for text in said)


def test_of_equal_plans_the_front_has_the_first(tmp_path: Path) -> None:
    equal = [episode("dqn", 8.0, 0.95, MIXED)] * 4000
    assert len(tips(plans_drawing([read_run(write_run(tmp_path / "equal", history=equal))]))) <= 1505


def test_layers(run: Run) -> None:
    (model,) = explained(run)
    drawing = layers_drawing(run, model, "layers")
    marks = [row for element in ElementTree.fromstring(drawing.svg).iter() if (row := element.get("data-row"))]
    assert sorted(marks) == sorted(4 * [f"layers-row{k}" for k in range(3)])  # bits, zeros, divergence, bytes
    assert [row["name"] for row in layer_rows(run, model)] == ["stem", "body", "head"]
    assert drawing.wide


def test_plans_of_other_layers_are_not_explained(tmp_path: Path) -> None:
    run = read_run(
        write_run(tmp_path / "one", methods={"hsq": {"map": 1, "bytes": 1, "ratio": 1, "choices": MIXED[:2]}})
    )
    assert explained(run) == []
    run = read_run(
        write_run(tmp_path / "two", methods={"hsq": {"map": 1, "bytes": 1, "ratio": 1, "choices": [[4, 0.5]] * 3}})
    )
    assert explained(run) == []


def test_curves(run: Run) -> None:
    assert [drawing.title for drawing in curve_drawings([run])] == [
        "Exploration rate", "Mean of the largest Q-values", "Loss of the agent",
    ]  # fmt: skip
    assert len(tips(rewards_drawing([run]))) == 3


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_histories_without_a_number(value: float, tmp_path: Path) -> None:
    history = [episode("dqn", 8.0, value, SMALL, total_reward=value)]
    run = read_run(write_run(tmp_path / "odd", history=history))
    for drawing in (plans_drawing([run]), plans_drawing([run], "divergence"), rewards_drawing([run])):
        assert tips(drawing) == []


@pytest.mark.parametrize("name", ["a$\\frac$b", "cost $5 and $6", "_one", "tab\tand\x01", "<b>&"])
def test_names_are_names(name: str, tmp_path: Path) -> None:
    runs = [read_run(write_run(tmp_path / name)), read_run(write_run(tmp_path / "other"))]
    svg = models_drawing(runs).svg
    shown = [element.text or "" for element in ElementTree.fromstring(svg).iter() if element.tag.endswith("text")]
    expected = "".join(letter if letter.isprintable() else "?" for letter in name)
    assert any(text.replace("\u200b", "") == f"{expected}, found" for text in shown)


def test_plans_far_below_lie_at_the_edge_and_the_others_apart(tmp_path: Path) -> None:
    many = [episode("dqn", 6 + 0.05 * i, 0.99 - 0.0001 * i, SMALL) for i in range(40)]
    run = read_run(write_run(tmp_path / "one", history=[*many, episode("dqn", 12.0, 0.0, SMALL)]))
    assert plans_drawing([run]).caption.endswith("1 plans below 0.99 lie at the edge.")
    ticks = re.findall(r">(\d\.\d+)<", plans_drawing([run]).svg)
    assert min(map(float, ticks)) > 0.9
    few = read_run(write_run(tmp_path / "two", history=many))
    assert "edge" not in plans_drawing([few]).caption


def test_colours_do_not_come_again_with_the_same_shape() -> None:
    assert len({(SERIES[i % len(SERIES)], MARKERS[i % len(MARKERS)]) for i in range(30)}) == 30


def test_ids_are_the_pages_and_colours_the_style_sheets(run: Run) -> None:
    first, second = models_drawing([run]), plans_drawing([run])
    ids = [
        {element.get("id") for element in ElementTree.fromstring(drawing.svg).iter()} - {None}
        for drawing in (first, second)
    ]
    assert ids[0] and ids[1] and not ids[0] & ids[1]
    for color in ROLES.values():
        assert color not in first.svg and color not in second.svg
    assert models_drawing([run]).svg == first.svg  # the same run, the same bytes


def test_a_mark_without_words_is_an_error() -> None:
    with style():
        figure = new_figure(2, 2)
        figure.subplots().scatter([1, 2], [1, 2], gid="two")
        with pytest.raises(ValueError, match="2 marks of 'two' for 1 tips"):
            to_svg(figure, "drawing", {"two": ["one"]})
        with pytest.raises(ValueError, match="0 marks of 'absent' for 1 tips"):
            to_svg(figure, "drawing", {"absent": ["one"]})


def test_what_people_named_is_text(run: Run) -> None:
    with style():
        figure = new_figure(2, 2)
        figure.subplots().scatter([1], [1], gid="one")
        svg = to_svg(figure, "drawing", {"one": ['"><script>alert(1)</script>']})
    assert "<script>" not in svg
