"""matplotlib's drawings as parts of a page: colours that follow light and dark, points that say what they are."""

import io
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any
from xml.etree import ElementTree

import matplotlib as mpl
from matplotlib.figure import Figure

# Stand-ins that matplotlib writes and the page's style sheet gives a colour, by what they are for.
ROLES = {
    name: f"#0102{number:02x}"
    for number, name in enumerate(
        ("ink", "muted", "grid", "paper", "series-1", "series-2", "series-3", "series-4", "series-5", "series-6")
    )
}
SERIES = [color for name, color in ROLES.items() if name.startswith("series")]
MARKERS = [
    "o",
    "s",
    "^",
    "D",
    "v",
]  # what colours say, shapes say too; five, so that six colours do not repeat with them
LINES: list[Any] = ["-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 3))]
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "hsq",
    "text.parse_math": False,  # names of folders are no formulas
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": ROLES["ink"],
    "axes.edgecolor": ROLES["muted"],
    "axes.labelcolor": ROLES["ink"],
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": ROLES["grid"],
    "xtick.color": ROLES["ink"],
    "ytick.color": ROLES["ink"],
    "legend.frameon": False,
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "figure.constrained_layout.use": True,
}
SVG, LINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
ElementTree.register_namespace("", SVG)
ElementTree.register_namespace("xlink", LINK)


def new_figure(width: float, height: float) -> Figure:
    """An empty drawing, in inches; to be made and drawn on inside ``style``."""
    return Figure(figsize=(width, height))


def style() -> AbstractContextManager[None]:
    """A context in which axes look like the page's."""
    return mpl.rc_context(STYLE)  # type: ignore[arg-type]


def to_svg(figure: Figure, name: str, tips: Mapping[str, Sequence[str]]) -> str:
    """A drawing as an ``<svg>`` element.

    :param figure: what was drawn; marks that have something to say carry a gid
    :param name: unique on the page, put before every id
    :param tips: by gid, what each mark says: the points of a scatter in their order, or the one patch of that gid;
        "#id" for what stands in the page's row of that id
    """
    content = io.BytesIO()
    with style():
        figure.savefig(content, format="svg", metadata={"Date": None, "Creator": None})
    root = ElementTree.fromstring(content.getvalue())
    for child in list(root):
        if child.tag.endswith("metadata"):
            root.remove(child)
    _give_tips(root, tips)
    for element in root.iter():
        _rename(element, name)
        given = element.get("style")
        if given:
            element.set("style", _colored(given))
    for size in ("width", "height"):
        root.attrib.pop(size, None)  # the page says how wide
    root.set("style", f"--inches: {figure.get_figwidth():.1f}")
    root.set("class", "drawing")
    root.set("aria-hidden", "true")  # the figure around it has words
    return ElementTree.tostring(root, encoding="unicode")


def _give_tips(root: ElementTree.Element, tips: Mapping[str, Sequence[str]]) -> None:
    """:raises ValueError: if there are not as many marks as tips: a mark would say something about another"""
    groups = {element.get("id"): element for element in root.iter() if element.get("id") in tips}
    for gid, said in tips.items():
        group = groups.get(gid)
        marks = [] if group is None else _marks(group)
        if len(marks) != len(said):
            raise ValueError(f"{len(marks)} marks of '{gid}' for {len(said)} tips")
        for mark, text in zip(marks, said, strict=True):
            mark.set(*(("data-row", text[1:]) if text.startswith("#") else ("data-tip", text)))


def _marks(group: ElementTree.Element) -> list[ElementTree.Element]:
    """matplotlib defines a mark once and uses it, or draws few of them one by one."""
    uses = [element for element in group.iter() if element.tag == f"{{{SVG}}}use"]
    return uses or [element for element in group.iter() if element.tag == f"{{{SVG}}}path"]


def _rename(element: ElementTree.Element, name: str) -> None:
    """Ids are the page's, not the drawing's alone."""
    for key, value in list(element.attrib.items()):
        if key == "id":
            element.set(key, f"{name}-{value}")
        elif key == f"{{{LINK}}}href" and value.startswith("#"):
            element.set(key, f"#{name}-{value[1:]}")
        elif "url(#" in value:
            element.set(key, value.replace("url(#", f"url(#{name}-"))


def _colored(given: str) -> str:
    names = {color: name for name, color in ROLES.items()}
    return re.sub(r"#0102[0-9a-f]{2}", lambda match: f"var(--{names[match.group()]})", given)
