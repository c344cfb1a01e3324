"""Drawings of reports as SVG, which a page holds in itself. They need matplotlib; without it there are none.

A drawing takes the page's own text colour, so that it can be read on a dark page, and it is equal for equal numbers.
"""

import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from io import StringIO
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from ecoflap.core.text.numbers import mean

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure
    from matplotlib.gridspec import SubplotSpec

Text: TypeAlias = Callable[[float], str]
"""How a tick's number is written."""


def plain(value: float) -> str:
    """``0.001``, ``2.5``, ``10,000``."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


INK = "#123456"
"""Drawn instead of the page's text colour, which matplotlib cannot name."""
COLOURS = ("#3b82c4", "#e07b1a", "#2a9d6f", "#cf4a5b", "#8f6bc9", "#a3703f", "#d16aa5", "#7f8c8d", "#9aa012", "#17a0b2")
MARKERS = "osD^vPX*<>"
DASHES = ("-", "--", ":", "-.")
WIDTH = 5.2
"""Inches; a narrow page shrinks the drawing with its letters, so it is drawn narrow."""


@dataclass(frozen=True)
class Line:
    """What is drawn of one method: at each x a mean, and the smallest and largest it is a mean of."""

    label: str
    x: Sequence[float]
    mean: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]

    @classmethod
    def over(cls, label: str, points: Mapping[float, Sequence[float]]) -> "Line":
        """:param points: By x, the values that one point stands for."""
        every = list(points.values())
        return cls(label, list(points), list(map(mean, every)), list(map(min, every)), list(map(max, every)))

    @classmethod
    def counted(cls, label: str, columns: Iterable[Sequence[float]]) -> "Line":
        """Over 0, 1, 2, …: blocks.

        :param columns: The values that each point stands for.
        """
        return cls.over(label, {float(number): values for number, values in enumerate(columns)})

    @property
    def has_spread(self) -> bool:
        return list(self.low) != list(self.high)


@dataclass(frozen=True)
class Panel:
    """One tower's blocks, numbered from 0, in a row of such panels."""

    title: str
    lines: Sequence[Line]


@dataclass(frozen=True)
class Strip:
    """A row of panels with one y axis.

    :param is_share: Shown in percent.
    """

    y: str
    x: str
    panels: Sequence[Panel]
    is_share: bool = False


def can_draw() -> bool:
    return find_spec("matplotlib") is not None


def by_sparsity(name: str, y: str, lines: Sequence[Line], dense: Sequence[float], text: Text = plain) -> str:
    """A quantity against sparsity.

    :param name: Tells this drawing from others of the page.
    :param y: The axis' label.
    :param dense: What it is of the dense model; several where that is not one number.
    """
    with _figure(3.4 + _legend_height([line.label for line in lines])) as (figure, drawn):
        axes = figure.add_subplot()
        for number, line in enumerate(lines):
            colour, marker, _ = _style(number)
            x = [100 * value for value in line.x]
            axes.plot(x, line.mean, label=line.label, color=colour, marker=marker, markersize=5, linewidth=1.6)
            if line.has_spread:
                axes.vlines(x, line.low, line.high, color=colour, linewidth=1.2, alpha=0.7)
        for value in dense:
            axes.axhline(value, color=INK, linestyle="--", linewidth=1, label="dense" if value == dense[0] else None)
        values = [*dense, *(value for line in lines for value in (*line.low, *line.high))]
        _scale(axes, "y", values, y, text)
        axes.set_xlabel("weights pruned in %")
        ticks = sorted({round(100 * value, 2) for line in lines for value in line.x})
        _x_ticks(axes, ticks if len(ticks) <= 8 else None)
        _legend(figure, [axes])
    return _svg(drawn, name)


