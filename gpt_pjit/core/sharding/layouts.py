"""Roles of mesh axes, and layouts: which of the four trees keep the batch axes of their specs.

An axis is a batch axis or a model axis. A tree keeps the batch axes of its specs or drops them, as
its layout says, and always keeps the model axes. A ZeRO stage is a row of `LAYOUTS`.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from jax.sharding import PartitionSpec as P

from gpt_pjit.core.sharding.mesh import DATA, REPLICA, TENSOR
from gpt_pjit.core.sharding.rules import Finding

BATCH, MODEL = "batch", "model"
# Ours, and names of the field that leave no doubt. A mesh with another axis needs roles of its own.
ROLES: Mapping[str, str] = dict.fromkeys((REPLICA, DATA, "dp", "fsdp", "batch"), BATCH) | (
    dict.fromkeys((TENSOR, "tp", "mp", "model"), MODEL)
)


@dataclass(frozen=True)
class Layout:
    """Whether the stored, compute, gradient and optimizer trees keep the batch axes."""

    stored: bool
    compute: bool
    gradients: bool
    optimizer: bool


LAYOUTS = {
    # Everything on every device.
    "ddp": Layout(stored=False, compute=False, gradients=False, optimizer=False),
    # Parameters on every device, gradients and optimizer state split: ZeRO stages 1 and 2 in one.
    "zero1": Layout(stored=False, compute=False, gradients=True, optimizer=True),
    # Master weights live with the optimizer; weights are gathered in bfloat16 once a step.
    "zero": Layout(stored=True, compute=False, gradients=True, optimizer=True),
    # ZeRO-3: weights are gathered layer by layer, in the forward and again in the backward pass.
    "fsdp": Layout(stored=True, compute=True, gradients=True, optimizer=True),
}


def without_role(axis_sizes: Mapping[str, int], roles: Mapping[str, str]) -> Iterator[Finding]:
    """Mesh axes of which a layout cannot tell whether to keep them."""
    for axis, size in axis_sizes.items():
        if roles.get(axis) not in (BATCH, MODEL):
            given = f"has the role {roles[axis]!r}" if axis in roles else "has no role"
            constraint = f"{given}, so a layout cannot tell whether to keep it"
            known = {name: roles[name] for name in axis_sizes if name in roles}
            yield Finding(
                f"mesh.{axis}",
                size,
                constraint,
                f"pass roles={known | {axis: BATCH}} if it splits the batch, {MODEL!r} if not",
                "axis without a role",
            )


def axis_sizes_of(mesh: Any) -> dict[str, int]:
    """The size of each axis of a Mesh, an AbstractMesh, or a mapping that has them already."""
    return dict(getattr(mesh, "shape", mesh))


def keep(spec: P, axes: Collection[str]) -> P:
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
