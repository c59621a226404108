"""Texts to scoring requests, with the conventions of lm-eval."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gpt_pjit.core.errors import ConfigError
from gpt_pjit.core.tokens import Tokenizer
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


def choice_request(tokenizer: Tokenizer, context: str, continuation: str) -> Request:
    """A request for `continuation` after `context`, of any length.

    Both are tokenised together and cut where the context's own tokens end; spaces at the end of
    the context belong to the continuation. An empty context is end-of-text.
    """
    stripped = context.rstrip()
    continuation = context[len(stripped) :] + continuation
    whole = [int(i) for i in tokenizer.encode(stripped + continuation)]
    before = len(tokenizer.encode(stripped)) if stripped else 0
    if not stripped:
        whole, before = [tokenizer.eot_id, *whole], 1
    return Request(tuple(whole), len(whole) - before)


def fitted(requests: Sequence[Request], window: int, task: str, *, learned: bool) -> list[Request]:
    """The requests with inputs cut from the left to `window` tokens, all to be scored kept.

    Raises ConfigError where one has more of those, with the window that all want; there is none
    with `learned` positions.
    """
    if empty := sum(not request.scored for request in requests):
        problem = (
            f"{task}: {empty:,} of {len(requests):,} continuations to be scored have no tokens"
        )
        raise ConfigError([problem], "evaluation")
    longest = max((request.scored for request in requests), default=0)
    if longest > window:
        long = sum(request.scored > window for request in requests)
        problem = (
            f"{task}: {long:,} of {len(requests):,} continuations to be scored are longer than the "
            f"window of {window} tokens, the longest has {longest}"
        )
        remedy = "learned positions end there" if learned else f"set window={longest}"
        raise ConfigError([f"{problem}; {remedy}"], "evaluation")
    return [Request(request.tokens[-(window + 1) :], request.scored) for request in requests]
