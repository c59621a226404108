"""The two compiled programs, `prefill` and `decode`, and how a token is drawn.

Prompts are padded to one length on the right; the tokens written follow in slots that all rows
share. So a step writes one slice of the cache, whatever the lengths.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from gpt_pjit.core.model import Model
from gpt_pjit.core.sharding import BATCH_AXES
from gpt_pjit.generate.cache import EMPTY, Cache, extend, with_slots

LOWEST = 1e-30  # temperature: in float32 the likeliest token is certain long before


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn: `temperature` 0 takes the likeliest. Otherwise from the `top_k`
    likeliest (0: all), after the temperature the fewest of them that hold a share of `top_p`.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0


class State(NamedTuple):
    """What a step needs from those before it, which `written` counts; seeds are uint32."""

    cache: Cache
    logits_BV: jax.Array
    lengths_B: jax.Array
    seeds_B: jax.Array
    written: jax.Array


@partial(jax.jit, static_argnames=("model", "slots"))
def prefill(
    model: Model,
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
    logits_BV, cache = extend(model, weights, prompts_BT, positions_BT)
    return State(with_slots(cache, slots), logits_BV, lengths_B, seeds_B, jnp.int32(0))


@partial(
    jax.jit,
    static_argnames=("model", "first_slot", "steps", "vocab_size", "sampling"),
    donate_argnames="state",
)
def decode(
    model: Model,
    weights: Any,
    state: State,
    *,
    first_slot: int,
    steps: int,
    vocab_size: int,
    sampling: Sampling,
) -> tuple[State, jax.Array]:
    """The state after `steps` more tokens, and the tokens, int32 [B, steps], on every device.

    Only ids below `vocab_size`, those of the tokenizer, are drawn.
    """

    def step(state: State, _: None) -> tuple[State, jax.Array]:
        logits_BV = jax.reshard(state.logits_BV, P(BATCH_AXES, None))[:, :vocab_size]
        tokens_B = draw_rows(logits_BV, state.seeds_B, state.written, sampling)
        positions_B1 = (state.lengths_B + state.written)[:, None]
        slot = first_slot + state.written
        new_B1 = tokens_B[:, None]
        logits_BV, cache = extend(model, weights, new_B1, positions_B1, state.cache, slot)
        return state._replace(cache=cache, logits_BV=logits_BV, written=state.written + 1), tokens_B

    state, tokens_TB = jax.lax.scan(step, state, length=steps)
    return state, jax.reshard(tokens_TB.T, P())


def draw_rows(
    logits_BV: jax.Array, seeds_B: jax.Array, written: jax.Array, sampling: Sampling
) -> jax.Array:
    """`draw`, on each device for its own rows: no draw depends on the mesh or on other rows."""

    def draw_own(logits_BV: jax.Array, seeds_B: jax.Array, written: jax.Array) -> jax.Array:
        keys_B = jax.vmap(lambda seed: jax.random.fold_in(jax.random.key(seed), written))(seeds_B)
        return draw(logits_BV, keys_B, sampling)

    rows = P(BATCH_AXES)
    return jax.shard_map(draw_own, in_specs=(P(BATCH_AXES, None), rows, P()), out_specs=rows)(
        logits_BV, seeds_B, written
    )


def draw(logits_BV: jax.Array, keys_B: jax.Array, sampling: Sampling) -> jax.Array:
    """A token for each row, int32 [B], which depends on its row of logits and its key alone."""
    if sampling.temperature == 0:
        return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
    # No logit above 0, and no divisor below float32's range: no temperature is too low.
    logits_BV = logits_BV - jnp.max(logits_BV, axis=-1, keepdims=True)
    logits_BV = logits_BV / max(sampling.temperature, LOWEST)
    kept_BV = keep_likeliest(logits_BV, sampling.top_k, sampling.top_p)
    return jax.vmap(jax.random.categorical)(keys_B, kept_BV).astype(jnp.int32)


def keep_likeliest(logits_BV: jax.Array, top_k: int, top_p: float) -> jax.Array:
    """The logits, -inf for tokens that may not be drawn; equal logits are kept or dropped together.

    `top_p`, applied after `top_k`, is the nucleus of Holtzman et al. (2020): the likeliest tokens
    up to and including the one that brings their sum to `top_p`.
    """
    vocabulary = logits_BV.shape[-1]
    top_k = min(top_k, vocabulary) or vocabulary
    if top_k == vocabulary and top_p == 1:
        return logits_BV
    best_BK = jax.lax.top_k(logits_BV, top_k)[0]
    shares_BK = jax.nn.softmax(best_BK, axis=-1)
    before_BK = jnp.cumsum(shares_BK, axis=-1) - shares_BK
    n_kept_B1 = jnp.maximum(jnp.sum(before_BK < top_p, axis=-1, keepdims=True), 1)
    least_B1 = jnp.take_along_axis(best_BK, n_kept_B1 - 1, axis=-1)
    return jnp.where(logits_BV >= least_B1, logits_BV, -jnp.inf)
