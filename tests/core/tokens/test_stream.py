"""Batches: tokens are trained on once an epoch and validated once, whatever hosts and restarts."""

import itertools
import threading
import time

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from gpt_pjit.config import Config, replaced
from gpt_pjit.core.errors import ConfigError
from gpt_pjit.core.tokens import TrainingData, held_out_batches, train_batches, validation_batches
from gpt_pjit.core.tokens.index import example_starts, examples_per_epoch

FEW = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
SIZES = (531, 203)


@pytest.fixture
def dataset(make_set):
    return make_set(*SIZES)


def shaped(batch_size=8, sequence_length=16, stop=12, seed=5, batches=0, mask_documents=False):
    fields = {
        "data.batch_size": batch_size,
        "data.sequence_length": sequence_length,
        "data.mask_documents": mask_documents,
        "optim.steps": stop,
        "eval.batches": batches,
        "seed": seed,
    }
    return replaced(Config(), fields)


def train(dataset, rows=range(8), start=0, **shape):
    batches = train_batches(TrainingData([dataset[0]]), shaped(**shape), np.array(rows), start)
    return [batch.tokens for batch in batches]


def reader_threads():
    return [t for t in threading.enumerate() if t.name.startswith("grain")]


def test_an_epoch_predicts_each_token_of_its_examples_once(dataset):
    batches = np.concatenate(train(dataset, stop=12))
    n = examples_per_epoch(SIZES[0], 16)
    text = dataset[1]["train"]
    for epoch in range(len(batches) // n):
        rows = batches[epoch * n : (epoch + 1) * n]
        assert rows.dtype == np.int32
        joined = {tuple(row.tolist()) for row in rows}
        (offset,) = (
            o
            for o in range(16)
            if joined == {tuple(text[s : s + 17].tolist()) for s in range(o, o + n * 16, 16)}
        )
        assert offset + n * 16 + 1 <= SIZES[0]


def test_rows_of_all_hosts_are_the_whole_batch(dataset):
    whole = train(dataset)
    for hosts in (2, 4, 8):
        width = 8 // hosts
        parts = [train(dataset, range(h * width, (h + 1) * width)) for h in range(hosts)]
        assert np.array_equal(np.concatenate(parts, axis=1), whole)


def test_rows_may_be_any_in_any_order(dataset):
    whole = np.array(train(dataset))
    for rows in ([6, 1, 3], [7], []):
        assert np.array_equal(train(dataset, rows), whole[:, rows])


@settings(parent=FEW, max_examples=60)
@given(data=st.data())
def test_an_epoch_is_every_example_once_for_any_hosts_and_restarts(make_set, data):
    """Random set and batch sizes, 1 to 64 hosts, and restarts on another number of hosts."""
    size = data.draw(st.sampled_from([40, 333, 1200]))
    length = data.draw(st.integers(1, size // 3))
    split = (SETS.get(size) or SETS.setdefault(size, make_set(size, 20)))[0]
    hosts = data.draw(st.integers(1, 64))
    batch_size = hosts * data.draw(st.integers(1, 3))
    n = examples_per_epoch(size, length)
    total = -(-n // batch_size)
    steps = sorted({0, total, *data.draw(st.lists(st.integers(0, total), max_size=3))})
    drawn = []
    for start, stop in itertools.pairwise(steps):
        parts = data.draw(st.sampled_from([h for h in range(1, 65) if batch_size % h == 0]))
        width = batch_size // parts
        streams = [
            train_batches(
                TrainingData([split]),
                shaped(batch_size, length, stop, seed=1),
                np.arange(h * width, (h + 1) * width),
                start,
            )
            for h in range(parts)
        ]
        drawn += [np.concatenate([b.tokens for b in bs]) for bs in zip(*streams, strict=True)]
    rows = np.concatenate(drawn)[:n]
    starts = example_starts(np.arange(n), seed=1, sequence_length=length, tokens=size)
    assert np.array_equal(np.sort(starts), starts.min() + np.arange(n) * length)
    assert np.array_equal(rows, split.splits["train"].read(starts, length + 1))


@FEW
@given(start=st.integers(0, 30))
def test_a_restart_continues_the_unbroken_stream(dataset, start):
    assert np.array_equal(train(dataset, start=start, stop=30), train(dataset, stop=30)[start:])


def test_a_run_ends_with_its_last_step(dataset):
    assert train(dataset, start=3, stop=3) == []
    assert len(train(dataset, start=10**9, stop=10**9 + 2)) == 2


def test_closing_ends_the_reader_threads(dataset):
    data = TrainingData([dataset[0]])
    batches = train_batches(data, shaped(stop=10**9), np.arange(8))
    next(batches)
    assert reader_threads()
    batches.close()
    deadline = time.monotonic() + 5
    while reader_threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not reader_threads()


def test_an_error_of_the_reader_arrives(dataset):
    path = dataset[0].path
    with open(f"{path}/train/tokens/c/0", "r+b") as file:
        file.write(b"\xff\xff")
    dataset = (type(dataset[0]).open(path), None)
    with pytest.raises(
        ConfigError, match=r"of split 'train' cannot be read: DATA_LOSS.*tokens/c/0"
    ):
        train(dataset, stop=50)


@FEW
@given(
    tokens=st.integers(2, 203),
    batch_size=st.integers(1, 6),
    sequence_length=st.integers(1, 40),
    hosts=st.integers(1, 3),
)
def test_validation_counts_each_token_once(make_set, tokens, batch_size, sequence_length, hosts):
    dataset, arrays = SETS.get(tokens) or SETS.setdefault(tokens, make_set(64, tokens))
    split, text = dataset.splits["validation"], arrays["validation"]
    config = shaped(batch_size * hosts, sequence_length)
    streams = [
        validation_batches(split, config, np.arange(h * batch_size, (h + 1) * batch_size))
        for h in range(hosts)
    ]
    targets = []
    for parts in zip(*streams, strict=True):
        for rows, mask, segments in parts:
            assert segments is None
            assert (rows.shape, rows.dtype) == ((batch_size, sequence_length + 1), np.int32)
            assert (mask.shape, mask.dtype) == ((batch_size, sequence_length), np.float32)
            assert not np.any(rows[:, 1:][mask == 0])
            targets += rows[:, 1:][mask == 1].tolist()
            position = len(targets) - int(mask.sum())
            inputs = rows[:, :-1][mask == 1]
            assert inputs.tolist() == text[position : position + len(inputs)].tolist()
    assert targets == text[1:].tolist()


SETS: dict = {}


def test_segments_are_those_of_the_boundary_array(dataset):
    split, length = dataset[0].splits["train"], 40
    offsets = split.document_offsets(0, split.documents + 1).astype(int)
    starts = example_starts(np.arange(48), seed=5, sequence_length=length, tokens=SIZES[0])
    config = shaped(8, length, stop=6, mask_documents=True)
    stream = train_batches(TrainingData([dataset[0]]), config, np.arange(8))
    found = np.concatenate([batch.segments for batch in stream])
    document = np.searchsorted(offsets, starts[:, None] + np.arange(length + 1), "right")
    assert np.array_equal(found, document - document[:, :1])
    assert len(np.unique(found)) == 2


def test_masked_validation_leaves_out_the_first_token_of_documents(dataset):
    split = dataset[0].splits["validation"]
    plain = list(validation_batches(split, shaped(2, 8), np.arange(2)))
    masked = list(validation_batches(split, shaped(2, 8, mask_documents=True), np.arange(2)))
    count = sum(batch.mask.sum() for batch in plain)
    assert count - sum(batch.mask.sum() for batch in masked) == split.documents - 1
    for one, other in zip(plain, masked, strict=True):
        assert np.array_equal(one.tokens, other.tokens)
        after_end = one.tokens[:, :-1] == split.eot_id
        assert not other.mask[after_end].any()


def test_some_batches_are_spread_evenly_over_the_split(dataset):
    split = dataset[0].splits["validation"]
    whole = list(validation_batches(split, shaped(2, 8), np.arange(2)))
    assert len(whole) == 13
    some = list(validation_batches(split, shaped(2, 8, batches=3), np.arange(2)))
    for batch, i in zip(some, (0, 4, 8), strict=True):
        assert np.array_equal(batch[0], whole[i][0])
    assert len(list(validation_batches(split, shaped(2, 8, batches=99), np.arange(2)))) == 13


def test_a_training_split_too_small_is_named_with_the_remedy(dataset):
    assert len(train(dataset, stop=1, sequence_length=265)) == 1
    with pytest.raises(
        ConfigError,
        match=r"split 'train' holds 531 tokens, but data\.sequence_length=266 needs at least 532",
    ):
        train(dataset, sequence_length=266)


@pytest.mark.parametrize("tokens", [0, 1])
def test_an_empty_validation_split_gives_no_batches(make_set, tokens):
    dataset, _ = make_set(64, tokens)
    dataset.verify()
    data = TrainingData([dataset])
    assert (data.held_out_tokens, data.held_out_bytes) == (0, 0)
    assert list(held_out_batches(data, shaped(), np.arange(8))) == []
    assert list(validation_batches(dataset.splits["validation"], shaped(), np.arange(8))) == []
    assert len(train((dataset, None))) == 12
