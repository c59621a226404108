"""Estimates of `gpt_pjit plan` beside published speeds: the table of docs/calibration.md.

    python -m tests.benchmarks.calibration [shares] [NAME ...]

Compiles each program with libtpu, which takes minutes, or reads it from the plan's cache; prints a
Markdown table. A ratio is the estimated time of a token over the published one. `shares` compiles
plain products and passes over memory instead, in seconds.
"""

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding

from gpt_pjit.plan.compile import Topology, devices_of, find_topology
from gpt_pjit.plan.cost import roll_up
from gpt_pjit.plan.hlo import Module


@dataclass(frozen=True)
class Row:
    """A published speed, and the config that is nearest to what ran.

    `unit` is what was published: `tokens/s`, `s a step`, or `MFU` by 6N + 12LHKS.
    """

    name: str
    topology: str
    config: str
    published: float
    unit: str
    overrides: str = ""


# 163.6M parameters, 130.0M without the embedding; one head of keys and values.
TPUCHAT = (
    "model.n_layers=8 model.d_model=1024 model.d_ff=3072 model.n_heads=4 model.n_kv_heads=1 "
    "model.head_size=256 model.activation=swiglu model.windows=() model.rope_theta=10000.0 "
    "model.remat=selective data.batch_size=64 optim.microbatches=16 optim.rules=()"
)
# Its first version: depth 12, attention without a kernel.
TPUCHAT_D12 = (
    "model.n_layers=12 model.d_model=768 model.d_ff=3072 model.n_heads=6 model.windows=() "
    "model.attention=plain model.remat=none data.batch_size=8 optim.microbatches=1 optim.rules=()"
)
LEVANTER = (
    "model.n_layers=48 model.d_model=1536 model.d_ff=6144 model.n_heads=24 model.remat=full "
    "partition.layout=fsdp optim.microbatches=1 data.batch_size="
)
MAXTEXT = (
    "model.n_layers=48 model.d_model=6144 model.d_ff=24576 model.n_heads=24 model.vocab_size=32000 "
    "model.positions=rope model.norm=rms model.activation=relu model.tied=False model.remat=full "
    "data.sequence_length=2048 data.batch_size=512"
)
PRODUCTS = ((8192, 8192, 8192), (32768, 1536, 6144), (32768, 6144, 1536))
TOKENS = (32768, 1536)
ROWS = (
    Row("levanter 1.4B, 2 a core", "v3-256", "124m", 0.417, "MFU", LEVANTER + "512"),
    Row("levanter 1.4B, 8 a core", "v3-256", "124m", 0.417, "MFU", LEVANTER + "2048"),
    Row("maxtext 22B", "v4-128", "1b1", 0.567, "MFU", MAXTEXT),
    Row("tpuchat 130M", "v6e-1", "d24", 433_606, "tokens/s", TPUCHAT),
    Row("tpuchat 130M", "v5e-1", "d24", 148_829, "tokens/s", TPUCHAT),
    Row("tpuchat d12", "v6e-1", "d24", 107_000, "tokens/s", TPUCHAT_D12),
    Row("nanochat d24", "v6e-8", "d24", 1.43, "s a step"),
    Row("the first 580M run", "v3-32", "580m", 3.56, "s a step"),
)


def plan(row: Row) -> dict:
    overrides = [f"--config.{override}" for override in row.overrides.split()]
    command = [sys.executable, "-m", "gpt_pjit.plan", f"--config=configs/{row.config}.py"]
    command += [f"--topology={row.topology}", "--json", *overrides]
    ran = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    return json.loads(ran.stdout)


def show(row: Row) -> None:
    record = plan(row)
    print(f"| {row.name} | {row.topology} | ", end="")
    if not record["cost"]:
        print(f"does not fit: {record['memory']['refusal']} | | | |", flush=True)
        return
    cost = record["cost"]
    rates = {"tokens/s": "tokens_per_second", "s a step": "step_seconds", "MFU": "mfu"}
    ratio = cost[rates[row.unit]] / row.published
    ratio = ratio if row.unit == "s a step" else 1 / ratio
    numbers = {"tokens/s": f"{row.published:,.0f} tokens/s", "MFU": f"{row.published:.1%}"}
    published = numbers.get(row.unit, f"{row.published:.2f} s a step")
    print(
        f"{cost['step_seconds']:.3f} s | {cost['tokens_per_second']:,.0f} | {cost['mfu']:.1%} "
        f"| {published} | {ratio:.2f} |",
        flush=True,
    )


def seconds(topology: Topology, function: Callable[..., Any], *shapes: tuple[int, ...]) -> float:
    """Of a function of bfloat16 arrays, by the compiler's cycles."""
    device, *_ = devices_of(topology) or ()
    on = SingleDeviceSharding(device)
    arrays = [jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=on) for shape in shapes]
    lowered = jax.jit(function).trace(*arrays).lower(lowering_platforms=("tpu",))
    operations = roll_up(Module(lowered.compile().as_text()), topology.chip)
    return sum(operation["cycles"] for operation in operations) / topology.chip.clock


def rms_norm(x_ND: jax.Array) -> jax.Array:
    x = x_ND.astype(jnp.float32)
    return (x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6)).astype(x_ND.dtype)


def shares(topology: Topology) -> Iterator[float]:
    """Of the peak by products, of the memory's bandwidth by what reads and writes little else."""
    chip = topology.chip
    for m, k, n in PRODUCTS:
        yield 2 * m * k * n / chip.peak_flops / seconds(topology, jnp.matmul, (m, k), (k, n))
    each = 2 * math.prod(TOKENS) / chip.hbm_bandwidth
    yield 3 * each / seconds(topology, jnp.add, TOKENS, TOKENS)
    yield 3 * each / seconds(topology, rms_norm, TOKENS)  # read twice: a row's mean comes first


def show_shares() -> None:
    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    names = [*(f"{m} x {k} x {n}" for m, k, n in PRODUCTS), "a sum", "an RMS norm"]
    print("| |" + "".join(f" {name} |" for name in names))
    print("|---" * (1 + len(names)) + "|")
    for name in ("v3-8", "v4-8", "v5e-1", "v5p-8", "v6e-1"):
        row = "".join(f" {share:.0%} |" for share in shares(find_topology(name)))
        print(f"| {name} |{row}", flush=True)


def main() -> None:
    if sys.argv[1:] == ["shares"]:
        show_shares()
        return
    print("| program | on | step | tokens/s | MFU | published | ratio |")
    print("|---|---|---|---|---|---|---|")
    for row in ROWS:
        if not sys.argv[1:] or any(name in f"{row.name} {row.topology}" for name in sys.argv[1:]):
            show(row)


if __name__ == "__main__":
    main()
