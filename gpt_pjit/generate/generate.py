"""From prompts to continuations, in batches, as they are written."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterator, Sequence

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P

from gpt_pjit.core.errors import ConfigError, Problem
from gpt_pjit.core.sharding import BATCH_AXES
from gpt_pjit.generate.continuation import Continuation
from gpt_pjit.generate.decode import State, decode, prefill
from gpt_pjit.generate.sample import Sampling
from gpt_pjit.trained import Trained

CHUNK = 16  # tokens written between two looks at them: the time of a dispatch is small beside it
ROWS = 64  # at once, if not told otherwise


def generate(
    trained: Trained,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    stop: Sequence[str] = (),
    seed: int = 0,
    batch_size: int = ROWS,
) -> list[list[int]]:
    """The ids written after each prompt, which see its ids and nothing else.

    A row ends with the token that completes one of the strings `stop`, or before end-of-text. The
    other arguments, and the errors, are those of `stream`.
    """
    sampling = Sampling(temperature, top_k, top_p)
    under_way = stream(trained, prompts, max_new_tokens, sampling, stop, seed, batch_size)
    rows: list[Continuation]
    *_, rows = [], *under_way
    return [row.tokens for row in rows]


def stream(
    trained: Trained,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    sampling: Sampling,
    stop: Sequence[str] = (),
    seed: int = 0,
    batch_size: int = ROWS,
) -> Iterator[list[Continuation]]:
    """The continuations of all prompts, each time that some have grown, until all are finished.

    An empty prompt is that of end-of-text. What is drawn depends on `seed`, the prompt's ids and
    how often the same prompt came before: not on the mesh, on other prompts or on `batch_size`, how
    many are under way at once. One shape is compiled for all batches. Raises ConfigError with all
    that is wrong with the arguments.
    """
    ids = [list(map(int, prompt)) or [trained.tokenizer.eot_id] for prompt in prompts]
    wrong = setting_problems(max_new_tokens, sampling, stop, batch_size)
    if problems := wrong + _prompt_problems(trained, ids):
        raise ConfigError(problems, "generate")
    rows = [_continuation(trained, prompt, max_new_tokens, stop) for prompt in ids]
    seeds = _row_seeds(ids, seed)
    longest = max((row.limit for row in rows), default=1)
    shape = _bucket(max(map(len, ids), default=1)), -(-longest // CHUNK)
    parts = trained.mesh.shape[BATCH_AXES[0]] * trained.mesh.shape[BATCH_AXES[1]]
    size = -(-min(batch_size, len(prompts)) // parts) * parts
    for start in range(0, len(prompts), size or 1):
        batch = slice(start, start + size)
        for tokens in _write(trained, ids[batch], seeds[batch], size, shape, sampling):
            for row, new in zip(rows[batch], tokens, strict=False):  # then the idle ones
                row.add(new)
            yield rows
            if all(row.finish_reason for row in rows[batch]):
                break


def _write(
    trained: Trained,
    prompts: Sequence[list[int]],
    seeds: Sequence[int],
    size: int,
    shape: tuple[int, int],
    sampling: Sampling,
) -> Iterator[list[list[int]]]:
    """Chunks of the tokens of each row; `size` rows, of which those without a prompt are idle."""
    length, chunks = shape
    tokens = np.zeros((size, length), np.int32)
    lengths = np.ones(size, np.int32)
    row_seeds = np.zeros(size, np.uint32)
    for row, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
        tokens[row, : len(prompt)], lengths[row], row_seeds[row] = prompt, len(prompt), seed
    rows = NamedSharding(trained.mesh, P(BATCH_AXES))
    with jax.set_mesh(trained.mesh):
        arrays = [jax.device_put(array, rows) for array in (tokens, lengths, row_seeds)]
        slots = length + chunks * CHUNK
        state: State = prefill(trained.extend, trained.weights, *arrays, slots=slots)
    for _ in range(chunks):
        with jax.set_mesh(trained.mesh):  # not held while the caller looks at the tokens
            state, written = decode(
                trained.extend,
                trained.weights,
                state,
                first_slot=length,
                steps=CHUNK,
                vocab_size=min(trained.tokenizer.vocab_size, trained.config.model.vocab_size),
                sampling=sampling,
            )
        yield np.asarray(written).tolist()


def setting_problems(
    max_new_tokens: int, sampling: Sampling, stop: Sequence[str], batch_size: int
) -> list[Problem]:
    """What cannot be of the arguments of `stream` that are the same for every model."""
    problems: list[Problem] = []

    def need(holds: bool, field: str, value: object, constraint: str, remedy: str) -> None:
        if not holds:
            problems.append(Problem(field, value, constraint, remedy))

    need(max_new_tokens >= 1, "max_new_tokens", max_new_tokens, "must be at least 1", "try 200")
    need(batch_size >= 1, "batch_size", batch_size, "must be at least 1", f"try {ROWS}")
    temperature, top_k, top_p = sampling.temperature, sampling.top_k, sampling.top_p
    finite = 0 <= temperature < float("inf")
    need(finite, "temperature", temperature, "must be 0 or above", "0 takes the likeliest token")
    need(top_k >= 0, "top_k", top_k, "must be 0 or above", "0 keeps all tokens")
    need(0 < top_p <= 1, "top_p", top_p, "must be in (0, 1]", "1 keeps all tokens, 0.9 is usual")
    need("" not in stop, "stop", "", "an empty string is everywhere", "remove it")
    return problems


def _prompt_problems(trained: Trained, prompts: Sequence[Sequence[int]]) -> list[Problem]:
    """Each prompt that the model cannot read, once, by the number of the first like it."""
    problems, first = [], dict[tuple[int, ...], int]()
    for number, prompt in enumerate(prompts, 1):
        first.setdefault(tuple(prompt), number)
    context, vocab_size = learned_context(trained), trained.config.model.vocab_size
    for prompt, number in first.items():
        field = f"prompt {number}"
        if context is not None and len(prompt) > context:
            constraint = f"the model has learned {context:,} positions and can read no more"
            remedy = f"shorten it by {len(prompt) - context:,}"
            problems.append(Problem(field, f"{len(prompt):,} tokens", constraint, remedy))
        if wrong := [i for i in prompt if not 0 <= i < vocab_size]:
            constraint = f"the model has ids 0 to {vocab_size - 1}"
            remedy = "encode it with the run's tokenizer"
            problems.append(Problem(field, wrong[:3], constraint, remedy))
    return problems


def learned_context(trained: Trained) -> int | None:
    """How many positions the model has learned; None where it needs none and text has no end."""
    c = trained.config
    return c.data.sequence_length if c.model.positions == "learned" else None


def _continuation(
    trained: Trained, prompt: Sequence[int], max_new_tokens: int, stop: Sequence[str]
) -> Continuation:
    context = learned_context(trained)
    # The last position still predicts a token, which is then not read.
    room = max_new_tokens if context is None else context + 1 - len(prompt)
    at_limit = "length" if max_new_tokens <= room else "context"
    return Continuation(trained.tokenizer, prompt, min(max_new_tokens, room), stop, at_limit)


def _row_seeds(prompts: Sequence[Sequence[int]], seed: int) -> list[int]:
    """uint32 for each row, of the seed, the prompt, and how many equal prompts came before it."""
    before: Counter[tuple[int, ...]] = Counter()
    seeds = []
    for prompt in map(tuple, prompts):
        seeds.append(zlib.crc32(repr((seed, before[prompt], prompt)).encode()))
        before[prompt] += 1
    return seeds


def _bucket(length: int) -> int:
    """The next power of two, at least `CHUNK`: prompts of similar length share a program."""
    return max(CHUNK, 1 << (length - 1).bit_length())
