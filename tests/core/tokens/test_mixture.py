"""Mixtures keep their weights at every moment, and each source walks its own epochs."""

import json

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from gpt_pjit.config import Config, DataConfig, replaced
from gpt_pjit.core.errors import ConfigError
from gpt_pjit.core.tokens import TrainingData, open_data, train_batches
from gpt_pjit.core.tokens.format import checksum
from gpt_pjit.core.tokens.index import Schedule, cycle_counts, hash64, window_starts, windows

WEIGHTS = st.lists(st.integers(1, 300), min_size=1, max_size=8)


@settings(deadline=None)
@given(weights=WEIGHTS)
def test_every_prefix_is_within_one_example_of_the_weights(weights):
    schedule, total = Schedule(weights), sum(weights)
    for examples in range(total + 3):
        expected = np.array(weights) * examples / total
        assert np.abs(schedule.drawn(examples) - expected).max() < 1


@settings(deadline=None)
@given(weights=WEIGHTS, start=st.integers(0, 10**12), count=st.integers(1, 200))
def test_any_examples_are_drawn_as_if_one_by_one(weights, start, count):
    schedule = Schedule(weights)
    source, number = schedule.draw(np.arange(start, start + count))
    taken = schedule.drawn(start)
    for s, n in zip(source.tolist(), number.tolist(), strict=True):
        assert n == taken[s]
        taken[s] += 1
    assert taken == schedule.drawn(start + count)


@pytest.mark.parametrize(
    ("weights", "counts"),
    [((1,), [1]), ((0.7, 0.3), [7, 3]), ((2, 2, 4), [1, 1, 2]), ((0.125, 0.875), [1, 7])],
)
def test_weights_are_taken_as_they_are_written(weights, counts):
    assert cycle_counts(weights) == counts


def test_a_cycle_too_long_is_refused():
    with pytest.raises(ConfigError, match=r"do not repeat within 10,000 examples"):
        cycle_counts((0.123456, 0.876544))


@pytest.fixture
def sets(make_set):
    return [make_set(531, 50)[0], make_set(300, 40)[0]]


def batches(data, rows=range(6), start=0):
    shape = {"data.batch_size": 6, "data.sequence_length": 16, "optim.steps": 40, "seed": 3}
    stream = train_batches(data, replaced(Config(), shape), np.array(rows), start)
    return np.array([batch.tokens for batch in stream])


def test_each_source_walks_its_own_epochs(sets):
    data = TrainingData(sets, (2, 1))
    rows = batches(data).reshape(-1, 17)
    source, _ = Schedule((2, 1)).draw(np.arange(len(rows)))
    for s, split in enumerate(data.splits):
        mine, n = rows[source == s], windows(split.tokens, 16)
        seed = int(hash64(3, s)[0])
        starts = window_starts(
            np.arange(len(mine)), seed=seed, sequence_length=16, tokens=split.tokens
        )
        assert np.array_equal(mine, split.read(starts, 17))
        for epoch in range(len(mine) // n):
            assert len(np.unique(starts[epoch * n : (epoch + 1) * n])) == n


def test_hosts_and_restarts_do_not_matter(sets):
    data = TrainingData(sets, (0.6, 0.4))
    whole = batches(data)
    for hosts in (2, 3, 6):
        width = 6 // hosts
        parts = [batches(data, range(h * width, (h + 1) * width)) for h in range(hosts)]
        assert np.array_equal(np.concatenate(parts, axis=1), whole)
    assert np.array_equal(batches(data, start=17), whole[17:])


def test_proportions_are_told(sets):
    first, second = TrainingData(sets, (3, 1)).proportions(100, 16).splitlines()
    assert first == f" 75.00%  75 examples, 2.34 epochs of {sets[0].path}"
    assert second.endswith(f"25 examples, 1.47 epochs of {sets[1].path}")


def test_sources_of_a_config(sets):
    sources = ((sets[0].path, 0.5), (sets[1].path, 0.5))
    data = open_data(DataConfig(sources=sources), "unused", 257)
    assert [entry["sha256"] for entry in data.identity()] == [s.fingerprint for s in sets]
    odd = ((sets[0].path, 0.333333), (sets[1].path, 1))
    with pytest.raises(ConfigError, match=r"data\.sources.*\n.*weights.*round them"):
        open_data(DataConfig(sources=odd), "unused", 257)


def test_sources_of_two_tokenizers_are_refused(sets):
    manifest = f"{sets[1].path}/dataset.json"
    with open(manifest) as file:
        fields = json.load(file)
    fields.pop("sha256")
    fields["tokenizer"]["sha256"] = "0" * 64
    with open(manifest, "w") as file:
        json.dump(fields | {"sha256": checksum(fields)}, file)
    with pytest.raises(
        ConfigError, match=rf"{sets[1].path} has .*\n.*has tokenizer bytes, SHA-256 0000"
    ):
        open_data(DataConfig(sources=((sets[0].path, 1), (sets[1].path, 1))), "unused", 257)
