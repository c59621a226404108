"""Estimates of `gpt_pjit plan` beside published speeds: the table of docs/calibration.md.

    python -m tests.benchmarks.calibration [products] [NAME ...]

Compiles each program with libtpu, which takes minutes, or reads it from the plan's cache; prints a
Markdown table. A ratio is the estimated time of a token over the published one. `products` compiles
plain matrix products instead, in seconds.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass

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


def share_of_peak(topology: Topology, m: int, k: int, n: int) -> float:
    """Of a bfloat16 product, by the compiler's cycles."""
    device, *_ = devices_of(topology) or ()
    on = SingleDeviceSharding(device)
    a, b = (jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=on) for shape in ((m, k), (k, n)))
    lowered = jax.jit(jnp.matmul).trace(a, b).lower(lowering_platforms=("tpu",))
    operations = roll_up(Module(lowered.compile().as_text()), topology.chip)
    seconds = sum(operation["cycles"] for operation in operations) / topology.chip.clock
    return 2 * m * k * n / topology.chip.peak_flops / seconds


def show_products() -> None:
    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    print("| |" + "".join(f" {m} x {k} x {n} |" for m, k, n in PRODUCTS))
    print("|---" * (1 + len(PRODUCTS)) + "|")
    for name in ("v3-8", "v4-8", "v5e-1", "v5p-8", "v6e-1"):
        shares = (share_of_peak(find_topology(name), *sizes) for sizes in PRODUCTS)
        print(f"| {name} |" + "".join(f" {share:.0%} |" for share in shares), flush=True)


def main() -> None:
    if sys.argv[1:] == ["products"]:
        show_products()
        return
    print("| program | on | step | tokens/s | MFU | published | ratio |")
    print("|---|---|---|---|---|---|---|")
    for row in ROWS:
        if not sys.argv[1:] or any(name in f"{row.name} {row.topology}" for name in sys.argv[1:]):
            show(row)


if __name__ == "__main__":
    main()
