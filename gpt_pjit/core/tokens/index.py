"""Which tokens a training example holds: pure functions of (seed, step, row), with no state.

An epoch cuts the text into `n` windows of `T` tokens, starting at a random offset below `T`, and
visits them in a random order. Nothing depends on hosts or on earlier reads, so a run resumes at
any step, on any number of hosts, by computing. docs/token_datasets.md says the same in prose.
"""

from __future__ import annotations

import math

import numpy as np

ROUNDS = 16  # the fewest that make all orders of six windows equally likely; 0.2 ms a batch


def windows(tokens: int, sequence_length: int) -> int:
    """How many training windows an epoch has; they fit at any offset below T."""
    return (tokens - sequence_length) // sequence_length


def window_starts(
    example: np.ndarray, *, seed: int | np.ndarray, sequence_length: int, tokens: int
) -> np.ndarray:
    """The first token, int64, of the window that each int64 example holds.

    Example i is row i % B of the batch of step i // B. A window is T + 1 tokens long, inputs and
    shifted targets, so neighbours share one token and each token is predicted once an epoch.
    """
    n = windows(tokens, sequence_length)
    assert n >= 1, f"{tokens} tokens are too few for a window of {sequence_length}"
    epoch, position = np.divmod(example, n)
    position = permute(position, n, hash64(seed, epoch, 0))
    offset = hash64(seed, epoch, 1) % np.uint64(sequence_length)
    return offset.astype(np.int64) + position * sequence_length


def permute(positions: np.ndarray, n: int, key: int | np.ndarray) -> np.ndarray:
    """Where a random permutation of range(n), chosen by `key`, puts int64 `positions`.

    `key` is one integer, or one for each position. A Feistel network on an a x b grid that holds
    n cells or a few more; a result in a surplus cell is permuted again until it falls below n,
    which keeps the map a bijection.
    """
    a = math.isqrt(n - 1) + 1
    b = -(-n // a)
    keys = np.broadcast_to(np.asarray(key).astype(np.uint64), positions.shape)
    result = _feistel(positions, a, b, keys)
    outside = np.flatnonzero(result >= n)
    while outside.size:
        result[outside] = _feistel(result[outside], a, b, keys[outside])
        outside = outside[result[outside] >= n]
    return result


def hash64(*words: int | np.ndarray) -> np.ndarray:
    """uint64 hash of the words in order; arrays broadcast, and the result has at least one dim."""
    state = np.zeros(1, np.uint64)
    for word in words:
        state = _splitmix64(state ^ np.asarray(word).astype(np.uint64))
    return state


def _feistel(positions: np.ndarray, a: int, b: int, keys: np.ndarray) -> np.ndarray:
    # Each round adds to one coordinate a hash of the other, which can be undone: a bijection.
    round_keys = hash64(keys, np.arange(ROUNDS, dtype=np.uint64)[:, None])
    sizes = (np.uint64(a), np.uint64(b))
    cell = list(np.divmod(positions.astype(np.uint64), sizes[1]))
    for i in range(ROUNDS):
        side = i % 2
        noise = _splitmix64(round_keys[i] ^ cell[1 - side]) % sizes[side]
        cell[side] = (cell[side] + noise) % sizes[side]
    return (cell[0] * sizes[1] + cell[1]).astype(np.int64)


def _splitmix64(x: np.ndarray) -> np.ndarray:
    # One output of the generator splitmix64 in state x. Arrays of uint64 wrap around as it needs.
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
