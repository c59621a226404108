"""Compiles the program of a run for a topology, and keeps the results on disk by their hash."""

from __future__ import annotations

import gzip
import hashlib
import itertools
import json
import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
from jax.experimental import topologies

from gpt_pjit.config import Config
from gpt_pjit.core.errors import ConfigError, Problem
from gpt_pjit.core.sharding import make_mesh, mesh_shape
from gpt_pjit.core.training import Training, build_training
from gpt_pjit.plan.topology import Topology

MEMORY = {
    "arguments": "argument_size_in_bytes",
    "outputs": "output_size_in_bytes",
    "aliased": "alias_size_in_bytes",
    "temporaries": "temp_size_in_bytes",
    "peak": "peak_memory_in_bytes",
    "code": "generated_code_size_in_bytes",
}
CORE = Path(__file__).parent.parent / "core"
SOURCES = ("model", "sharding", "training")  # the program holds their lines and scopes
COMPILER_FLAGS = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")
PACKAGES = ("jax", "jaxlib", "libtpu", "flax", "optax")


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

    TPUs are described by libtpu and need not exist; GPUs must be in this machine.
    """
    if topology.grid is None:
        kinds = topology.chip.kinds
        here = [device for device in jax.devices() if device.device_kind in kinds]
        return here[: topology.devices] if len(here) >= topology.devices else None
    if find_spec("libtpu") is None:
        constraint = "its compiler is libtpu, which is not installed"
        remedy = "pip install 'gpt_pjit[plan]', or in a checkout pip install -e '.[plan]'"
        raise ConfigError([Problem("topology", topology.name, constraint, remedy)], "flags")
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
    path = cache_folder() / f"{program}.json.gz"
    if path.exists():
        kept = Executable(**json.loads(gzip.decompress(path.read_bytes())))
        return replace(kept, program=program)
    made = replace(compile_lowered(lowered), program=program)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(f".{os.getpid()}.tmp")
    draft.write_bytes(gzip.compress(json.dumps(asdict(made)).encode(), 5))
    draft.replace(path)
    return made


def fingerprint(lowered: jax.stages.Lowered, topology: Topology) -> str:
    """A hash of the program, its sources, and the compiler with its flags."""
    rooms = (sorted((CORE / room).glob("*.py")) for room in SOURCES)
    sources = [Path(__file__), *itertools.chain(*rooms)]
    parts = [
        topology.name,
        *map(_version, PACKAGES),
        *(os.environ.get(name, "") for name in COMPILER_FLAGS),
        "" if topology.grid else jax.devices()[0].client.platform_version,
        lowered.as_text(),
        *(path.read_text(encoding="utf-8") for path in sources),
    ]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/gpt_pjit/plan`, under ~/.cache by default."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "gpt_pjit" / "plan"


def compile_lowered(lowered: jax.stages.Lowered) -> Executable:
    start = time.perf_counter()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        sentence = re.sub(r"\s+", " ", str(error)).removeprefix("RESOURCE_EXHAUSTED: ")
        return Executable("", {}, time.perf_counter() - start, sentence.split(". ")[0])
    seconds = time.perf_counter() - start
    stats: Any = compiled.memory_analysis()
    memory = {name: int(getattr(stats, field)) for name, field in MEMORY.items()}
    return Executable(compiled.as_text() or "", memory, seconds)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


@contextmanager
def _quiet() -> Iterator[None]:
    """Hides libtpu's warnings about the missing TPU, which it writes past Python."""
    kept = os.dup(2)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(null)
