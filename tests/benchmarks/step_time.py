"""Milliseconds a training step and tokens a second of two shapes, one device per core.

    python -m tests.benchmarks.step_time [--shape=large] [--nanogpt=DIR --python=PYTHON_WITH_TORCH]

`small` is nanoGPT's CPU shape. With `--nanogpt`, a folder that holds nanoGPT's model.py, its step
is timed in turn with ours and the ratio printed: forward, backward, clip, AdamW, on the same number
of threads. The limit is a plain float32 product, on all cores, of the sizes of the MLP and of the
logits: how much of its rate the step reaches, by the FLOPs that MFU counts.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Shape:
    layers: int
    heads: int
    width: int
    length: int
    batch: int
    vocabulary: int
    dropout: float
    steps: int
    warmup: int


SHAPES = {
    "small": Shape(4, 4, 128, 64, 12, 65, 0.0, steps=200, warmup=30),
    "large": Shape(6, 6, 384, 256, 16, 50304, 0.1, steps=6, warmup=2),
}

THEIRS = """
import sys, time, torch
sys.path.insert(0, {folder!r})
from model import GPT, GPTConfig
torch.set_num_threads({cores})
config = GPTConfig(block_size={length}, vocab_size={vocabulary}, n_layer={layers}, n_head={heads},
                   n_embd={width}, dropout={dropout}, bias=False)
model = GPT(config)
optimizer = model.configure_optimizers(0.1, 1e-3, (0.9, 0.99), "cpu")
x, y = torch.randint(0, {vocabulary}, (2, {batch}, {length}))
for step in range({warmup} + {steps}):
    start = time.perf_counter()
    model(x, y)[1].backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    if step >= {warmup}:
        print("seconds", time.perf_counter() - start)
"""


def config_of(shape: Shape):
    from gpt_pjit.config import Config, replaced

    fields = {
        "model.n_layers": shape.layers,
        "model.n_heads": shape.heads,
        "model.d_model": shape.width,
        "model.d_ff": 4 * shape.width,
        "model.vocab_size": shape.vocabulary,
        "model.positions": "learned",
        "model.dtype": "float32",
        "model.scan_layers": False,
        "model.dropout_residual": shape.dropout,
        "model.dropout_attention": shape.dropout,
        "model.dropout_embedding": shape.dropout,
        "data.sequence_length": shape.length,
        "data.batch_size": shape.batch,
    }
    return replaced(Config(), fields)


def our_step_times(shape: Shape) -> list[float]:
    """Seconds of each step, in a process of its own so that the two never share threads."""
    import jax

    from gpt_pjit.core.cores import usable_cores
    from gpt_pjit.core.runtime.hosts import cpu_devices
    from tests.helpers import program_on, timed_steps

    config = config_of(shape)
    devices = cpu_devices(config.mesh, shape.batch, usable_cores())
    jax.config.update("jax_num_cpu_devices", devices)
    program = program_on(config, (1, devices, 1))
    return timed_steps(program, config, shape.warmup + shape.steps)[shape.warmup :]


def product_rate(m: int, k: int, n: int) -> float:
    """FLOP/s of a plain float32 product on all cores."""
    import jax
    import jax.numpy as jnp

    a, b = jnp.ones((m, k)), jnp.ones((k, n))
    product = jax.jit(jnp.matmul)
    product(a, b).block_until_ready()
    seconds = []
    for _ in range(10):
        start = time.perf_counter()
        product(a, b).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return 2 * m * k * n / statistics.median(seconds)


def report_limit(shape: Shape, seconds: float) -> None:
    from gpt_pjit.core.model import count_params, param_shapes
    from gpt_pjit.core.parameters import flops_per_token

    tokens, model = shape.batch * shape.length, config_of(shape).model
    n_params = count_params(param_shapes(model, shape.length))
    rate = tokens * flops_per_token(model, n_params, shape.length) / seconds
    sizes = ((tokens, shape.width, 4 * shape.width), (tokens, shape.width, shape.vocabulary))
    limits = ", ".join(f"{product_rate(*size) / 1e9:.0f}" for size in sizes)
    print(f"the step {rate / 1e9:.0f} GFLOP/s; plain products of MLP and logits {limits}")


def timed(command: list[str]) -> list[float]:
    output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    return [float(line.split()[1]) for line in output.splitlines() if line.startswith("seconds")]


def report(name: str, seconds: list[float], shape: Shape) -> float:
    median = statistics.median(seconds)
    rate = shape.batch * shape.length / median
    print(
        f"{name:10} {1000 * median:7.1f} ms a step (median of {len(seconds)}), {rate:,.0f} tokens/s"
    )
    return median


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--nanogpt", help="a folder that holds nanoGPT's model.py")
    parser.add_argument("--python", default=sys.executable, help="a Python that has torch")
    parser.add_argument("--rounds", type=int, default=5, help="turns of ours and theirs")
    parser.add_argument("--ours", action="store_true", help="print our times and stop")
    arguments = parser.parse_args()
    shape = SHAPES[arguments.shape]
    if arguments.ours:
        print("\n".join(f"seconds {seconds}" for seconds in our_step_times(shape)))
        return
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    module = ["-m", "tests.benchmarks.step_time", f"--shape={arguments.shape}", "--ours"]
    theirs = THEIRS.format(folder=arguments.nanogpt, cores=os.cpu_count(), **asdict(shape))
    ratios, times = [], []
    for _ in range(arguments.rounds):
        times.append(report("gpt_pjit", timed([sys.executable, *module]), shape))
        if arguments.nanogpt:
            peer = report("nanoGPT", timed([arguments.python, "-c", theirs]), shape)
            ratios.append(peer / times[-1])
    if ratios:
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        print(f"speed over nanoGPT: {statistics.median(ratios):.2f} ({spread})")
    report_limit(shape, statistics.median(times))


if __name__ == "__main__":
    main()
