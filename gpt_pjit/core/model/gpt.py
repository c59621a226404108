"""The GPT: pre-norm blocks, run by a scan over layers, between an embedding and logits.

Parameters are a nested dict of arrays; those of the blocks are stacked over layers. nnx
modules say how parameters are made and used: they are built once per config, and opened over the
arrays where a function runs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name, checkpoint_policies

from gpt_pjit.config import ModelConfig
from gpt_pjit.core.model.attention import Attend, Attention, Heads, attend_causally
from gpt_pjit.core.model.dropout import dropout
from gpt_pjit.core.model.layers import (
    INIT_STD,
    Embedding,
    Norm,
    Projection,
    activate,
    merge_tokens,
    scaled,
    split_tokens,
)
from gpt_pjit.core.model.loss import HEAD, head_losses, logits
from gpt_pjit.core.model.positions import Rotation, rotation, token_positions
from gpt_pjit.core.sharding import device_kind, match_rules, values

# Activations cheaper to keep than to recompute. Those of the MLP are excluded: they are wide, and
# storing them costs more time than recomputing them.
SAVED = (
    "qkv",
    "values",
    "weights_logsumexp",
    "attended",
    "dropout_mask",
    "norm_mean",
    "norm_square",
)
REMAT_POLICIES = {
    "full": checkpoint_policies.nothing_saveable,
    "selective": checkpoint_policies.save_only_these_names(*SAVED),
}

KeysAndValues = tuple[jax.Array, jax.Array]  # [G, B, T, K] each


class MLP(nnx.Module):
    def __init__(self, c: ModelConfig, *, rngs: nnx.Rngs):
        sizes, biases = c.sizes, c.bias == "all"
        residual_std = INIT_STD / (2 * c.n_layers) ** 0.5
        self.activation = c.activation
        self.up = Projection("ND,DF->NF", sizes, INIT_STD, biases, rngs)
        self.down = Projection("NF,FD->ND", sizes, residual_std, biases, rngs)
        gated = c.activation == "swiglu"
        self.gate = Projection("ND,DF->NF", sizes, INIT_STD, biases, rngs) if gated else None

    @jax.named_scope("mlp")
    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        if self.gate is None:
            return self.down(activate(self.activation, self.up(x_BTD)))
        return self.down(activate(self.activation, self.gate(x_BTD)) * self.up(x_BTD))


class Block(nnx.Module):
    """One layer. Training and generation run the same code, with another `attend`."""

    def __init__(self, c: ModelConfig, *, rngs: nnx.Rngs):
        self.dropout_residual, self.parallel = c.dropout_residual, c.parallel_residual
        self.residual_factor = c.residual_factor
        self.norm_attention = Norm(c, c.d_model, c.bias == "all")
        self.attention = Attention(c, rngs=rngs)
        self.norm_mlp = Norm(c, c.d_model, c.bias == "all")
        self.mlp = MLP(c, rngs=rngs)

    def __call__(
        self,
        x_BTD: jax.Array,
        attend: Attend,
        rotation: Rotation | None,
        key: jax.Array | None = None,
    ) -> tuple[jax.Array, Any]:
        """The residual stream after the block, and what `attend` returns beside the values."""
        values_HBTK, seen = self.mix(x_BTD, attend, rotation, key)
        return self.finish(x_BTD, values_HBTK, key), seen

    def mix(
        self, x_BTD: jax.Array, attend: Attend, rotation: Rotation | None, key: jax.Array | None
    ) -> tuple[jax.Array, Any]:
        """What `attend` returns: the weighted values [H, B, T, K], and more."""
        normed = self.norm_attention(_for_norm(self.norm_attention, x_BTD))
        normed_BTD = _as_rows(normed, x_BTD)
        return self.attention(normed_BTD, partial(attend, key=_keys(key)[0]), rotation)

    def finish(self, x_BTD: jax.Array, values_HBTK: jax.Array, key: jax.Array | None) -> jax.Array:
        """The residual stream after the block; each token alone."""
        _, of_attended, of_widened = _keys(key)
        before = _for_norm(self.norm_mlp, x_BTD)
        after = self._add(before, self.attention.project(values_HBTK), of_attended)
        after = checkpoint_name(after, "attended")
        normed = self.norm_mlp(before if self.parallel else after)
        after = self._add(after, self.mlp(_as_rows(normed, x_BTD)), of_widened)
        return _as_rows(after, x_BTD)

    def _add(self, x: jax.Array, y_BTD: jax.Array, key: jax.Array | None) -> jax.Array:
        """`x` [B, T, D] or [N, D], and what a sublayer adds to it."""
        y_BTD = dropout(scaled(y_BTD, self.residual_factor), self.dropout_residual, key)
        return x + (y_BTD if x.ndim == 3 else merge_tokens(y_BTD))


def _for_norm(norm: Norm, x_BTD: jax.Array) -> jax.Array:
    """Tokens as `norm` is best made: on a TPU those of an RMS norm merged, [N, D].

    It is then made again inside each product that reads it, which costs less there than to write
    it. That does not happen across a reshape, nor pay for a layer norm, which has more to compute.
    """
    on_tpu = device_kind().startswith("TPU")
    return merge_tokens(x_BTD) if norm.is_rms and on_tpu else x_BTD


def _as_rows(x: jax.Array, like_BTD: jax.Array) -> jax.Array:
    return x if x.ndim == 3 else split_tokens(x, like_BTD.shape[:2])


def _keys(key: jax.Array | None) -> tuple[jax.Array | None, ...]:
    """Those of a layer: of its attention weights, and of what attention and MLP add."""
    return (None,) * 3 if key is None else tuple(jax.random.split(key, 3))


class Ends(nnx.Module):
    """What comes before and after the blocks: embedding, learned positions, final norm, logits."""

    def __init__(self, c: ModelConfig, sequence_length: int, *, rngs: nnx.Rngs):
        self.config = c
        self.embed = Embedding(c.vocab_size, c.d_model, rngs=rngs)
        if c.positions == "learned":
            self.positions = Embedding(sequence_length, c.d_model, rngs=rngs)
        self.norm_final = Norm(c, c.d_model, c.bias == "all")
        if not c.tied:
            self.head = Projection(HEAD, c.sizes, INIT_STD, False, rngs)

    def enter(self, tokens_BT: jax.Array, positions_BT: jax.Array) -> jax.Array:
        """The residual stream [B, T, D] before the first block."""
        with jax.named_scope("embedding"):
            x_BTD = self.embed(tokens_BT)
            if self.config.positions == "learned":
                x_BTD += self.positions(positions_BT)
            return x_BTD

    def logits(self, x_BTD: jax.Array) -> jax.Array:
        """Logits, float32 [B, T, V], of the residual stream after the last block."""
        return logits(*self._leave(x_BTD), self.config.logit_softcap)

    def losses(self, x_BTD: jax.Array, targets_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
        """`head_losses` of the residual stream after the last block."""
        return head_losses(self.config.logit_softcap, *self._leave(x_BTD), targets_BT)

    def _leave(self, x_BTD: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The normed stream [B, T, D], and the matrix [V, D] that makes logits of it."""
        c, normed = self.config, self.norm_final(_for_norm(self.norm_final, x_BTD))
        normed_BTD = _as_rows(normed, x_BTD)
        head = self.embed.embedding if c.tied else self.head.kernel
        with jax.named_scope("loss_head"):
            return scaled(normed_BTD, c.logit_factor), head[...]


