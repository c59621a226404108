"""Batches of shuffled examples a second: ours, a bare memory-mapped loop, and Grain, in turn.

    python -m tests.benchmarks.loader [--tokens=40_000_000] [--turns=3]

One process, 32 x 1,025 tokens a batch, a local set in a warm cache. Ours checks the checksum of
every chunk it reads; the others check nothing. Prints the median of each, and ours over it.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grain
import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

from gpt_pjit.config import Config, DataConfig, OptimConfig
from gpt_pjit.core.tokens import BytesTokenizer, TokenDataset, TrainingData, train_batches
from gpt_pjit.data import DatasetWriter

ROWS, LENGTH = 32, 1024
SECONDS = 3.0


class Vocabulary(BytesTokenizer):
    vocab_size = 50_277


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=40_000_000)
    parser.add_argument("--turns", type=int, default=3)
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        loaders = make_loaders(Path(folder), flags.tokens)
        rates: dict[str, list[float]] = {name: [] for name in loaders}
        for _ in range(flags.turns):
            for name, batches in loaders.items():
                rates[name].append(batches_per_second(batches()))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    ours = medians["gpt_pjit"]
    print(f"{'batches a second':40} {'median':>8} {'ours over it':>13}")
    for name, median in medians.items():
        print(f"{name:40} {median:8,.0f} {ours / median:13.2f}")


def make_loaders(folder: Path, tokens: int) -> dict[str, Callable[[], Iterator]]:
    ids = np.random.default_rng(0).integers(257, 50_000, tokens).astype(np.uint16)
    with DatasetWriter(folder / "set", Vocabulary()) as writer:
        for part in np.array_split(ids, 40):
            writer.splits["train"].append(part, np.empty(0, int), 0)
        writer.splits["validation"].append(ids[:5000], np.empty(0, int), 0)
    ids.tofile(folder / "tokens.bin")
    records = ArrayRecordWriter(str(folder / "tokens.array_record"), "group_size:1")
    windows = tokens // LENGTH - 1
    for window in range(windows):
        records.write(ids[window * LENGTH : (window + 1) * LENGTH + 1].tobytes())
    records.close()
    mapped = np.memmap(folder / "tokens.bin", np.uint16, "r")
    data = TrainingData([TokenDataset.open(folder / "set")])

    def ours() -> Iterator:
        of_data = DataConfig(batch_size=ROWS, sequence_length=LENGTH)
        config = Config(data=of_data, optim=OptimConfig(steps=10**9))
        return train_batches(data, config, np.arange(ROWS))

    def bare() -> Iterator:
        random = np.random.default_rng(0)
        while True:
            starts = random.integers(0, windows, ROWS) * LENGTH
            yield np.stack([mapped[start : start + LENGTH + 1] for start in starts]).astype(
                np.int32
            )

    def with_grain(source: object, decode: Callable, threads: int) -> Iterator:
        dataset = grain.MapDataset.source(source).shuffle(0).repeat().map(decode).batch(ROWS)
        return iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=threads)))

    record_source = grain.sources.ArrayRecordDataSource(str(folder / "tokens.array_record"))
    return {
        "gpt_pjit": ours,
        "bare memory-mapped slices": bare,
        "Grain, memory-mapped source, no thread": lambda: with_grain(Mapped(mapped), as_ids, 0),
        "Grain, memory-mapped source, 2 threads": lambda: with_grain(Mapped(mapped), as_ids, 2),
        "Grain, ArrayRecord, no thread": lambda: with_grain(record_source, from_record, 0),
        "Grain, ArrayRecord, 16 threads": lambda: with_grain(record_source, from_record, 16),
    }


class Mapped:
    """A Grain source of windows of a memory map."""

    def __init__(self, mapped: np.memmap):
        self._mapped = mapped

    def __len__(self) -> int:
        return len(self._mapped) // LENGTH - 1

    def __getitem__(self, window: int) -> np.ndarray:
        return self._mapped[window * LENGTH : (window + 1) * LENGTH + 1]


def as_ids(window: np.ndarray) -> np.ndarray:
    return window.astype(np.int32)


def from_record(record: bytes) -> np.ndarray:
    return np.frombuffer(record, np.uint16).astype(np.int32)


def batches_per_second(batches: Iterator) -> float:
    for _ in range(20):
        next(batches)
    count, start = 0, time.perf_counter()
    while (seconds := time.perf_counter() - start) < SECONDS:
        next(batches)
        count += 1
    getattr(batches, "close", lambda: None)()
    return count / seconds


if __name__ == "__main__":
    main()
