"""Texts to scoring requests, with the conventions of lm-eval."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gpt_pjit.data import Tokenizer
from gpt_pjit.errors import ConfigError
from gpt_pjit.evaluate.batches import Request


def rolling_requests(
    tokens: Sequence[int], prefix: int, window: int, stride: int
) -> Iterator[Request]:
    """Requests that predict each of `tokens` exactly once, with at most `window` tokens of input.

    The first predicts a whole window, from `prefix` (end-of-text) alone on; each further one
    predicts `stride` tokens after `window - stride + 1` of context. The last is moved back, so
    that its context is longer and its input full. With `stride == window` these are the windows
    of lm-eval's `loglikelihood_rolling`.
    """
    assert 1 <= stride <= window
    end = min(window, len(tokens))
    if end:
        yield Request((prefix, *tokens[:end]), end)
    while end < len(tokens):
        scored = min(stride, len(tokens) - end)
        end += scored
        yield Request(tuple(tokens[end - window - 1 : end]), scored)


def choice_request(tokenizer: Tokenizer, context: str, continuation: str, window: int) -> Request:
    """A request for `continuation` after `context`; ConfigError if it is longer than `window`.

    Both are tokenised together and cut where the context's own tokens end; spaces at the end of
    the context belong to the continuation. An empty context is end-of-text. What does not fit into
    the window is cut from the left.
    """
    stripped = context.rstrip()
    continuation = context[len(stripped) :] + continuation
    whole = [int(i) for i in tokenizer.encode(stripped + continuation)]
    before = len(tokenizer.encode(stripped)) if stripped else 0
    if not stripped:
        whole, before = [tokenizer.eot_id, *whole], 1
    return fitted(whole, len(whole) - before, window, continuation)


def fitted(tokens: Sequence[int], scored: int, window: int, text: str) -> Request:
    """The request whose input is cut from the left to `window` tokens."""
    if not scored:
        raise ConfigError([f"nothing is to be scored: {text[:60]!r} has no tokens"], "evaluation")
    if scored > window:
        problem = (
            f"a continuation of {scored} tokens is to be scored, at most {window} fit: "
            f"{text[:60]!r}; give a larger window"
        )
        raise ConfigError([problem], "evaluation")
    return Request(tuple(tokens[-(window + 1) :]), scored)
