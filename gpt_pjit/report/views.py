"""Runs as blocks: their figures side by side, where their time went, and what is odd in them."""

import dataclasses
import statistics
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from functools import partial
from typing import Any

from gpt_pjit.evaluate import from_record, report as results_blocks, value_text
from gpt_pjit.pages import (
    Block,
    Cell,
    Note,
    Pictures,
    Record,
    Table,
    human_bytes,
    human_time,
    is_number,
    stacked_bars,
)
from gpt_pjit.partition import mesh_text
from gpt_pjit.plan import DIRECTIONS
from gpt_pjit.report.charts import curve_blocks, label
from gpt_pjit.report.record import LOSS, VALIDATION, column, last

TOP_OPERATIONS = 12
MOST_HOSTS, MOST_SAMPLES = 5, 8
BRIEF = 0.05  # seconds: less is not worth a row
LONGEST_TEXT = 240  # characters of an example or a sample


def report_blocks(record: Record, pictures: bool = False) -> Iterator[Block]:
    """The whole page; without pictures, the figures alone, for a terminal."""
    runs = record["runs"]
    yield Note(f"as of {_utc(record['at'])}", "dim")
    yield from _by_run("Runs" if len(runs) > 1 else "", _of_each(runs, _summary))
    yield from (Note(f"{n}: {gap}", "warning") for n, run in runs.items() for gap in run["gaps"])
    if pictures:
        yield from curve_blocks(runs)
    yield from _by_run("Tasks", _of_each(runs, _tasks))
    yield from _by_run("Where a step's time goes", _of_each(runs, _step))
    yield from _by_run("Slowest hosts", _of_each(runs, _hosts))
    yield from _by_run("Where the time went", _of_each(runs, _time))
    if pictures:
        yield from _bars(runs)
    yield from _spikes(runs)
    for name, run in runs.items():
        whose = f" of {name}" if len(runs) > 1 else ""
        yield from _profile(whose, run)
        if pictures:
            yield from _details(whose, run)
    if pictures:
        yield from _by_run("Placement", _of_each(runs, _placement))
        configs = _of_each(runs, lambda run: {k: str(v) for k, v in run["config"].items()})
        same = set.intersection(*(set(config.items()) for config in configs.values()))
        differ = _of_each(configs, lambda config: dict(i for i in config.items() if i not in same))
        yield from _by_run("Config: what differs", differ)
        yield from _by_run("The whole config", configs, folded=True)
    if results := [from_record(one, file) for file, one in record["evaluations"].items()]:
        first, *rest = results_blocks(results[0], results[1:])
        yield first
        for block in rest:
            yield dataclasses.replace(block, folded=True) if isinstance(block, Table) else block


