"""Tokens a second of generation with the cache, and without: the whole window for each token.

    python -m tests.benchmarks.generating [--turns=3 --tokens=256 --prompt=32]

The quickstart's model with random weights, greedy, one row per device and one device per core.
Compiled before the clock starts. Ours is all of `stream`, with its look at each chunk of tokens;
the other is one scan on the device.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--prompt", type=int, default=32)
    flags = parser.parse_args()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    import jax
    import numpy as np

    from gpt_pjit.trained import load_trained, start_devices
    from tests.generate.reference import generate, recompute
    from tests.helpers import load_config, make_workdir

    start_devices()
    with tempfile.TemporaryDirectory() as folder:
        make_workdir(Path(folder) / "run", load_config("quickstart"))
        trained = load_trained(Path(folder) / "run")
    rows = jax.device_count()
    prompts = np.random.default_rng(0).integers(0, 256, (rows, flags.prompt)).tolist()
    ways = {
        "cached": lambda: generate(trained, prompts, max_new_tokens=flags.tokens),
        "recomputed": lambda: recompute(trained, prompts, flags.tokens).tolist(),
    }
    for name, way in ways.items():
        assert all(len(ids) == flags.tokens for ids in way()), name
    assert ways["cached"]() == ways["recomputed"]()
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(flags.turns):
        for name, way in ways.items():
            seconds[name].append(timed(way))
            print(f"{name:10} {rows * flags.tokens / seconds[name][-1]:10,.0f} tokens/s")
    ratios = [slow / fast for fast, slow in zip(*seconds.values(), strict=True)]
    spread = f"{min(ratios):.1f} to {max(ratios):.1f}"
    print(f"speed over recomputing: {statistics.median(ratios):.1f} ({spread})")


def timed(way: Callable[[], Any]) -> float:
    start = time.perf_counter()
    way()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
