"""One self-contained page of a plan: verdict, memory, promises, collectives, cost."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from string import Template

from gpt_pjit.partition import HEAD, STYLE, human_bytes, mesh_text
from gpt_pjit.plan.cost import Cost
from gpt_pjit.plan.plan import Plan
from gpt_pjit.plan.render import DIRECTIONS, caveat, time_rows, verdict

OPERATIONS = 20
PAGE = Template(
    HEAD
    + """\
<p>$devices. Everything is of one device and one step.</p>
<p class="verdict $mood">$verdict</p>
$remedies
<h2>Memory</h2>
$memory
$promises
$collectives
$cost
</html>
"""
)
MORE_STYLE = """
:root { --good: #1a7f37; --bad: #cf222e; --c0: #3b6fb6; --c1: #7a5ea8; --c2: #2f8f83; --c3: #b7791f;
  --c4: #6b7785 }
@media (prefers-color-scheme: dark) { :root { --good: #4ac26b; --bad: #ff7b72; --c0: #6ea8fe;
  --c1: #b197e8; --c2: #56c2b2; --c3: #e3b341; --c4: #8b98a5 } }
.verdict { font-weight: 600; font-size: 1.1rem } .good { color: var(--good) }
.bad { color: var(--bad) }
.bar { display: flex; height: 1.6rem; background: var(--empty); border: 1px solid var(--line);
  margin: .5rem 0; overflow: hidden }
.bar.thin { height: .8rem; margin: .35rem 0; min-width: 14rem }
.bar i { display: block; min-width: 1px }
.key { display: inline-block; width: .8em; height: .8em; margin-right: .4em }
td.n, th.n { text-align: right } p.note { font-size: .9rem }
table.narrow { max-width: 40rem }
"""


def page(plan: Plan, title: str, dollars_per_chip_hour: float | None = None) -> str:
    """The HTML text; it loads nothing, and follows the reader's light or dark setting."""
    topology = plan.topology
    devices = f"{topology.devices} devices on {topology.chips} chips"
    return PAGE.substitute(
        title=escape(title),
        style=STYLE + MORE_STYLE,
        devices=escape(
            f"{devices}, {mesh_text(plan.axis_sizes)}, layout {plan.config.partition.layout}"
        ),
        mood="good" if plan.memory.fits else "bad",
        verdict=escape(verdict(plan)),
        remedies=_list("What would help, one at a time:", plan.remedies),
        memory=_memory(plan),
        promises=_promises(plan),
        collectives=_collectives(plan),
        cost=_cost(plan, plan.cost, dollars_per_chip_hour) if plan.cost else "",
    )


def _memory(plan: Plan) -> str:
    memory = plan.memory
    groups = memory.groups | {"activations and temporaries": memory.activations}
    whole = max(memory.capacity, sum(groups.values()))
    rows = (
        (_key(place) + escape(name), human_bytes(size))
        for place, (name, size) in enumerate(groups.items())
    )
    compiler = (
        (escape(f"compiler: {n}"), human_bytes(size)) for n, size in memory.compiler.items()
    )
    kind = "the compiler's peak" if memory.compiler else "an estimate from shapes"
    return (
        f"<p>State, weights and gradients are exact; with activations they make {kind}, of "
        f"{human_bytes(memory.capacity)} for a program.</p>"
        f"{_bar(groups.values(), whole)}{_table(('', '>bytes'), (*rows, *compiler))}"
    )


def _promises(plan: Plan) -> str:
    if not plan.promises:
        return ""
    rows = (
        (
            escape(promise.name),
            '<span class="good">kept</span>'
            if promise.kept
            else '<span class="bad">broken</span>'
            + "".join(f"<small>{escape(b)}</small>" for b in promise.breaches[:8]),
        )
        for promise in plan.promises
    )
    heading = f"Promises of layout {plan.config.partition.layout}"
    return f"<h2>{heading}</h2>{_table(('promise', ''), rows)}"


def _collectives(plan: Plan) -> str:
    if not plan.collectives:
        return ""
    total = sum(c.total_bytes for c in plan.collectives)
    rows = (
        (
            f"{escape(c.kind)}<small>{c.dtype} over {'*'.join(c.axes)}</small>",
            escape(", ".join(c.parameters) or c.op_name.rsplit("/", 2)[-1])
            + f"<small>{escape(c.source)}</small>",
            escape(c.where),
            human_bytes(c.nbytes),
            str(c.times),
            f"{human_bytes(c.total_bytes)}{_bar([c.total_bytes], total, thin=True)}",
        )
        for c in sorted(plan.collectives, key=lambda c: -c.total_bytes)
    )
    columns = ("kind", "of", "where", ">each time", ">times", "a step")
    return f"<h2>Collectives: {human_bytes(total)} sent a step</h2>{_table(columns, rows)}"


def _cost(plan: Plan, cost: Cost, dollars_per_chip_hour: float | None) -> str:
    times = ((escape(n), escape(v)) for n, v in time_rows(plan, cost, dollars_per_chip_hour))
    text = f"<h2>Time</h2>{_table(('', '>'), times)}<p class=note>{escape(caveat(cost))}</p>"
    if cost.cycles is None:
        return text
    keys = " ".join(f"{_key(place)}{name}" for place, name in enumerate(DIRECTIONS))
    largest = max(by.total() for by in cost.by_scope().values())
    scopes = (
        (
            escape(scope),
            f"{by.total() / 1e6:,.1f}",
            f"{by.total() / cost.cycles:.1%}",
            _bar([by[name] for name in DIRECTIONS], largest, thin=True),
        )
        for scope, by in cost.by_scope().items()
    )
    operations = (
        (
            f"{o.cycles / 1e6:,.1f}",
            str(o.times),
            f"{escape(o.scope)}, {o.direction}"
            + (f"<small>fused with {escape(', '.join(o.also))}</small>" if o.also else ""),
            f"{escape(o.name)}<small>{escape(o.source)}</small>",
        )
        for o in cost.operations[:OPERATIONS]
    )
    return (
        f"{text}<h2>Estimated cycles: {cost.cycles / 1e6:,.0f} million</h2><p>{keys}</p>"
        f"{_table(('scope', '>Mcycles', '>share', ''), scopes)}<h2>Top operations</h2>"
        f"{_table(('>Mcycles', '>times', 'scope', 'operation'), operations)}"
    )


def _key(place: int) -> str:
    return f'<span class="key" style="background:var(--c{place})"></span>'


def _bar(sizes: Iterable[float], whole: float, *, thin: bool = False) -> str:
    parts = "".join(
        f'<i style="width:{100 * size / whole:.3f}%;background:var(--c{place})"></i>'
        for place, size in enumerate(sizes)
        if size
    )
    return f'<div class="bar{" thin" if thin else ""}" aria-hidden="true">{parts}</div>'


def _table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Columns whose name starts with > are aligned to the right."""
    names = list(columns)
    kinds = [' class="n"' if name.startswith(">") else "" for name in names]
    head = "".join(
        f'<th scope="col"{kind}>{name.removeprefix(">")}</th>'
        for name, kind in zip(names, kinds, strict=True)
    )
    body = "".join(
        "<tr>" + "".join(f"<td{k}>{c}</td>" for k, c in zip(kinds, row, strict=True)) + "</tr>\n"
        for row in rows
    )
    narrow = ' class="narrow"' if len(names) == 2 else ""
    whole = f"<table{narrow}><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="scroll">{whole}</div>'


def _list(heading: str, items: Iterable[str]) -> str:
    lines = "".join(f"<li><code>{escape(item)}</code></li>" for item in items)
    return f"<p>{escape(heading)}</p><ul>{lines}</ul>" if lines else ""
