"""Every token is predicted exactly once, with the context that the window and stride promise."""

import pytest
from hypothesis import given, strategies as st

from gpt_pjit.core.errors import ConfigError
from gpt_pjit.core.tokens import load_tokenizer
from gpt_pjit.evaluate.requests import choice_request, fitted, rolling_requests


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
    request = choice_request(tokenizer, "Answer: ", "yes")
    assert bytes(request.tokens) == b"Answer: yes"
    assert request.scored == 4  # the space belongs to the continuation
    assert choice_request(tokenizer, "", "yes").tokens == (256, *b"yes")


def test_inputs_are_cut_to_the_window_and_what_is_scored_never():
    tokenizer = load_tokenizer("bytes")
    pairs = (("a long context", " yes"), ("context", " maybe"), ("context", " no"))
    requests = [choice_request(tokenizer, *pair) for pair in pairs]
    cut = fitted(requests, 6, "task", learned=False)
    assert [bytes(request.tokens) for request in cut] == [b"ext yes", b"t maybe", b"text no"]
    words = r"task: 2 of 3 cont.* longer than the window of 3 tokens, the longest has 6; "
    with pytest.raises(ConfigError, match=words + "set window=6"):
        fitted(requests, 3, "task", learned=False)
    with pytest.raises(ConfigError, match=words + "learned positions end there"):
        fitted(requests, 3, "task", learned=True)
    with pytest.raises(
        ConfigError, match=r"task: 1 of 1 continuations to be scored have no tokens"
    ):
        fitted([choice_request(tokenizer, "context", "")], 9, "task", learned=False)
