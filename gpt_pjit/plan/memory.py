"""Bytes a device: what the trees take exactly, what the compiler reports, and whether it fits."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from gpt_pjit.config import Config, flatten, replaced
from gpt_pjit.core.errors import ConfigError
from gpt_pjit.core.model import QUERY_BLOCK, param_shapes
from gpt_pjit.core.sharding import paths_and_leaves, shard_bytes
from gpt_pjit.partition import Explanation, explain_config
from gpt_pjit.plan.compile import Executable
from gpt_pjit.plan.topology import Topology, larger

HEADROOM = 0.8  # of the memory: the estimate is up to a fifth too low


@dataclass(frozen=True)
class Memory:
    """`groups` are exact, from shapes and specs; `compiler` as libtpu or XLA reports it.

    `estimated_activations` stands in where nothing was compiled.
    """

    groups: dict[str, int]
    compiler: dict[str, int]
    capacity: int
    refusal: str
    estimated_activations: int

    @property
    def state(self) -> int:
        return self.groups["master weights"] + self.groups["optimizer"]

    @property
    def trees(self) -> int:
        return sum(self.groups.values())

    @property
    def peak(self) -> int:
        """The compiler's; an estimate where it refused, or where there is none."""
        return self.compiler.get("peak", self.trees + self.estimated_activations)

    @property
    def activations(self) -> int:
        """What is neither state, weights nor gradients when the most is in use.

        The groups are not all alive at that moment; where they sum to more, nothing is left.
        """
        return max(0, self.peak - self.trees)

    @property
    def fits(self) -> bool:
        return not self.refusal and self.peak <= self.capacity


@functools.cache
def explained(config: Config, devices: int) -> Explanation:
    """`explain_config`, asked for again and again by remedies and by a search."""
    return explain_config(config, devices)


def memory_of(config: Config, topology: Topology, executable: Executable | None) -> Memory:
    return Memory(
        groups=tree_groups(config, topology.devices),
        compiler=executable.memory if executable else {},
        capacity=topology.chip.usable_bytes,
        refusal=executable.refusal if executable else "",
        estimated_activations=estimate_activations(config, topology.devices),
    )


def tree_groups(config: Config, devices: int) -> dict[str, int]:
    explanation = explained(config, devices)
    sizes = explanation.axis_sizes
    params = param_shapes(config.model, config.data.sequence_length)
    shapes = dict(paths_and_leaves(params))
    # In the layout of the weights that they belong to; accumulated in float32.
    dtype = jnp.dtype(jnp.float32 if config.optim.microbatches > 1 else config.model.dtype)
    accumulators = (
        shard_bytes(
            jax.ShapeDtypeStruct(shapes[row.path].shape, dtype),
            row.parts["compute"].spec,
            sizes,
        )
        for row in explanation.rows
    )
    return {
        "master weights": explanation.tree_bytes("stored"),
        "optimizer": explanation.tree_bytes("optimizer"),
        "gathered weights": explanation.tree_bytes("compute"),
        "gradients": sum(accumulators),
    }


def estimate_activations(config: Config, devices: int) -> int:
    """From shapes alone, where no compiler says better: see docs/plan.md for the formula."""
    c, item = config.model, jnp.dtype(config.model.dtype).itemsize
    sizes = explained(config, devices).axis_sizes
    rows = config.data.batch_size // config.optim.microbatches
    tokens = rows // (sizes["replica"] * sizes["data"]) * config.data.sequence_length
    tensor = sizes["tensor"]
    block_input = tokens * c.d_model * item
    # What `attend` takes and gives, and a byte an element of each dropout.
    length = config.data.sequence_length
    keys = (length + min(QUERY_BLOCK, length)) // 2  # that a query's block reads, on average
    masks = tokens * keys * c.n_heads // tensor * (c.dropout_attention > 0)
    masks += 2 * tokens * c.d_model * (c.dropout_residual > 0)
    attention = tokens * (c.d_model + 4 * c.d_model // tensor) * item + masks
    inside = attention + tokens * (6 * c.d_model + 2 * c.d_ff // tensor) * item
    scores = tokens * min(QUERY_BLOCK, length) * c.n_heads // tensor * (8 + item)
    logits = tokens * c.vocab_size // tensor * (4 + item)
    kept = {"full": 0, "selective": attention, "none": inside}[c.remat]
    return c.n_layers * (block_input + kept) + max(logits, inside + scores)


def remedies(config: Config, topology: Topology) -> list[str]:
    """Overrides that are estimated to fit, the least change first; then more of the same chips."""
    found = []
    for layout in dict.fromkeys((config.partition.layout, "zero", "fsdp")):
        if changed := _fitting(config, topology, layout):
            found.append(" ".join(changed) or "nothing in this estimate: the compiler disagrees")
    for other in larger(topology) if not found else ():
        # A batch for more devices than now has to be larger.
        batch = math.lcm(config.data.batch_size, other.devices)
        wider = replaced(config, {"data.batch_size": batch})
        for layout in dict.fromkeys((config.partition.layout, "zero", "fsdp")):
            if (changed := _fitting(wider, other, layout)) is not None:
                grown = [f"--config.data.batch_size={batch}"] if wider != config else []
                return [" ".join((f"--topology={other.name}", *grown, *changed))]
    return found or ["a smaller model, or chips with more memory"]


def _fitting(config: Config, topology: Topology, layout: str) -> list[str] | None:
    """Overrides in this layout: more microbatches first, whole blocks recomputed if need be."""
    most = config.data.batch_size
    for remat in dict.fromkeys((config.model.remat, "full")):
        for microbatches in range(config.optim.microbatches, most + 1):
            if most % microbatches:
                continue
            fields = {
                "partition.layout": layout,
                "model.remat": remat,
                "optim.microbatches": microbatches,
            }
            changed = replaced(config, fields)
            try:
                estimate = memory_of(changed, topology, None)
            except ConfigError:  # this batch, mesh or table does not go there
                break
            if estimate.peak <= HEADROOM * estimate.capacity:
                now = flatten(config)
                return [f"--config.{n}={v}" for n, v in fields.items() if v != now[n]]
    return None
