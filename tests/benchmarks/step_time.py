"""Milliseconds a training step and tokens a second, for nanoGPT's CPU shape.

    python -m tests.benchmarks.step_time [--nanogpt=DIR --python=PYTHON_WITH_TORCH]

4 layers, 4 heads, 128 wide, context 64, batch 12, vocabulary 65, no dropout, one device per core.
With `--nanogpt`, a folder that holds nanoGPT's model.py, its step is timed in turn with ours and
the ratio printed: forward, backward, clip, AdamW, on the same number of threads.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time

STEPS, WARMUP = 200, 30
BATCH, LENGTH, VOCABULARY = 12, 64, 65

THEIRS = """
import sys, time, torch
sys.path.insert(0, {folder!r})
from model import GPT, GPTConfig
torch.set_num_threads({cores})
config = GPTConfig(block_size={LENGTH}, vocab_size={VOCABULARY}, n_layer=4, n_head=4, n_embd=128,
                   dropout=0.0, bias=False)
model = GPT(config)
optimizer = model.configure_optimizers(0.1, 1e-3, (0.9, 0.99), "cpu")
x, y = torch.randint(0, {VOCABULARY}, (2, {BATCH}, {LENGTH}))
for step in range({WARMUP} + {STEPS}):
    start = time.perf_counter()
    model(x, y)[1].backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    if step >= {WARMUP}:
        print("seconds", time.perf_counter() - start)
"""


def our_step_times() -> list[float]:
    """Seconds of each step, in a process of its own so that the two never share threads."""
    import jax

    from gpt_pjit.core.cores import usable_cores
    from gpt_pjit.core.runtime.hosts import cpu_devices
    from tests.helpers import load_config, program_on, random_tokens, with_fields

    shape = {
        "model.vocab_size": VOCABULARY,
        "model.positions": "learned",
        "data.sequence_length": LENGTH,
        "data.batch_size": BATCH,
    }
    config = with_fields(load_config("quickstart"), shape)
    devices = cpu_devices(config, usable_cores())
    jax.config.update("jax_num_cpu_devices", devices)
    program = program_on(config, (1, devices, 1))
    seconds = []
    with jax.set_mesh(program.mesh):
        state = program.init(jax.random.key(0))
        tokens = jax.device_put(random_tokens(config, 0), program.tokens.sharding)
        for _ in range(WARMUP + STEPS):
            start = time.perf_counter()
            state, metrics = program.train_step(state, tokens)
            jax.block_until_ready(metrics)
            seconds.append(time.perf_counter() - start)
    return seconds[WARMUP:]


def timed(command: list[str]) -> list[float]:
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [float(line.split()[1]) for line in output.splitlines() if line.startswith("seconds")]


def report(name: str, seconds: list[float]) -> float:
    median = statistics.median(seconds)
    rate = BATCH * LENGTH / median
    print(
        f"{name:10} {1000 * median:7.1f} ms a step (median of {len(seconds)}), {rate:,.0f} tokens/s"
    )
    return median


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nanogpt", help="a folder that holds nanoGPT's model.py")
    parser.add_argument("--python", default=sys.executable, help="a Python that has torch")
    parser.add_argument("--rounds", type=int, default=3, help="turns of ours and theirs")
    parser.add_argument("--ours", action="store_true", help="print our times and stop")
    arguments = parser.parse_args()
    if arguments.ours:
        print("\n".join(f"seconds {seconds}" for seconds in our_step_times()))
        return
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    theirs = THEIRS.format(folder=arguments.nanogpt, cores=os.cpu_count(), **globals())
    ratios = []
    for _ in range(arguments.rounds):
        ours = report(
            "gpt_pjit", timed([sys.executable, "-m", "tests.benchmarks.step_time", "--ours"])
        )
        if arguments.nanogpt:
            ratios.append(report("nanoGPT", timed([arguments.python, "-c", theirs])) / ours)
    if ratios:
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        print(f"speed over nanoGPT: {statistics.median(ratios):.2f} ({spread})")


if __name__ == "__main__":
    main()
