"""Requests for losses of tokens, and the batches in which they are computed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from gpt_pjit.core.errors import ConfigError

SHORTEST = 32  # tokens; inputs are padded to this, its doubles, or the window


@dataclass(frozen=True)
class Request:
    """`tokens`, of which the last `scored` are predicted; the first is never predicted."""

    tokens: tuple[int, ...]
    scored: int


def rolling_requests(
    tokens: Sequence[int], prefix: int, window: int, stride: int
) -> Iterator[Request]:
    """Requests that predict each of `tokens` exactly once, with at most `window` tokens of input.

    The first predicts a whole window after `prefix` (end-of-text) alone; each further one predicts
    `stride` tokens after `window - stride + 1` of context. The last is moved back so that its input
    is full. With `stride == window` these are the windows of lm-eval's `loglikelihood_rolling`.
    """
    assert 1 <= stride <= window
    end = min(window, len(tokens))
    if end:
        yield Request((prefix, *tokens[:end]), end)
    while end < len(tokens):
        scored = min(stride, len(tokens) - end)
        end += scored
        yield Request(tuple(tokens[end - window - 1 : end]), scored)


def fitted(requests: Sequence[Request], window: int, task: str) -> list[Request]:
    """The requests with inputs cut from the left to `window` tokens; scored tokens are never cut.

    Raises ConfigError where a request scores more than fit.
    """
    longest = max((request.scored for request in requests), default=0)
    if longest > window:
        long = sum(request.scored > window for request in requests)
        problem = (
            f"{task}: {long:,} of the continuations to be scored are longer than the window of "
            f"{window} tokens; the longest has {longest}"
        )
        raise ConfigError([problem], "evaluation")
    return [Request(request.tokens[-(window + 1) :], request.scored) for request in requests]


@dataclass(frozen=True)
class PrefixGroup:
    """Requests that begin with `prefix`, which is computed once; () for a single request."""

    prefix: tuple[int, ...]
    requests: tuple[Request, ...]

    def shape(self, window: int) -> tuple[int, int]:
        """The padded lengths of the prefix, 0 if there is none, and of each input after it."""
        longest = max(len(request.tokens) for request in self.requests) - 1
        before = padded(len(self.prefix), window) if self.prefix else 0
        return before, padded(longest - len(self.prefix), window)

    def cost(self, window: int) -> int:
        """Tokens to compute, with padding."""
        before, after = self.shape(window)
        return before + len(self.requests) * after


def group_by_prefix(requests: Iterable[Request], window: int) -> list[PrefixGroup]:
    """Requests of one context together, where that computes fewer tokens than each alone.

    The prefix is the context without its last token, whose logits predict the first scored one.
    """
    by_context: dict[tuple[int, ...], list[Request]] = {}
    for request in requests:
        by_context.setdefault(request.tokens[: -request.scored], []).append(request)
    groups = []
    for context, found in by_context.items():
        together = PrefixGroup(context[:-1], tuple(found))
        alone = [PrefixGroup((), (request,)) for request in found]
        gains = together.cost(window) < sum(group.cost(window) for group in alone)
        groups += [together] if gains and len(found) > 1 else alone
    return groups


def batches(
    groups: Sequence[PrefixGroup], window: int, rows: Callable[[int], int]
) -> Iterator[tuple[tuple[int, int], list[PrefixGroup]]]:
    """Groups of one shape each, the longest first, at most `rows(sum(shape))` of them."""
    by_shape: dict[tuple[int, int], list[PrefixGroup]] = {}
    for group in groups:
        by_shape.setdefault(group.shape(window), []).append(group)
    for shape in sorted(by_shape, key=sum, reverse=True):
        # Groups of similar size together, so that few rows of a batch are left empty.
        same = sorted(by_shape[shape], key=lambda group: len(group.requests), reverse=True)
        size = rows(sum(shape))
        for start in range(0, len(same), size):
            yield shape, same[start : start + size]


def padded(length: int, window: int) -> int:
    """The shape in which an input of `length` tokens is computed."""
    shape = SHORTEST
    while shape < length:
        shape *= 2
    return min(shape, window)
