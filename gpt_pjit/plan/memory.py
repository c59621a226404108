"""Bytes a device: what the trees take exactly, what the compiler reports, and whether it fits."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from gpt_pjit.chips import GIB
from gpt_pjit.config import Config
from gpt_pjit.errors import ConfigError
from gpt_pjit.model import param_shapes
from gpt_pjit.partition import LAYOUTS, paths_and_leaves, shard_bytes
from gpt_pjit.plan.compile import Executable
from gpt_pjit.plan.topology import Topology, larger
from gpt_pjit.training import explain_config

HEADROOM = 0.9  # a remedy leaves this share of the memory at most to what is counted exactly


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


def memory_of(config: Config, topology: Topology, executable: Executable | None) -> Memory:
    return Memory(
        groups=tree_groups(config, topology.devices),
        compiler=executable.memory if executable else {},
        capacity=topology.chip.usable_bytes,
        refusal=executable.refusal if executable else "",
        estimated_activations=estimate_activations(config, topology.devices),
    )


def tree_groups(config: Config, devices: int) -> dict[str, int]:
    explanation = explain_config(config, devices)
    sizes = explanation.axis_sizes
    params = param_shapes(config.model, config.data.sequence_length)
    shapes = dict(paths_and_leaves(params))
    # Accumulated in the layout of the weights that they belong to, and float32.
    accumulators = (
        shard_bytes(
            jax.ShapeDtypeStruct(shapes[row.path].shape, jnp.float32),
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
    sizes = explain_config(config, devices).axis_sizes
    rows = config.data.batch_size // config.optim.microbatches
    tokens = rows // (sizes["replica"] * sizes["data"]) * config.data.sequence_length
    tensor = sizes["tensor"]
    scores = tokens * config.data.sequence_length * c.n_heads // tensor
    block_input = tokens * c.d_model * item
    products = tokens * (5 * c.d_model + (c.d_ff + c.d_model) // tensor) * item
    inside = products + tokens * (6 * c.d_model + c.d_ff // tensor) * item + scores * (8 + item)
    logits = tokens * c.vocab_size // tensor * (4 + item)
    kept = {"full": 0, "dots": products, "none": inside}[c.remat]
    return c.n_layers * (block_input + kept) + max(logits, inside)


def remedies(config: Config, topology: Topology, memory: Memory) -> list[str]:
    """What would make it fit, from the exact trees; overrides first, then more devices."""
    short = memory.peak - memory.capacity
    found = []
    if memory.trees <= HEADROOM * memory.capacity:
        found += _smaller_activations(config, topology)
    for layout in LAYOUTS:
        if layout != config.partition.layout:
            other = _with(config, "partition", layout=layout)
            if _trees(other, topology) <= HEADROOM * memory.capacity < memory.trees:
                found.append(f"--config.partition.layout={layout}")
    if not found:
        found += _more_devices(config, topology, memory.capacity)
    if not found:
        found.append(f"a smaller model: {short / GIB:.2f} GiB too much on each device")
    return found


def _smaller_activations(config: Config, topology: Topology) -> list[str]:
    found = []
    axes = explain_config(config, topology.devices).axis_sizes
    most = config.data.batch_size // (axes["replica"] * axes["data"])
    more = [n for n in range(config.optim.microbatches + 1, most + 1) if most % n == 0]
    if more:
        found.append(f"--config.optim.microbatches={more[0]}")
    if config.model.remat != "full":
        found.append("--config.model.remat=full")
    return found


def _more_devices(config: Config, topology: Topology, capacity: int) -> list[str]:
    """The smallest larger topology, for each layout that can use it, whose trees fit."""
    for other in larger(topology):
        batch = math.lcm(config.data.batch_size, other.devices)
        for layout in (config.partition.layout, "zero", "fsdp"):
            wider = _with(config, "partition", layout=layout)
            wider = _with(wider, "data", batch_size=batch)
            wider = _with(wider, "optim", microbatches=1)
            if _trees(wider, other) <= HEADROOM * capacity:
                changed = "" if layout == config.partition.layout else f" with layout {layout}"
                return [f"--topology={other.name}{changed}"]
    return []


def _trees(config: Config, topology: Topology) -> int:
    try:
        return sum(tree_groups(config, topology.devices).values())
    except ConfigError:  # this mesh or table does not go there
        return 2**63


def _with(config: Config, section: str, **fields: object) -> Config:
    changed = dataclasses.replace(getattr(config, section), **fields)  # type: ignore[arg-type]
    return dataclasses.replace(config, **{section: changed})
