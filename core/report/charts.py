"""Draw charts of what reports hold. Each is an SVG element; equal numbers give equal texts."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from ecoflap.core.report import svg
from ecoflap.core.text.numbers import mean

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure
    from matplotlib.gridspec import SubplotSpec

Text: TypeAlias = Callable[[float], str]
"""Writes the number of a tick."""


def plain(value: float) -> str:
    """Write a number as ``0.001``, ``2.5`` or ``10,000``."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


COLOURS = ("#3b82c4", "#e07b1a", "#2a9d6f", "#cf4a5b", "#8f6bc9", "#a3703f", "#d16aa5", "#7f8c8d", "#9aa012", "#17a0b2")
MARKERS = "osD^vPX*<>"
DASHES = ("-", "--", ":", "-.")


@dataclass(frozen=True)
class Line:
    """Holds what is drawn of one method: at each x a mean, and the smallest and largest of the values behind it."""

    label: str
    x: Sequence[float]
    mean: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]

    @classmethod
    def over(cls, label: str, points: Mapping[float, Sequence[float]]) -> "Line":
        """Make a line through means.

        :param points: By x, the values that one point is the mean of.
        """
        every = list(points.values())
        return cls(label, list(points), list(map(mean, every)), list(map(min, every)), list(map(max, every)))

    @classmethod
    def counted(cls, label: str, columns: Iterable[Sequence[float]]) -> "Line":
        """Make a line over 0, 1, 2…, such as the numbers of blocks.

        :param columns: The values that each point is the mean of.
        """
        return cls.over(label, {float(number): values for number, values in enumerate(columns)})

    @property
    def has_spread(self) -> bool:
        """Say whether any mean is over values that differ."""
        return list(self.low) != list(self.high)


@dataclass(frozen=True)
class Panel:
    """Holds what is drawn of one tower, over the numbers of its blocks from 0 on."""

    title: str
    lines: Sequence[Line]


@dataclass(frozen=True)
class Strip:
    """Holds a row of panels with one y axis.

    :param is_share: Whether the values are shares, which are shown in percent.
    """

    y: str
    x: str
    panels: Sequence[Panel]
    is_share: bool = False


def by_sparsity(name: str, y: str, lines: Sequence[Line], dense: Sequence[float], text: Text = plain) -> str:
    """Draw a quantity against sparsity.

    :param name: Tells this drawing from others of the page.
    :param y: The axis' label.
    :param dense: The quantity of the dense model; several where runs disagree.
    :return: An SVG element, as the other charts do.
    """
    with svg.figure(3.4 + _legend_height([line.label for line in lines])) as (figure, written):
        axes = figure.add_subplot()
        for number, line in enumerate(lines):
            colour, marker, _ = _style(number)
            x = [100 * value for value in line.x]
            axes.plot(x, line.mean, label=line.label, color=colour, marker=marker, markersize=5, linewidth=1.6)
            if line.has_spread:
                axes.vlines(x, line.low, line.high, color=colour, linewidth=1.2, alpha=0.7)
        _levels(axes.axhline, dense)
        _scale(axes, "y", [*dense, *_extremes(lines)], y, text)
        axes.set_xlabel("weights pruned in %")
        ticks = sorted({round(100 * value, 2) for line in lines for value in line.x})
        _x_ticks(axes, ticks if len(ticks) <= 8 else None)
        _legend(figure, [axes])
    return svg.element(written, name)


def by_method(name: str, x: str, lines: Sequence[Line], dense: Sequence[float]) -> str:
    """Draw a quantity at one sparsity: a row for each method, with the spread over seeds."""
    with svg.figure(1.0 + 0.3 * len(lines)) as (figure, written):
        axes = figure.add_subplot()
        for row, line in enumerate(lines):
            colour, marker, _ = _style(row)
            axes.plot(line.mean, [row], color=colour, marker=marker, markersize=6)
            axes.hlines([row], line.low, line.high, color=colour, linewidth=1.6)
        _levels(axes.axvline, dense)
        _rows(axes, [line.label for line in lines])
        _scale(axes, "x", [*dense, *_extremes(lines)], x, plain)
        _legend(figure, [axes])
    return svg.element(written, name)


def _extremes(lines: Iterable[Line]) -> list[float]:
    return [value for line in lines for value in (*line.low, *line.high)]


def _levels(draw: Callable[..., Any], dense: Sequence[float]) -> None:
    """Draw the dense model's values across the whole chart, with one entry in the legend."""
    for number, value in enumerate(dense):
        draw(value, color=svg.INK, linestyle="--", linewidth=1, label=None if number else "dense")


def by_block(name: str, strips: Sequence[Strip]) -> str:
    """Draw strips of panels below each other; a tower's panel is as wide as the tower has blocks."""
    labels = list(dict.fromkeys(line.label for strip in strips for panel in strip.panels for line in panel.lines))
    legend = _legend_height(labels) if len(labels) > 1 else 0
    with svg.figure(2.3 * len(strips) + legend) as (figure, written):
        rows, every = figure.add_gridspec(len(strips), 1), []
        for number, strip in enumerate(strips):
            every += _draw_strip(figure, rows[number], strip, labels)
        if len(labels) > 1:
            _legend(figure, every)
    return svg.element(written, name)


