"""Blocks as one HTML file that loads nothing; pictures are SVG that follows light and dark."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from typing import Any

from gpt_pjit.core.errors import ConfigError
from gpt_pjit.pages.blocks import Block

# Colours to draw with, which the style sheet then sets: matplotlib knows no CSS variables.
PALETTE = [f"#c0{place:02x}ee" for place in range(6)]
INK, LINE = "#0a0b0c", "#0d0e0f"
COLORS = {INK: "currentColor", LINE: "var(--line)"}
COLORS |= {color: f"var(--c{place})" for place, color in enumerate(PALETTE)}


def page(title: str, blocks: Iterable[Block]) -> str:
    """The HTML text; raises ConfigError where jinja2 or matplotlib is not installed."""
    try:
        import jinja2
        import matplotlib  # noqa: F401
    except ImportError as error:
        remedy = "pip install 'gpt_pjit[pages]', or in a checkout pip install -e '.[pages]'"
        raise ConfigError([f"pages need {error.name}: {remedy}"], "--html") from None
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    text = files("gpt_pjit.pages").joinpath("page.html.j2").read_text(encoding="utf-8")
    return environment.from_string(text).render(title=title, blocks=list(blocks))


def stacked_bars(
    rows: Mapping[str, Mapping[str, float]], unit: str, limit: tuple[str, float] | None = None
) -> str:
    """SVG of horizontal bars, a part of each for every name; `limit` is a line with its label."""
    figure, axes = _axes(4.6, 0.3 * len(rows) + 1.2)  # fits a phone without shrinking much
    starts = [0.0] * len(rows)
    for place, name in enumerate(dict.fromkeys(n for parts in rows.values() for n in parts)):
        sizes = [parts.get(name, 0.0) for parts in rows.values()]
        color = PALETTE[place % len(PALETTE)]
        axes.barh(list(rows), sizes, left=starts, height=0.72, color=color, label=name)
        starts = [start + size for start, size in zip(starts, sizes, strict=True)]
    if limit:
        axes.axvline(limit[1], color=INK, linewidth=1, linestyle="--", label=limit[0])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel(unit)
    figure.legend(loc="outside upper left", ncols=2, frameon=False, labelcolor=INK)
    return _svg(figure)


def lines(
    places: Sequence[float], series: Mapping[str, Sequence[float]], across: str, up: str
) -> str:
    """SVG of a line for each name over the same places; both axes are logarithmic."""
    figure, axes = _axes(4.6, 3.2)
    for place, (name, heights) in enumerate(series.items()):
        style = ("-", "--", ":")[place // len(PALETTE) % 3]
        color = PALETTE[place % len(PALETTE)]
        axes.plot(places, heights, color=color, linestyle=style, marker="o", ms=3, label=name)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.set_xticks(places, list(map(str, places)))
    axes.set(xlabel=across, ylabel=up)
    figure.legend(loc="outside right center", frameon=False, labelcolor=INK)
    return _svg(figure)


def grid(filled: Sequence[Sequence[bool]], down: str, across: str) -> str:
    """SVG of a grid, coloured where `filled`, with the names of its rows and columns."""
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
    return _svg(figure)


def _axes(width: float, height: float) -> tuple[Any, Any]:
    """A figure of this size in inches, in colours of `COLORS`, and its axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[:].set_color(LINE)
    axes.tick_params(colors=INK, length=0, labelsize=9)
    axes.xaxis.label.set(color=INK, size=9)
    axes.yaxis.label.set(color=INK, size=9)
    return figure, axes


def _svg(figure: Any) -> str:
    import matplotlib

    buffer = io.StringIO()
    settings: Any = {"svg.fonttype": "none", "svg.hashsalt": "gpt_pjit", "legend.fontsize": 9}
    with matplotlib.rc_context(settings):
        figure.savefig(buffer, format="svg", transparent=True)
    text = "<svg" + buffer.getvalue().partition("<svg")[2]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"', "<g", text)  # the same in every picture of a page
    text = re.sub(r' xmlns(:xlink)?="[^"]*"', "", text)
    text = re.sub(r" font-family: [^;]*;", "", text)
    for drawn, shown in COLORS.items():
        text = text.replace(drawn, shown)
    return text
