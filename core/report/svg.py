"""Make an SVG element, which a page holds in itself, of a figure of matplotlib.

The element takes the page's own text colour, so that it can be read on a dark page, and is as wide as there is room.
Equal figures are equal texts.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK = "#123456"
"""Stands for the page's text colour, which matplotlib cannot name: :func:`element` puts ``currentColor`` there."""
WIDTH = 5.2
"""Inches. A narrow page shrinks a drawing together with its letters, so it is drawn narrow."""

SETTINGS: Any = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "ecoflap",  # names inside are otherwise random
    "text.parse_math": False,  # a method may be called anything
    "font.family": ["DejaVu Sans"],
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#88888855",
    "grid.linewidth": 0.6,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
}
NO_METADATA: Any = dict.fromkeys(("Date", "Creator", "Format", "Type"))
"""A date would differ each time, and the others are addresses that a page does not need."""


@contextmanager
def figure(height: float) -> "Iterator[tuple[Figure, StringIO]]":
    """Give a figure and the text that it is drawn into when the block ends. Matplotlib's settings are as before then.

    :param height: In inches.
    """
    import matplotlib
    from matplotlib.figure import Figure

    text = StringIO()
    with matplotlib.rc_context(SETTINGS), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of letters that its font lacks and the page's has
        drawing = Figure(figsize=(WIDTH, height), layout="constrained")
        yield drawing, text
        drawing.savefig(text, format="svg", transparent=True, metadata=NO_METADATA)


def element(written: StringIO, name: str) -> str:
    """Return a drawn figure as an element that can stand in a page beside others.

    Matplotlib gives the same names in each of its drawings: those that something in the drawing refers to begin with
    ``name``, and the others go, as does its style sheet, which would be the whole page's.
    """
    root = ElementTree.fromstring(written.getvalue())
    for node in root.iter():
        node.tag = _local(node.tag)
        node.attrib = {_local(key): value.replace(INK, "currentColor") for key, value in node.attrib.items()}
        node[:] = [child for child in node if _local(child.tag) != "style"]
    _rename(root, name)
    del root.attrib["height"]
    root.set("style", f"width: 100%; max-width: {root.attrib.pop('width')}")
    return ElementTree.tostring(root, encoding="unicode").strip()


def _local(name: str) -> str:
    """Return a name of XML without its namespace, which HTML does not write."""
    return name.rpartition("}")[2]


def _rename(root: ElementTree.Element, name: str) -> None:
    referred = {target for node in root.iter() for target in _targets(node)}
    for node in root.iter():
        own = node.attrib.pop("id", None)
        if own in referred:
            node.set("id", f"{name}-{own}")
        for target in _targets(node):
            for key in ("href", "clip-path"):
                if key in node.attrib:
                    node.set(key, node.attrib[key].replace(f"#{target}", f"#{name}-{target}"))


def _targets(node: ElementTree.Element) -> Iterator[str]:
    """Yield the names that an element refers to: of a marker that is used, of an area that it is cut to."""
    if "href" in node.attrib:
        yield node.attrib["href"].removeprefix("#")
    if "clip-path" in node.attrib:
        yield node.attrib["clip-path"].removeprefix("url(#").removesuffix(")")