def _draw_strip(figure: "Figure", row: "SubplotSpec", strip: Strip, labels: Sequence[str]) -> "list[Axes]":
    lengths = [max((len(line.x) for line in panel.lines), default=1) for panel in strip.panels]
    widths = [max(length, 0.3 * max(lengths)) for length in lengths]  # a small tower beside a large one is seen
    place = row.subgridspec(1, len(widths), width_ratios=widths)
    factor = 100 if strip.is_share else 1
    every: list[Axes] = []
    for column, panel in enumerate(strip.panels):
        axes = figure.add_subplot(place[0, column], sharey=every[0] if every else None)
        _draw_panel(axes, panel, factor, labels)
        axes.set_xlabel(strip.x)
        _whole_ticks(axes, 6 if len(widths) < 3 else 3)
        axes.tick_params(labelleft=not every)
        every.append(axes)
    values = [factor * value for panel in strip.panels for value in _extremes(panel.lines)]
    _scale(every[0], "y", values, strip.y, plain)
    return every


def _draw_panel(axes: "Axes", panel: Panel, factor: int, labels: Sequence[str]) -> None:
    axes.set_title(panel.title, fontsize=9)
    for line in panel.lines:
        colour, _, dash = _style(labels.index(line.label))
        low, middle, high = ([factor * value for value in values] for values in (line.low, line.mean, line.high))
        alone = "o" if len(middle) == 1 else ""  # a step from nowhere to nowhere is not seen
        style: dict[str, Any] = {"color": colour, "linestyle": dash, "marker": alone}
        axes.step(line.x, middle, where="mid", linewidth=1.6, label=line.label, **style)
        if line.has_spread:
            axes.fill_between(line.x, low, high, step="mid", color=colour, alpha=0.2, linewidth=0)


def stacked(name: str, x: str, rows: Mapping[str, Mapping[str, float]], text: Text = plain) -> str:
    """Draw a bar in each row, made of pieces that mean the same in every row.

    :param rows: By the row's label, the size of each piece by its label.
    """
    pieces = list(dict.fromkeys(piece for row in rows.values() for piece in row))
    legend = _legend_height(pieces) if len(pieces) > 1 else 0
    with svg.figure(0.9 + 0.28 * len(rows) + legend) as (figure, written):
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
    return svg.element(written, name)


def _style(number: int) -> tuple[str, str, str]:
    """Return colour, marker and dashes; the eleventh has the first's colour, but not its marker and dashes."""
    again = number // len(COLOURS)
    return COLOURS[number % 10], MARKERS[(number + 3 * again) % 10], DASHES[(number + again) % 4]


def shortened(label: str, longest: int) -> str:
    """Return a label that has at most so many letters."""
    return label if len(label) <= longest else f"{label[: longest - 1]}…"


def _scale(axes: "Axes", along: Literal["x", "y"], values: Sequence[float], label: str, text: Text) -> None:
    """Make the axis logarithmic where the values are positive and the largest is over ten times the smallest."""
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
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if ratio < 300 else (1,), numticks=8))
    axis.set_major_formatter(FuncFormatter(lambda value, _: text(value)))
    axis.set_minor_locator(NullLocator())  # drawing them takes half of the time, and no number stands at them


def _whole_ticks(axes: "Axes", most: int) -> None:
    """Put ticks at whole numbers: there is no half of a block.

    :param most: So many ticks at most.
    """
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(most, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f}"))


def _x_ticks(axes: "Axes", ticks: Sequence[float] | None) -> None:
    """Put ticks at these places; None leaves it to matplotlib."""
    _linear(axes.xaxis, plain)
    if ticks is not None:
        axes.set_xticks(ticks)


def _rows(axes: "Axes", labels: Sequence[str]) -> None:
    axes.set_yticks(range(len(labels)), [shortened(label, 40) for label in labels])
    axes.set_ylim(len(labels) - 0.5, -0.5)  # the first on top
    axes.grid(visible=False, axis="y")


def _legend(figure: "Figure", every: "Sequence[Axes]") -> None:
    """Put a legend below the drawing, with each label once."""
    shown = {label: handle for axes in every for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    if shown:
        labels = [shortened(label, 64) for label in shown]
        figure.legend(shown.values(), labels, loc="outside lower center", ncols=_columns(labels), frameon=False)


def _columns(labels: Sequence[str]) -> int:
    """Return how many columns a legend has room for: about 62 letters, of which each entry's line takes six."""
    return max(1, min(len(labels), 4, 62 // (max(map(len, labels)) + 6)))


def _legend_height(labels: Sequence[str]) -> float:
    """Return the height of a legend that may have the dense model besides, in inches."""
    return 0.2 * -(-(len(labels) + 1) // _columns([*labels, "dense"]))
