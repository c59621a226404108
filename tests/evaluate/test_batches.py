"""Every token is predicted once, and requests share a computation where that saves tokens."""

import numpy as np
import pytest
from hypothesis import given, strategies as st

from gpt_pjit.core.errors import ConfigError
from gpt_pjit.evaluate.scorer import (
    PrefixGroup,
    Request,
    batches,
    fitted,
    group_by_prefix,
    padded,
    rolling_requests,
)

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
