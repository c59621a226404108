"""Losses of tokens under a trained model: any list of requests, in a few compiled shapes."""

import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P

from gpt_pjit.core.console import Progress
from gpt_pjit.core.errors import ConfigError
from gpt_pjit.core.model import Model, token_nll
from gpt_pjit.core.runtime import global_array, local_rows, to_process_0
from gpt_pjit.core.sharding import BATCH_AXES
from gpt_pjit.evaluate.orders import order
from gpt_pjit.generate import EMPTY, Cache, extend, with_slots
from gpt_pjit.trained import Trained

Ticking = Callable[[Iterable[Any]], Iterator[Any]]  # `Watch.ticking`

NOTHING = -1  # fills up a row
SHORTEST = 32  # tokens; inputs are padded to this, its doubles, or the window


class Request(NamedTuple):
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
    """The requests with inputs cut from the left to `window` tokens.

    Raises ConfigError where the scored tokens alone are longer.
    """
    longest = max((request.scored for request in requests), default=0)
    if longest > window:
        problem = f"{task}: a continuation of {longest} tokens is longer than the window, {window}"
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


class Scored(NamedTuple):
    """For each scored token: `nll` in nats, float64, and whether it was the most likely one."""

    nll: np.ndarray
    greedy: np.ndarray


class Scorer:
    """Scores requests in batches of similar length, split over the mesh's batch axes.

    `window` is the longest input in tokens; None stands for the trained length. Each device along
    the batch axes reads `rows` sequences of that length at once, or as many shorter ones as take
    the same memory. Each process builds and reads only the rows of its own devices. In a run,
    `ticking` follows the batches, and no progress is shown beside the run's.
    """

    def __init__(
        self,
        trained: Trained,
        *,
        window: int | None = None,
        rows: int = 1,
        ticking: Ticking | None = None,
    ):
        length = trained.config.data.sequence_length
        self.trained, self.window, self.rows = trained, window or length, rows
        self.ticking = ticking
        if self.window > length and trained.config.model.positions == "learned":
            raise ConfigError([learned_limit(f"a window of {window} tokens", length)], "evaluation")
        self._sharding = NamedSharding(trained.mesh, P(BATCH_AXES, None))
        self._parts = int(np.prod([trained.mesh.shape[axis] for axis in BATCH_AXES]))

    def score(self, requests: Sequence[Request], task: str = "scoring") -> list[Scored]:
        """One result for each request, in their order; identical requests are computed once.

        Called on process 0, which has the others compute with it. Raises ConfigError where a loss
        is not finite.
        """
        unique = sorted(set(requests), key=lambda request: (len(request.tokens), request))
        for request in unique:
            assert 0 < request.scored < len(request.tokens) <= self.window + 1, request
        order("score", requests=unique, window=self.window, rows=self.rows)
        done = self.compute(unique, task)
        if not all(np.isfinite(result.nll).all() for result in done.values()):
            problem = f"{task}: the model's losses are not finite; score an earlier step of the run"
            raise ConfigError([problem], "evaluation")
        return [done[request] for request in requests]

    def compute(self, unique: Sequence[Request], task: str = "scoring") -> dict[Request, Scored]:
        """The results, on process 0; all processes make this call with the same requests."""
        mine: dict[Request, Scored] = {}
        grouped, done = group_by_prefix(unique, self.window), 0
        # The longest first: what does not fit in memory fails at once.
        batched = batches(grouped, self.window, self.batch_size)
        with jax.set_mesh(self.trained.mesh), self.progress(task, len(unique)) as update:
            for shape, batch in self.ticking(batched) if self.ticking else batched:
                for n_scored, results in self._run(shape, batch):
                    mine.update(results)
                    done += n_scored
                    update(done)
        return gathered(mine, unique)

    @contextmanager
    def progress(self, task: str, total: int) -> Iterator[Callable[[int], None]]:
        """What is to be called with how much is done."""
        if self.ticking:
            yield lambda done: None
        else:
            with Progress(task, total) as progress:
                yield progress.update

    def batch_size(self, length: int) -> int:
        """How many sequences of `length` tokens all devices together read at once."""
        return max(1, self.rows * self.window // length) * self._parts

    def _run(
        self, shape: tuple[int, int], batch: Sequence[PrefixGroup]
    ) -> Iterator[tuple[int, dict[Request, Scored]]]:
        """One row for each group: first for its prefix, then for its requests one by one.

        Gives how many requests were scored, and the results of those on rows of this process.
        """
        trained, (before, after) = self.trained, shape
        rows = self.batch_size(before + after)
        cache = None
        if before:
            tokens = self._placed(lambda row: batch[row].prefix, len(batch), (rows, before))
            cache = _read(trained.model, trained.weights, tokens, slots=before + after)
            jax.block_until_ready(cache)
        for turn in count():
            # The groups with the most requests come first; those with fewer are done.
            active = sum(len(group.requests) > turn for group in batch)
            if not active:
                return

            def new(row: int, turn: int = turn) -> tuple[int, ...]:
                return batch[row].requests[turn].tokens[len(batch[row].prefix) :]

            tokens = self._placed(new, active, (rows, after + 1))
            # One at a time: XLA on CPU deadlocks when the collectives of several are under way.
            scores = _score(trained.model, trained.weights, tokens, cache)
            nll, greedy = jax.block_until_ready(scores)
            greedy_of, results = own_rows(greedy), {}
            for row, losses in own_rows(nll).items():
                if row < active:
                    request, end = batch[row].requests[turn], len(new(row)) - 1
                    scored = slice(end - request.scored, end)
                    results[request] = Scored(losses[scored], greedy_of[row][scored])
            yield active, results

    def _placed(
        self, text: Callable[[int], Sequence[int]], n_texts: int, shape: tuple[int, int]
    ) -> jax.Array:
        """`text(row)` in each of the first rows of an array of `shape`, filled up with `NOTHING`.

        Only rows of this process are asked for.
        """
        rows = local_rows(self._sharding, shape)
        tokens = np.full((len(rows), shape[1]), NOTHING, np.int32)
        for place, row in enumerate(rows[rows < n_texts].tolist()):
            ids = text(row)
            tokens[place, : len(ids)] = ids
        return global_array(self._sharding, tokens, shape[0])


def own_rows(array: jax.Array) -> dict[int, np.ndarray]:
    """The rows of an array on the devices here; a row that several processes hold, on one only."""
    shards = [shard for shard in array.addressable_shards if shard.replica_id == 0]
    return {
        row: values
        for shard in shards
        for row, values in enumerate(np.asarray(shard.data), shard.index[0].start or 0)
    }


def gathered(mine: dict[Request, Scored], unique: Sequence[Request]) -> dict[Request, Scored]:
    """The results of all processes, on process 0; each sends those of its own rows, `mine`."""
    number = {request: n for n, request in enumerate(unique)}
    content = io.BytesIO()
    np.savez(
        content,
        number=np.array([number[request] for request in mine], np.int64),
        nll=np.concatenate([np.zeros(0, np.float32), *(one.nll for one in mine.values())]),
        greedy=np.concatenate([np.zeros(0, bool), *(one.greedy for one in mine.values())]),
    )
    results: dict[Request, Scored] = {}
    for sent in to_process_0(content.getvalue()):
        arrays = np.load(io.BytesIO(sent))
        requests = [unique[n] for n in arrays["number"]]
        borders = np.cumsum([request.scored for request in requests])[:-1]
        nll = np.split(arrays["nll"].astype(np.float64), borders)
        greedy = np.split(arrays["greedy"], borders)
        results |= zip(requests, map(Scored, nll, greedy), strict=False)  # an empty array for none
    return results


@partial(jax.jit, static_argnames=("model", "slots"))
def _read(model: Model, weights: Any, tokens_BT: jax.Array, *, slots: int) -> Cache:
    """The cache after `tokens_BT`, of `slots` slots."""
    return with_slots(_extended(model, weights, tokens_BT, None)[1], slots)


@partial(jax.jit, static_argnums=0)
def _score(
    model: Model, weights: Any, tokens: jax.Array, cache: Cache | None
) -> tuple[jax.Array, jax.Array]:
    """For tokens [B, T + 1]: nats of each target, float32 [B, T], and whether it is the argmax.

    They follow the tokens of `cache`, whose last T slots are empty. Both are split by rows alone.
    """
    inputs_BT, targets_BT = tokens[:, :-1], jnp.maximum(tokens[:, 1:], 0)
    if cache is None:  # causal: a text does not see what fills up its row after it
        logits_BTV = model.forward(weights, jnp.maximum(inputs_BT, 0))
    else:
        logits_BTV = _extended(model, weights, inputs_BT, cache)[0]
    greedy_BT = jnp.argmax(logits_BTV, axis=-1) == targets_BT
    by_row = P(BATCH_AXES, None)
    nll_BT = token_nll(logits_BTV, targets_BT, model.config.logit_softcap)
    return jax.reshard(nll_BT, by_row), jax.reshard(greedy_BT, by_row)


def _extended(
    model: Model, weights: Any, tokens_BT: jax.Array, cache: Cache | None
) -> tuple[jax.Array, Cache]:
    """Logits after each token [B, T, V], and the cache with them in its last slots."""
    n_tokens = tokens_BT.shape[1]
    places, slot = jnp.arange(n_tokens)[None], 0
    if cache is not None:
        places = places + jnp.sum(cache.positions_BS < EMPTY, axis=1, keepdims=True)
        slot = cache.positions_BS.shape[1] - n_tokens
    positions_BT = jnp.where(tokens_BT == NOTHING, EMPTY, places)
    tokens_BT = jnp.maximum(tokens_BT, 0)
    return extend(model, weights, tokens_BT, positions_BT, cache, slot, every=True)


def learned_limit(what: str, length: int) -> str:
    """The problem of an input that is longer than the learned positions."""
    return f"{what}: the model has learned {length} positions; those with alibi read longer texts"