def init_params(c: ModelConfig, sequence_length: int, key: jax.Array) -> Any:
    """Fresh float32 parameters: normal with std 0.02, residual outputs divided by sqrt(2 L), all
    times the factors of `init_rules`.
    """
    rngs = nnx.Rngs(params=key)
    ends = Ends(c, sequence_length, rngs=rngs)
    stack = nnx.vmap(lambda rngs: Block(c, rngs=rngs), in_axes=(0,), out_axes=0)
    blocks = nnx.split_rngs(splits=c.n_layers)(stack)(rngs)
    params = _arrays(ends) | {"blocks": _arrays(blocks)}
    if not c.init_rules:
        return params
    factors = values(match_rules(c.init_rules, params, "model.init_rules"))
    return jax.tree.map(lambda w, factor: w * factor, params, factors)


@functools.cache
def param_shapes(c: ModelConfig, sequence_length: int) -> Any:
    """The tree of ShapeDtypeStructs of `init_params`."""
    return jax.eval_shape(lambda: init_params(c, sequence_length, jax.random.key(0)))


def count_params(params: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def forward(
    c: ModelConfig,
    params: Any,
    tokens_BT: jax.Array,
    key: jax.Array | None = None,
    gather_layer: Callable[[Any], Any] = lambda block: block,
    segments_BT: jax.Array | None = None,
) -> jax.Array:
    """Logits, float32 [B, T, V]; dropout is on if a `key` is given.

    With `segments_BT`, the number of each token's document in its row, documents do not see each
    other and each begins at position 0. `gather_layer` is applied to the parameters of one block
    just before it runs: the `fsdp` layout gathers them there.
    """
    ends, x_BTD = _stream(c, params, tokens_BT, key, gather_layer, segments_BT)
    return ends.logits(x_BTD)


def losses(
    c: ModelConfig,
    params: Any,
    tokens_BT: jax.Array,
    targets_BT: jax.Array,
    key: jax.Array | None,
    gather_layer: Callable[[Any], Any],
    segments_BT: jax.Array | None,
) -> tuple[jax.Array, jax.Array]:
    """The negative log-likelihood of each target and the logsumexp of its logits, float32 [B, T].

    Of the same logits as `forward`, and what training differentiates.
    """
    ends, x_BTD = _stream(c, params, tokens_BT, key, gather_layer, segments_BT)
    return ends.losses(x_BTD, targets_BT)


def _stream(
    c: ModelConfig,
    params: Any,
    tokens_BT: jax.Array,
    key: jax.Array | None,
    gather_layer: Callable[[Any], Any],
    segments_BT: jax.Array | None,
) -> tuple[Ends, jax.Array]:
    """The residual stream [B, T, D] after the last block, and the module that reads it."""
    ends = open_ends(c, params)
    embed_key, block_key = (None, None) if key is None else jax.random.split(key)
    positions_BT = token_positions(tokens_BT, segments_BT)
    x_BTD = ends.enter(tokens_BT, positions_BT)
    x_BTD = dropout(x_BTD, c.dropout_embedding, embed_key)
    angles = rotation(
        c, jnp.arange(tokens_BT.shape[1])[None] if segments_BT is None else positions_BT
    )

    def opened(layer: tuple[Any, jax.Array]) -> tuple[Block, jax.Array | None]:
        params, number = layer
        key = None if block_key is None else jax.random.fold_in(block_key, number)
        return open_block(c, gather_layer(params)), key

    def mix(x_BTD: jax.Array, layer: tuple[Any, jax.Array], window: int) -> jax.Array:
        def attend(heads: Heads, key: jax.Array | None) -> tuple[jax.Array, None]:
            return attend_causally(c, window, segments_BT, heads, key), None

        block, key = opened(layer)
        return block.mix(x_BTD, attend, angles, key)[0]

    def finish(x_BTD: jax.Array, values_HBTK: jax.Array, layer: Any) -> jax.Array:
        block, key = opened(layer)
        return block.finish(x_BTD, values_HBTK, key)

    def run(x_BTD: jax.Array, layer: Any, window: int) -> tuple[jax.Array, None]:
        return finish(x_BTD, mix(x_BTD, layer, window), layer), None

    # Inside a scan, CSE cannot merge the recomputation with the forward pass: the barriers of
    # prevent_cse would only block fusion.
    remat = partial(
        jax.checkpoint, policy=REMAT_POLICIES.get(c.remat), prevent_cse=not c.scan_layers
    )
    if c.remat == "selective":
        # JAX rounds what a checkpointed function saves and also uses: after a kernel, a pass over
        # memory. So the values, which are saved, leave one function and enter another.
        mix, finish = remat(mix, static_argnums=2), remat(finish)
    elif c.remat == "full":
        run = remat(run, static_argnums=2)
    x_BTD, _ = scan_layers(c, run, x_BTD, (params["blocks"], jnp.arange(c.n_layers)))
    return ends, x_BTD


def scan_layers(c: ModelConfig, run: Callable[..., Any], x_BTD: jax.Array, layers: Any) -> Any:
    """`jax.lax.scan` of `run(x, layer, window)`; leaves of `layers` have a leading dimension of
    layers. Each step runs one layer for each of the windows, so that they are constants.
    """
    windows = c.windows or (0,)
    period = len(windows)
    steps = c.n_layers // period

    def run_period(x_BTD: jax.Array, layers: Any) -> tuple[jax.Array, Any]:
        made = []
        for i, window in enumerate(windows):
            x_BTD, one = run(x_BTD, jax.tree.map(lambda leaf, i=i: leaf[i], layers), window)
            made.append(one)
        return x_BTD, jax.tree.map(lambda *leaves: jnp.stack(leaves), *made)

    with jax.named_scope("layers"):
        if period > 1 and steps == 1:  # JAX cannot give a `reduced` array a dimension of one step
            return run_period(x_BTD, layers)
        unroll = 1 if c.scan_layers else steps
        if period == 1:
            return jax.lax.scan(
                lambda x, one: run(x, one, windows[0]), x_BTD, layers, unroll=unroll
            )
        split = jax.tree.map(lambda leaf: leaf.reshape(steps, period, *leaf.shape[1:]), layers)
        x_BTD, made = jax.lax.scan(run_period, x_BTD, split, unroll=unroll)
        return x_BTD, jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), made)


def open_ends(c: ModelConfig, params: Any) -> Ends:
    """The module over all parameters outside the blocks."""
    learned = params.get("positions")
    sequence_length = learned["embedding"].shape[0] if learned else 0
    rest = {name: value for name, value in params.items() if name != "blocks"}
    return nnx.merge(_graphs(c, sequence_length)[0], rest)


def open_block(c: ModelConfig, params: Any) -> Block:
    """The module over the parameters of one layer."""
    return nnx.merge(_graphs(c, 0)[1], params)


@functools.cache
def _graphs(c: ModelConfig, sequence_length: int) -> tuple[Any, Any]:
    """The structure of the two modules, without arrays, built once."""
    ends = nnx.eval_shape(lambda: Ends(c, sequence_length, rngs=nnx.Rngs(0)))
    block = nnx.eval_shape(lambda: Block(c, rngs=nnx.Rngs(0)))
    return nnx.graphdef(ends), nnx.graphdef(block)


def _arrays(module: nnx.Module) -> Any:
    return nnx.to_pure_dict(nnx.state(module))
