"""Log-likelihoods are those of the plain model, however requests are batched and split.

Every token is predicted once, and requests share a computation where that saves tokens.
"""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, strategies as st

from gpt_pjit.core.errors import ConfigError
from gpt_pjit.evaluate import scorer as scoring
from gpt_pjit.evaluate.scorer import (
    PrefixGroup,
    Request,
    Scorer,
    batches,
    fitted,
    group_by_prefix,
    padded,
    rolling_requests,
)
from gpt_pjit.trained import load_trained
from tests.evaluate.conftest import with_forward
from tests.generate.conftest import LEARNED, model


def random_requests(lengths, seed=0):
    rng = np.random.default_rng(seed)
    for length in lengths:
        tokens = tuple(rng.integers(0, 257, length + 1).tolist())
        yield Request(tokens, int(rng.integers(1, length + 1)))


@pytest.mark.parametrize("tensor", [1, 4])
def test_scores_are_those_of_the_plain_model(workdir, plain, tensor):
    trained = load_trained(workdir, tensor=tensor)
    requests = list(random_requests((1, 32)))
    for request, result in zip(requests, Scorer(trained).score(requests), strict=True):
        nll, greedy = plain(request)
        np.testing.assert_allclose(result.nll, nll, atol=2e-5)
        assert np.array_equal(result.greedy, greedy)


def test_results_do_not_depend_on_the_batch(trained):
    requests = list(random_requests(range(1, 33), seed=1))
    together = Scorer(trained, rows=2).score(requests)
    alone = [Scorer(trained, window=32).score([request])[0] for request in requests[::9]]
    for one, other in zip(together[::9], alone, strict=True):
        np.testing.assert_allclose(one.nll, other.nll, atol=1e-5)


def test_identical_requests_are_computed_once_and_shapes_are_few(trained):
    shapes = []

    def forward(weights, tokens_BT):
        shapes.append(tokens_BT.shape)
        return trained.model.forward(weights, tokens_BT)

    counted = with_forward(trained, forward)
    requests = list(random_requests((5, 9, 20, 31)))
    runs = []
    scorer = Scorer(counted, window=128)
    run = scorer._run
    scorer._run = lambda shape, batch: runs.append(len(batch)) or run(shape, batch)
    results = scorer.score(requests * 3)
    assert sum(runs) == len(requests)
    assert len(shapes) == 1  # traced once for all lengths up to 32
    for first, again in zip(results[:4], results[4:8], strict=True):
        assert np.array_equal(first.nll, again.nll)


def test_learned_positions_end_with_training(trained):
    config = trained.config
    model = dataclasses.replace(config.model, positions="learned")
    learned = dataclasses.replace(trained, config=dataclasses.replace(config, model=model))
    assert Scorer(learned).window == 32
    with pytest.raises(ConfigError, match=r"a window of 64 tokens: .* has learned 32 positions"):
        Scorer(learned, window=64)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_losses_that_are_not_finite_are_refused(value, with_logits):
    table = np.zeros((257, 512))
    table[7, 7] = value
    scorer = Scorer(with_logits(table))
    assert scorer.score([Request((1, 2), 1)])
    with pytest.raises(ConfigError, match=r"piqa: the model's losses are not finite"):
        scorer.score([Request((7, 7, 7), 2)], "piqa")


def items(lengths, choices, seed=0, cut=None):
    """Contexts of `lengths` tokens, each with as many continuations as `choices` says."""
    rng = np.random.default_rng(seed)
    found = []
    for context, n in zip(lengths, choices, strict=True):
        shared = rng.integers(0, 257, context).tolist()
        for _ in range(n):
            scored = int(rng.integers(1, 30))
            tokens = (*shared, *rng.integers(0, 257, scored).tolist())
            found.append(Request(tokens[-cut:] if cut else tokens, scored))
    rng.shuffle(found)
    return [*found, found[0]]


@pytest.mark.parametrize(
    ("mesh", "positions"),
    [pytest.param((1, 1, 1), "learned", marks=pytest.mark.slow), ((1, 2, 2), "alibi")],
    ids=str,
)
def test_a_context_read_once_changes_nothing(mesh, positions, monkeypatch):
    """Of unequal lengths, some cut from the left, on windows up to the last learned position."""
    trained = model(mesh, positions=positions)
    requests = items((2, 40, 64, 67, 90, 5), (2, 3, 4, 1, 3, 2), cut=LEARNED + 1)
    requests += random_requests((1, 30, 60, LEARNED), seed=1)
    scorer, prefixes = Scorer(trained, rows=2), []
    run = scorer._run
    scorer._run = lambda shape, batch: prefixes.append(shape[0]) or run(shape, batch)
    shared = scorer.score(requests)
    assert {0, 64} <= set(prefixes)
    monkeypatch.setattr(
        scoring, "group_by_prefix", lambda found, _: [PrefixGroup((), (r,)) for r in found]
    )
    alone = Scorer(trained, rows=2).score(requests)
    for one, other, request in zip(shared, alone, requests, strict=True):
        assert len(one.nll) == request.scored
        np.testing.assert_allclose(one.nll, other.nll, atol=1e-5, rtol=0)
        assert np.array_equal(one.greedy, other.greedy)
    assert any(result.greedy.any() for result in shared)


