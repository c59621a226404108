"""The two compiled programs: `prefill` reads the prompts, `decode` writes some tokens more.

Prompts are filled up to one length on the right; the tokens written follow in slots of their own,
the same for every row. So a step writes one slice of the cache, whatever the lengths.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from gpt_pjit.core.model import EMPTY, Cache, with_slots
from gpt_pjit.core.sharding import BATCH_AXES
from gpt_pjit.generate.sample import Sampling, draw


class State(NamedTuple):
    """What a step needs of those before it; `written` counts them.

    `seeds_B`, uint32, are what a row's draws depend on, beside its logits.
    """

    cache: Cache
    logits_BV: jax.Array
    lengths_B: jax.Array
    seeds_B: jax.Array
    written: jax.Array


@partial(jax.jit, static_argnames=("extend", "slots"))
def prefill(
    extend: Callable[..., tuple[jax.Array, Cache]],
    weights: Any,
    prompts_BT: jax.Array,
    lengths_B: jax.Array,
    seeds_B: jax.Array,
    *,
    slots: int,
) -> State:
    """The state after prompts of `lengths_B` tokens, with a cache of `slots` slots."""
    places_T = jnp.arange(prompts_BT.shape[1])[None]
    positions_BT = jnp.where(places_T < lengths_B[:, None], places_T, EMPTY)
    logits_BV, cache = extend(weights, prompts_BT, positions_BT)
    return State(with_slots(cache, slots), logits_BV, lengths_B, seeds_B, jnp.int32(0))


@partial(
    jax.jit,
    static_argnames=("extend", "first_slot", "steps", "vocab_size", "sampling"),
    donate_argnames="state",
)
def decode(
    extend: Callable[..., tuple[jax.Array, Cache]],
    weights: Any,
    state: State,
    *,
    first_slot: int,
    steps: int,
    vocab_size: int,
    sampling: Sampling,
) -> tuple[State, jax.Array]:
    """The state after `steps` more tokens, and the tokens, int32 [B, steps], on every device.

    Only ids below `vocab_size` are drawn: the tokenizer knows no others.
    """

    def step(state: State, _: None) -> tuple[State, jax.Array]:
        logits_BV = jax.reshard(state.logits_BV, P(BATCH_AXES, None))[:, :vocab_size]
        tokens_B = draw_rows(logits_BV, state.seeds_B, state.written, sampling)
        positions_B1 = (state.lengths_B + state.written)[:, None]
        slot = first_slot + state.written
        logits_BV, cache = extend(weights, tokens_B[:, None], positions_B1, state.cache, slot)
        return state._replace(cache=cache, logits_BV=logits_BV, written=state.written + 1), tokens_B

    state, tokens_TB = jax.lax.scan(step, state, length=steps)
    return state, jax.reshard(tokens_TB.T, P())


def draw_rows(
    logits_BV: jax.Array, seeds_B: jax.Array, written: jax.Array, sampling: Sampling
) -> jax.Array:
    """`draw`, each device its own rows: so a draw depends neither on the mesh nor on other rows."""

    def draw_own(logits_BV: jax.Array, seeds_B: jax.Array, written: jax.Array) -> jax.Array:
        keys_B = jax.vmap(lambda seed: jax.random.fold_in(jax.random.key(seed), written))(seeds_B)
        return draw(logits_BV, keys_B, sampling)

    rows = P(BATCH_AXES)
    return jax.shard_map(draw_own, in_specs=(P(BATCH_AXES, None), rows, P()), out_specs=rows)(
        logits_BV, seeds_B, written
    )
