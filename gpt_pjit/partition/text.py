"""Bytes, shapes, specs and meshes as a person reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jax.sharding import PartitionSpec as P

from gpt_pjit.core.sharding import axes_of, keep
from gpt_pjit.partition.explain import Row

UNITS = ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))


def human_bytes(n: int) -> str:
    """`2.16 GiB`: three digits or four."""
    for size, unit in UNITS:
        if abs(n) >= size:
            value = n / size
            return f"{value:.{2 if abs(value) < 10 else 1 if abs(value) < 100 else 0}f} {unit}"
    return f"{n} B"


def split_text(spec: P, axis_sizes: Mapping[str, int], letters: str = "") -> str:
    """The dimensions that this mesh splits, by letter or number: `D/data H/tensor`, or `whole`."""
    split = keep(spec, frozenset(axis for axis, size in axis_sizes.items() if size > 1))
    names = letters or [str(dim) for dim in range(len(split))]
    return (
        " ".join(
            f"{name}/{'*'.join(axes_of(P(entry)))}"
            for name, entry in zip(names, split, strict=True)
            if entry is not None
        )
        or "whole"
    )


def spec_code(spec: Any) -> str:
    """A spec as it stands in a table: `(None, 'data')`."""
    return repr(tuple(spec)) if isinstance(spec, P) else repr(spec)


def shape_text(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def dimensions_text(row: Row) -> str:
    """`L18 D1536`, or the bare shape where dimensions have no letters."""
    if not row.letters:
        return shape_text(row.shape)
    return " ".join(f"{letter}{size}" for letter, size in zip(row.letters, row.shape, strict=True))


def mesh_text(axis_sizes: Mapping[str, int]) -> str:
    return " x ".join(f"{axis} {n}" for axis, n in axis_sizes.items() if n > 1) or "one device"


def rule_text(row: Row) -> str:
    """`rule 3`, and which of its specs if it has several."""
    match: Any = row.match
    if len(match.values) == 1:
        return f"rule {match.number}"
    return f"rule {match.number}, spec {match.chosen + 1} of {len(match.values)}"