def _of_each(runs: Mapping[str, Any], of: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
    return {name: of(run) for name, run in runs.items()}


def _by_run(title: str, columns: Mapping[str, Record], folded: bool = False) -> Iterator[Table]:
    """A column for each run, a row for what any of them has; nothing where none has any."""
    names = [name for name, column in columns.items() if any(column.values())]
    keys = dict.fromkeys(key for name in names for key in columns[name])
    rows = [[key, *(columns[name].get(key) or "" for name in names)] for key in keys]
    names = names if len(columns) > 1 else [""]
    if rows := [row for row in rows if any(row[1:])]:
        yield Table(title, ("", *(f">{name}" for name in names)), rows, folded)


def _summary(run: Record) -> dict[str, str | Cell]:
    """The figures of a run; those that have a plan with the plan's below them."""
    steps, took, spent = run["steps"], run["measured"], run["time"]
    plan = run["plan"]

    def text(value: float | None, form: str, key: str = "") -> str | Cell:
        if value is None:
            return ""
        planned = plan and plan["cost"] and plan["cost"].get(key)
        if not planned:
            return form.format(value)
        return Cell(
            form.format(value), [f"plan {form.format(planned)}, ratio {value / planned:.2f}"]
        )

    return {
        "steps": f"{steps['done']:,} of {steps['total']:,}",
        "state": "finished" if steps["finished"] else "not finished",
        "tokens": text(max(column(run, "tokens")[1], default=None), "{:,.0f}"),
        "training loss": text(last(run, LOSS), "{:.4f}"),
        "validation loss": text(last(run, VALIDATION), "{:.4f}"),
        "validation perplexity": text(last(run, "validation/perplexity"), "{:,.2f}"),
        "validation bits per byte": text(last(run, "validation/bits_per_byte"), "{:.4f}"),
        "tokens a second": text(took["tokens_per_second"], "{:,.0f}", "tokens_per_second"),
        "seconds a step": text(took["step_seconds"], "{:,.3f}", "step_seconds"),
        "MFU": text(took["mfu"], "{:.1%}", "mfu"),
        "goodput": f"{spent['useful'] / spent['wall']:.1%}" if spent else "",
        "wall time": human_time(spent["wall"]) if spent else "",
        "starts": str(len(run["starts"])),
        "skipped steps": str(len(run["skipped"]) or ""),
        "spikes": str(len(run["spikes"]) - len(run["skipped"]) or ""),
    }


def _step(run: Record) -> dict[str, str]:
    """What the main thread does in a step, and how long devices have no work."""
    times = run["measured"]["time"]
    whole = times.get("step")
    return {
        name: f"{1e3 * seconds:,.1f} ms" + (f", {seconds / whole:.1%}" if whole else "")
        for name, seconds in times.items()
    }


def _hosts(run: Record) -> dict[str, str]:
    """How often each process was the slowest, and how much longer its devices had no work then."""
    told = ("hosts/slowest", "hosts/idle_most", "hosts/idle_median")
    lines = [line for line in run["lines"] if all(is_number(line.get(name)) for name in told)]
    over: dict[int, list[float]] = {}
    for line in lines:
        excess = line["hosts/idle_most"] - line["hosts/idle_median"]
        over.setdefault(int(line["hosts/slowest"]), []).append(excess)
    return {
        f"process {process}": f"in {len(times) / len(lines):.0%} of the log intervals, by "
        f"{1e3 * statistics.median(times):,.1f} ms a step"
        for process, times in sorted(over.items(), key=lambda item: -len(item[1]))[:MOST_HOSTS]
    }


def _tasks(run: Record) -> dict[str, str]:
    """The last figures of `eval.tasks`, with their standard errors."""
    found = {}
    for line in run["lines"]:
        for name in line:
            group, _, task_metric = name.partition("/")
            if group == "evaluation" and not name.endswith("_stderr") and is_number(line[name]):
                task, _, metric = task_metric.rpartition("/")
                error = line.get(f"{name}_stderr")
                figures = {
                    metric: line[name],
                    f"{metric}_stderr": error if is_number(error) else None,
                }
                found[f"{task} {metric}"] = f"{value_text(figures, metric)} at {line['step']:,}"
    return found


def _time(run: Record) -> dict[str, str]:
    spent = run["time"] or {}
    return {
        name: f"{human_time(seconds)}, {seconds / spent['wall']:.1%}" if seconds > BRIEF else ""
        for name, seconds in spent.items()
    }


def _bars(runs: Record) -> Iterator[Pictures]:
    spent = {label(name): run["time"] for name, run in runs.items() if run["time"]}
    if spent:
        longest = max(time["wall"] for time in spent.values())
        size, unit = (3600, "hours") if longest > 3600 else (60, "minutes")
        bars = {
            name if len(runs) > 1 else "": {
                part: seconds / size
                for part, seconds in time.items()
                if part != "wall" and seconds > BRIEF
            }
            for name, time in spent.items()
        }
        yield Pictures("", [("", partial(stacked_bars, bars, unit))])


def _placement(run: Record) -> dict[str, str]:
    if not (placed := run["placement"]):
        return {}
    held = {f"a device holds: {k}": human_bytes(n) for k, n in placed["bytes_a_device"].items()}
    moved = placed["bytes_moved_a_step"].items()
    return {
        "parameters": f"{placed['parameters']:,}",
        "mesh": mesh_text(placed["mesh"]),
        "layout": placed["layout"],
        **held,
        **{f"a step moves: {name}": human_bytes(n) for name, n in moved if n},
    }


def _spikes(runs: Record) -> Iterator[Table]:
    rows = []
    for name, run in runs.items():
        for one in run["spikes"]:
            loss = "not finite" if one["loss"] is None else f"{one['loss']:.4f}"
            kind = Cell(one["kind"], style="bad" if one["kind"] == "skipped" else "warning")
            rows.append((name, f"{one['step']:,}", kind, loss))
    if rows:
        yield Table("Spikes and skipped steps", ("run", ">step", "", ">loss"), rows)


def _profile(whose: str, run: Record) -> Iterator[Block]:
    """What devices did in a traced step, by the scopes of a plan."""
    if not (found := run["profile"]) or not found["seconds"]:
        return
    cost = (run["plan"] and run["plan"]["cost"]) or {"scopes": {}}
    planned = {scope: sum(passes.values()) for scope, passes in cost["scopes"].items()}
    ways = [way for way in DIRECTIONS if any(way in of for of in found["scopes"].values())]
    rows = []
    for scope, passes in found["scopes"].items():
        times = (f"{1e3 * passes[way]:,.2f}" if way in passes else "" for way in ways)
        share = f"{sum(passes.values()) / found['seconds']:.1%}"
        of_plan = f"{planned[scope] / sum(planned.values()):.1%}" if scope in planned else ""
        rows.append((scope, *times, share, *[of_plan] * bool(planned)))
    columns = ("scope", *(f">{way}" for way in ways), ">share", *[">the plan's"] * bool(planned))
    title = f"Profile{whose} from step {found['first']} on, in ms a step"
    yield Table(title, columns, rows)
    top = [
        (
            f"{1e3 * o['seconds']:,.3f}",
            f"{o['times']:,.0f}",
            f"{o['scope']}, {o['direction']}",
            o["name"],
        )
        for o in found["operations"][:TOP_OPERATIONS]
    ]
    yield Table(f"Top operations{whose}", (">ms", ">times", "scope", "operation"), top, folded=True)


def _details(whose: str, run: Record) -> Iterator[Block]:
    """The batches of spikes, the starts, and the samples of a run."""
    for one in run["spikes"]:
        rows: list[Any] = [
            (str(row), f"{part['document']:,}", f"{part['start']:,}", _code(part["text"]))
            for row, parts in enumerate(one.get("texts", ()))
            for part in parts
        ]
        if rows:
            shown = f"{len(one['texts'])} of {one['rows']} rows"
            title = f"The batch of step {one['step']:,}{whose}, {shown}"
            yield Table(title, (">row", ">document", ">from its token", "text"), rows, folded=True)
    rows = []
    for number, start in enumerate(run["starts"], 1):
        changed = start["changes"].items()
        changes = [f"{field} {old!r} -> {new!r}" for field, (old, new) in changed]
        commit = start["commit"].get("commit", "")[:8]
        commit += "" if start["commit"].get("clean", True) else ", changed"
        devices = " ".join(map(str, start["devices"]))
        where = Cell(devices, [f"of {start['processes']} processes"] * (start["processes"] > 1))
        cells = (f"{start['step']:,}", where, commit, Cell("", changes))
        rows.append((str(number), _utc(start["time"]), *cells))
    columns = (">start", "at", ">after step", "devices", "commit", "changes of the config")
    yield Table(f"Starts{whose}", columns, rows, folded=len(rows) == 1)
    rows = [
        (str(sample.get("step")), _code(sample.get("prompt")), _code(sample.get("text")))
        for sample in run["samples"][-MOST_SAMPLES:]
    ]
    if rows:
        yield Table(f"Samples{whose}", (">step", "prompt", "text"), rows)


def _code(text: Any) -> Cell:
    text = str(text)
    short = text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]}..."
    return Cell(repr(short)[1:-1], style="code")


def _utc(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S} UTC"
