"""Log-likelihoods of tokens under a trained model: any list of requests, a few compiled shapes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P

from gpt_pjit.errors import ConfigError, Problem
from gpt_pjit.evaluate.progress import counting
from gpt_pjit.model import token_nll
from gpt_pjit.partition import BATCH_AXES
from gpt_pjit.runtime import global_array, local_rows
from gpt_pjit.trained import Trained

ROWS = P(BATCH_AXES, None)
SHORTEST = 32  # tokens; shapes are this, its doubles, and the window


@dataclass(frozen=True)
class Request:
    """`tokens`, of which the last `scored` are predicted; the first is never predicted."""

    tokens: tuple[int, ...]
    scored: int


@dataclass(frozen=True)
class Scored:
    """Of each scored token: `nll` in nats, float64, and whether it was the most likely one."""

    nll: np.ndarray
    greedy: np.ndarray

    @property
    def log_likelihood(self) -> float:
        return -float(self.nll.sum())

    @property
    def is_greedy(self) -> bool:
        return bool(self.greedy.all())


class Scorer:
    """Scores requests in batches of similar length, split over the mesh's batch axes.

    `window` is the longest input, in tokens; None for the length the model was trained with.
    `rows` sequences of that length are read at once on each device along the batch axes, and as
    many more of shorter ones as take the same memory. Every process calls with the same requests
    and receives all results.
    """

    def __init__(self, trained: Trained, *, window: int | None = None, rows: int = 1):
        self.trained = trained
        self.window = checked_window(trained, window)
        self.rows = rows
        self._sharding = NamedSharding(trained.mesh, ROWS)
        self._parts = int(np.prod([trained.mesh.shape[axis] for axis in BATCH_AXES]))

    def score(self, requests: Sequence[Request], task: str = "scoring") -> list[Scored]:
        """One result for each request, in their order; identical ones are computed once."""
        unique = sorted(set(requests), key=lambda r: (len(r.tokens), r.tokens, r.scored))
        done: dict[Request, Scored] = {}
        with jax.set_mesh(self.trained.mesh), counting(task, len(unique)) as advance:
            # The longest first: what does not fit in memory fails at once.
            for length, batch in self._batches(unique[::-1]):
                done.update(zip(batch, self._run(length, batch), strict=True))
                advance(len(batch))
        return [done[request] for request in requests]

    def _batches(self, requests: Sequence[Request]) -> Iterator[tuple[int, list[Request]]]:
        """Groups of one padded length each, as many rows as fit."""
        by_length: dict[int, list[Request]] = {}
        for request in requests:
            assert 0 < request.scored < len(request.tokens) <= self.window + 1, request
            by_length.setdefault(padded(len(request.tokens) - 1, self.window), []).append(request)
        for length, group in by_length.items():
            rows = self._rows(length)
            for start in range(0, len(group), rows):
                yield length, group[start : start + rows]

    def _rows(self, length: int) -> int:
        return max(1, self.rows * self.window // length) * self._parts

    def _run(self, length: int, batch: Sequence[Request]) -> list[Scored]:
        rows = self._rows(length)
        tokens = np.zeros((rows, length + 1), np.int32)  # causal: padding after a text is unseen
        for row, request in enumerate(batch):
            tokens[row, : len(request.tokens)] = request.tokens
        mine = local_rows(self._sharding, tokens.shape)
        placed = global_array(self._sharding, tokens[mine], rows)
        # One at a time: XLA on CPU deadlocks when the collectives of several are under way.
        nll, greedy = jax.block_until_ready(
            _score(self.trained.forward, self.trained.weights, placed)
        )
        nll, greedy = np.asarray(nll, np.float64), np.asarray(greedy)
        ends = [len(request.tokens) - 1 for request in batch]
        starts = [end - request.scored for end, request in zip(ends, batch, strict=True)]
        return [
            Scored(nll[row, start:end], greedy[row, start:end])
            for row, (start, end) in enumerate(zip(starts, ends, strict=True))
        ]


@partial(jax.jit, static_argnums=0)
def _score(forward: Any, weights: Any, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Of tokens [B, T + 1]: nats of each target, float32 [B, T], and whether it is the argmax.

    Both are replicated, so that every process can read them.
    """
    logits_BTV, targets_BT = forward(weights, tokens[:, :-1]), tokens[:, 1:]
    greedy_BT = jnp.argmax(logits_BTV, axis=-1) == targets_BT
    everywhere = P(None, None)
    nll_BT = token_nll(logits_BTV, targets_BT)
    return jax.reshard(nll_BT, everywhere), jax.reshard(greedy_BT, everywhere)


def padded(length: int, window: int) -> int:
    """The shape in which an input of `length` tokens is computed."""
    shape = SHORTEST
    while shape < length:
        shape *= 2
    return min(shape, window)


def checked_window(trained: Trained, window: int | None) -> int:
    """`window`, or the trained length; ConfigError where positions do not reach so far."""
    length = trained.config.data.sequence_length
    if window is None:
        return length
    if window < 1:
        raise ConfigError([Problem("window", window, "must be 1 or more", f"try {length}")])
    if window > length and trained.config.model.positions == "learned":
        raise ConfigError([learned_limit("window", window, length)])
    return window


def learned_limit(field: str, value: object, length: int) -> Problem:
    """Learned positions end where training ended."""
    constraint = f"model.positions is learned and holds {length} positions, none after them"
    return Problem(field, value, constraint, "models with alibi positions read longer texts")
