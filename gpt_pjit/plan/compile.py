"""Accelerators by the names of cloud consoles, and programs compiled for them.

Results are kept on disk under a hash of the program, its sources and its compiler.
"""

from __future__ import annotations

import difflib
import gzip
import hashlib
import json
import math
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
from jax.experimental import topologies

from gpt_pjit.config import Config
from gpt_pjit.core.chips import CHIPS, Chip
from gpt_pjit.core.errors import ConfigError, Problem
from gpt_pjit.core.sharding import make_mesh, mesh_shape
from gpt_pjit.core.training import Training, build_training
from gpt_pjit.plan.gpus import GPUS, PLUGINS, gpus_described, has_compiler

MEGACORE = {"chip_config_name": "megacore"}  # the two cores of a chip are one device
ONE_CHIP = {"chips_per_host_bounds": (1, 1, 1)}
MEMORY = {
    "arguments": "argument_size_in_bytes",
    "outputs": "output_size_in_bytes",
    "aliased": "alias_size_in_bytes",
    "temporaries": "temp_size_in_bytes",
    "peak": "peak_memory_in_bytes",
    "code": "generated_code_size_in_bytes",
}
CORE = Path(__file__).parent.parent / "core"
# The program holds their lines and scopes.
SOURCES = ("chips.py", "model/*.py", "sharding/*.py", "training/*.py")
COMPILER_FLAGS = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")
PACKAGES = ("jax", "jaxlib", "libtpu", *PLUGINS, "flax", "optax")


