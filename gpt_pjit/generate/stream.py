"""From prompts to continuations, in batches, as they are written."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P

from gpt_pjit.config import Config
from gpt_pjit.core.errors import ConfigError, Problem
from gpt_pjit.core.model import Model
from gpt_pjit.core.sharding import BATCH_AXES
from gpt_pjit.core.tokens import Tokenizer
from gpt_pjit.generate.continuation import Continuation
from gpt_pjit.generate.decode import Sampling, State, decode, prefill
from gpt_pjit.trained import Trained

CHUNK = 16  # tokens written between two looks at them, so that dispatch takes little of the time
ROWS = 64  # continuations at once by default


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

    An empty prompt stands for end-of-text. A draw depends on `seed`, the prompt's ids and how many
    equal prompts came before: not on the mesh, other prompts, or `batch_size`, the number of
    continuations at once. One shape is compiled for all batches. Raises ConfigError with everything
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
    """Chunks of each row's tokens, for `size` rows; those without a prompt are idle."""
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
        with jax.set_mesh(trained.mesh):  # released while the caller looks at the tokens
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
) -> list[Problem | str]:
    """What is wrong with the arguments of `stream`, whatever the model."""
    temperature, top_k, top_p = sampling.temperature, sampling.top_k, sampling.top_p
    checks = (
        (max_new_tokens >= 1, f"max_new_tokens={max_new_tokens}: must be at least 1"),
        (batch_size >= 1, f"batch_size={batch_size}: must be at least 1"),
        (0 <= temperature < float("inf"), f"temperature={temperature}: must be finite, 0 or above"),
        (top_k >= 0, f"top_k={top_k}: must be 0, for all tokens, or above"),
        (0 < top_p <= 1, f"top_p={top_p}: must be in (0, 1]"),
        ("" not in stop, "stop: an empty string is everywhere"),
    )
    return [problem for holds, problem in checks if not holds]


def _prompt_problems(trained: Trained, prompts: Sequence[Sequence[int]]) -> list[str]:
    """Each prompt that the model cannot read, once, by the number of the first one like it."""
    problems, first = [], dict[tuple[int, ...], int]()
    for number, prompt in enumerate(prompts, 1):
        first.setdefault(tuple(prompt), number)
    context, vocab_size = learned_context(trained), trained.config.model.vocab_size
    for prompt, number in first.items():
        if context is not None and len(prompt) > context:
            found = f"prompt {number} has {len(prompt):,} tokens"
            problems.append(f"{found}; the model has learned {context:,} positions")
        if wrong := [i for i in prompt if not 0 <= i < vocab_size]:
            problems.append(f"prompt {number} has id {wrong[0]}; the last is {vocab_size - 1}")
    return problems


def learned_context(trained: Trained) -> int | None:
    """How many positions the model has learned; None where it needs none, so text has no end."""
    c = trained.config
    return c.data.sequence_length if c.model.positions == "learned" else None


def _continuation(
    trained: Trained, prompt: Sequence[int], max_new_tokens: int, stop: Sequence[str]
) -> Continuation:
    context = learned_context(trained)
    # The last position still predicts a token, which is not read.
    room = max_new_tokens if context is None else context + 1 - len(prompt)
    at_limit = "length" if max_new_tokens <= room else "context"
    return Continuation(trained.tokenizer, prompt, min(max_new_tokens, room), stop, at_limit)


def _row_seeds(prompts: Sequence[Sequence[int]], seed: int) -> list[int]:
    """A uint32 for each row, from the seed, the prompt, and how many equal prompts precede it."""
    before: Counter[tuple[int, ...]] = Counter()
    seeds = []
    for prompt in map(tuple, prompts):
        seeds.append(zlib.crc32(repr((seed, before[prompt], prompt)).encode()))
        before[prompt] += 1
    return seeds


def _bucket(length: int) -> int:
    """The next power of two, at least `CHUNK`: prompts of similar length share a program."""
    return max(CHUNK, 1 << (length - 1).bit_length())


def sample(model: Model, params: Any, config: Config, tokenizer: Tokenizer) -> str:
    """The text that closes a run: `config.sample.prompt`, continued."""
    prompt = [tokenizer.eot_id, *tokenizer.encode(config.sample.prompt)]
    trained = Trained(model, model.weights(params), tokenizer, config, Path(), 0)
    sampling = Sampling(temperature=config.sample.temperature)
    *_, rows = stream(trained, [prompt], config.sample.tokens, sampling, seed=config.seed)
    return f"sample:\n{config.sample.prompt}{rows[0].text}\n"
