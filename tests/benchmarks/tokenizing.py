"""Tokenising a corpus against the raw speed of `tokenizers`, in turn.

    python -m tests.benchmarks.tokenizing [--turns=3] [--engine=fastokens] [INPUTS]

The whole command, start, reading and writing included, over the time that `encode_batch_fast` takes
for the same documents in memory. Checks that the set has the tokens of the direct encode.
"""

import argparse
import gzip
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import tokenizers

from gpt_pjit.core.tokens import TokenDataset

LAUNCHER = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""
SHARED = Path("../shared/data").resolve()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    inputs = sorted(SHARED.glob("text_eltec_eng/*.jsonl.gz"))
    parser.add_argument("inputs", nargs="*", default=inputs, help="files .jsonl.gz")
    parser.add_argument("--tokenizer", default=f"{SHARED}/neox_tokenizer/20B_tokenizer.json")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--engine", default="tokenizers", help="tokenizers or fastokens")
    flags = parser.parse_args()
    documents = []
    for path in flags.inputs:
        with gzip.open(path) as file:
            documents += [json.loads(line)["text"] for line in file]
    megabytes = sum(len(document.encode()) for document in documents) / 1e6
    raw, whole = [], []
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(flags.turns):
            seconds, tokens = encode_raw(flags.tokenizer, documents)
            raw.append(seconds)
            out = Path(folder) / str(turn)
            seconds, peak = run_command(flags.inputs, flags.tokenizer, flags.engine, out)
            whole.append(seconds)
            print(f"raw {raw[-1]:.1f} s, command {seconds:.1f} s, largest process {peak:.0f} MB")
            splits = TokenDataset.open(out).splits.values()
            assert sum(split.tokens - split.documents for split in splits) == tokens
    rates = {name: megabytes / statistics.median(s) for name, s in (("raw", raw), ("all", whole))}
    print(f"encode_batch_fast: {rates['raw']:.1f} MB/s for {megabytes:.1f} MB, {tokens:,} tokens")
    print(f"whole command: {rates['all']:.1f} MB/s, {rates['all'] / rates['raw']:.2f} of raw")


def encode_raw(path: str, documents: list[str]) -> tuple[float, int]:
    """Seconds and tokens of a direct encode, in batches that fit into memory."""
    tokenizer = tokenizers.Tokenizer.from_file(path)
    tokenizer.encode_special_tokens = True
    start, tokens = time.perf_counter(), 0
    for i in range(0, len(documents), 200):
        encodings = tokenizer.encode_batch_fast(documents[i : i + 200], add_special_tokens=False)
        tokens += sum(len(encoding) for encoding in encodings)
    return time.perf_counter() - start, tokens


def run_command(inputs: list[str], tokenizer: str, engine: str, out: Path) -> tuple[float, float]:
    """Seconds of the command, and the peak memory in MB of its largest process."""
    command = [sys.executable, "-m", "gpt_pjit.data", "tokenize", *map(str, inputs)]
    command += [f"--tokenizer={tokenizer}", f"--engine={engine}", f"--out={out}"]
    # A small process starts it: a process's peak counts that of the one that it was forked from.
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", LAUNCHER, *command], capture_output=True, check=True, text=True
    )
    return time.perf_counter() - start, float(done.stdout) / 1e3


if __name__ == "__main__":
    main()
