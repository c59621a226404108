"""What the command line shows of plans, as rich tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from gpt_pjit.core.chips import GIB
from gpt_pjit.partition import human_bytes, mesh_text, text_table
from gpt_pjit.plan.cost import Cost
from gpt_pjit.plan.plan import Plan

TOP_OPERATIONS = 12
DIRECTIONS = ("forward", "recompute", "backward", "update")
ESTIMATE = (
    "An estimate: the compiler's cycles for each operation at the chip's clock, plus bytes over "
    "the published link rate as if nothing overlapped; the host, the input and stalls are left out."
)
NO_COMPILER = (
    "No compiler for this hardware is here. State, weights, gradients and what is sent for them "
    "are exact; activations are estimated from shapes; times are those at published peak rates, "
    "which no run reaches."
)


def verdict(plan: Plan) -> str:
    """One line: fits or not, and by how much."""
    memory = plan.memory
    margin = human_bytes(abs(memory.capacity - memory.peak))
    capacity = human_bytes(memory.capacity)
    if memory.refusal:
        return f"does not fit: {memory.refusal}"
    kind = "" if plan.executable else "estimated "
    if not memory.fits:
        return f"does not fit: {kind}peak {human_bytes(memory.peak)} of {capacity} a device"
    return f"fits: {kind}peak {human_bytes(memory.peak)} of {capacity} a device, {margin} to spare"


def plan_tables(plan: Plan, dollars_per_chip_hour: float | None) -> Iterator[RenderableType]:
    topology = plan.topology
    where = f"{topology.devices} devices on {topology.chips} chips"
    mesh = f", {mesh_text(plan.axis_sizes)}" if plan.axis_sizes else ""
    yield f"{topology.name}: {where}{mesh}, layout {plan.config.partition.layout}"
    if plan.executable is None:
        yield NO_COMPILER
    yield _memory(plan)
    if plan.collectives:
        yield _collectives(plan)
    if plan.promises:
        yield _promises(plan)
    if plan.cost:
        if plan.cost.operations:
            yield _scopes(plan.cost)
            yield _operations(plan.cost)
        yield _times(plan, plan.cost, dollars_per_chip_hour)
        yield caveat(plan.cost)
    if plan.executable:
        yield f"compiled in {plan.executable.seconds:.0f} s"
    yield Text(verdict(plan), "bold green" if plan.memory.fits else "bold red")
    if plan.remedies:
        yield "what would help, one at a time:\n" + "\n".join(f"    {r}" for r in plan.remedies)


def _memory(plan: Plan) -> Table:
    memory = plan.memory
    table = text_table("Memory of a device", "", ">bytes", "by")
    for group, size in memory.groups.items():
        table.add_row(group, human_bytes(size), "exact, from the trees")
    by = "peak less the above" if memory.compiler else "estimated from shapes"
    table.add_row("activations and temporaries", human_bytes(memory.activations), by)
    for name, size in memory.compiler.items():
        table.add_row(Text(name, "dim"), human_bytes(size), Text("the compiler", "dim"))
    table.add_row("capacity for a program", human_bytes(memory.capacity), plan.topology.chip.name)
    return table


def _collectives(plan: Plan) -> Table:
    title = "Collectives: what a device sends"
    table = text_table(title, "kind", "of", ">each time", ">times", "where", ">a step")
    for c in sorted(plan.collectives, key=lambda c: -c.total_bytes):
        what = ", ".join(c.parameters) or c.op_name.rsplit("/", 2)[-1]
        kind = Text(f"{c.kind}\n") + Text(f"{c.dtype} over {'*'.join(c.axes)}", "dim")
        table.add_row(
            kind,
            Text(what) + Text(f"\n{c.source}", "dim"),
            human_bytes(c.nbytes),
            str(c.times),
            c.where,
            human_bytes(c.total_bytes),
        )
    total = sum(c.total_bytes for c in plan.collectives)
    seconds = plan.cost.collective_seconds if plan.cost else 0
    link = f"{seconds * 1e3:.0f} ms at the published link rate"
    table.add_row("all", link, "", "", "", human_bytes(total))
    return table


def _promises(plan: Plan) -> Table:
    table = text_table(f"Promises of layout {plan.config.partition.layout}", "promise", "")
    for promise in plan.promises:
        kept = Text("kept", "green") if promise.kept else Text("BROKEN", "bold red")
        breaches = Text("".join(f"\n{b}" for b in promise.breaches[:6]), "red")
        table.add_row(promise.name, kept + breaches)
    return table


def _scopes(cost: Cost) -> Table:
    columns = [f">{name}" for name in DIRECTIONS]
    table = text_table("Estimated Mcycles of a step", "scope", *columns, ">all", ">share")
    total = cost.cycles or 1
    for scope, by in cost.by_scope().items():
        cells = (f"{by[name] / 1e6:,.1f}" if by[name] else "" for name in DIRECTIONS)
        table.add_row(scope, *cells, f"{by.total() / 1e6:,.1f}", f"{by.total() / total:.1%}")
    sums = (sum(by[name] for by in cost.by_scope().values()) for name in DIRECTIONS)
    table.add_row("all", *(f"{n / 1e6:,.1f}" for n in sums), f"{total / 1e6:,.1f}", "100.0%")
    return table


def _operations(cost: Cost) -> Table:
    table = text_table("Top operations", ">Mcycles", ">times", "scope", "operation", "source")
    for o in cost.operations[:TOP_OPERATIONS]:
        scope = Text(f"{o.scope}, {o.direction}")
        also = Text(f"\nfused with {', '.join(o.also)}" if o.also else "", "dim")
        table.add_row(f"{o.cycles / 1e6:,.1f}", str(o.times), scope + also, o.name, o.source)
    return table


def _times(plan: Plan, cost: Cost, dollars_per_chip_hour: float | None) -> Table:
    table = text_table("Time and cost", "", ">")
    if cost.cycles is not None:
        table.add_row("estimated cycles", f"{cost.cycles / 1e6:,.0f} M")
    for name, value in time_rows(plan, cost, dollars_per_chip_hour):
        table.add_row(name, value)
    return table


def caveat(cost: Cost) -> str:
    if cost.cycles is None:
        return "Times are those at published peak rates, which no run reaches."
    if not cost.unestimated:
        return ESTIMATE
    missing = f"{cost.unestimated} executions a step have no estimate and count as nothing"
    return f"{ESTIMATE} {missing}: the real step is slower."


def time_rows(
    plan: Plan, cost: Cost, dollars_per_chip_hour: float | None
) -> Iterator[tuple[str, str]]:
    yield "compute", f"{cost.compute_seconds:.3f} s"
    yield "collectives", f"{cost.collective_seconds:.3f} s"
    yield "step", f"{cost.step_seconds:.3f} s"
    yield "tokens/s", f"{cost.tokens_per_second:,.0f}"
    yield "MFU", f"{cost.mfu:.1%}"
    yield f"{cost.steps:,} steps", f"{cost.days:.2f} days"
    if dollars_per_chip_hour:
        yield (
            f"at ${dollars_per_chip_hour:g} a chip and hour",
            (f"${cost.dollars(dollars_per_chip_hour):,.0f}"),
        )
    for other in plan.published:
        yield f"published: {other['model']}", f"{other['tokens_per_second']:,.0f} tokens/s"


def change_tables(
    before: Mapping[str, Any], after: Mapping[str, Any], lines: Sequence[str]
) -> Iterator[RenderableType]:
    """Two records of --json side by side; what both lack is left out."""
    yield from lines
    sides = (
        _sides("Memory of a device, GiB", _memory_numbers(before), _memory_numbers(after), GIB),
        _sides("Sent by a device in a step, MiB", _moved(before), _moved(after), 2**20),
        _sides("Estimated Mcycles of a step", _scope_numbers(before), _scope_numbers(after)),
        _sides("Times", _time_numbers(before), _time_numbers(after)),
    )
    yield from (table for table in sides if table.row_count)
    broken = [
        f"{name}: {'kept' if was else 'broken'} -> {'kept' if now else 'broken'}"
        for name, now in after["promises"].items()
        if (was := before["promises"].get(name, now)) != now
    ]
    yield from broken


def _sides(
    title: str, before: Mapping[str, float], after: Mapping[str, float], unit: float = 1
) -> Table:
    table = text_table(title, "", ">before", ">after", ">change")
    for row in dict.fromkeys([*before, *after]):
        old, new = before.get(row, 0) / unit, after.get(row, 0) / unit
        if old or new:
            table.add_row(row, f"{old:,.3f}", f"{new:,.3f}", f"{new - old:+,.3f}")
    return table


def _memory_numbers(record: Mapping[str, Any]) -> dict[str, float]:
    return record["memory"]["groups"] | {"peak": record["memory"]["peak_bytes"]}


def _moved(record: Mapping[str, Any]) -> dict[str, float]:
    moved: dict[str, float] = {}
    for c in record["collectives"]:
        name = f"{c['kind']} {c['dtype']}, {c['where']}"
        moved[name] = moved.get(name, 0) + c["total_bytes"]
    return moved | {"all": sum(moved.values())}


def _scope_numbers(record: Mapping[str, Any]) -> dict[str, float]:
    cost = record["cost"] or {"scopes": {}, "mcycles": 0}
    scopes = {scope: sum(by.values()) for scope, by in cost["scopes"].items()}
    return scopes | {"all": cost["mcycles"] or 0}


def _time_numbers(record: Mapping[str, Any]) -> dict[str, float]:
    names = ("step_seconds", "tokens_per_second", "mfu", "days")
    return {name: (record["cost"] or {}).get(name, 0) for name in names}
