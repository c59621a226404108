"""Every token is predicted exactly once, with the context that the window and stride promise."""

import pytest
from hypothesis import given, strategies as st

from gpt_pjit.data import load_tokenizer
from gpt_pjit.errors import ConfigError
from gpt_pjit.evaluate.requests import choice_request, rolling_requests


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


def test_context_and_continuation_are_encoded_as_one():
    tokenizer = load_tokenizer("bytes")
    request = choice_request(tokenizer, "Answer: ", "yes", 100)
    assert bytes(request.tokens) == b"Answer: yes"
    assert request.scored == 4  # the space belongs to the continuation
    assert choice_request(tokenizer, "", "yes", 100).tokens == (256, *b"yes")
    cut = choice_request(tokenizer, "a long context", " yes", 6)
    assert bytes(cut.tokens) == b"ext yes"
    with pytest.raises(ConfigError, match=r"4 tokens is to be scored, at most 3 fit: ' yes'"):
        choice_request(tokenizer, "context", " yes", 3)
    with pytest.raises(ConfigError, match=r"nothing is to be scored: '' has no tokens"):
        choice_request(tokenizer, "context", "", 3)
