"""Both forms of attention, forward and backward, for TPUs that need not be here.

    python -m tests.benchmarks.kernel

Prints cycles of one layer on one device: of the plain form by the compiler's estimate, and of the
kernel by the instruction bundles of its compiled loops, each of which takes a cycle or more: a
lower bound, without stalls and transfers. docs/performance.md has the table.
"""

import os
import re
import tempfile
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec as P

from gpt_pjit.core.model import Heads, blocks, kernel
from gpt_pjit.core.model.attention import for_kernel
from gpt_pjit.core.model.kernel_steps import Shape, chunks_visited
from gpt_pjit.core.sharding import make_mesh
from gpt_pjit.plan.compile import devices_of, find_topology
from gpt_pjit.plan.hlo import Module
from tests.helpers import norms_and_rotation


class Case(NamedTuple):
    """A layer of a config on one device: heads, rows and tokens of a microbatch."""

    config: str
    topology: str
    heads: int
    rows: int
    length: int
    window: int = 0
    alibi: bool = False
    rate: float = 0.0
    prepared: bool = False  # with norms of queries and keys, and a rotation


CASES = (
    Case("580m", "v5e-32", 12, 16, 1024, alibi=True, rate=0.1),
    Case("1b1", "v4-64", 16, 16, 1024, alibi=True),
    Case("d24, a window of 1,024", "v6e-8", 12, 16, 2048, window=1024, prepared=True),
    Case("d24, no window", "v6e-8", 12, 16, 2048, prepared=True),
)
SIZE = 128  # of a head
CORES = {"v4": 2}  # of a device, which share the grid; else one


def compiled(case: Case, form, devices) -> Module:
    mesh = make_mesh((1, 1, 1), devices[:1])

    def shaped(shape, dtype):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, P()))

    heads = shaped((case.heads, case.rows, case.length, SIZE), jnp.bfloat16)
    masks = None
    if case.rate:
        words = blocks.QUERY_BLOCK // 32
        masks = [
            shaped((case.heads, case.rows, words, keys.stop - keys.start), jnp.uint32)
            for _, keys in blocks.query_blocks(case.window, heads, heads)
        ]

    def both_ways(q, k, v, dvalues, masks):
        def attend(q, k, v):
            heads = (
                Heads(q, k, v, *norms_and_rotation(SIZE, jnp.arange(case.length)[None]))
                if case.prepared
                else Heads(q, k, v)
            )
            return form(heads, case.alibi, case.rate, case.window, masks)

        values, pull = jax.vjp(attend, q, k, v)
        return values, pull(dvalues)

    with jax.set_mesh(mesh):
        traced = jax.jit(both_ways).trace(heads, heads, heads, heads, masks)
        return Module(traced.lower(lowering_platforms=("tpu",)).compile().as_text())


def plain(heads: Heads, alibi, rate, window, masks):
    return blocks.attend(alibi, rate, window, *heads.ready(), masks, None)


def in_kernel(heads: Heads, alibi, rate, window, masks):
    given, preparation = for_kernel(heads)
    return kernel.attend_in_kernel(preparation, alibi, rate, window, *given, masks, None)


def plain_cycles(case: Case, devices) -> float:
    visits = compiled(case, plain, devices).walk()
    return sum(v.instruction.cycles * v.times for v in visits if not v.fused)


def kernel_cycles(case: Case, devices, dumps: Path) -> float:
    compiled(case, in_kernel, devices)
    shape = Shape(blocks.QUERY_BLOCK, kernel.KEY_CHUNK, case.window, 1.0, 1.0, None, False)
    steps, chunks = case.length // shape.block, chunks_visited(shape, case.length)
    total = 0
    for path in dumps.glob("*_kernel*-final_bundles.txt"):
        if "analysis" not in path.name:  # loops by their depth: the grid, then the chunks
            depths = re.findall(r"(?m)^\s*0x[0-9a-f]+\s*(?:\w\w)?\s*:\s*(>*)", path.read_text())
            loops = [len(list(run)) for depth, run in groupby(depths) if depth == ">>"]
            total += depths.count(">") * steps + max(loops) * chunks
            # The others make keys ready and finish their gradients, once a row.
            total += (sum(loops) - max(loops)) * (case.length // shape.chunk)
    for path in dumps.iterdir():
        path.unlink()
    return case.heads * case.rows * total / CORES.get(case.topology.partition("-")[0], 1)


def main() -> None:
    print("| a layer of | plain | kernel, at least | ratio |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        # Before libtpu is loaded. These programs are small: of a whole step, dumps are gigabytes.
        os.environ["LIBTPU_INIT_ARGS"] = f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true"
        for case in CASES:
            devices = devices_of(find_topology(case.topology))
            plain = plain_cycles(case, devices) / 1e6
            ours = kernel_cycles(case, devices, Path(folder)) / 1e6
            name = f"{case.config} on {case.topology}"
            print(f"| {name} | {plain:.1f} Mcycles | {ours:.1f} | {plain / ours:.1f} |", flush=True)


if __name__ == "__main__":
    main()
