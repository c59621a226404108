"""Names of accelerators as cloud consoles write them, and the devices behind each name."""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass, field
from typing import Any

from gpt_pjit.core.chips import CHIPS, Chip
from gpt_pjit.core.errors import ConfigError, Problem

MEGACORE = {"chip_config_name": "megacore"}  # the two cores of a chip are one device
ONE_CHIP = {"chips_per_host_bounds": (1, 1, 1)}


@dataclass(frozen=True)
class Family:
    """A generation of TPUs: the sizes in its names, which count cores or chips.

    `dims` are those of the torus that joins the chips; `options` are libtpu's.
    """

    sizes: tuple[int, ...]
    dims: int
    cores_per_chip: int = 1
    options: dict[str, Any] = field(default_factory=dict)


def _powers(first: int, last: int) -> tuple[int, ...]:
    return tuple(2**n for n in range(first.bit_length() - 1, last.bit_length()))


FAMILIES = {
    "v2": Family(_powers(8, 512), 2, 2),
    "v3": Family(_powers(8, 2048), 2, 2),
    "v4": Family(_powers(8, 4096), 3, 2, MEGACORE),
    "v5e": Family((1, *_powers(4, 256)), 2),
    "v5p": Family(_powers(8, 8192), 3, 2, MEGACORE),
    "v6e": Family((1, *_powers(4, 256)), 2),
}
GPUS = ("a100-40gb", "a100", "h100", "h200")  # any number of them
ALIASES = {"v5litepod": "v5e"}


@dataclass(frozen=True)
class Topology:
    """A number of chips of one kind; `grid` is their shape for libtpu, None for GPUs."""

    name: str
    chip: Chip
    devices: int
    grid: str | None
    options: dict[str, Any] = field(default_factory=dict, compare=False)

    @property
    def chips(self) -> int:
        return self.devices // self.chip.devices_per_chip


def find_topology(name: str) -> Topology:
    """Raises ConfigError for an unknown name, with those that are known."""
    family, _, size = name.lower().rpartition("-")
    family = ALIASES.get(family, family)
    count = int(size) if size.isdigit() else 0
    if family in GPUS and count > 0:
        return Topology(f"{family}-{count}", _chip(family), count, None)
    if family in FAMILIES and count in FAMILIES[family].sizes:
        return _tpu(family, count)
    raise ConfigError([Problem("topology", name, *_unknown(name, family))], "flags")


def larger(topology: Topology) -> list[Topology]:
    """Larger numbers of the same chip, in growing order."""
    family = topology.chip.name
    if family in GPUS:
        return [find_topology(f"{family}-{topology.devices * 2**n}") for n in range(1, 8)]
    sizes = [_tpu(family, size) for size in FAMILIES[family].sizes]
    return [other for other in sizes if other.devices > topology.devices]


def _tpu(name: str, size: int) -> Topology:
    family, chip = FAMILIES[name], _chip(name)
    chips = size // family.cores_per_chip
    options = family.options | (ONE_CHIP if chips == 1 else {})
    grid = f"{name}:{_grid(chips, family.dims)}"
    return Topology(f"{name}-{size}", chip, chips * chip.devices_per_chip, grid, options)


def _chip(name: str) -> Chip:
    return next(chip for chip in CHIPS if chip.name == name)


def _grid(chips: int, dims: int) -> str:
    """The most even grid: 32 is 4x8 in two dimensions, 2x4x4 in three; 4 is 2x2x1."""
    power = int(math.log2(chips))
    sizes = sorted(2 ** ((power + dim) // dims) for dim in range(dims))
    ones = [size for size in sizes if size == 1]
    return "x".join(map(str, [size for size in sizes if size > 1] + ones))


def _unknown(name: str, family: str) -> tuple[str, str]:
    """What is wrong with the name, and what to write instead."""
    if family in FAMILIES:
        sizes = ", ".join(map(str, FAMILIES[family].sizes))
        return f"no such size of {family}", f"{family} comes in {sizes} {_unit(FAMILIES[family])}"
    every = [f"{known}-{size}" for known in FAMILIES for size in FAMILIES[known].sizes]
    close = difflib.get_close_matches(name.lower(), every, n=2, cutoff=0.7)
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    ranges = (f"{k} {f.sizes[0]}..{f.sizes[-1]} {_unit(f)}" for k, f in FAMILIES.items())
    known = f"known: {', '.join(ranges)}; GPUs by number: {', '.join(GPUS)}"
    return "no such topology", hint + known


def _unit(family: Family) -> str:
    return "cores" if family.cores_per_chip > 1 else "chips"
