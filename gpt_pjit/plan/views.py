"""What a person sees of plans: their records as tables, and pictures for the page."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

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

TOP_OPERATIONS = 12
BREACHES = 8  # of one promise that are shown
DIRECTIONS = ("forward", "recompute", "backward", "update")
ESTIMATE = (
    "An estimate: the compiler's cycles for each operation at the chip's clock, plus bytes over "
    "the published link rate as if nothing overlapped. The host, the input and stalls are left out."
)
NO_COMPILER = (
    "There is no compiler for this hardware here. State, weights, gradients and what is sent for "
    "them are exact; activations are estimated from shapes."
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
    for title, measure, write in (
        ("Memory of a device", _memory_numbers, human_bytes),
        ("Sent by a device in a step", _sent, human_bytes),
        ("Estimated Mcycles of a step", _scope_numbers, "{:,.3f}".format),
        ("Times", _time_numbers, "{:,.3f}".format),
    ):
        yield from before_and_after(title, (measure(before), measure(after)), write)
    for name, kept in after["promises"].items():
        was = before["promises"].get(name, kept)
        if was != kept:
            words = {True: "kept", False: "broken"}
            yield Note(f"{name}: {words[was]} -> {words[kept]}", "good" if kept else "bad")


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
        lines = "".join(f"\n    {remedy}" for remedy in plan["remedies"])
        yield Note(f"what would help, one at a time:{lines}")


def _memory(plan: Record, pictures: bool) -> Iterator[Block]:
    memory = plan["memory"]
    *exact, activations = memory["groups"].items()
    by = "the peak less the above" if memory["compiler"] else "estimated from shapes"
    yield Table(
        "Memory of a device",
        ("", ">bytes", "source"),
        [
            *((group, human_bytes(size), "exact, from shapes and specs") for group, size in exact),
            (activations[0], human_bytes(activations[1]), by),
            *(
                (Cell(name, style="dim"), human_bytes(size), Cell("the compiler", style="dim"))
                for name, size in memory["compiler"].items()
            ),
            ("capacity for a program", human_bytes(memory["capacity_bytes"]), plan["topology"]),
        ],
    )
    if pictures:
        bars = {"": {group: size / GIB for group, size in memory["groups"].items()}}
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
        )
        for c in sorted(plan["collectives"], key=lambda c: -c["total_bytes"])
    ]
    link = f"{plan['cost']['collective_seconds'] * 1e3:.0f} ms at the published link rate"
    total = human_bytes(sum(c["total_bytes"] for c in plan["collectives"]))
    columns = ("kind", "of", ">each time", ">times", "where", ">a step")
    title = "Collectives: what a device sends"
    return Table(title, columns, [*rows, ("all", link, "", "", "", total)])


def _promises(plan: Record) -> Table:
    rows = [
        (
            name,
            Cell("kept", style="good")
            if kept
            else Cell("BROKEN", plan["breaches"][name][:BREACHES], "bad"),
        )
        for name, kept in plan["promises"].items()
    ]
    return Table(f"Promises of layout {plan['layout']}", ("promise", ""), rows)


def _cost(plan: Record, pictures: bool) -> Iterator[Block]:
    cost = plan["cost"]
    if cost["scopes"]:
        yield _scopes(cost)
        if pictures:
            bars = {
                scope: {name: by.get(name, 0.0) for name in DIRECTIONS}
                for scope, by in cost["scopes"].items()
            }
            yield Pictures("", [("", partial(stacked_bars, bars, "Mcycles"))])
        yield _operations(cost)
    yield Table("Time and cost", ("", ">"), list(_times(plan)))
    yield Note(_caveat(cost), "dim")


def _scopes(cost: Record) -> Table:
    total, rows = cost["mcycles"], []
    for scope, by in cost["scopes"].items():
        cells = (f"{by[name]:,.1f}" if name in by else "" for name in DIRECTIONS)
        share = sum(by.values())
        rows.append((scope, *cells, f"{share:,.1f}", f"{share / total:.1%}"))
    sums = (sum(by.get(name, 0) for by in cost["scopes"].values()) for name in DIRECTIONS)
    rows.append(("all", *(f"{n:,.1f}" for n in sums), f"{total:,.1f}", "100.0%"))
    columns = ("scope", *(f">{name}" for name in DIRECTIONS), ">all", ">share")
    return Table("Estimated Mcycles of a step", columns, rows)


def _operations(cost: Record) -> Table:
    rows = [
        (
            f"{o['cycles']:,.1f}",
            str(o["times"]),
            Cell(
                f"{o['scope']}, {o['direction']}",
                [f"fused with {', '.join(o['also'])}"] if o["also"] else [],
            ),
            Cell(o["name"], (o["source"],)),
        )
        for o in cost["operations"][:TOP_OPERATIONS]
    ]
    return Table("Top operations", (">Mcycles", ">times", "scope", "operation"), rows)


def _times(plan: Record) -> Iterator[tuple[str, str]]:
    cost = plan["cost"]
    if cost["mcycles"] is not None:
        yield "estimated cycles", f"{cost['mcycles']:,.0f} M"
    yield "compute", f"{cost['compute_seconds']:.3f} s"
    yield "collectives", f"{cost['collective_seconds']:.3f} s"
    yield "step", f"{cost['step_seconds']:.3f} s"
    yield "tokens/s", f"{cost['tokens_per_second']:,.0f}"
    yield "MFU", f"{cost['mfu']:.1%}"
    yield f"{cost['steps']:,} steps", f"{cost['days']:.2f} days"
    if cost["dollars"]:
        yield "dollars", f"{cost['dollars']:,.0f}"
    for other in plan["published"]:
        yield f"published: {other['model']}", f"{other['tokens_per_second']:,.0f} tokens/s"


def _caveat(cost: Record) -> str:
    if cost["mcycles"] is None:
        return AT_PEAK
    if not cost["unestimated_operations"]:
        return ESTIMATE
    missing = f"{cost['unestimated_operations']} executions per step have no estimate"
    return f"{ESTIMATE} {missing} and count as nothing: the real step is slower."


def _memory_numbers(plan: Record) -> dict[str, float | None]:
    return plan["memory"]["groups"] | {"peak": plan["memory"]["peak_bytes"]}


def _scope_numbers(plan: Record) -> dict[str, float | None]:
    cost = plan["cost"] or {"scopes": {}, "mcycles": None}
    scopes = {scope: sum(by.values()) for scope, by in cost["scopes"].items()}
    return scopes | {"all": cost["mcycles"]}


def _time_numbers(plan: Record) -> dict[str, float | None]:
    names = ("step_seconds", "tokens_per_second", "mfu", "days")
    return {name: plan["cost"][name] if plan["cost"] else None for name in names}


def _sent(plan: Record) -> dict[str, float | None]:
    sent: dict[str, float] = {}
    for c in plan["collectives"]:
        name = f"{c['kind']} {c['dtype']}, {c['where']}"
        sent[name] = sent.get(name, 0) + c["total_bytes"]
    return {**sent, "all": sum(sent.values())}
