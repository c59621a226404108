"""Equal losses on every mesh and layout, precision, accumulation, placement of the state."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_pjit.core.model import Model, blocks, dropout
from gpt_pjit.core.model.gpt import SAVED
from gpt_pjit.core.sharding import LAYOUTS, axes_of, paths_and_leaves
from tests.helpers import (
    BLOCKS,
    equations,
    load_config,
    program_on,
    random_tokens,
    run_steps,
    tiny,
    with_fields,
)

STEPS = 5
MESHES = [(1, 8, 1), (1, 4, 2), (1, 2, 4), (1, 32, 1), (2, 2, 2)]


def with_dropout(block="alibi", layout="zero", **optim):
    dropouts = {f"dropout_{place}": 0.1 for place in ("residual", "attention", "embedding")}
    return tiny(
        model=dropouts | BLOCKS[block],
        optim={"microbatches": 2, "warmup_steps": 2} | optim,
        partition={"layout": layout},
    )


@functools.cache
def on_one_device(config):
    return run_steps(config, program_on(config, (1, 1, 1)), STEPS)[1]


QUICK = ("llama", "fsdp", (1, 2, 4))  # 2 heads of keys and values on 4 devices


# Every layout on every mesh, with the blocks in turn; a third of them has each of the three.
TURNS = [
    (block, *pair)
    for block, pair in zip(
        itertools.cycle(BLOCKS), itertools.product(LAYOUTS, MESHES), strict=False
    )
]
SLOW = [("alibi", "zero", (1, 4, 2)), *TURNS[::3]]  # all others are long


def marks_of(case):
    if case == QUICK:
        return []
    return [pytest.mark.slow] if case in SLOW else [pytest.mark.slow, pytest.mark.long]


@pytest.mark.parametrize(
    ("block", "layout", "shape"),
    [
        pytest.param(*case, marks=marks_of(case))
        for block in BLOCKS
        for layout in LAYOUTS
        for shape in MESHES
        for case in [(block, layout, shape)]
        if block == "alibi" or layout == "fsdp" or shape == (2, 2, 2) or case in TURNS
    ],
    ids=str,
)
def test_losses_are_equal_on_every_mesh_and_layout(block, layout, shape):
    z_loss = {"z_loss": 1e-3} if block in ("llama", "nanochat") else {}
    config = with_dropout(block, layout, **z_loss)
    expected = on_one_device(with_dropout(block, **z_loss))
    state, history = run_steps(config, program_on(config, shape), STEPS)
    for name in ("train/loss", "train/grad_norm"):
        wanted = [metrics[name] for metrics in expected]
        np.testing.assert_allclose([m[name] for m in history], wanted, rtol=0, atol=1e-5)
    assert int(state.step) == STEPS


@pytest.mark.slow
@pytest.mark.parametrize(
    ("block", "shape"),
    [("llama", (2, 2, 2)), ("alibi", (1, 4, 2)), ("nanochat", (1, 2, 4))],
    ids=str,
)
def test_the_attention_kernel_gives_the_losses_of_the_plain_form(block, shape):
    plain = with_dropout(block)
    expected, config = on_one_device(plain), with_fields(plain, {"model.attention": "kernel"})
    _, history = run_steps(config, program_on(config, shape), STEPS)
    for name in ("train/loss", "train/grad_norm"):
        wanted = [metrics[name] for metrics in expected]
        np.testing.assert_allclose([m[name] for m in history], wanted, rtol=0, atol=1e-5)


def test_z_loss_is_in_the_gradient_and_not_in_the_loss():
    """A logsumexp is about log(512), so the weight multiplies the gradient of it by 12."""
    model = {"n_layers": 1, "d_model": 16, "d_ff": 16, "vocab_size": 512}
    plain, pulled = (
        run_steps(config, program_on(config, (1, 1, 1)), 1)[1][0]
        for config in (tiny(model=model, optim={"z_loss": weight}) for weight in (0.0, 1.0))
    )
    assert pulled["train/loss"] == plain["train/loss"]
    assert pulled["train/grad_norm"] > 1.1 * plain["train/grad_norm"]


@pytest.mark.slow
def test_every_dropout_draw_has_its_own_key_and_the_same_one_again(monkeypatch):
    """Keys differ by seed, step, microbatch, layer and place, and by nothing else."""
    drawn = []

    draw_mask = dropout.draw_mask

    def recording(key, *arguments):
        jax.debug.callback(
            lambda data: drawn.append(tuple(data.tolist())), jax.random.key_data(key)
        )
        return draw_mask(key, *arguments)

    for module in (blocks, dropout):
        monkeypatch.setattr(module, "draw_mask", recording)

    def keys_of(seed):
        drawn.clear()
        config = with_fields(with_dropout(), {"seed": seed})
        run_steps(config, program_on(config, (1, 1, 1)), 2)
        jax.effects_barrier()
        return list(drawn)

    first, second, again = keys_of(0), keys_of(1), keys_of(0)
    steps, microbatches, layers, places = 2, 2, 2, 3
    assert len(first) == steps * microbatches * (1 + layers * places)  # 1: the embedding
    assert len(set(first + second)) == 2 * len(first)
    assert sorted(again) == sorted(first)


def test_accumulation_over_microbatches_equals_one_batch():
    results = []
    for microbatches in (1, 4):
        config = tiny(model={"n_layers": 1}, optim={"microbatches": microbatches})
        _, history = run_steps(config, program_on(config, (1, 4, 1)), STEPS)
        results.append([list(metrics.values()) for metrics in history])
    np.testing.assert_allclose(results[1], results[0], atol=1e-5)


@pytest.mark.parametrize("layout", ["zero1", "zero", "fsdp"])
def test_optimizer_state_is_split_over_all_devices(layout):
    """Its bytes on each device are the total / N, plus the replicated leaves, which are vectors."""
    config = tiny(partition={"layout": layout})
    program = program_on(config, (1, 8, 4))
    with jax.set_mesh(program.mesh):
        opt_state = program.init(jax.random.key(0)).opt_state
    whole, replicated, on_device_0 = 0, 0, 0
    for path, leaf in paths_and_leaves(opt_state):
        on_device_0 += leaf.addressable_shards[0].data.nbytes
        if axes_of(leaf.sharding.spec):
            whole += leaf.nbytes
        else:
            replicated += leaf.nbytes
            assert path.endswith(("/scale", "count")), path
    assert on_device_0 == whole // 32 + replicated
    assert replicated < 0.02 * whole


@pytest.mark.slow
def test_training_learns_the_batch():
    config = tiny(optim={"warmup_steps": 1, "peak_lr": 1e-2})
    program = program_on(config, (1, 1, 1))
    with jax.set_mesh(program.mesh):
        state = program.init(jax.random.key(0))
        tokens = jax.device_put(random_tokens(config, 0), program.tokens.sharding)
        losses = []
        for _ in range(30):
            state, metrics = program.train_step(state, tokens)
            losses.append(float(metrics["train/loss"]))
    assert losses[0] == pytest.approx(np.log(512), abs=0.1)
    assert losses[-1] < losses[0] - 1


def test_decay_and_schedule():
    from gpt_pjit.core.training import learning_rate

    config = load_config("580m")
    schedule = learning_rate(config.optim)
    assert float(schedule(2_000)) == pytest.approx(2.5e-4)
    assert float(schedule(97_000)) == pytest.approx(2.5e-5)
    assert 0 < float(schedule(0)) < 2e-7
    # With no gradient, only decay moves a parameter: matrices shrink, vectors stay.
    from gpt_pjit.core.model import param_shapes
    from gpt_pjit.core.training.optimizer import make_optimizer

    config = tiny(optim={"warmup_steps": 0, "peak_lr": 0.5})
    params = jax.tree.map(lambda s: jnp.ones(s.shape), param_shapes(config.model, 32))
    tx = make_optimizer(config, params)
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = jax.jit(tx.update)(zeros, tx.init(params), params)
    for path, update in paths_and_leaves(updates):
        expected = -0.05 if path.endswith(("kernel", "embedding")) else 0.0
        np.testing.assert_allclose(update, expected, atol=1e-7, err_msg=path)


# Precision: tensors that are named in the program, and what must never be narrower than float32.
NAMED = {"scores", "softmax", "weights_logsumexp", "logits", "logsumexp"}
NAMED |= {"norm_mean", "norm_square", "rotation"}


def narrow_tensors(config):
    """Names of the tensors of NAMED, and of accumulators and state, that are not float32."""
    program = program_on(config, (1, 4, 2))
    with jax.set_mesh(program.mesh):
        jaxpr = jax.make_jaxpr(program.train_step)(program.state, program.tokens)
    seen, narrow = set(), set()
    for _, equation in equations(jaxpr.jaxpr):
        if equation.primitive.name == "name":
            seen.add(equation.params["name"])
            if equation.params["name"] in NAMED and equation.outvars[0].aval.dtype != jnp.float32:
                narrow.add(equation.params["name"])
        if equation.primitive.name == "scan" and equation.params["length"] == 2:
            consts, carries = equation.params["num_consts"], equation.params["num_carry"]
            for variable in equation.invars[consts : consts + carries]:
                if variable.aval.dtype != jnp.float32:
                    narrow.add("gradient accumulator")
    c = config.model
    absent = {"norm_mean"} if c.norm == "rms" else set()
    absent |= set() if c.positions == "rope" else {"rotation"}
    assert seen | set(SAVED) == NAMED - absent | set(SAVED)
    assert seen >= NAMED - absent
    for path, leaf in paths_and_leaves(program.state):
        if leaf.dtype not in (jnp.float32, jnp.int32):
            narrow.add(path)
    return narrow


def bfloat16(block="alibi"):
    sizes = {"dtype": "bfloat16", "n_layers": 6 if BLOCKS[block].get("windows") else 3}
    return tiny(model=BLOCKS[block] | sizes, optim={"microbatches": 2, "z_loss": 1e-4})


@pytest.mark.parametrize("block", BLOCKS)
def test_what_must_be_float32_is(block):
    assert narrow_tensors(bfloat16(block)) == set()


@pytest.mark.parametrize(
    ("module", "caught"),
    [
        ("blocks", {"scores"}),
        ("loss", {"logits", "logsumexp"}),
        ("layers", {"norm_mean", "norm_square"}),
        ("positions", {"rotation"}),
    ],
)
def test_a_planted_bfloat16_is_caught(monkeypatch, module, caught):
    import importlib

    target = importlib.import_module(f"gpt_pjit.core.model.{module}")

    class Narrow:
        float32 = jnp.bfloat16

        def __getattr__(self, name):
            return getattr(jnp, name)

    monkeypatch.setattr(target, "jnp", Narrow())
    assert caught <= narrow_tensors(bfloat16("neox"))


@pytest.mark.parametrize("block", BLOCKS)
def test_matrix_products_take_bfloat16(block):
    program = program_on(bfloat16(block), (1, 1, 1))
    with jax.set_mesh(program.mesh):
        jaxpr = jax.make_jaxpr(program.train_step)(program.state, program.tokens)
    products = [e for _, e in equations(jaxpr.jaxpr) if is_matrix_product(e)]
    assert len(products) > 20
    wide = [e for e in products if any(v.aval.dtype != jnp.bfloat16 for v in e.invars)]
    assert not wide, wide


def is_matrix_product(equation):
    """A dot_general that sums, with dimensions that only one operand has, on both sides."""
    if equation.primitive.name != "dot_general":
        return False
    contracted, batched = equation.params["dimension_numbers"]
    return bool(contracted[0]) and all(
        variable.aval.ndim > len(summed) + len(shared)
        for variable, summed, shared in zip(equation.invars, contracted, batched, strict=True)
    )


# Every dimension that a config can make 1, on meshes that would split it.
ONES = [
    ({}, {"batch_size": 1}, {}, (1, 1, 1)),
    ({}, {"batch_size": 4}, {"microbatches": 4}, (1, 1, 1)),
    ({}, {"batch_size": 8}, {}, (1, 8, 1)),
    ({}, {"batch_size": 8}, {"microbatches": 4}, (2, 1, 2)),
    ({}, {"batch_size": 4, "sequence_length": 2}, {}, (1, 4, 2)),
    ({"n_heads": 1, "d_ff": 1}, {"batch_size": 4}, {}, (1, 4, 1)),
    ({"n_layers": 1, "vocab_size": 4}, {"batch_size": 4}, {}, (1, 1, 4)),
    ({"n_heads": 1, "d_model": 1, "d_ff": 1, "vocab_size": 2}, {"batch_size": 1}, {}, (1, 1, 1)),
    ({"n_layers": 2, "windows": (4, 0)}, {"batch_size": 4}, {}, (1, 4, 1)),  # one step of the scan
]
DROPOUTS = {"dropout_attention": 0.1, "dropout_residual": 0.1}
KINDS = {
    "plain": {"n_layers": 1},
    "optional": {"bias": "all", "positions": "learned"},
    "unrolled": {"scan_layers": False},
    "bfloat16": {"dtype": "bfloat16", "remat": "full"} | DROPOUTS,
}


def marks_of_one(place, kind):
    """Some plain ones are quick; and every shape is trained with one of the others, in turn."""
    if kind == "plain":
        return [pytest.mark.slow] * (place in (2, 3, 4, 6))
    often = kind == list(KINDS)[1 + place % 3]
    return [pytest.mark.slow] if often else [pytest.mark.slow, pytest.mark.long]


@pytest.mark.parametrize(
    ("kind", "model", "data", "optim", "shape"),
    [
        pytest.param(kind, *case, marks=marks_of_one(place, name), id=f"{name}-{case}")
        for name, kind in KINDS.items()
        for place, case in enumerate(ONES)
    ],
)
def test_shapes_of_size_1_train(kind, model, data, optim, shape):
    config = tiny(model=kind | model, data=data, optim=optim, partition={"layout": "fsdp"})
    _, one = run_steps(config, program_on(config, shape), 1)
    assert np.isfinite(one[0]["train/loss"])


@pytest.mark.slow
def test_a_batch_of_empty_documents_changes_nothing_but_by_decay():
    config = tiny(optim={"weight_decay": 0.0})
    program = program_on(config, (1, 4, 1))
    with jax.set_mesh(program.mesh):
        state = program.init(jax.random.key(0))
        before = jax.device_get(state.params)
        tokens = jax.device_put(random_tokens(config, 0), program.tokens.sharding)
        alone = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
        segments = jax.device_put(alone, program.tokens.sharding)
        state, metrics = program.train_step(state, tokens, segments)
    assert float(metrics["train/loss"]) == 0
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state.params), before)


def test_batch_that_does_not_divide():
    from gpt_pjit.core.errors import ConfigError

    with pytest.raises(ConfigError, match=r"data.batch_size=20: must be divisible by .* = 8"):
        program_on(with_fields(tiny(), {"data.batch_size": 20}), (1, 8, 1))


MUON = pytest.param(((r"blocks/.*/kernel", "muon"), (".*", "adamw")), marks=pytest.mark.slow)


@pytest.mark.parametrize("rules", [(), MUON], ids=["adamw", "muon"])
@pytest.mark.parametrize("bad", ["loss", pytest.param("gradient", marks=pytest.mark.slow)])
@pytest.mark.parametrize("shape", [(1, 4, 2), pytest.param((1, 1, 1), marks=pytest.mark.slow)])
def test_a_step_that_is_not_finite_changes_only_the_counters(monkeypatch, shape, bad, rules):
    """The step after it trains on."""
    losses = Model.losses

    def losses_with_nan(model, weights, tokens, targets, *rest):
        wrong = (targets == 7).any(axis=-1, keepdims=True)
        nll, lse = losses(model, weights, tokens, targets, *rest)
        if bad == "loss":
            return jnp.where(wrong, jnp.nan, nll), lse
        zero = jnp.where(wrong, nll - jax.lax.stop_gradient(nll), 1)
        return nll + jnp.sqrt(zero) - jnp.where(wrong, 0, 1), lse  # its slope at 0 is infinite

    monkeypatch.setattr(Model, "losses", losses_with_nan)
    config = tiny(optim={"rules": rules})
    program = program_on(config, shape)
    with jax.set_mesh(program.mesh):
        states, metrics = [program.init(jax.random.key(1))], []
        for step, poisoned in enumerate([False, True, False]):
            tokens = np.where((found := random_tokens(config, step)) == 7, 8, found)
            tokens[3, 5] = 7 if poisoned else 8
            before = jax.tree.map(jnp.copy, states[-1])  # the step donates its input
            placed = jax.device_put(tokens, program.tokens.sharding)
            state, found = program.train_step(before, placed)
            states.append(state)
            metrics.append(jax.device_get(found))
    finite = [bool(np.isfinite(m["train/loss"] + m["train/grad_norm"])) for m in metrics]
    assert finite == [True, False, True]
    assert np.isnan(metrics[1]["train/loss"]) == (bad == "loss")
    for path, old in paths_and_leaves(states[1]):
        new = dict(paths_and_leaves(states[2]))[path]
        if np.issubdtype(old.dtype, np.integer):
            assert new == old + 1, path
        else:
            assert np.array_equal(new, old), path
    assert not np.array_equal(*(s.params["embed"]["embedding"] for s in states[2:]))
