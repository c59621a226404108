"""What a person sees of placements: tables for the terminal, and pictures for the page."""

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from gpt_pjit.core.sharding import Finding
from gpt_pjit.pages import (
    Block,
    Cell,
    Change,
    Note,
    Pictures,
    Record,
    Table,
    before_and_after,
    grid,
    human_bytes,
)
from gpt_pjit.partition.explain import TREES
from gpt_pjit.partition.lint import Trial

STYLES = {
    "error": "bad",
    "warning": "warning",
    "note": "dim",
    "taken": "good",
    "near miss": "warning",
}
MOVED = "Moved through each device in a step"
LEGEND = (
    "A tree is what a step keeps of each parameter: as stored, as the passes use it, its reduced "
    "gradient, and its optimizer state. Bytes are those of one device."
)
PICTURES = (
    "Below, a row is a device, in the order of the mesh; a column is a part of the tensor. A cell "
    "is filled where the device holds the part: a diagonal is split, a full square is replicated."
)


def explanation_blocks(record: Record, pictures: bool = False) -> Iterator[Block]:
    """The parameters, totals by tree, the rules, and what a step moves."""
    parameters, mesh = record["parameters"], record["mesh"]
    rows: list[Any] = []
    for path, p in parameters.items():
        name = Cell(path, (dimensions_text(p), _rule_text(p, record["rules"])))
        rows.append((name, *(_part(p, tree, mesh) for tree in TREES)))
    if pictures:
        yield Note(LEGEND, "dim")
    title = f"Parameters on {mesh_text(mesh)}, layout {record['layout']}"
    yield Table(title, ("parameter", *TREES), rows)
    whole = {
        tree: sum(p["trees"][tree]["bytes"] for p in parameters.values() if _is_whole(p, tree))
        for tree in TREES
    }
    held = record["bytes_a_device"]
    rows = [(tree, human_bytes(n), human_bytes(whole[tree])) for tree, n in held.items()]
    rows.append(("all", human_bytes(sum(held.values())), human_bytes(sum(whole.values()))))
    columns = ("tree", ">held", ">of which replicated on every device")
    yield Table("Bytes per device", columns, rows)
    yield _rules_table(record["rules"])
    moved = record["bytes_moved_a_step"]
    rows = [(name, human_bytes(n)) for name, n in moved.items() if n]
    if rows:
        yield Table(MOVED, ("", ">bytes"), [*rows, ("all", human_bytes(sum(moved.values())))])
    for key in ("without_spec", "state_of_no_parameter"):
        if record.get(key):
            yield Note(f"{key.replace('_', ' ')}: {', '.join(record[key])}")
    if pictures:
        yield Note(PICTURES, "dim")
        largest = max(parameters, key=lambda path: math.prod(parameters[path]["shape"]))
        for path, parameter in parameters.items():
            yield _pictures(path, parameter, mesh, folded=path != largest)


def difference_blocks(before: Record, after: Record, changes: Iterable[Change]) -> Iterator[Block]:
    """The tensors that moved, then bytes held and moved before and after."""
    rows: list[Any] = []
    for path, tree in _moves(changes):
        sides = ((side["parameters"].get(path), side["mesh"]) for side in (before, after))
        rows.append((path, tree, *(_part(parameter, tree, mesh) for parameter, mesh in sides)))
    if rows:
        yield Table("Tensors that moved", ("parameter", "tree", "before", "after"), rows)
    for title, key in (("Bytes per device", "bytes_a_device"), (MOVED, "bytes_moved_a_step")):
        was, now = (side[key] | {"all": sum(side[key].values())} for side in (before, after))
        yield from before_and_after(title, (was, now), human_bytes)


def trials_table(path: str, trials: Sequence[Trial]) -> Table:
    rows = [
        (str(t.number), t.regex, Cell(t.verdict, style=STYLES.get(t.verdict, "dim")), t.reason)
        for t in trials
    ]
    return Table(f"Rules tried on {path}, in order", ("rule", "regex", "verdict", "why"), rows)


def findings_table(findings: Sequence[Finding], source: str) -> Table:
    rows = [
        (
            Cell(f.severity, (f.kind, f.table), STYLES[f.severity]),
            Cell(f"{f.field} = {f.value!r}", (f.constraint, f"remedy: {f.remedy}"), "bold"),
        )
        for f in findings
    ]
    return Table(f"Findings in the tables of {source}", ("severity", "what, and what to do"), rows)


def mesh_text(mesh: Mapping[str, int]) -> str:
    return " x ".join(f"{axis} {n}" for axis, n in mesh.items() if n > 1) or "one device"


