"""What a person sees of plans: their records as tables, and pictures for the page."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from gpt_pjit.core.chips import GIB
from gpt_pjit.pages import (
    Block,
    Cell,
    Note,
    Pictures,
    Record,
    Table,
    before_and_after,
    human_bytes,
    stacked_bars,
)
from gpt_pjit.partition import mesh_text
from gpt_pjit.plan.compile import find_topology
from gpt_pjit.plan.hlo import DIRECTIONS

TOP_OPERATIONS = 12
BREACHES = 8  # of one promise that are shown
UNESTIMATED = 8  # operations without an estimate that are shown
ESTIMATE = (
    "An estimate: the compiler's cycles for each operation at the chip's clock, lower bounds for "
    "kernels, and transfers at the published rates where no work runs beside them. The host, the "
    "input, stalls and what is listed without an estimate are left out: the real step is slower."
)
BOUNDS = (
    "A lower bound: of each operation, its products at the peak rate or its bytes at the memory's "
    "bandwidth, whichever takes longer, and transfers at the published rates where no work runs "
    "beside them. Memory is the compiler's figure; a Mcycle is a million cycles at {clock} GHz."
)
NO_COMPILER = (
    "The compiler for this hardware is not installed: pip install 'gpt_pjit[plan-gpu]'. State, "
    "weights, gradients and what is sent for them are exact; activations are estimated from shapes."
)
AT_PEAK = "Times are those at published peak rates, which no run reaches."


def plan_blocks(plan: Record, pictures: bool = False) -> Iterator[Block]:
    """The whole plan; the verdict comes first on a page, and last in a terminal."""
    where = f"{plan['devices']} devices on {plan['chips']} chips, {mesh_text(plan['mesh'])}"
    yield Note(f"{plan['topology']}: {where}, layout {plan['layout']}")
    if pictures:
        yield from _verdict(plan)
    if not plan["compiled"]:
        yield Note(NO_COMPILER)
    yield from _memory(plan, pictures)
    if plan["collectives"]:
        yield _collectives(plan)
    if plan["promises"]:
        yield _promises(plan)
    if plan["cost"]:
        yield from _cost(plan, pictures)
    if plan["compiled"]:
        yield Note(f"compiled in {plan['compile_seconds']:.0f} s")
    if not pictures:
        yield from _verdict(plan)


def difference_blocks(before: Record, after: Record) -> Iterator[Block]:
    """Two plans side by side; what both lack is left out."""
    for (title, write, was), (*_, now) in zip(_measures(before), _measures(after), strict=True):
        yield from before_and_after(title, (was, now), write)
    for name, kept in after["promises"].items():
        was_kept = before["promises"].get(name, kept)
        if was_kept != kept:
            change = "broken -> kept" if kept else "kept -> broken"
            yield Note(f"{name}: {change}", "good" if kept else "bad")


def _measures(plan: Record) -> Iterator[tuple[str, Callable[[float], str], Record]]:
    """A title, how to write a number, and numbers by name."""
    memory = plan["memory"]
    yield "Memory of a device", human_bytes, memory["groups"] | {"peak": memory["peak_bytes"]}
    sent: Counter[str] = Counter()
    for c in plan["collectives"]:
        sent[f"{c['kind']} {c['dtype']}, {c['where']}"] += c["total_bytes"]
    yield "Sent by a device in a step", human_bytes, {**sent, "all": sent.total()}
    cost, write = plan["cost"] or {"scopes": {}}, "{:,.3f}".format
    scopes = {scope: sum(by.values()) for scope, by in cost["scopes"].items()}
    yield "Estimated Mcycles of a step", write, scopes | {"all": cost.get("mcycles")}
    times = ("step_seconds", "tokens_per_second", "mfu", "days")
    yield "Times", write, {name: cost.get(name) for name in times}


def search_blocks(found: Sequence[Record], topology: str) -> Iterator[Block]:
    """The outcomes of a search, the fastest that fits first."""
    programs: set[str] = set()
    rows = []
    for one in found:
        plan = one["plan"] or {}
        step, mfu, peak = "", "", f"over {human_bytes(one['trees_bytes'])}"
        if cost := plan.get("cost"):
            step, mfu = f"{cost['step_seconds']:.3f} s", f"{cost['mfu']:.1%}"
            peak = human_bytes(plan["memory"]["peak_bytes"])
        fits = Cell("yes", style="good") if one["fits"] else Cell("no", style="bad")
        is_twin = plan.get("program") in programs
        limit = "the same program as a row above" if is_twin else one["limit"]
        programs |= {plan["program"]} if plan.get("program") else set()
        changed = "\n".join(one["overrides"]) or "the config as it is"
        rows.append((step, mfu, peak, fits, limit, changed))
    columns = (">step", ">MFU", ">peak", "fits", "limited by", "overrides")
    yield Table(f"Settings on {topology}", columns, rows)
    if found and found[0]["fits"]:
        yield Note(f"fastest that fits, {seconds(found[0]):.3f} s a step:")
        yield Note("    " + (" ".join(found[0]["overrides"]) or "the config as it is"))
    else:
        yield Note("nothing fits; `gpt_pjit plan` says what would help")


def seconds(outcome: Record) -> float:
    """The time of a step, infinite for what was not compiled."""
    cost = outcome["plan"] and outcome["plan"]["cost"]
    return cost["step_seconds"] if cost else math.inf


def _verdict(plan: Record) -> Iterator[Note]:
    """Whether it fits and by how much, and what would help if it does not."""
    memory = plan["memory"]
    peak, capacity = memory["peak_bytes"], memory["capacity_bytes"]
    kind = "" if plan["compiled"] else "estimated "
    text = f"{kind}peak {human_bytes(peak)} of {human_bytes(capacity)} per device"
    if plan["fits"]:
        yield Note(f"fits: {text}, {human_bytes(capacity - peak)} to spare", "good")
    else:
        yield Note(f"does not fit: {memory['refusal'] or text}", "bad")
    if plan["remedies"]:
        yield Note("\n    ".join(["what would help, one at a time:", *plan["remedies"]]))


def _memory(plan: Record, pictures: bool) -> Iterator[Block]:
    memory, groups = plan["memory"], plan["memory"]["groups"]
    sources = dict.fromkeys(groups, "exact, from shapes and specs")
    estimated = "the peak less the above" if memory["compiler"] else "estimated from shapes"
    sources["activations and temporaries"] = estimated
    by, capacity = Cell("the compiler", style="dim"), human_bytes(memory["capacity_bytes"])
    compiler = ((Cell(name, style="dim"), n, by) for name, n in memory["compiler"].items())
    sizes = [*((name, n, sources[name]) for name, n in groups.items()), *compiler]
    rows: list[Any] = [(name, human_bytes(n), source) for name, n, source in sizes]
    rows.append(("capacity for a program", capacity, plan["topology"]))
    yield Table("Memory of a device", ("", ">bytes", "source"), rows)
    if pictures:
        bars = {"": {group: size / GIB for group, size in groups.items()}}
        limit = ("capacity", memory["capacity_bytes"] / GIB)
        yield Pictures("", [("", partial(stacked_bars, bars, "GiB", limit))])


def _collectives(plan: Record) -> Table:
    rows = [
        (
            Cell(c["kind"], (f"{c['dtype']} over {'*'.join(c['axes'])}",)),
            Cell(", ".join(c["parameters"]) or c["op_name"].rsplit("/", 2)[-1], (c["source"],)),
            human_bytes(c["bytes"]),
            str(c["times"]),
            c["where"],
            human_bytes(c["total_bytes"]),
            f"{c['seconds'] * 1e3:.2f}",
            f"{c['exposed_seconds'] * 1e3:.2f}",
        )
        for c in sorted(plan["collectives"], key=lambda c: -c["total_bytes"])
    ]
    total = human_bytes(sum(c["total_bytes"] for c in plan["collectives"]))
    times = (
        f"{sum(c[key] for c in plan['collectives']) * 1e3:.2f}"
        for key in ("seconds", "exposed_seconds")
    )
    columns = ("kind", "of", ">each time", ">times", "where", ">a step", ">ms", ">exposed ms")
    title = "Collectives: what a device sends, at the published link rate"
    return Table(title, columns, [*rows, ("all", "", "", "", "", total, *times)])


def _promises(plan: Record) -> Table:
    kept = Cell("kept", style="good")
    rows = [
        (name, kept if good else Cell("BROKEN", plan["breaches"][name][:BREACHES], "bad"))
        for name, good in plan["promises"].items()
    ]
    return Table(f"Promises of layout {plan['layout']}", ("promise", ""), rows)


def _cost(plan: Record, pictures: bool) -> Iterator[Block]:
    cost = plan["cost"]
    if cost["scopes"]:
        table = {
            scope: {name: by.get(name, 0.0) for name in DIRECTIONS}
            for scope, by in cost["scopes"].items()
        }
        yield _scopes(table, cost["mcycles"])
        if pictures:
            yield Pictures("", [("", partial(stacked_bars, table, "Mcycles"))])
        yield _operations(cost)
    if cost["kernels"]:
        yield _kernels(cost)
    if cost["unestimated_operations"]:
        yield _unestimated(cost)
    hidden = cost["collective_seconds"] - cost["exposed_seconds"]
    rows = [
        ("compute", f"{cost['compute_seconds']:.3f} s"),
        ("collectives, exposed", f"{cost['exposed_seconds']:.3f} s"),
        ("collectives, hidden", f"({hidden:.3f} s)"),
        ("copies, exposed", f"{cost['copy_seconds']:.3f} s"),
        ("step", f"{cost['step_seconds']:.3f} s"),
        ("tokens/s", f"{cost['tokens_per_second']:,.0f}"),
        ("MFU", f"{cost['mfu']:.1%}"),
        (f"{cost['steps']:,} steps", f"{cost['days']:.2f} days"),
    ]
    if cost["dollars"]:
        rows.append(("dollars", f"{cost['dollars']:,.0f}"))
    for other in plan["published"]:
        rate = f"{other['tokens_per_second']:,.0f} tokens/s"
        rows.append((f"published: {other['model']}", rate))
    yield Table("Time and cost", ("", ">"), rows)
    chip = find_topology(plan["topology"]).chip
    basis = BOUNDS.format(clock=chip.clock / 1e9) if chip.is_gpu else ESTIMATE
    yield Note(AT_PEAK if cost["mcycles"] is None else basis, "dim")


def _scopes(table: dict[str, dict[str, float]], total: float) -> Table:
    sums = {name: sum(by[name] for by in table.values()) for name in DIRECTIONS}
    rows = []
    for scope, by in (table | {"all": sums}).items():
        cells = (f"{n:,.1f}" if n else "" for n in by.values())
        share = sum(by.values())
        rows.append((scope, *cells, f"{share:,.1f}", f"{share / total:.1%}"))
    columns = ("scope", *(f">{name}" for name in DIRECTIONS), ">all", ">share")
    return Table("Estimated Mcycles of a step", columns, rows)


def _kernels(cost: Record) -> Table:
    """Part of the estimated Mcycles: a roofline of each kernel."""
    rows = [
        (
            Cell(k["name"], (f"by {k['basis']}",)),
            f"{k['flops'] / 1e9:,.1f}",
            human_bytes(k["bytes"]),
            str(k["times"]),
            f"{k['times'] * k['seconds'] * 1e3:,.2f}",
        )
        for k in cost["kernels"]
    ]
    columns = ("kernel", ">GFLOP", ">bytes", ">times", ">ms a step")
    return Table("Kernels: lower bounds, by the peak rates", columns, rows)


def _unestimated(cost: Record) -> Table:
    shown = cost["unestimated_operations"][:UNESTIMATED]
    rows = [(o["name"], f"{o['times']:,}") for o in shown]
    if rest := cost["unestimated_operations"][UNESTIMATED:]:
        rows.append((f"{len(rest)} others", f"{sum(o['times'] for o in rest):,}"))
    return Table("Without an estimate: counted as nothing", ("operation", ">times"), rows)


def _operations(cost: Record) -> Table:
    rows = []
    for o in cost["operations"][:TOP_OPERATIONS]:
        fused = [f"fused with {', '.join(o['also'])}"] if o["also"] else []
        scope = Cell(f"{o['scope']}, {o['direction']}", fused)
        operation = Cell(o["name"], (o["source"],))
        rows.append((f"{o['cycles']:,.1f}", str(o["times"]), scope, operation))
    return Table("Top operations", (">Mcycles", ">times", "scope", "operation"), rows)
