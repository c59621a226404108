"""Layouts: which mesh axes of a rule's spec each of the four trees keeps. A ZeRO stage is a row."""

from __future__ import annotations

from dataclasses import dataclass

from jax.sharding import PartitionSpec as P

from gpt_pjit.core.sharding.mesh import DATA, REPLICA, TENSOR

ALL = frozenset({REPLICA, DATA, TENSOR})
MODEL = frozenset({TENSOR})


@dataclass(frozen=True)
class Layout:
    """The axes that stay in the spec of the stored, compute, gradient and optimizer trees."""

    stored: frozenset[str]
    compute: frozenset[str]
    gradients: frozenset[str]
    optimizer: frozenset[str]


LAYOUTS = {
    # Everything on every device.
    "ddp": Layout(stored=MODEL, compute=MODEL, gradients=MODEL, optimizer=MODEL),
    # Parameters on every device, gradients and optimizer state split: ZeRO stages 1 and 2 in one.
    "zero1": Layout(stored=MODEL, compute=MODEL, gradients=ALL, optimizer=ALL),
    # Master weights live with the optimizer; weights are gathered in bfloat16 once a step.
    "zero": Layout(stored=ALL, compute=MODEL, gradients=ALL, optimizer=ALL),
    # ZeRO-3: weights are gathered layer by layer, in the forward and again in the backward pass.
    "fsdp": Layout(stored=ALL, compute=ALL, gradients=ALL, optimizer=ALL),
}


def keep(spec: P, axes: frozenset[str]) -> P:
    """`spec` without the mesh axes that are not in `axes`."""

    def kept(entry: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
        if isinstance(entry, tuple):
            rest = tuple(axis for axis in entry if axis in axes)
            return rest if len(rest) > 1 else rest[0] if rest else None
        return entry if entry in axes else None

    return P(*map(kept, spec))


def axes_of(spec: P) -> tuple[str, ...]:
    """All mesh axes that a spec names, in order, repetitions included."""
    return tuple(
        axis
        for entry in spec
        if entry is not None
        for axis in (entry if isinstance(entry, tuple) else (entry,))
    )
