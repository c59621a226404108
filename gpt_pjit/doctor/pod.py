"""Checks of all hosts together, which each of them runs; nothing raises between two meetings."""

import contextlib
import math
import time
from pathlib import Path

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P

from gpt_pjit.config import Config, replaced
from gpt_pjit.core.errors import ConfigError
from gpt_pjit.core.files import check_bucket, is_remote
from gpt_pjit.core.runtime import (
    check_agreement,
    code_facts,
    connect,
    everyone,
    global_array,
    global_batch,
    local_rows,
    pod_devices,
    round_trip,
)
from gpt_pjit.core.sharding import BATCH_AXES, make_mesh, mesh_shape
from gpt_pjit.core.training import build_training
from gpt_pjit.doctor.findings import CheckFailedError

LARGEST_SKEW = 2.0  # seconds between the clocks of hosts: a start takes its time from its host
LARGEST_ROUND_TRIP = 0.1  # seconds, to the coordinator and back
ROUNDS = 3
LAYERS, LENGTH = 2, 128  # at most, of the tiny step
STEP_REMEDY = "a device is faulty: try other hosts"


def versions() -> str:
    facts = code_facts()
    try:
        check_agreement(facts)
    except ConfigError as error:
        remedy = "install the same on all hosts; launch/run.sh does"
        raise CheckFailedError("; ".join(map(str, error.problems)), remedy) from None
    return f"Python {facts['python']}, jax {facts['package jax']}"


def clocks() -> str:
    """All hosts leave a meeting at about the same moment, and then read their clocks."""
    rounds = []
    for _ in range(ROUNDS):
        everyone(None)
        rounds.append(everyone(time.time()))
    times = min(rounds, key=lambda times: max(times) - min(times))
    skew = max(times) - min(times)
    if skew > LARGEST_SKEW:
        first, last = times.index(min(times)), times.index(max(times))
        found = f"the clock of process {last} is {skew:.1f} s ahead of that of process {first}"
        raise CheckFailedError(found, "turn on NTP on both: sudo timedatectl set-ntp true")
    return f"within {skew:.2f} s of each other"


def workdir(folder: Path) -> str:
    """Each process writes a file, and reads those of all others; nothing is left behind."""
    own = folder / f".doctor-{jax.process_index()}"
    made, problem, remedy, absent = not folder.exists(), "", "", list[int]()
    everyone(None)  # all have seen whether it was there
    try:
        if is_remote(folder):
            check_bucket(folder, jax.process_index())
        folder.mkdir(parents=True, exist_ok=True)
        own.write_text("")
    except ConfigError as error:
        problem, _, remedy = str(error.problems[0]).rpartition("; ")
    except Exception as error:
        problem = f"{folder} cannot be written: {getattr(error, 'strerror', error)}"
        remedy = "choose another --workdir, or give this user the right to write there"
    everyone(None)
    with contextlib.suppress(OSError):
        probes = range(jax.process_count())
        absent = [p for p in probes if not (folder / f".doctor-{p}").exists()]
    told = everyone([problem, remedy, absent])
    with contextlib.suppress(OSError):
        own.unlink()
    everyone(None)
    if made and not is_remote(folder):
        with contextlib.suppress(OSError):  # another process was faster
            folder.rmdir()
    for process, (problem, remedy, _) in enumerate(told):
        if problem:
            raise CheckFailedError(f"process {process}: {problem}", remedy)
    for process, (_, _, unseen) in enumerate(told):
        if unseen:
            found = f"process {process} does not see what process {unseen[0]} writes in {folder}"
            raise CheckFailedError(
                found, "choose a --workdir on a file system that all hosts share"
            )
    return f"{folder}, written and seen by all"


def latency() -> str:
    times = everyone(round_trip())
    worst = max(times)
    if worst > LARGEST_ROUND_TRIP:
        found = f"{worst * 1e3:.0f} ms between process {times.index(worst)} and process 0, and back"
        raise CheckFailedError(
            found, "use hosts in one zone and one network, and end whatever else loads them"
        )
    return f"at most {worst * 1e3:.1f} ms to process 0 and back"


def collective() -> str:
    """A sum over all devices, of which the value is known."""
    n = jax.device_count()
    mesh = make_mesh((1, n, 1), pod_devices())
    size = (1 if jax.default_backend() == "cpu" else 16) * 2**18  # MiB of float32 on each device
    split = NamedSharding(mesh, P(BATCH_AXES, None))
    rows = local_rows(split, (n, size))
    part = np.broadcast_to(rows[:, None] + 1, (len(rows), size)).astype(np.float32)
    array = global_array(split, part, n)
    add = jax.jit(lambda array: array.sum(0), out_shardings=NamedSharding(mesh, P()))
    with jax.set_mesh(mesh):
        total = jax.block_until_ready(add(array))
        start = time.perf_counter()
        for _ in range(ROUNDS):
            jax.block_until_ready(add(array))
        seconds = (time.perf_counter() - start) / ROUNDS
    values = np.unique(np.asarray(total.addressable_data(0)))
    wrong = [float(value) for value in values if value != n * (n + 1) / 2]
    if wrong:
        found = f"a sum over {n} devices is {wrong[0]:g} instead of {n * (n + 1) / 2:g}"
        raise CheckFailedError(found, "a device or a link is faulty: replace the hosts")
    rate = 2 * (n - 1) / n * size * 4 / seconds / 1e9
    return f"right on {n} devices, {rate:.2f} GB/s" if n > 1 else "right on one device"


def step(config: Config) -> str:
    """One step of the config, with few and short sequences and two layers."""
    sizes = config.mesh
    shape = mesh_shape(sizes.replica, sizes.data, sizes.tensor, jax.device_count())
    mesh = make_mesh(shape, pod_devices())
    small = {
        "model.n_layers": min(config.model.n_layers, LAYERS),
        "data.sequence_length": min(config.data.sequence_length, LENGTH),
        "data.batch_size": shape[0] * shape[1],
        "optim.microbatches": 1,
    }
    build_training(config, mesh)  # the mistakes of the config as it is
    training = build_training(replaced(config, small), mesh)
    batch, sharding = training.tokens.shape, training.tokens.sharding
    tokens = np.random.default_rng(0).integers(0, config.model.vocab_size, batch, np.int32)
    local = tokens[local_rows(sharding, batch)]
    segments = np.zeros_like(local) if config.data.mask_documents else None
    arrays = global_batch(sharding, (local, segments), batch[0])
    connect(mesh)
    with jax.set_mesh(mesh):
        state = training.init(jax.random.key(0))
        loss = float(training.train_step(state, *arrays)[1]["train/loss"])
    if not math.isfinite(loss):
        raise CheckFailedError(f"the loss is {loss}", STEP_REMEDY)
    return f"loss {loss:.4f}"
