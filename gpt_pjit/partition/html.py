"""One self-contained page: the table of an explanation, and which device holds which part."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

from jax.sharding import PartitionSpec as P

from gpt_pjit.core.sharding import Rules, axes_of
from gpt_pjit.partition.explain import TREES, Explanation, Row, RuleUse
from gpt_pjit.partition.html_assets import PAGE, SCRIPT, STYLE
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


def page(explanation: Explanation, rules: Rules, title: str) -> str:
    """The HTML text; it loads nothing, and follows the reader's light or dark setting."""
    pictures = {row.path: _picture(row, explanation.axis_sizes) for row in explanation.rows}
    largest = max(explanation.rows, key=lambda row: math.prod(row.shape)).path
    options = (
        f"<option{' selected' if path == largest else ''}>{escape(path)}</option>"
        for path in pictures
    )
    held = [explanation.tree_bytes(tree) for tree in TREES]
    moved = {name: explanation.moved_bytes(name) for name in COLLECTIVES}
    return PAGE.substitute(
        title=escape(title),
        mesh=escape(f"{mesh_text(explanation.axis_sizes)}, layout {explanation.layout}"),
        style=STYLE,
        script=SCRIPT,
        totals=_cells(
            "th", (f"{t}<b>{human_bytes(n)}</b>" for t, n in zip(TREES, held, strict=True))
        ),
        rows="\n".join(_row(row, explanation.axis_sizes) for row in explanation.rows),
        rules="\n".join(_rule(use) for use in explanation.by_rule(rules)),
        moved="\n".join(
            f"<li>{name}: <b>{human_bytes(n)}</b></li>" for name, n in moved.items() if n
        ),
        options="".join(options),
        pictures=json.dumps(pictures).replace("<", "\\u003c"),
    )


def parts_of_devices(spec: P, axis_sizes: Mapping[str, int]) -> list[tuple[int, ...]]:
    """For each device, in the order of the mesh, the number of its part along each dimension."""
    places = itertools.product(*(range(size) for size in axis_sizes.values()))
    parts = []
    for place in places:
        index = dict(zip(axis_sizes, place, strict=True))
        number = []
        for entry in spec:
            part = 0
            for axis in axes_of(P(entry)):
                part = part * axis_sizes[axis] + index[axis]
            number.append(part)
        parts.append(tuple(number))
    return parts


def _picture(row: Row, axis_sizes: Mapping[str, int]) -> dict[str, Any]:
    """The two dimensions to draw, down and across, and each device's place in each tree."""
    counts = {
        tree: [size // part for size, part in zip(row.shape, row.parts[tree].shape, strict=True)]
        for tree in TREES
    }
    dims = range(len(row.shape))
    # Split dimensions first, then long ones; the first of them runs across.
    ranked = sorted(dims, key=lambda d: (-max(c[d] for c in counts.values()), -row.shape[d]))[:2]
    across, down = (*ranked, None, None)[:2]
    names = row.letters or [str(dim) for dim in dims]
    trees = {}
    for tree in TREES:
        part = row.parts[tree]
        numbers = parts_of_devices(part.spec, axis_sizes)
        trees[tree] = {
            "parts": counts[tree],
            "devices": numbers,
            "split": split_text(part.spec, axis_sizes, row.letters),
            "shape": shape_text(part.shape),
            "bytes": human_bytes(part.nbytes),
        }
    return {
        "names": list(names),
        "shape": row.shape,
        "across": across,
        "down": down,
        "trees": trees,
    }


def _row(row: Row, axis_sizes: Mapping[str, int]) -> str:
    cells = (
        f"{split_text(part.spec, axis_sizes, row.letters)}"
        f"<small>{shape_text(part.shape)}</small><b>{human_bytes(part.nbytes)}</b>"
        for part in row.parts.values()
    )
    name = (
        f"<th scope=row>{escape(row.path)}<small>{dimensions_text(row)}</small>"
        f"<small>{rule_text(row)}</small></th>"
    )
    return f"<tr>{name}{_cells('td', cells)}</tr>"


def _rule(use: RuleUse) -> str:
    specs = "<br>".join(escape(spec_code(spec)) for spec in use.specs)
    sizes = map(human_bytes, (use.nbytes, use.replicated))
    cells = (str(use.number), escape(use.regex), specs, str(use.tensors), *sizes)
    return f"<tr>{_cells('td', cells)}</tr>"


def _cells(tag: str, contents: Iterable[str]) -> str:
    return "".join(f"<{tag}>{content}</{tag}>" for content in contents)
