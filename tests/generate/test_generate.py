"""With the cache a model writes what it writes without, for any batch, on any mesh."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_pjit.core.errors import ConfigError
from gpt_pjit.core.model import QUERY_BLOCK
from gpt_pjit.generate import EMPTY, Sampling, extend, stream, with_slots
from gpt_pjit.generate.decode import decode, draw, prefill
from tests.generate.conftest import LEARNED, model
from tests.generate.reference import generate, recompute
from tests.helpers import BLOCKS, equations

PROMPTS = [[1, 2, 3], [], [9] * 5 + list(range(30)), [7]]
TOKENS = 48  # the same in several tests, which so share their programs
EOT = 256


def until_end(ids):
    ids = list(ids)
    return ids[: ids.index(EOT)] if EOT in ids else ids


@pytest.mark.parametrize(
    "fields",
    [
        {"n_layers": 3, "scan_layers": True},
        BLOCKS["llama"],
        *(
            pytest.param(fields, marks=pytest.mark.slow)
            for fields in (
                BLOCKS["nanochat"] | {"scan_layers": True},
                {"positions": "none", "n_heads": 2, "remat": "full"},
                BLOCKS["gpt2"],
                BLOCKS["neox"],
                BLOCKS["grouped"],
            )
        ),
    ],
    ids=str,
)
def test_greedy_text_is_that_of_recomputing_each_prompt_alone(fields):
    """To the token, in float32, from prompts of unequal length, to the 95th position and more."""
    trained = model(**fields)
    n_tokens = 60
    written = generate(trained, PROMPTS, max_new_tokens=n_tokens)
    for prompt, ids in zip(PROMPTS, written, strict=True):
        assert ids == until_end(recompute(trained, [prompt or [EOT]], n_tokens)[0])
    assert len({token for ids in written for token in ids}) > 20


@pytest.mark.slow
def test_it_goes_on_beyond_four_times_the_training_context(trained):
    length = trained.config.data.sequence_length
    prompt = [[i % 250 for i in range(3 * length)]]  # read in more than one block of queries
    assert len(prompt[0]) > QUERY_BLOCK
    written = generate(trained, prompt, max_new_tokens=length + 5)
    assert written == [until_end(recompute(trained, prompt, length + 5)[0])]


def test_bfloat16_writes_tokens_that_recomputing_finds_as_likely():
    """Rounding differs with the shapes of the products, so near ties may fall either way."""
    trained = model(dtype="bfloat16")
    prompt = PROMPTS[2]
    (written,) = generate(trained, [prompt], max_new_tokens=60)
    with jax.set_mesh(trained.mesh):
        logits = trained.model.forward(trained.weights, jnp.asarray([prompt + written], jnp.int32))
    logits = np.asarray(logits)[0, len(prompt) - 1 : -1, : EOT + 1]
    chosen = logits[np.arange(len(written)), written]
    assert (logits.max(axis=-1) - chosen).max() <= 2**-7 * np.abs(logits).max()


@pytest.mark.parametrize("positions", ["alibi", "learned"])
def test_logits_of_rows_of_unequal_length_are_those_of_each_alone(positions):
    """After the prompt and after two tokens more; to the bit where only the other rows change."""
    trained = model(positions=positions, n_layers=1)
    prompts, length = [[1, 2, 3], list(range(16)), [4]], 16
    more = np.array([[5, 6], [7, 8], [9, 10]], np.int32)

    @jax.jit
    def run(tokens, positions, new):
        found, cache = extend(trained.model, trained.weights, tokens, positions)
        found, cache = [found], with_slots(cache, length + 4)
        for i in range(2):
            at = jnp.sum(positions < EMPTY, axis=1, keepdims=True) + i
            step = extend(trained.model, trained.weights, new[:, i : i + 1], at, cache, length + i)
            found, cache = [*found, step[0]], step[1]
        return jnp.stack(found, axis=1)

    def logits_of(rows):
        tokens = np.zeros((len(rows), length), np.int32)
        positions = np.full((len(rows), length), EMPTY, np.int32)
        for row, number in enumerate(rows):
            size = len(prompts[number])
            tokens[row, :size], positions[row, :size] = prompts[number], range(size)
        with jax.set_mesh(trained.mesh):
            return np.asarray(run(*map(jnp.asarray, (tokens, positions, more[list(rows)]))))

    together, others = logits_of([0, 1, 2]), logits_of([0, 2, 1])
    np.testing.assert_array_equal(together[0], others[0])
    forward = jax.jit(trained.model.forward)
    for row, prompt in enumerate(prompts):
        whole = np.array([[*prompt, *more[row]]], np.int32)
        with jax.set_mesh(trained.mesh):
            alone = forward(trained.weights, jnp.asarray(whole))[0, len(prompt) - 1 :]
        np.testing.assert_allclose(together[row], alone, atol=2e-6)


@pytest.mark.parametrize(
    ("shape", "layout"),
    [((1, 2, 2), "fsdp"), pytest.param((2, 2, 2), "zero", marks=pytest.mark.slow)],
    ids=str,
)
def test_a_mesh_changes_nothing(trained, shape, layout):
    flags = {"max_new_tokens": TOKENS, "temperature": 1.0}
    assert generate(model(shape, layout), PROMPTS, **flags) == generate(trained, PROMPTS, **flags)


def test_few_heads_of_keys_and_values_are_copied_to_more_devices():
    flags = {"max_new_tokens": TOKENS, "temperature": 1.0}
    one, four = (model(shape, **BLOCKS["llama"]) for shape in ((1, 1, 1), (1, 1, 4)))
    assert generate(four, PROMPTS, **flags) == generate(one, PROMPTS, **flags)


def test_the_cache_is_split_over_batch_and_heads():
    trained = model((2, 2, 2))
    rows = jax.device_put(
        np.ones((4, 16), np.int32), jax.NamedSharding(trained.mesh, jax.P(("replica", "data")))
    )
    with jax.set_mesh(trained.mesh):
        state = prefill(trained.model, trained.weights, rows, rows[:, 0], rows[:, 0], slots=32)
    layers, heads, head_size = 2, 4, 16
    for part in (state.cache.keys_LGBSK, state.cache.values_LGBSK):
        assert part.shape == (layers, heads, 4, 32, head_size)
        assert {shard.data.shape for shard in part.addressable_shards} == {
            (layers, heads // 2, 1, 32, head_size)
        }


def test_a_prompt_takes_no_memory_of_the_size_of_its_scores(trained):
    heads, length = trained.config.model.n_heads, 4096
    row = jax.ShapeDtypeStruct((1,), jnp.int32, sharding=jax.NamedSharding(trained.mesh, jax.P()))
    rows = row.update(shape=(1, length))
    with jax.set_mesh(trained.mesh):
        lowered = prefill.lower(trained.model, trained.weights, rows, row, row, slots=length)
        peak = lowered.compile().memory_analysis().temp_size_in_bytes
    assert peak < heads * length**2 * 4 / 4


def test_a_draw_depends_on_seed_and_prompt_and_not_on_the_rest(trained):
    flags = {"max_new_tokens": TOKENS, "temperature": 1.0, "seed": 3}
    first = generate(trained, PROMPTS, **flags)
    assert generate(trained, PROMPTS, **flags) == first
    assert generate(trained, PROMPTS[::-1], **flags) == first[::-1]
    assert generate(trained, PROMPTS, batch_size=1, **flags) == first
    assert generate(trained, PROMPTS[2:3], **flags) == first[2:3]
    assert generate(trained, PROMPTS, **flags | {"seed": 4})[0] != first[0]
    samples = generate(trained, [PROMPTS[0], PROMPTS[2], PROMPTS[0], PROMPTS[0]], **flags)
    assert samples[:2] == [first[0], first[2]]
    assert len({tuple(ids) for ids in samples}) == 4


def test_one_run_compiles_once(trained):
    """Also over several batches, of which the last is not full; and so does a run like it."""
    before = prefill._cache_size(), decode._cache_size()
    rows = [[1], [2] * 20, [3] * 31, [4] * 9, [5] * 17]
    flags = {"max_new_tokens": 70, "batch_size": 2, "temperature": 1.0, "top_k": 17}
    generate(trained, rows, **flags)
    assert (prefill._cache_size(), decode._cache_size()) == (before[0] + 1, before[1] + 1)
    generate(trained, rows[::-1], **flags | {"seed": 1, "max_new_tokens": 65})
    assert (prefill._cache_size(), decode._cache_size()) == (before[0] + 1, before[1] + 1)


def test_text_comes_in_chunks_and_a_batch_ends_when_all_its_rows_have(trained):
    looks = stream(trained, PROMPTS, TOKENS - 5, Sampling(1.0))
    grown = [[row.text for row in rows] for rows in looks]
    assert len(grown) == 3  # 16 + 16 + 11 tokens
    for earlier, later in itertools.pairwise(grown):
        assert all(new.startswith(old) for old, new in zip(earlier, later, strict=True))
    stops = tuple(chr(i) for i in range(128))
    (rows,) = stream(trained, PROMPTS, TOKENS, Sampling(1.0), stops)
    assert {row.finish_reason for row in rows} == {"stop"}


def test_learned_positions_end_with_a_reason():
    trained = model(positions="learned", n_layers=1)
    prompts = [list(range(LEARNED)), list(range(LEARNED - 10)), [1] * 20]
    *_, rows = stream(trained, prompts, 16, Sampling())
    assert [(len(row.tokens), row.finish_reason) for row in rows] == [
        (1, "context"),
        (11, "context"),
        (16, "length"),
    ]
    assert rows[1].tokens == recompute(trained, prompts[1:2], 10)[0].tolist() + rows[1].tokens[10:]
    with pytest.raises(
        ConfigError, match=r"a prompt has 97 tokens; the model has learned 96 positions"
    ):
        generate(trained, [[1], *[[1] * 97] * 3], max_new_tokens=1)


def test_all_that_is_wrong_is_said_at_once(trained):
    with pytest.raises(ConfigError) as error:
        generate(
            trained,
            [[1]],
            max_new_tokens=0,
            temperature=-1.0,
            top_k=-1,
            top_p=1.5,
            stop=["a", ""],
            batch_size=0,
        )
    fields = ("max_new_tokens", "batch_size", "temperature", "top_k", "top_p", "stop")
    for problem, field in zip(error.value.problems, fields, strict=True):
        assert str(problem).startswith(field)
    assert generate(trained, [], max_new_tokens=5) == []


def test_padding_ids_are_never_drawn(trained):
    """The model has 264 ids, the tokenizer 257."""
    assert trained.config.model.vocab_size == 264
    flags = {"max_new_tokens": TOKENS, "temperature": 1e6, "batch_size": len(PROMPTS)}
    ids = {i for row in generate(trained, PROMPTS * 8, **flags) for i in row}
    assert len(ids) > 200
    assert max(ids) < EOT


def test_scores_softmax_logits_and_norms_are_float32():
    trained = model(dtype="bfloat16", n_layers=1)
    rows = jax.NamedSharding(trained.mesh, jax.P(("replica", "data")))
    tokens = jax.device_put(np.ones((2, 16), np.int32), rows)
    with jax.set_mesh(trained.mesh):
        arrays = tokens, tokens[:, 0], tokens[:, 0]
        state = prefill(trained.model, trained.weights, *arrays, slots=32)
        flags = {"first_slot": 16, "steps": 2, "vocab_size": 257, "sampling": Sampling(1.0)}
        jaxpr = jax.make_jaxpr(lambda state: decode(trained.model, trained.weights, state, **flags))
        named = {
            equation.params["name"]: equation.outvars[0].aval.dtype
            for _, equation in equations(jaxpr(state).jaxpr)
            if equation.primitive.name == "name"
        }
    assert state.cache.keys_LGBSK.dtype == jnp.bfloat16
    assert state.logits_BV.dtype == jnp.float32
    names = ("scores", "softmax", "logits", "norm_mean", "norm_square")
    assert {name: named[name] for name in names} == dict.fromkeys(names, jnp.float32)


# Sampling, against plain NumPy.


draw = jax.jit(draw, static_argnums=2)


def keys(count):
    return jax.random.split(jax.random.key(0), count)


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(1.0, 0, 1.0), (0.5, 0, 1.0), (1.0, 3, 1.0), (1.3, 0, 0.7), (0.8, 4, 0.8), (1.0, 99, 0.01)],
)
def test_frequencies_are_the_probabilities(temperature, top_k, top_p):
    logits = np.array([1.0, -2.0, 0.5, 3.0, 2.9, -0.5, 2.0, 0.0], np.float32)
    expected = np.exp(logits / temperature)
    order = np.argsort(-expected)
    expected[order[top_k or len(order) :]] = 0
    expected /= expected.sum()
    before = np.cumsum(expected[order]) - expected[order]
    expected[order[before >= top_p]] = 0
    expected /= expected.sum()
    count = 40_000
    sampling = Sampling(temperature, top_k, top_p)
    drawn = draw(jnp.tile(logits, (count, 1)), keys(count), sampling)
    found = np.bincount(np.asarray(drawn), minlength=len(logits)) / count
    assert (found[expected == 0] == 0).all()
    deviation = np.sqrt(expected * (1 - expected) / count)
    assert (np.abs(found - expected) <= 4 * deviation).all()


def test_temperature_0_takes_the_likeliest():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(5, 100)).astype(np.float32))
    np.testing.assert_array_equal(draw(logits, keys(5), Sampling()), logits.argmax(axis=-1))
    np.testing.assert_array_equal(
        draw(logits, keys(5), Sampling(1.0, top_k=1)), logits.argmax(axis=-1)
    )


@pytest.mark.parametrize("sampling", [Sampling(1e-38), Sampling(1e-44, 5), Sampling(1.0, 0, 1e-46)])
def test_the_smallest_settings_take_the_likeliest(sampling):
    """Divided by such a temperature, or below such a share, float32 knows no numbers."""
    logits = jnp.asarray(3 * np.random.default_rng(0).normal(size=(50, 100)).astype(np.float32))
    np.testing.assert_array_equal(draw(logits, keys(50), sampling), logits.argmax(axis=-1))


def test_a_row_is_drawn_by_its_own_key_and_logits():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(6, 50)).astype(np.float32))
    sampling = Sampling(1.0, 20, 0.9)
    together = draw(logits, keys(6), sampling)
    for row in range(6):
        alone = draw(logits[row : row + 1], keys(6)[row : row + 1], sampling)
        assert alone[0] == together[row]