def by_method(name: str, x: str, lines: Sequence[Line], dense: Sequence[float]) -> str:
    """A quantity at one sparsity: a row a method, with the spread over seeds."""
    with _figure(1.0 + 0.3 * len(lines)) as (figure, drawn):
        axes = figure.add_subplot()
        for row, line in enumerate(lines):
            colour, marker, _ = _style(row)
            axes.plot(line.mean, [row], color=colour, marker=marker, markersize=6)
            axes.hlines([row], line.low, line.high, color=colour, linewidth=1.6)
        for value in dense:
            axes.axvline(value, color=INK, linestyle="--", linewidth=1, label="dense" if value == dense[0] else None)
        _rows(axes, [line.label for line in lines])
        _scale(axes, "x", [*dense, *(v for line in lines for v in (*line.low, *line.high))], x, plain)
        _legend(figure, [axes])
    return _svg(drawn, name)


def by_block(name: str, strips: Sequence[Strip]) -> str:
    """Strips of panels below each other; towers side by side, as wide as they have blocks."""
    labels = list(dict.fromkeys(line.label for strip in strips for panel in strip.panels for line in panel.lines))
    legend = _legend_height(labels) if len(labels) > 1 else 0
    with _figure(2.3 * len(strips) + legend) as (figure, drawn):
        rows, every = figure.add_gridspec(len(strips), 1), []
        for number, strip in enumerate(strips):
            every += _draw_strip(figure, rows[number], strip, labels)
        if len(labels) > 1:
            _legend(figure, every)
    return _svg(drawn, name)


def _draw_strip(figure: "Figure", row: "SubplotSpec", strip: Strip, labels: Sequence[str]) -> "list[Axes]":
    longest = [max((len(line.x) for line in panel.lines), default=1) for panel in strip.panels]
    widths = [max(count, 0.3 * max(longest)) for count in longest]
    place = row.subgridspec(1, len(widths), width_ratios=widths)
    factor = 100 if strip.is_share else 1
    every: list[Axes] = []
    for column, panel in enumerate(strip.panels):
        axes = figure.add_subplot(place[0, column], sharey=every[0] if every else None)
        for line in panel.lines:
            colour, _, dash = _style(labels.index(line.label))
            low, middle, high = ([factor * value for value in part] for part in (line.low, line.mean, line.high))
            alone = "o" if len(middle) == 1 else ""  # a step from nowhere to nowhere is not seen
            style: dict[str, Any] = {"color": colour, "linestyle": dash, "marker": alone}
            axes.step(line.x, middle, where="mid", linewidth=1.6, label=line.label, **style)
            if line.has_spread:
                axes.fill_between(line.x, low, high, step="mid", color=colour, alpha=0.2, linewidth=0)
        axes.set_title(panel.title, fontsize=9)
        axes.set_xlabel(strip.x)
        _whole_ticks(axes, 6 if len(widths) < 3 else 3)
        every.append(axes)
    values = [factor * v for panel in strip.panels for line in panel.lines for v in (*line.low, *line.high)]
    _scale(every[0], "y", values, strip.y, plain)
    for axes in every[1:]:
        axes.tick_params(labelleft=False)
    return every


def stacked(name: str, x: str, rows: Mapping[str, Mapping[str, float]], text: Text = plain) -> str:
    """A bar a row, of pieces that stand for the same in every row."""
    pieces = list(dict.fromkeys(piece for row in rows.values() for piece in row))
    legend = _legend_height(pieces) if len(pieces) > 1 else 0
    with _figure(0.9 + 0.28 * len(rows) + legend) as (figure, drawn):
        axes = figure.add_subplot()
        before = [0.0] * len(rows)
        for number, piece in enumerate(pieces):
            sizes = [row.get(piece, 0.0) for row in rows.values()]
            axes.barh(range(len(rows)), sizes, left=before, height=0.62, color=COLOURS[number % 10], label=piece)
            before = [start + size for start, size in zip(before, sizes, strict=True)]
        _rows(axes, list(rows))
        axes.set_xlim(0, 1.02 * max(before) or 1)
        _linear(axes.xaxis, text)
        axes.set_xlabel(x)
        if len(pieces) > 1:
            _legend(figure, [axes])
    return _svg(drawn, name)


