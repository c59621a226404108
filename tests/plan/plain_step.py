"""A training step with automatic sharding: what `plan` must not let pass for the explicit one.

The same model but for positions and dropout, the same parameters in the same layout, with nothing
but `in_shardings`, `out_shardings` and sharding constraints; XLA decides where to communicate.
"""

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P

from gpt_pjit.core.sharding import AXES, BATCH_AXES
from gpt_pjit.core.training.optimizer import make_optimizer


def plain_step(config, program):
    """The lowered step of `config`, for the devices and with the placement of `program`."""
    mesh = Mesh(program.mesh.devices, AXES, axis_types=(AxisType.Auto,) * len(AXES))
    c, microbatches = config.model, config.optim.microbatches
    tx = make_optimizer(config, program.state.params)
    dtype = jnp.dtype(c.dtype)

    def on(spec):
        return NamedSharding(mesh, spec)

    def norm(x, scale):
        x = x.astype(jnp.float32)
        x = x - x.mean(-1, keepdims=True)
        x = x * jax.lax.rsqrt((x**2).mean(-1, keepdims=True) + 1e-5)
        return (x * scale[None, None]).astype(dtype)

    def block(x, p):
        h = norm(x, p["norm_attention"]["scale"])
        qkv = jnp.einsum("btd,dchk->cbthk", h, p["attention"]["qkv"]["kernel"])
        scores = jnp.einsum("bthk,bshk->bhts", qkv[0], qkv[1], preferred_element_type=jnp.float32)
        scores = jnp.where(jnp.tri(x.shape[1], dtype=bool)[None, None], scores, -1e30)
        weights = jax.nn.softmax(scores).astype(dtype)
        values = jnp.einsum("bhts,bshk->bthk", weights, qkv[2])
        x = x + jnp.einsum("bthk,hkd->btd", values, p["attention"]["out"]["kernel"])
        h = jax.nn.gelu(norm(x, p["norm_mlp"]["scale"]) @ p["mlp"]["up"]["kernel"])
        return x + h @ p["mlp"]["down"]["kernel"]

    def loss(params, tokens):
        weights = jax.tree.map(lambda w: w.astype(dtype) if w.ndim > 1 else w, params)
        x = weights["embed"]["embedding"][tokens[:, :-1]]
        x = jax.lax.with_sharding_constraint(x, on(P(BATCH_AXES, None, None)))
        layer = jax.checkpoint(block)
        x, _ = jax.lax.scan(lambda x, p: (layer(x, p), None), x, weights["blocks"])
        x = norm(x, weights["norm_final"]["scale"])
        logits = jnp.einsum("btd,vd->btv", x, weights["embed"]["embedding"])
        return optax.softmax_cross_entropy_with_integer_labels(
            logits.astype(jnp.float32), tokens[:, 1:]
        ).mean()

    def step(state, tokens):
        def microbatch(total, rows):
            gradient = jax.grad(loss)(state.params, rows)
            total = jax.tree.map(jnp.add, total, gradient)
            return jax.tree.map(jax.lax.with_sharding_constraint, total, gradients), None

        rows = tokens.reshape(-1, microbatches, tokens.shape[1]).swapaxes(0, 1)
        rows = jax.lax.with_sharding_constraint(rows, on(P(None, BATCH_AXES, None)))
        total = jax.tree.map(jnp.zeros_like, state.params)
        total, _ = jax.lax.scan(microbatch, total, rows)
        updates, opt_state = tx.update(total, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return state._replace(step=state.step + 1, params=params, opt_state=opt_state)

    gradients = jax.tree.map(on, program.model.placement.gradients)
    shardings = jax.tree.map(lambda leaf: on(leaf.sharding.spec), program.state)
    plain = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), program.state)
    tokens = jax.ShapeDtypeStruct(program.tokens.shape, program.tokens.dtype)
    jitted = jax.jit(
        step,
        in_shardings=(shardings, on(program.tokens.sharding.spec)),
        out_shardings=shardings,
        donate_argnums=0,
    )
    return jitted.lower(plain, tokens)