# Requests and batches, without a model.

WINDOW = 1000


def request(context, scored, first=0):
    return Request((*context, *range(first, first + scored)), scored)


def test_requests_of_one_context_share_all_but_its_last_token():
    context = tuple(range(65))
    together = (request(context, 3), request(context, 9), request(context, 9, first=50))
    other = request(context[1:], 9)
    found = group_by_prefix((*together, other), WINDOW)
    assert found == [PrefixGroup(context[:64], together), PrefixGroup((), (other,))]
    assert found[0].shape(WINDOW) == (64, 32)
    assert found[0].cost(WINDOW) == 64 + 3 * 32


def test_only_what_computes_less_is_shared():
    """With padding: 32 + 2 * 32 tokens are more than 2 * 32, and as many as 32 + 64."""
    for context, lengths in ((20, (5, 5)), (1, (5, 5, 5)), (30, (2, 5)), (65, (9,))):
        requests = [request(range(context), n) for n in lengths]
        found = group_by_prefix(requests, WINDOW)
        assert all(group.prefix == () for group in found)
        assert [group.requests for group in found] == [(r,) for r in requests]


def test_what_was_cut_on_the_left_to_fit_shares_only_what_is_equal():
    window = 100
    text = tuple(range(98))
    cut = [Request((*text, *range(n))[-(window + 1) :], n) for n in (2, 3, 5, 6)]
    (together, *alone) = group_by_prefix(cut, window)
    assert together.prefix == text[:-1]
    assert together.requests == tuple(cut[:2])
    assert [group.requests for group in alone] == [(cut[2],), (cut[3],)]


def test_every_request_is_in_one_batch_of_few_shapes_and_bounded_rows():
    rng = np.random.default_rng(0)
    wanted = []
    for _ in range(300):
        context = tuple(rng.integers(0, 9, rng.integers(1, 700)).tolist())
        scored = rng.integers(1, 300, rng.integers(1, 6)).tolist()
        wanted += {request(context, n) for n in scored}
    grouped = group_by_prefix(wanted, WINDOW)
    found = list(batches(grouped, WINDOW, lambda length: max(1, 4 * WINDOW // length)))
    scored = [one for _, batch in found for group in batch for one in group.requests]
    assert len(scored) == len(wanted)
    assert set(scored) == set(wanted)
    for shape, batch in found:
        assert all(group.shape(WINDOW) == shape for group in batch)
        assert len(batch) == 1 or len(batch) * sum(shape) <= 4 * WINDOW
        assert max(shape) <= WINDOW
    sizes = [sum(shape) for shape, _ in found]
    assert sizes == sorted(sizes, reverse=True)
    assert len({shape for shape, _ in found}) < 30
    assert any(before for (before, _), _ in found)


def test_padded_lengths_are_a_handful():
    lengths = {padded(length, 1000) for length in range(1, 1001)}
    assert lengths == {32, 64, 128, 256, 512, 1000}
    assert all(padded(length, 1000) >= length for length in range(1, 1001))
    assert padded(3, 16) == 16


@given(st.integers(0, 50), st.integers(1, 12), st.data())
def test_each_token_once_with_enough_context(length, window, data):
    stride = data.draw(st.integers(1, window))
    tokens = list(range(length))
    seen = []
    for number, request in enumerate(rolling_requests(tokens, -1, window, stride)):
        assert len(request.tokens) <= window + 1
        first = len(request.tokens) - request.scored
        if number == 0:
            assert request.tokens[0] == -1
            assert first == 1
        else:
            assert len(request.tokens) == window + 1  # a full input
            assert first >= window - stride + 1
            assert list(request.tokens) == tokens[request.tokens[0] :][: window + 1]
        seen += request.tokens[first:]
    assert seen == tokens


def test_inputs_are_cut_to_the_window_and_what_is_scored_never():
    texts = ((b"a long context yes", 4), (b"text no", 3))
    requests = [Request(tuple(text), scored) for text, scored in texts]
    assert [bytes(request.tokens) for request in fitted(requests, 6, "task")] == [
        b"ext yes",
        b"text no",
    ]
    with pytest.raises(ConfigError, match="a continuation of 4 tokens is longer than the window"):
        fitted(requests, 3, "task")
