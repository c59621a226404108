"""Muon: each matrix is orthogonalised as the matrix that it is, on every mesh and layout alike."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from gpt_pjit.core.checkpoints import Checkpointer
from gpt_pjit.core.sharding import LAYOUTS, make_mesh, paths_and_leaves
from gpt_pjit.core.training import dealing
from gpt_pjit.core.training.muon import orthogonalize
from tests.helpers import BLOCKS, program_on, run_steps, tiny

MUON = ((r"blocks/.*/kernel", ("muon", 0.02)), (r".*", "adamw"))
MESHES = [(1, 8, 1), (1, 4, 2), (1, 2, 4), (2, 2, 2), (1, 32, 1)]
STEPS = 5


def with_muon(block, layout="zero"):
    optim = {"rules": MUON, "warmup_steps": 2, "microbatches": 2}
    return tiny(model=BLOCKS[block], optim=optim, partition={"layout": layout})


@functools.cache
def on_one_device(block):
    config = with_muon(block)
    return run_steps(config, program_on(config, (1, 1, 1)), STEPS)[1]


SOME = [  # all others are long
    ("alibi", "zero", (1, 8, 1)),
    ("alibi", "zero", (2, 2, 2)),
    ("llama", "fsdp", (2, 2, 2)),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("block", "layout", "shape"),
    [
        pytest.param(*case, marks=[] if case in SOME else pytest.mark.long)
        for block in ("alibi", "llama")
        for layout in LAYOUTS
        for shape in MESHES
        for case in [(block, layout, shape)]
    ],
    ids=str,
)
def test_losses_are_those_of_one_device(block, layout, shape):
    config = with_muon(block, layout)
    _, history = run_steps(config, program_on(config, shape), STEPS)
    for name in ("train/loss", "train/grad_norm"):
        wanted = [metrics[name] for metrics in on_one_device(block)]
        np.testing.assert_allclose([m[name] for m in history], wanted, rtol=0, atol=1e-5)


def newton_schulz(matrix):
    """The iteration as https://kellerjordan.github.io/posts/muon writes it, in float64."""
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / np.linalg.norm(x)
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x


# Letters, shape, and the spec of the table; one matrix of a layer is [inputs, outputs].
KERNELS = {
    "qkv": ("LDCHK", (3, 32, 3, 4, 8), P(None, "data", None, "tensor", None)),
    "kv": ("LDCGK", (2, 32, 2, 1, 8), P(None, "data", None, None, None)),
    "out": ("LHKD", (3, 4, 8, 16), P(None, "tensor", None, "data")),
    "up": ("LDF", (5, 16, 48), P(None, "data", "tensor")),
    "down": ("LFD", (8, 48, 16), P(None, "tensor", "data")),
}


def matrices(dimensions, array):
    """Each [inputs, outputs] of a stacked parameter: one of a layer, or of q, k and v."""
    for layer in array:
        letters = dimensions[1:]
        parts = np.moveaxis(layer, letters.index("C"), 0) if "C" in letters else [layer]
        for part in parts:
            inputs = part.shape[0] if letters[0] == "D" else part.size // part.shape[-1]
            yield part.reshape(inputs, -1)


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("shape", [(1, 4, 2), (2, 2, 2)], ids=str)
def test_each_projection_of_each_layer_is_one_matrix(name, shape):
    dimensions, sizes, spec = KERNELS[name]
    update = np.random.default_rng(0).normal(size=sizes).astype(np.float32)
    with jax.set_mesh(make_mesh(shape, jax.devices()[:8])):
        placed = jax.device_put(update, spec)
        result = jax.jit(orthogonalize, static_argnums=(1, 2))(placed, dimensions, "float32")
    assert result.sharding.spec == spec
    pairs = zip(matrices(dimensions, update), matrices(dimensions, np.asarray(result)), strict=True)
    for before, after in pairs:
        inputs, outputs = before.shape
        expected = newton_schulz(before.astype(np.float64)) * max(1, outputs / inputs) ** 0.5
        np.testing.assert_allclose(after, expected, atol=1e-4)


def test_a_device_holds_whole_matrices_and_none_holds_them_all():
    """18 layers of three matrices over 32 devices: 54, padded to 64, are 2 on each."""
    sizes = {"replica": 1, "data": 16, "tensor": 2}
    spec = P(None, "data", None, "tensor", None)
    deal = dealing("LDCHK", (18, 1536, 3, 12, 128), spec, sizes)
    assert deal.shape == (64, 1536, 12, 128)
    assert deal.specs[0] == P(None, "data", "tensor", None)
    assert deal.specs[-1] == P(("replica", "data", "tensor"), None, None, None)
    assert deal.numbers == optax.contrib.MuonDimensionNumbers((1,), (2, 3))


@pytest.mark.slow
def test_a_checkpoint_is_restored_on_another_mesh(tmp_path):
    """It is restored there bit for bit, and its momentum is split over that mesh's axes."""
    config = with_muon("alibi")
    before, after = program_on(config, (1, 8, 1)), program_on(config, (1, 2, 4))
    state, _ = run_steps(config, before, 2)
    with jax.set_mesh(before.mesh):
        checkpointer = Checkpointer(tmp_path, keep=1)
        checkpointer.save(2, state)
        checkpointer.close()
    with jax.set_mesh(after.mesh):
        step, restored = Checkpointer(tmp_path, keep=1).restore_newest(after.state)
    assert step == 2
    traces = 0
    for path, leaf in paths_and_leaves(restored):
        np.testing.assert_array_equal(leaf, dict(paths_and_leaves(state))[path])
        if "/trace/" in path:
            traces += 1
            assert {"data", "tensor"} <= set(leaf.sharding.spec), path
    assert traces == 4


def test_newton_schulz_runs_in_the_compute_dtype_and_momentum_is_float32():
    config = tiny(model={"dtype": "bfloat16"}, optim={"rules": MUON})
    state = program_on(config, (1, 4, 2)).state
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {
        jnp.dtype("float32"),
        jnp.dtype("int32"),
    }
    x = jnp.ones((2, 8, 16))
    with jax.set_mesh(make_mesh((1, 1, 1), jax.devices()[:1])):
        lowered = jax.jit(orthogonalize, static_argnums=(1, 2)).lower(x, "LDF", "bfloat16")
    products = [line for line in lowered.as_text().splitlines() if "dot_general" in line]
    assert products
    assert all("bf16" in line and "f32" not in line.replace("bf16", "") for line in products)