def dimensions_text(parameter: Record) -> str:
    """`L18 D1536`: the letter and the size of each; sizes alone where they have no letters."""
    if not parameter["dimensions"]:
        return _shape_text(parameter["shape"])
    dimensions = zip(parameter["dimensions"], parameter["shape"], strict=True)
    return " ".join(f"{letter}{size}" for letter, size in dimensions)


def parts_of_devices(spec: Sequence[Any], mesh: Mapping[str, int]) -> list[tuple[int, ...]]:
    """For each device, in the order of the mesh, the number of its part along each dimension."""
    parts = []
    for place in itertools.product(*map(range, mesh.values())):
        index = dict(zip(mesh, place, strict=True))
        part = [0] * len(spec)
        for dim, entry in enumerate(spec):
            for axis in _axes(entry):
                part[dim] = part[dim] * mesh[axis] + index[axis]
        parts.append(tuple(part))
    return parts


def _pictures(path: str, parameter: Record, mesh: Mapping[str, int], folded: bool) -> Pictures:
    drawings = []
    for tree, part in parameter["trees"].items():
        held = parts_of_devices(part["spec"], mesh)
        places = {number: place for place, number in enumerate(sorted(set(held)))}
        filled = [[places[number] == column for column in range(len(places))] for number in held]
        split = _split_text(part["spec"], mesh, parameter["dimensions"])
        caption = f"{tree}: {split}\n{_shape_text(part['shape'])}, {human_bytes(part['bytes'])}"
        drawings.append((caption, partial(grid, filled, "device", "part")))
    return Pictures(f"{path}: {dimensions_text(parameter)}", drawings, folded)


def _moves(changes: Iterable[Change]) -> list[tuple[str, str]]:
    """(path, tree) of every part that differs; all trees of a parameter that a side lacks."""
    moves: dict[tuple[str, str], None] = {}
    for change in changes:
        if change.path[0] == "parameters":
            _, path, *rest = change.path
            trees = (rest[1],) if rest[:1] == ["trees"] else () if rest else TREES
            moves |= dict.fromkeys((path, tree) for tree in trees)
    return list(moves)


def _part(parameter: Record | None, tree: str, mesh: Mapping[str, int]) -> Cell:
    if parameter is None:
        return Cell("no such parameter", style="dim")
    part = parameter["trees"][tree]
    split = _split_text(part["spec"], mesh, parameter["dimensions"])
    notes = (_shape_text(part["shape"]), human_bytes(part["bytes"]))
    return Cell(split, notes, "" if _is_whole(parameter, tree) else "split")


def _rules_table(rules: Sequence[Record]) -> Table:
    rows = []
    for rule in rules:
        specs = "\n".join(map(_spec_code, rule["specs"]))
        sizes = (human_bytes(rule[key]) for key in ("bytes", "replicated_bytes"))
        rows.append((str(rule["number"]), rule["regex"], specs, str(rule["tensors"]), *sizes))
    columns = ("rule", "regex", "specs", ">tensors", ">per device", ">replicated")
    return Table("Rules", columns, rows)


def _rule_text(parameter: Record, rules: Sequence[Record]) -> str:
    """`rule 3`, and which of its specs if it has several."""
    number, chosen = parameter["rule"]["number"], parameter["rule"]["spec"]
    if number is None:
        return "no rule"
    specs = len(rules[number]["specs"])
    return f"rule {number}" + (f", spec {chosen + 1} of {specs}" if specs > 1 else "")


def _split_text(spec: Sequence[Any], mesh: Mapping[str, int], letters: str) -> str:
    """The dimensions that this mesh splits, by letter or number: `D/data 1/tensor`, or `whole`."""
    split = []
    for name, entry in zip(letters or itertools.count(), spec, strict=bool(letters)):
        if axes := [axis for axis in _axes(entry) if mesh[axis] > 1]:
            split.append(f"{name}/{'*'.join(axes)}")
    return " ".join(split) or "whole"


def _axes(entry: Any) -> Sequence[str]:
    return () if entry is None else (entry,) if isinstance(entry, str) else entry


def _spec_code(spec: Sequence[Any]) -> str:
    """A spec as it is written in a table: `(None, 'data')`."""
    return repr(tuple(tuple(entry) if isinstance(entry, list) else entry for entry in spec))


def _shape_text(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def _is_whole(parameter: Record, tree: str) -> bool:
    return parameter["trees"][tree]["shape"] == parameter["shape"]
