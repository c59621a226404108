"""Requests to batches: a context of several is computed once, similar lengths go together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

SHORTEST = 32  # tokens; shapes are this, its doubles, and the window


@dataclass(frozen=True)
class Request:
    """`tokens`, of which the last `scored` are predicted; the first is never predicted."""

    tokens: tuple[int, ...]
    scored: int


@dataclass(frozen=True)
class Family:
    """Requests that all begin with `prefix`, which is computed once; () for a single request."""

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


def families(requests: Iterable[Request], window: int) -> list[Family]:
    """Requests of one context together, where that computes fewer tokens than each alone.

    The prefix is the context but for its last token, whose logits predict the first one scored.
    """
    by_context: dict[tuple[int, ...], list[Request]] = {}
    for request in requests:
        by_context.setdefault(request.tokens[: -request.scored], []).append(request)
    found = []
    for context, group in by_context.items():
        together = Family(context[:-1], tuple(group))
        alone = [Family((), (request,)) for request in group]
        gains = together.cost(window) < sum(family.cost(window) for family in alone)
        found += [together] if gains and len(group) > 1 else alone
    return found


def batches(
    families: Sequence[Family], window: int, rows: Callable[[int], int]
) -> Iterator[tuple[tuple[int, int], list[Family]]]:
    """Families of one shape each, the longest first, at most `rows(sum(shape))` of them."""
    by_shape: dict[tuple[int, int], list[Family]] = {}
    for family in families:
        by_shape.setdefault(family.shape(window), []).append(family)
    for shape in sorted(by_shape, key=sum, reverse=True):
        # As many requests in one row of a batch as in the others, or rows are left empty.
        group = sorted(by_shape[shape], key=lambda family: len(family.requests), reverse=True)
        size = rows(sum(shape))
        for start in range(0, len(group), size):
            yield shape, group[start : start + size]


def padded(length: int, window: int) -> int:
    """The shape in which an input of `length` tokens is computed."""
    shape = SHORTEST
    while shape < length:
        shape *= 2
    return min(shape, window)
