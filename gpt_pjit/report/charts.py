"""The curves of runs, over each other: by steps, tokens or hours."""

import itertools
import math
from bisect import bisect
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

from gpt_pjit.pages import MOST_POINTS, Block, Choice, Curve, Note, Pictures, Record, curves
from gpt_pjit.report.record import LOSS, VALIDATION, column

COLORS = (0, 3, 2, 5, 1, 6, 7, 8, 9, 4)  # of runs, so that neighbours differ most
MOST_PARTS = 3  # metrics of a group that are drawn for several runs
LONGEST_NAME = 24  # characters of a run in a picture
ACROSS = {"steps": "step", "tokens": "tokens", "hours": "hours"}  # a choice, and what lines have
UNITS = {  # of groups
    "hosts": "seconds a step",
    "memory": "bytes",
    "depth": "share of tokens",
    "depth/activation": "root mean square",
    "depth/attention_logit": "the largest",
}


class Chart(NamedTuple):
    """A picture of a metric of training, and of one of validation where there is one; or of `parts`
    of one run, metrics by name, of which `metric` is the first.
    """

    title: str
    unit: str
    metric: str
    validation: str = ""
    scale: str = ""
    value: Callable[[float], float] = float
    parts: Mapping[str, str] = {}


def _percent(share: float) -> float:
    return 100 * share


def _perplexity(loss: float) -> float:
    return math.exp(min(loss, 100.0))


CHARTS = (
    Chart("Loss", "nats a token", LOSS, VALIDATION),
    Chart("Perplexity", "e to the loss", LOSS, VALIDATION, "log", _perplexity),
    Chart("Gradient norm", "norm", "train/grad_norm", scale="log"),
    Chart("Learning rate", "rate", "train/learning_rate"),
    Chart("Throughput", "tokens a second", "throughput/tokens_per_second", scale="zero"),
    Chart("MFU", "% of the peak", "throughput/mfu", scale="zero", value=_percent),
    Chart("Waiting for data", "% of the time", "throughput/data_wait", "", "zero", _percent),
)
# How metrics begin that have no chart: tables show them, and the standard errors of tasks.
IN_TABLES = (
    *("step", "time", "tokens", "hours", "train/skipped", "hosts/slowest"),
    *("validation/perplexity", "validation/bits_per_byte"),
)


def charts_of(runs: Record) -> list[Chart]:
    """The charts above, and one of each group of metrics that are in none of them: all parts of a
    group on the page of one run, else each part by itself unless there are too many.
    """
    drawn = {name for chart in CHARTS for name in (chart.metric, chart.validation)}
    groups: dict[str, dict[str, str]] = {}
    for name in dict.fromkeys(n for run in runs.values() for line in run["lines"] for n in line):
        if name not in drawn and not name.startswith(IN_TABLES) and not name.endswith("_stderr"):
            group, _, part = name.rpartition("/")
            groups.setdefault(group, {})[part] = name
    found = list(CHARTS)
    for group, parts in groups.items():
        if len(runs) == 1 < len(parts):
            every = math.ceil(len(parts) / len(COLORS))
            shown = dict(list(parts.items())[::every])
            unit = UNITS.get(group, group.rpartition("/")[2])
            first = next(iter(shown.values()))
            found.append(Chart(_title(group), unit, first, scale="log", parts=shown))
        elif len(parts) <= MOST_PARTS:
            unit = UNITS.get(group, "")
            found += [Chart(_title(name), unit or part, name) for part, name in parts.items()]
    return found


def _title(metric: str) -> str:
    words = metric.replace("/", ": ").replace("_", " ")
    return words[:1].upper() + words[1:]


def curve_blocks(runs: Record) -> Iterator[Block]:
    """All charts that have values, by steps, by tokens or by hours, and how they are to be read."""
    charts, options = charts_of(runs), {}
    for name, by in ACROSS.items():
        drawings = [
            (chart.title, partial(draw, chart, runs, by))
            for chart in charts
            if any(column(run, chart.metric, by)[0] for run in runs.values())
        ]
        if drawings:
            options[name] = Pictures("", drawings)
    if not options:
        return
    yield Choice("Curves", options)
    told = ["Solid: training", "dashed: validation"]
    size = math.ceil(max(len(column(run, LOSS)[0]) for run in runs.values()) / MOST_POINTS)
    if size > 1:
        told[0] += f", up to {size} logged steps as their mean, between their least and greatest"
    if any(len(run["starts"]) > 1 for run in runs.values()):
        told.append("dotted: the run starts again")
    if any(run["spikes"] for run in runs.values()):
        told.append("cross: a spike")
    if "hours" in options:
        told.append("hours: since the first start, also those between starts")
    yield Note("; ".join(told) + ".", "dim")


def draw(chart: Chart, runs: Record, by: str) -> Any:
    most = max((x for run in runs.values() for x in column(run, LOSS, by)[0]), default=0.0)
    scale, unit = _scale(by, most)
    drawn, marks, alone = [], [], len(runs) == 1

    def add(run: Record, name: str, metric: str, color: int, style: str = "-") -> None:
        x, y = column(run, metric, by)
        places, values = [place / scale for place in x], [chart.value(one) for one in y]
        again = [start["hours"] for start in run["starts"][1:] if by == "hours" and style == "-"]
        points = zip(x, places, values, strict=True)
        for _, part in itertools.groupby(points, lambda point: bisect(again, point[0])):
            _, across, up = zip(*part, strict=True)  # a line ends where its process does
            drawn.append(Curve(name, across, up, color, style))
            name = ""
        if metric in (LOSS, "train/grad_norm"):
            found = {one["step"] for one in run["spikes"]}
            steps = column(run, metric)[0]
            at = [place for place, step in enumerate(steps) if step in found]
            crosses = [places[n] for n in at], [values[n] for n in at]
            drawn.append(Curve("", *crosses, color, "x"))

    for number, (name, run) in enumerate(runs.items()):
        color = COLORS[number % len(COLORS)]
        for place, (part, metric) in enumerate(chart.parts.items()):
            add(run, part, metric, COLORS[place])
        if not chart.parts:
            title = "training" if chart.validation and alone else "" if alone else label(name)
            add(run, title, chart.metric, color)
        if chart.validation and alone:
            add(run, "validation", chart.validation, COLORS[1], "--o")
        elif chart.validation:
            add(run, "", chart.validation, color, "--o")
        again = (start[by] / scale for start in run["starts"][1:] if by in start)
        marks += [(place, COLORS[-1] if alone else color) for place in again]
    return curves(drawn, unit, chart.unit, chart.scale, marks)


def label(name: str) -> str:
    """The name of a run in a picture: ends differ more than beginnings."""
    return name if len(name) <= LONGEST_NAME else f"...{name[3 - LONGEST_NAME :]}"


def _scale(by: str, most: float) -> tuple[float, str]:
    """What a place on the axis across is divided by, and its unit."""
    if by == "hours" and most < 1:
        return 1 / 60, "minutes"
    if by == "tokens":
        sizes = {"billion ": 1e9, "million ": 1e6, "thousand ": 1e3, "": 1.0}
        name = next(name for name, size in sizes.items() if most >= size or not name)
        return sizes[name], f"{name}tokens"
    return 1.0, by