@dataclass(frozen=True)
class Family:
    """A generation of TPUs: the sizes in its names, which count cores or chips."""

    sizes: tuple[int, ...]
    dims: int  # of the torus that joins the chips
    cores_per_chip: int = 1
    options: dict[str, Any] = field(default_factory=dict)  # libtpu's


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
    kind, _, size = name.lower().rpartition("-")
    kind = ALIASES.get(kind, kind)
    count = int(size) if size.isdecimal() else 0
    chip = next((chip for chip in CHIPS if chip.name == kind), None)
    if chip and kind in GPUS and count:
        return Topology(f"{kind}-{count}", chip, count, None)
    if not chip or kind in GPUS or count not in FAMILIES[kind].sizes:
        raise ConfigError([_unknown(name, kind)], "flags")
    family = FAMILIES[kind]
    chips = count // family.cores_per_chip
    power = int(math.log2(chips))
    sizes = [2 ** ((power + dim) // family.dims) for dim in range(family.dims)]
    even = sorted(sizes, key=lambda size: (size == 1, size))  # 4x8, 2x4x4, 2x2x1
    options = family.options | (ONE_CHIP if chips == 1 else {})
    grid = f"{kind}:{'x'.join(map(str, even))}"
    return Topology(f"{kind}-{count}", chip, chips * chip.devices_per_chip, grid, options)


def _unknown(name: str, kind: str) -> Problem:
    if kind in FAMILIES:
        sizes = f"{kind} comes in {', '.join(map(str, FAMILIES[kind].sizes))}"
        return Problem("topology", name, f"no such size of {kind}", sizes)
    every = [f"{known}-{size}" for known, family in FAMILIES.items() for size in family.sizes]
    close = difflib.get_close_matches(name.lower(), every, n=2, cutoff=0.7)
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    ranges = (f"{known}-{f.sizes[0]} to -{f.sizes[-1]}" for known, f in FAMILIES.items())
    known = f"known: {', '.join(ranges)}, and any number of {', '.join(GPUS)}, such as h100-8"
    return Problem("topology", name, "no such topology", hint + known)


def larger(topology: Topology) -> list[Topology]:
    """Larger numbers of the same chip, in growing order."""
    kind = topology.chip.name
    doubled = [topology.devices * 2**n for n in range(1, 8)]
    sizes = FAMILIES[kind].sizes if kind in FAMILIES else doubled
    found = [find_topology(f"{kind}-{size}") for size in sizes]
    return [other for other in found if other.devices > topology.devices]


@dataclass(frozen=True)
class Executable:
    """The result of a compile: the optimized program, bytes of a device, and the time it took.

    `refusal` is the compiler's message where the program needs more memory than there is; `hlo` and
    `memory` are then empty.
    """

    hlo: str
    memory: dict[str, int]
    seconds: float
    refusal: str = ""
    program: str = ""  # the hash under which it is kept


def devices_of(topology: Topology) -> Sequence[jax.Device] | None:
    """Devices to compile for; None where no compiler for them is at hand.

    They need not exist: libtpu describes TPUs, and JAX's plugin for CUDA GPUs.
    """
    if topology.grid is None:
        with _quiet():
            kinds = topology.chip.kinds
            here = [device for device in jax.devices() if device.device_kind in kinds]
            if len(here) >= topology.devices:
                return here[: topology.devices]
            return gpus_described(topology.chip, topology.devices) if has_compiler() else None
    if find_spec("libtpu") is None:
        remedy = "pip install 'gpt_pjit[plan]', or in a checkout pip install -e '.[plan]'"
        raise ConfigError([f"{topology.name} needs libtpu, its compiler: {remedy}"], "--topology")
    with _quiet():
        described = topologies.get_topology_desc(
            platform="tpu", topology_name=topology.grid, **topology.options
        )
    return described.devices


def training_for(config: Config, devices: Sequence[jax.Device]) -> Training:
    """What a run builds on these devices."""
    sizes = config.mesh
    shape = mesh_shape(sizes.replica, sizes.data, sizes.tensor, len(devices))
    return build_training(config, make_mesh(shape, devices))


def lower(training: Training) -> jax.stages.Lowered:
    """The training step, traced with the shapes and shardings that training calls it with."""
    with jax.set_mesh(training.mesh):
        return training.train_step.lower(training.state, training.tokens)  # type: ignore[attr-defined]


def compile_cached(lowered: jax.stages.Lowered, topology: Topology) -> Executable:
    """Compiles, or reads the result of an earlier compile of the same program."""
    program = fingerprint(lowered, topology)
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    path = Path(root) / "gpt_pjit" / "plan" / f"{program}.json.gz"
    if path.exists():
        return Executable(**json.loads(gzip.decompress(path.read_bytes())))
    made = replace(compile_lowered(lowered), program=program)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(f".{os.getpid()}.tmp")
    draft.write_bytes(gzip.compress(json.dumps(asdict(made)).encode(), 5))
    draft.replace(path)
    return made


def fingerprint(lowered: jax.stages.Lowered, topology: Topology) -> str:
    """A hash of the program, its sources, and the compiler with its flags."""
    sources = [Path(__file__), *(file for pattern in SOURCES for file in CORE.glob(pattern))]
    parts = [
        topology.name,
        *(version(package) for package in PACKAGES if find_spec(package)),
        *(os.environ.get(name, "") for name in COMPILER_FLAGS),
        "" if topology.grid else jax.devices()[0].client.platform_version,
        lowered.as_text(),
        *(path.read_text(encoding="utf-8") for path in sorted(sources)),
    ]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def compile_lowered(lowered: jax.stages.Lowered) -> Executable:
    start = time.perf_counter()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        status, _, message = " ".join(str(error).split()).partition(": ")
        if status != "RESOURCE_EXHAUSTED":
            raise
        return Executable("", {}, time.perf_counter() - start, message.split(". ")[0])
    seconds = time.perf_counter() - start
    stats: Any = compiled.memory_analysis()
    memory = {name: int(getattr(stats, field)) for name, field in MEMORY.items()}
    return Executable(compiled.as_text() or "", memory, seconds)


@contextmanager
def _quiet() -> Iterator[None]:
    """Hides what compilers write past Python about the missing hardware."""
    kept = os.dup(2)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(null)
