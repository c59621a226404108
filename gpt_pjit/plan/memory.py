"""Bytes of a device: exact ones of the trees, the compiler's report, and whether it all fits."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import jax.numpy as jnp

from gpt_pjit.config import Config, flatten, replaced
from gpt_pjit.core.errors import ConfigError
from gpt_pjit.core.model import QUERY_BLOCK
from gpt_pjit.pages import Record
from gpt_pjit.partition import explain_config
from gpt_pjit.plan.compile import Executable
from gpt_pjit.plan.topology import Topology, larger

HEADROOM = 0.8  # of the memory, since the estimate is up to a fifth too low


@dataclass(frozen=True)
class Memory:
    """What a step takes of a device: `groups` from shapes and specs, `compiler` as it reports.

    `refusal` is its message where the step does not fit; `estimated_activations` are used where
    nothing was compiled.
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
        """The compiler's figure; an estimate where it refused, or where there is no compiler."""
        return self.compiler.get("peak", self.trees + self.estimated_activations)

    @property
    def activations(self) -> int:
        """What is neither state, weights nor gradients at the peak.

        The groups are not all alive at that moment; it is 0 where they sum to more than the peak.
        """
        return max(0, self.peak - self.trees)

    @property
    def fits(self) -> bool:
        return not self.refusal and self.peak <= self.capacity

    def record(self) -> Record:
        return {
            "state_bytes": self.state,
            "peak_bytes": self.peak,
            "capacity_bytes": self.capacity,
            "groups": self.groups | {"activations and temporaries": self.activations},
            "compiler": self.compiler,
            "refusal": self.refusal,
        }


@functools.cache
def explained(config: Config, devices: int) -> Record:
    """`explain_config`, kept: remedies and searches ask for the same ones again and again."""
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
    held = explanation["bytes_a_device"]
    # Accumulated gradients lie as their weights do, in float32.
    dtype = jnp.dtype(jnp.float32 if config.optim.microbatches > 1 else config.model.dtype)
    shapes = [p["trees"]["compute"]["shape"] for p in explanation["parameters"].values()]
    return {
        "master weights": held["stored"],
        "optimizer": held["optimizer"],
        "gathered weights": held["compute"],
        "gradients": sum(map(math.prod, shapes)) * dtype.itemsize,
    }


def estimate_activations(config: Config, devices: int) -> int:
    """From shapes alone, where there is no compiler; docs/plan.md has the formula."""
    c, item = config.model, jnp.dtype(config.model.dtype).itemsize
    sizes = explained(config, devices)["mesh"]
    rows = config.data.batch_size // config.optim.microbatches
    tokens = rows // (sizes["replica"] * sizes["data"]) * config.data.sequence_length
    tensor = sizes["tensor"]
    block_input = tokens * c.d_model * item
    # The inputs and outputs of `attend`, and a byte per element of each dropout.
    length = config.data.sequence_length
    keys = (length + min(QUERY_BLOCK, length)) // 2  # a block of queries reads, on average
    masks = tokens * keys * c.n_heads // tensor * (c.dropout_attention > 0)
    masks += 2 * tokens * c.d_model * (c.dropout_residual > 0)
    attention = tokens * (c.d_model + 4 * c.d_model // tensor) * item + masks
    inside = attention + tokens * (6 * c.d_model + 2 * c.d_ff // tensor) * item
    scores = tokens * min(QUERY_BLOCK, length) * c.n_heads // tensor * (8 + item)
    logits = tokens * c.vocab_size // tensor * (4 + item)
    kept = {"full": 0, "selective": attention, "none": inside}[c.remat]
    return c.n_layers * (block_input + kept) + max(logits, inside + scores)


def remedies(config: Config, topology: Topology) -> list[str]:
    """Overrides that are estimated to fit, the least change first, or more of the same chips."""
    found = []
    for layout in dict.fromkeys((config.partition.layout, "zero", "fsdp")):
        if changed := _fitting(config, topology, layout):
            found.append(" ".join(changed) or "nothing in this estimate: the compiler disagrees")
    for other in larger(topology) if not found else ():
        # More devices need a batch that divides over them.
        batch = math.lcm(config.data.batch_size, other.devices)
        wider = replaced(config, {"data.batch_size": batch})
        for layout in dict.fromkeys((config.partition.layout, "zero", "fsdp")):
            if (changed := _fitting(wider, other, layout)) is not None:
                grown = [f"--config.data.batch_size={batch}"] if wider != config else []
                return [" ".join((f"--topology={other.name}", *grown, *changed))]
    return found or ["a smaller model, or chips with more memory"]


def _fitting(config: Config, topology: Topology, layout: str) -> list[str] | None:
    """The first overrides that fit in this layout: more microbatches, then full recomputation."""
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
            except ConfigError:  # this batch, mesh or table does not work there
                break
            if estimate.peak <= HEADROOM * estimate.capacity:
                now = flatten(config)
                return [f"--config.{n}={v}" for n, v in fields.items() if v != now[n]]
    return None
