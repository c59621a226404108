"""Losses of tokens under a trained model: any list of requests, in a few compiled shapes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P

from gpt_pjit.core.console import Progress
from gpt_pjit.core.errors import ConfigError, Problem
from gpt_pjit.core.model import EMPTY, Cache, token_nll, with_slots
from gpt_pjit.core.runtime import global_array, local_rows
from gpt_pjit.core.sharding import BATCH_AXES
from gpt_pjit.evaluate.batches import (
    PrefixGroup,
    Request,
    batches,
    fitted,
    group_by_prefix,
)
from gpt_pjit.trained import Trained

ROWS = P(BATCH_AXES, None)
NOTHING = -1  # fills up a row


@dataclass(frozen=True)
class Scored:
    """For each scored token: `nll` in nats, float64, and whether it was the most likely one."""

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

    `window` is the longest input in tokens; None stands for the trained length. Each device along
    the batch axes reads `rows` sequences of that length at once, or as many shorter ones as take
    the same memory. A context that several requests share is read once, into a cache of keys and
    values that each request continues (`batches.py`). Every process makes the same calls and
    receives all results.
    """

    def __init__(self, trained: Trained, *, window: int | None = None, rows: int = 1):
        self.trained = trained
        self.window = checked_window(trained, window)
        if rows < 1:
            raise ConfigError([Problem("rows", rows, "must be 1 or more", "try 1")])
        self.rows = rows
        self._sharding = NamedSharding(trained.mesh, ROWS)
        self._parts = int(np.prod([trained.mesh.shape[axis] for axis in BATCH_AXES]))

    def fitted(self, requests: Sequence[Request], task: str) -> list[Request]:
        """The requests cut to the window; ConfigError where it is too short for some."""
        return fitted(requests, self.window, task)

    def score(self, requests: Sequence[Request], task: str = "scoring") -> list[Scored]:
        """One result for each request, in their order; identical requests are computed once.

        Raises ConfigError where a loss is not finite.
        """
        unique = sorted(set(requests), key=lambda r: (len(r.tokens), r.tokens, r.scored))
        for request in unique:
            assert 0 < request.scored < len(request.tokens) <= self.window + 1, request
        grouped = group_by_prefix(unique, self.window)
        done: dict[Request, Scored] = {}
        with jax.set_mesh(self.trained.mesh), Progress(task, len(unique)) as progress:
            # The longest first: what does not fit in memory fails at once.
            for shape, batch in batches(grouped, self.window, self.batch_size):
                for results in self._run(shape, batch):
                    _check_finite(results.values(), task)
                    done.update(results)
                    progress.update(len(done))
        return [done[request] for request in requests]

    def batch_size(self, length: int) -> int:
        """How many sequences of `length` tokens all devices together read at once."""
        return max(1, self.rows * self.window // length) * self._parts

    def _run(
        self, shape: tuple[int, int], batch: Sequence[PrefixGroup]
    ) -> Iterator[dict[Request, Scored]]:
        """One row for each group: first for its prefix, then for its requests one by one."""
        trained, (before, after) = self.trained, shape
        rows = self.batch_size(before + after)
        prefixes = [group.prefix for group in batch]
        cache = None
        if before:
            tokens = self._placed(prefixes, (rows, before))
            cache = _read(trained.extend, trained.weights, tokens, slots=before + after)
            jax.block_until_ready(cache)
        for requests in zip_longest(*(group.requests for group in batch)):
            new = [r.tokens[len(p) :] if r else () for r, p in zip(requests, prefixes, strict=True)]
            tokens = self._placed(new, (rows, after + 1))
            # One at a time: XLA on CPU deadlocks when the collectives of several are under way.
            nll, greedy = jax.block_until_ready(
                _score(trained.forward, trained.extend, trained.weights, tokens, cache)
            )
            nll, greedy = np.asarray(nll, np.float64), np.asarray(greedy)
            results = {}
            for row, request in enumerate(requests):
                if request:  # groups with fewer requests than others in the batch are done
                    end = len(new[row]) - 1
                    scored = row, slice(end - request.scored, end)
                    results[request] = Scored(nll[scored], greedy[scored])
            yield results

    def _placed(self, texts: Sequence[Sequence[int]], shape: tuple[int, int]) -> jax.Array:
        """Texts as rows of an array of `shape`, filled up with `NOTHING`."""
        tokens = np.full(shape, NOTHING, np.int32)
        for row, text in enumerate(texts):
            tokens[row, : len(text)] = text
        return global_array(self._sharding, tokens[local_rows(self._sharding, shape)], shape[0])


@partial(jax.jit, static_argnames=("extend", "slots"))
def _read(extend: Any, weights: Any, tokens_BT: jax.Array, *, slots: int) -> Cache:
    """The cache after `tokens_BT`, of `slots` slots."""
    return with_slots(_extended(extend, weights, tokens_BT, None)[1], slots)


@partial(jax.jit, static_argnums=(0, 1))
def _score(
    forward: Any, extend: Any, weights: Any, tokens: jax.Array, cache: Cache | None
) -> tuple[jax.Array, jax.Array]:
    """For tokens [B, T + 1]: nats of each target, float32 [B, T], and whether it is the argmax.

    They follow the tokens of `cache`, whose last T slots are empty. Both are replicated, so that
    every process can read them.
    """
    inputs_BT, targets_BT = tokens[:, :-1], jnp.maximum(tokens[:, 1:], 0)
    if cache is None:  # causal: a text does not see what fills up its row after it
        logits_BTV = forward(weights, jnp.maximum(inputs_BT, 0))
    else:
        logits_BTV = _extended(extend, weights, inputs_BT, cache)[0]
    greedy_BT = jnp.argmax(logits_BTV, axis=-1) == targets_BT
    everywhere = P(None, None)
    nll_BT = token_nll(logits_BTV, targets_BT)
    return jax.reshard(nll_BT, everywhere), jax.reshard(greedy_BT, everywhere)


def _extended(
    extend: Any, weights: Any, tokens_BT: jax.Array, cache: Cache | None
) -> tuple[jax.Array, Cache]:
    """Logits after each token [B, T, V], and the cache with them in its last slots."""
    n_tokens = tokens_BT.shape[1]
    places, slot = jnp.arange(n_tokens)[None], 0
    if cache is not None:
        places = places + jnp.sum(cache.positions_BS < EMPTY, axis=1, keepdims=True)
        slot = cache.positions_BS.shape[1] - n_tokens
    positions_BT = jnp.where(tokens_BT == NOTHING, EMPTY, places)
    return extend(weights, jnp.maximum(tokens_BT, 0), positions_BT, cache, slot, every=True)


def _check_finite(results: Iterable[Scored], task: str) -> None:
    if not all(np.isfinite(result.nll).all() for result in results):
        problem = f"{task}: the model's losses are not finite; score an earlier step of the run"
        raise ConfigError([problem], "evaluation")


def checked_window(trained: Trained, window: int | None) -> int:
    """`window`, or the trained length; ConfigError where positions do not reach that far."""
    length = trained.config.data.sequence_length
    if window is None:
        return length
    if window < 1:
        raise ConfigError([Problem("window", window, "must be 1 or more", f"try {length}")])
    if window > length and trained.config.model.positions == "learned":
        raise ConfigError([learned_limit("window", window, length)])
    return window


def learned_limit(field: str, value: object, length: int) -> Problem:
    """The problem of an input that is longer than the learned positions."""
    constraint = f"model.positions is learned and has only {length} positions"
    return Problem(field, value, constraint, "models with alibi positions read longer texts")
