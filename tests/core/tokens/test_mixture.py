"""Mixtures keep their weights at every moment, and each source walks its own epochs."""

import json

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from gpt_pjit.config import Config, DataConfig, replaced
from gpt_pjit.core.errors import ConfigError
from gpt_pjit.core.tokens import TrainingData, first_walk, open_data, train_batches
from gpt_pjit.core.tokens.format import checksum
from gpt_pjit.core.tokens.index import (
    Cycle,
    Mixture,
    cycle_counts,
    example_starts,
    examples_per_epoch,
    hash64,
)

WEIGHTS = st.lists(st.integers(1, 300), min_size=1, max_size=8)


@settings(deadline=None)
@given(weights=WEIGHTS)
def test_every_prefix_is_within_one_example_of_the_weights(weights):
    cycle, total = Cycle(weights), sum(weights)
    for examples in range(total + 3):
        expected = np.array(weights) * examples / total
        assert np.abs(cycle.drawn(examples) - expected).max() < 1


@settings(deadline=None)
@given(weights=WEIGHTS, start=st.integers(0, 10**12), count=st.integers(1, 200))
def test_any_examples_are_drawn_as_if_one_by_one(weights, start, count):
    cycle = Cycle(weights)
    source, number = cycle.draw(np.arange(start, start + count))
    taken = cycle.drawn(start)
    for s, n in zip(source.tolist(), number.tolist(), strict=True):
        assert n == taken[s]
        taken[s] += 1
    assert taken == cycle.drawn(start + count)


@pytest.mark.parametrize(
    ("weights", "counts"),
    [((1,), [1]), ((0.7, 0.3), [7, 3]), ((2, 2, 4), [1, 1, 2]), ((0.125, 0.875), [1, 7])],
)
def test_weights_are_taken_as_they_are_written(weights, counts):
    assert cycle_counts(weights) == counts


def test_a_cycle_too_long_is_refused():
    with pytest.raises(ConfigError, match=r"do not repeat within 10,000 examples"):
        cycle_counts((0.123456, 0.876544))


@st.composite
def stages(draw):
    """(first example, weights) of each stage, some weights 0, and the examples taken before."""
    sets = draw(st.integers(1, 5))
    weights = st.lists(st.integers(0, 30), min_size=sets, max_size=sets).filter(any)
    first = draw(st.lists(st.integers(1, 300), max_size=4, unique=True))
    taken = draw(st.lists(st.integers(0, 10**9), min_size=sets, max_size=sets))
    return [(example, draw(weights)) for example in (0, *sorted(first))], taken


@settings(deadline=None)
@given(mixed=stages(), start=st.integers(0, 400), count=st.integers(1, 200))
def test_examples_of_stages_are_drawn_as_if_one_by_one(mixed, start, count):
    """And so each set's examples follow one another, none twice, across every boundary."""
    mixture = Mixture(*mixed)
    assert mixture.drawn(0) == mixed[1]
    source, number = mixture.draw(np.arange(start, start + count))
    taken = mixture.drawn(start)
    for s, n in zip(source.tolist(), number.tolist(), strict=True):
        assert n == taken[s]
        taken[s] += 1
    assert taken == mixture.drawn(start + count)


@settings(deadline=None)
@given(mixed=stages())
def test_every_prefix_of_a_stage_is_within_one_example_of_its_weights(mixed):
    mixture = Mixture(*mixed)
    for (first, weights), (end, _) in zip(
        mixed[0], [*mixed[0][1:], (mixed[0][-1][0] + 50, ())], strict=True
    ):
        before = np.array(mixture.drawn(first))
        for examples in range(first, end):
            expected = np.array(weights) * (examples - first) / sum(weights)
            assert np.abs(mixture.drawn(examples) - before - expected).max() < 1
            assert not (mixture.drawn(examples) - before)[np.array(weights) == 0].any()


def test_weights_by_step_become_stages():
    sources = (("web", 0.7), ("math", ((8, 0.3), (20, 0))), ("code", ((0, 1), (20, 2))))
    stages = DataConfig(sources=sources).stages
    assert stages == ((0, (0.7, 0, 1)), (8, (0.7, 0.3, 1)), (20, (0.7, 0, 2)))
    assert DataConfig(path="web").stages == ((0, (1,)),)


@pytest.fixture
def sets(make_set):
    return [make_set(531, 50)[0], make_set(300, 40)[0]]


STAGED = (1, ((0, 0.5), (11, 3), (30, 0)))


def mixed(sets, weights, batch_size=6, steps=40):
    sources = tuple((each.path, weight) for each, weight in zip(sets, weights, strict=True))
    shape = {"data.sources": sources, "data.batch_size": batch_size, "data.sequence_length": 16}
    return replaced(Config(), shape | {"optim.steps": steps, "seed": 3})


def batches(sets, weights, rows=range(6), start=0):
    config = mixed(sets, weights)
    stream = train_batches(TrainingData(sets), config, np.array(rows), start)
    return np.array([batch.tokens for batch in stream])


@pytest.mark.parametrize("weights", [(2, 1), STAGED])
def test_each_source_walks_its_own_epochs(sets, weights):
    rows = batches(sets, weights).reshape(-1, 17)
    walk = first_walk(mixed(sets, weights), [each.fingerprint for each in sets])
    source = np.concatenate([walk.draw(step, np.arange(6))[0] for step in range(40)])
    for s, dataset in enumerate(sets):
        split = dataset.splits["train"]
        mine, n = rows[source == s], examples_per_epoch(split.tokens, 16)
        seed = int(hash64(3, s)[0])
        starts = example_starts(
            np.arange(len(mine)), seed=seed, sequence_length=16, tokens=split.tokens
        )
        assert np.array_equal(mine, split.read(starts, 17))
        assert len(mine) == walk.taken(40)[s]
        for epoch in range(len(mine) // n):
            assert len(np.unique(starts[epoch * n : (epoch + 1) * n])) == n


@pytest.mark.parametrize("weights", [(0.6, 0.4), STAGED])
def test_hosts_and_restarts_do_not_matter(sets, weights):
    whole = batches(sets, weights)
    for hosts in (2, 3, 6):
        width = 6 // hosts
        parts = [batches(sets, weights, range(h * width, (h + 1) * width)) for h in range(hosts)]
        assert np.array_equal(np.concatenate(parts, axis=1), whole)
    for start in (10, 11, 17, 31):
        assert np.array_equal(batches(sets, weights, start=start), whole[start:])


def test_proportions_are_told(sets):
    walk = first_walk(mixed(sets, (3, 1), batch_size=10), ["a", "b"])
    first, second = TrainingData(sets).proportions(walk, 10).splitlines()
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
