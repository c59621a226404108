"""What the command line shows, as rich tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from rich import box
from rich.console import JustifyMethod
from rich.table import Table
from rich.text import Text

from gpt_pjit.core.sharding import Finding, Rules
from gpt_pjit.partition.diff import Difference
from gpt_pjit.partition.explain import TREES, Explanation, Row
from gpt_pjit.partition.text import (
    dimensions_text,
    human_bytes,
    mesh_text,
    rule_text,
    shape_text,
    spec_code,
    split_text,
)
from gpt_pjit.partition.traffic import COLLECTIVES
from gpt_pjit.partition.why import Trial

STYLES = {"error": "bold red", "warning": "yellow", "taken": "bold green", "near miss": "yellow"}


def explanation_tables(explanation: Explanation, rules: Rules) -> Iterator[Table]:
    """The parameters, totals by tree, the rules, and what a step moves."""
    yield _parameters(explanation)
    held = text_table("Bytes a device", "tree", ">held", ">of it whole on every device")
    for tree, total in _by_tree(explanation).items():
        whole = sum(
            part.nbytes
            for row in explanation.rows
            for name, part in row.parts.items()
            if row.is_whole(name) and tree in (name, "all")
        )
        held.add_row(tree, human_bytes(total), human_bytes(whole))
    yield held
    yield _rules(explanation, rules)
    yield _changes("Bytes through a device in a step", [explanation], _by_collective)


def difference_tables(difference: Difference) -> Iterator[Table]:
    """The tensors that moved, then bytes held and moved before and after."""
    sides = [difference.before, difference.after]
    if difference.moves:
        yield _moves(difference)
    yield _changes("Bytes a device", sides, _by_tree)
    yield _changes("Bytes through a device in a step", sides, _by_collective)


def trials_table(path: str, trials: Sequence[Trial]) -> Table:
    table = text_table(f"Rules tried on {path}, in order", "rule", "regex", "verdict", "why")
    for trial in trials:
        verdict = Text(trial.verdict, STYLES.get(trial.verdict, "dim"))
        table.add_row(str(trial.number), Text(trial.regex), verdict, Text(trial.reason))
    return table


def findings_table(findings: Sequence[Finding], source: str) -> Table:
    table = text_table(f"Findings in the tables of {source}", "severity", "what, and what to do")
    for finding in findings:
        severity = Text(finding.severity, STYLES[finding.severity])
        table.add_row(
            severity + Text(f"\n{finding.kind}\n{finding.table}", "dim"),
            Text(f"{finding.field} = {finding.value!r}", "bold")
            + Text(f"\n{finding.constraint}\n", "not bold")
            + Text(f"remedy: {finding.remedy}", "not bold green"),
            end_section=True,
        )
    return table


def _parameters(explanation: Explanation) -> Table:
    title = f"Parameters on {mesh_text(explanation.axis_sizes)}, layout {explanation.layout}"
    table = text_table(title, "parameter", *TREES)
    for row in explanation.rows:
        name = Text(row.path) + Text(f"\n{dimensions_text(row)}\n{rule_text(row)}", "dim")
        parts = (_part(row, tree, explanation.axis_sizes, row.letters) for tree in TREES)
        table.add_row(name, *parts, end_section=True)
    return table


def _part(row: Row | None, tree: str, axis_sizes: Mapping[str, int], letters: str) -> Text:
    if row is None:
        return Text("no such parameter", "dim")
    part = row.parts[tree]
    split = split_text(part.spec, axis_sizes, letters)
    return Text(split, "" if row.is_whole(tree) else "cyan") + Text(
        f"\n{shape_text(part.shape)}\n{human_bytes(part.nbytes)}", "dim"
    )


def _rules(explanation: Explanation, rules: Rules) -> Table:
    table = text_table("Rules", "rule", "regex", "specs", ">tensors", ">a device", ">replicated")
    for use in explanation.by_rule(rules):
        specs = Text("\n".join(map(spec_code, use.specs)))
        sizes = map(human_bytes, (use.nbytes, use.replicated))
        table.add_row(str(use.number), Text(use.regex), specs, str(use.tensors), *sizes)
    return table


def _moves(difference: Difference) -> Table:
    table = text_table("Tensors that moved", "parameter", "tree", "before", "after")
    for path, before, after, trees in difference.moves:
        known = after or before
        assert known
        name = Text(path) + Text(f"\n{dimensions_text(known)}", "dim")
        for tree in trees:
            was = _part(before, tree, difference.before.axis_sizes, known.letters)
            now = _part(after, tree, difference.after.axis_sizes, known.letters)
            table.add_row(name, tree, was, now, end_section=tree == trees[-1])
            name = Text()
    return table


def _changes(
    title: str,
    sides: Sequence[Explanation],
    measure: Callable[[Explanation], Mapping[str, int]],
) -> Table:
    """A row for each thing measured, a column for each side, and the change between two."""
    columns = (">bytes",) if len(sides) == 1 else (">before", ">after", ">change")
    table = text_table(title, "", *columns)
    measured = [measure(side) for side in sides]
    for name in measured[0]:
        numbers = [side[name] for side in measured]
        cells = [human_bytes(number) for number in numbers]
        if len(sides) == 2:
            change = numbers[1] - numbers[0]
            cells.append(("+" if change > 0 else "") + human_bytes(change))
        if any(numbers):
            table.add_row(name, *cells)
    return table


def _by_tree(explanation: Explanation) -> dict[str, int]:
    held = {tree: explanation.tree_bytes(tree) for tree in TREES}
    return held | {"all": sum(held.values())}


def _by_collective(explanation: Explanation) -> dict[str, int]:
    moved = {name: explanation.moved_bytes(name) for name in COLLECTIVES}
    return moved | {"all": sum(moved.values())}


def text_table(title: str, *columns: str) -> Table:
    """Columns whose name starts with > are aligned to the right."""
    table = Table(
        title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False
    )
    for column in columns:
        justify: JustifyMethod = "right" if column.startswith(">") else "left"
        table.add_column(column.removeprefix(">"), justify=justify, overflow="fold")
    return table
