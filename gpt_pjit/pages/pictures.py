"""Pictures of numbers, as matplotlib figures in the colours of the light scheme."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

PALETTE = (
    *("#3b6fb6", "#8a63b8", "#2f8f83", "#c08a1e", "#8a94a0"),
    *("#c2577a", "#6b8e23", "#a8552b", "#4aa3c7", "#5b5bd6"),
)
INK, LINE = "#1b1f24", "#d1d9e0"
WIDTH = 4.6  # inches: fits a phone without shrinking much
MOST_POINTS = 240  # of a curve
TOO_NARROW = 4  # the ratio of values below which a logarithmic axis has too few ticks


@dataclass(frozen=True)
class Curve:
    """`y` over `x`, in a colour by number.

    `style` is matplotlib's: "-", "--o" is dashed with dots, "x" is crosses alone. A y of NaN is a
    gap. A curve without a name is not in the legend.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    color: int = 0
    style: str = "-"


def curves(
    drawn: Sequence[Curve],
    across: str,
    up: str,
    scale: str = "",
    marks: Iterable[tuple[float, int]] = (),
) -> Any:
    """A figure of curves; `marks` are places across, each a dotted line in a colour by number.

    Of a curve with more than `MOST_POINTS`, means are drawn, in a band of the extremes.
    `scale` upwards is "log", "zero" for a linear one that begins there, or as the values are.
    """
    figure, axes = _axes(WIDTH, 3.0)
    for curve in drawn:
        color = PALETTE[curve.color % len(PALETTE)]
        x, y, least, most = thinned(curve.x, curve.y)
        if len(x) < len(curve.x):
            axes.fill_between(x, least, most, color=color, alpha=0.25, linewidth=0)
        size, name = 7 if curve.style == "x" else 3, curve.name or "_"
        axes.plot(x, y, curve.style, ms=size, color=color, lw=1.3, label=name)
    for place, number in marks:
        color = PALETTE[number % len(PALETTE)]
        axes.axvline(place, color=color, linewidth=1, linestyle=":", alpha=0.8)
    heights = [y for curve in drawn for y in curve.y if math.isfinite(y)]
    axes.margins(x=0.02)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: f"{value:,.6g}")
    if scale == "log" and heights and 0 < TOO_NARROW * min(heights) < max(heights):
        _log_axis(axes)
    if scale == "zero":
        axes.set_ylim(bottom=0)
    axes.set(xlabel=across, ylabel=up)
    axes.grid(axis="y", color=LINE, linewidth=0.6)
    axes.set_axisbelow(True)
    if longest := max((len(curve.name) for curve in drawn), default=0):
        _legend(figure, 1 if longest > 18 else 2 if longest > 9 else 3)
    return figure


def thinned(x: Sequence[float], y: Sequence[float]) -> tuple[list[float], ...]:
    """The mean x and y of as many points in a row as must share one, with their extremes."""
    size = max(math.ceil(len(x) / MOST_POINTS), 1)
    found = []
    for at in range(0, len(x), size):
        places = x[at : at + size]
        group = [value for value in y[at : at + size] if math.isfinite(value)] or [math.nan]
        mean = sum(group) / len(group)
        found.append((sum(places) / len(places), mean, min(group), max(group)))
    return tuple(list(one) for one in zip(*found, strict=True)) or ([], [], [], [])


def stacked_bars(
    rows: Mapping[str, Mapping[str, float]], unit: str, limit: tuple[str, float] | None = None
) -> Any:
    """A figure of horizontal bars, a part of each for every name; `limit` is a labelled line."""
    names = list(dict.fromkeys(name for parts in rows.values() for name in parts))
    figure, axes = _axes(WIDTH, 0.3 * len(rows) + 0.1 * len(names) + 0.75)
    starts = [0.0] * len(rows)
    for place, name in enumerate(names):
        sizes = [parts.get(name, 0.0) for parts in rows.values()]
        color = PALETTE[place % len(PALETTE)]
        axes.barh(list(rows), sizes, left=starts, height=0.72, color=color, label=name)
        starts = [start + size for start, size in zip(starts, sizes, strict=True)]
    if limit:
        axes.axvline(limit[1], color=INK, linewidth=1, linestyle="--", label=limit[0])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel(unit)
    _legend(figure, 2)
    return figure


def lines(
    places: Sequence[float], series: Mapping[str, Sequence[float]], across: str, up: str
) -> Any:
    """A figure of a line for each name over the same places; both axes are logarithmic."""
    figure, axes = _axes(WIDTH, 3.2)
    for place, (name, heights) in enumerate(series.items()):
        style = ("-", "--", ":")[place // len(PALETTE) % 3]
        color = PALETTE[place % len(PALETTE)]
        axes.plot(places, heights, color=color, linestyle=style, marker="o", ms=3, label=name)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.set_xticks(places, list(map(str, places)))
    axes.set(xlabel=across, ylabel=up)
    _legend(figure, 1, "outside right center")
    return figure


def grid(filled: Sequence[Sequence[bool]], down: str, across: str) -> Any:
    """A figure of a grid, coloured where `filled`, with the names of its rows and columns."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    figure, axes = _axes(2.3, 2.1)
    rows, columns = len(filled), len(filled[0])
    # One path for all of it: neighbours in a row are one box.
    boxes = [
        Path([(x0, y), (x1, y), (x1, y + 1), (x0, y + 1), (x0, y)], closed=True)
        for y, cells in enumerate(filled)
        for x0, x1 in (run.span() for run in re.finditer("1+", "".join("01"[c] for c in cells)))
    ]
    axes.add_patch(PathPatch(Path.make_compound_path(*boxes), color=PALETTE[0], linewidth=0))
    axes.set(xlim=(0, columns), ylim=(rows, 0), xlabel=across, ylabel=down)
    axes.locator_params(integer=True, nbins=4)
    return figure


def _legend(figure: Any, columns: int, place: str = "outside upper left") -> None:
    figure.legend(loc=place, ncols=columns, frameon=False, labelcolor=INK, fontsize=9)


def _log_axis(axes: Any) -> None:
    """Makes the axis upwards logarithmic, with ticks at 1, 2 and 5."""
    from matplotlib.ticker import LogLocator, NullLocator

    write = axes.yaxis.get_major_formatter()
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=12))
    axes.yaxis.set_major_formatter(write)
    axes.yaxis.set_minor_locator(NullLocator())


def _axes(width: float, height: float) -> tuple[Any, Any]:
    """A figure of this size in inches, in colours of the page, and its axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[:].set_color(LINE)
    axes.tick_params(colors=INK, length=0, labelsize=9)
    axes.xaxis.label.set(color=INK, size=9)
    axes.yaxis.label.set(color=INK, size=9)
    return figure, axes
