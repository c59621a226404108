"""The index visits every example of every epoch once, wherever and however it is computed."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from gpt_pjit.core.tokens.index import example_starts, examples_per_epoch, hash64, permute


@given(n=st.integers(1, 3000), key=st.integers(0, 2**64 - 1))
def test_permutation_is_a_bijection(n, key):
    assert np.array_equal(np.sort(permute(np.arange(n), n, key)), np.arange(n))


def test_permutation_of_a_huge_range_is_a_bijection_where_sampled():
    n = 2**40 - 7
    positions = np.concatenate([np.arange(100_000), np.arange(n - 100_000, n)])
    result = permute(positions, n, 1)
    assert result.min() >= 0
    assert result.max() < n
    assert len(np.unique(result)) == len(positions)


@pytest.mark.parametrize("n", [3, 4, 5, 6])
def test_all_orders_of_few_examples_are_equally_likely(n):
    orders = math.factorial(n)
    keys = hash64(np.arange(50 * orders))
    shuffled = permute(np.tile(np.arange(n), len(keys)), n, np.repeat(keys, n)).reshape(-1, n)
    counts = np.unique(shuffled, axis=0, return_counts=True)[1]
    assert len(counts) == orders
    chi_square = np.sum((counts - 50) ** 2 / 50)
    assert chi_square < orders - 1 + 5 * math.sqrt(2 * orders)


def test_neighbours_end_up_anywhere():
    n = 200_000
    shuffled = permute(np.arange(n), n, 5)
    assert abs(np.corrcoef(shuffled[:-1], shuffled[1:])[0, 1]) < 0.01
    assert abs(np.corrcoef(np.arange(n), shuffled)[0, 1]) < 0.01


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_each_epoch_visits_every_example_once(data):
    sequence_length = data.draw(st.integers(1, 9))
    tokens = data.draw(st.integers(2 * sequence_length, 400))
    batch_size = data.draw(st.integers(1, 12))
    shape = {
        "seed": data.draw(st.integers(0, 2**32)),
        "sequence_length": sequence_length,
        "tokens": tokens,
    }
    n = examples_per_epoch(tokens, sequence_length)
    first = data.draw(st.integers(0, 5))
    step = first * n // batch_size
    steps = -(-3 * n // batch_size) + 1
    examples = np.arange(step * batch_size, (step + steps) * batch_size)
    starts = example_starts(examples, **shape)
    epochs = examples // n
    for epoch in (first + 1, first + 2):
        seen = np.sort(starts[epochs == epoch])
        assert len(seen) == n
        assert 0 <= seen[0] < sequence_length
        assert np.all(np.diff(seen) == sequence_length)
        assert seen[-1] + sequence_length + 1 <= tokens


def test_every_epoch_cuts_the_text_elsewhere_and_in_another_order():
    shape = {"sequence_length": 1000, "tokens": 100_000}
    examples = np.arange(99)
    drawn = itertools.product(range(3), range(4))
    epochs = [example_starts(examples + 99 * e, seed=seed, **shape) for seed, e in drawn]
    offsets = [int(starts.min()) for starts in epochs]
    assert len(set(offsets)) == len(epochs)
    assert len({tuple((starts - starts.min()).tolist()) for starts in epochs}) == len(epochs)


def scalar_start(seed: int, example: int, sequence_length: int, tokens: int) -> int:
    """docs/token_datasets.md, written down again in plain integers."""
    mask = 2**64 - 1

    def mix(x: int) -> int:
        x = (x + 0x9E3779B97F4A7C15) & mask
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
        return x ^ (x >> 31)

    def chain(*words: int) -> int:
        state = 0
        for word in words:
            state = mix(state ^ word)
        return state

    n = (tokens - sequence_length) // sequence_length
    epoch, position = divmod(example, n)
    a = math.isqrt(n - 1) + 1
    b = -(-n // a)
    key = chain(seed, epoch, 0)
    while True:
        left, right = divmod(position, b)
        for i in range(0, 16, 2):
            left = (left + mix(chain(key, i) ^ right) % a) % a
            right = (right + mix(chain(key, i + 1) ^ left) % b) % b
        position = left * b + right
        if position < n:
            return chain(seed, epoch, 1) % sequence_length + position * sequence_length


@given(st.integers(0, 2**63), st.integers(0, 10**6), st.integers(1, 50), st.integers(100, 10**6))
def test_the_documented_integers_give_the_same_examples(seed, example, sequence_length, tokens):
    shape = {"sequence_length": sequence_length, "tokens": tokens}
    got = example_starts(np.array([example]), seed=seed, **shape)
    assert got.tolist() == [scalar_start(seed, example, sequence_length, tokens)]


def test_examples_stay_what_they_were():
    """Runs resume by computing this again: if it changes, the format's version must change."""
    shape = {"seed": 42, "sequence_length": 1024, "tokens": 9_000_000_000}
    assert example_starts(7 * 6 + np.arange(6), **shape).tolist() == [
        3264386206,
        3155541150,
        6467082398,
        7833980062,
        1030149278,
        3645644958,
    ]