def _style(number: int) -> tuple[str, str, str]:
    """Colour, marker and dashes; the eleventh has the first's colour, and neither its marker nor its dashes."""
    again = number // len(COLOURS)
    return COLOURS[number % 10], MARKERS[(number + 3 * again) % 10], DASHES[(number + again) % 4]


def shortened(label: str, longest: int) -> str:
    return label if len(label) <= longest else f"{label[: longest - 1]}…"


@contextmanager
def _figure(height: float) -> "Iterator[tuple[Figure, StringIO]]":
    """A figure that is drawn into the text when the block ends. What it takes from matplotlib's settings is undone."""
    import matplotlib
    from matplotlib.figure import Figure

    text = StringIO()
    with matplotlib.rc_context(SETTINGS), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of letters that its font lacks and the page's has
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        yield figure, text
        figure.savefig(
            text, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
        )


SETTINGS: Any = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "ecoflap",
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


def _scale(axes: "Axes", along: Literal["x", "y"], values: Sequence[float], label: str, text: Text) -> None:
    """A logarithmic axis where the values are positive and the largest is over ten times the smallest."""
    axis, set_scale = (axes.xaxis, axes.set_xscale) if along == "x" else (axes.yaxis, axes.set_yscale)
    axis.set_label_text(label)
    if values and min(values) > 0 and max(values) > 10 * min(values):
        set_scale("log")
        _logarithmic(axis, max(values) / min(values), text)
    else:
        _linear(axis, text)


def _linear(axis: "Axis", text: Text) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: text(value)))


def _logarithmic(axis: "Axis", ratio: float, text: Text) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if ratio < 300 else (1,), numticks=8))
    axis.set_major_formatter(FuncFormatter(lambda value, _: text(value)))
    axis.set_minor_formatter(NullFormatter())


def _whole_ticks(axes: "Axes", most: int) -> None:
    """A block has a number, and half of one is none."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(most, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f}"))


def _x_ticks(axes: "Axes", ticks: Sequence[float] | None) -> None:
    """At the sparsities there are, where these are few."""
    _linear(axes.xaxis, plain)
    if ticks is not None:
        axes.set_xticks(ticks)


def _rows(axes: "Axes", labels: Sequence[str]) -> None:
    axes.set_yticks(range(len(labels)), [shortened(label, 40) for label in labels])
    axes.set_ylim(len(labels) - 0.5, -0.5)  # the first on top
    axes.grid(visible=False, axis="y")


def _legend(figure: "Figure", every: "Sequence[Axes]") -> None:
    """Below the drawing, each label once."""
    shown = {label: handle for axes in every for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    if shown:
        labels = [shortened(label, 64) for label in shown]
        figure.legend(shown.values(), labels, loc="outside lower center", ncols=_columns(labels), frameon=False)


def _columns(labels: Sequence[str]) -> int:
    return max(1, min(len(labels), 4, 62 // (max(map(len, labels)) + 6)))


def _legend_height(labels: Sequence[str]) -> float:
    """In inches."""
    return 0.2 * -(-(len(labels) + 1) // _columns([*labels, "dense"]))


def _svg(drawn: StringIO, name: str) -> str:
    """What a page of HTML has inside: the element alone, as wide as there is room, with names of its own.

    The names inside of matplotlib's drawings are the same in each; those that nothing refers to go.
    """
    text = drawn.getvalue()
    text = text[text.index("<svg") :].replace("xlink:href", "href").replace(INK, "currentColor")
    text = re.sub(r' xmlns(:xlink)?="[^"]*"', "", text, count=2)
    text = re.sub(r'width="(\d+(?:\.\d+)?)pt" height="[^"]*"', r'style="width: 100%; max-width: \1pt"', text, count=1)
    used = set(re.findall(r'(?:href="#|url\(#)([\w.-]+)', text))
    text = re.sub(r' id="([\w.-]+)"', lambda found: f' id="{name}-{found[1]}"' if found[1] in used else "", text)
    text = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", text)
    return re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL).strip()
