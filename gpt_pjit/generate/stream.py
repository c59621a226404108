"""From prompts to continuations, in batches, as they are written."""

import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P

from gpt_pjit.config import Config
from gpt_pjit.core.errors import ConfigError
from gpt_pjit.core.model import Model
from gpt_pjit.core.runtime import global_batch, local_rows
from gpt_pjit.core.sharding import BATCH_AXES
from gpt_pjit.core.tokens import Tokenizer
from gpt_pjit.generate.decode import Sampling, decode, prefill
from gpt_pjit.trained import Trained

CHUNK = 16  # tokens written between two looks at them, so that dispatch takes little of the time
ROWS = 64  # continuations at once by default
CONTEXT = 8  # prompt tokens that are decoded too: some decoders drop the first space of a text
UNFINISHED = "\ufffd"  # what a decoder makes of the first bytes of a character


class Continuation:
    """What is written after one prompt; `text` is what is certain so far, and only grows.

    `finish_reason` is empty until the end, then `end` (the model wrote end-of-text, which is not
    among `tokens`), `stop` (a stop string; the text ends before it, `tokens` after it), `length`
    (as many tokens as were asked for) or `context` (no learned position is left).
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt: Sequence[int],
        limit: int,
        stop: Sequence[str] = (),
        at_limit: str = "length",
    ):
        self.tokens: list[int] = []
        self.text = ""
        self.finish_reason = ""
        self.limit = limit
        self._tokenizer, self._stop, self._at_limit = tokenizer, stop, at_limit
        self._before = list(prompt[-CONTEXT:])
        self._shown = tokenizer.decode(self._before)

    def add(self, ids: Sequence[int]) -> None:
        """Appends ids; those after the end are ignored."""
        if self.finish_reason:
            return
        old = len(self.tokens)
        self.tokens += ids[: self.limit - old]
        if len(self.tokens) == self.limit:
            self.finish_reason = self._at_limit
        if self._tokenizer.eot_id in self.tokens:
            del self.tokens[self.tokens.index(self._tokenizer.eot_id) :]
            self.finish_reason = "end"
        text = self._decode(len(self.tokens))
        if self._first_stop(text) is not None:
            # The first token that completes one decides, however many came at once.
            ends = range(old + 1, len(self.tokens) + 1)
            end = next(n for n in ends if self._first_stop(self._decode(n)) is not None)
            text = self._decode(end)
            del self.tokens[end:]
            self.finish_reason, self.text = "stop", text[: self._first_stop(text)]
        elif self.finish_reason:
            self.text = text
        else:
            text = text.rstrip(UNFINISHED)
            self.text = text[: len(text) - self._may_become_stop(text)]

    def _decode(self, n_tokens: int) -> str:
        """The text of the first tokens, with a character that the prompt left unfinished."""
        text = self._tokenizer.decode(self._before + self.tokens[:n_tokens])
        pairs = zip(self._shown, text, strict=False)
        return text[sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs)) :]

    def _first_stop(self, text: str) -> int | None:
        return min((text.index(stop) for stop in self._stop if stop in text), default=None)

    def _may_become_stop(self, text: str) -> int:
        """The number of characters at the end that could begin a stop string."""
        return max(
            (n for stop in self._stop for n in range(1, len(stop)) if text.endswith(stop[:n])),
            default=0,
        )


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
    continuations at once. One shape is compiled for all batches. Raises ConfigError with all that
    is wrong with the settings, or where a prompt is longer than the learned positions.
    """
    if problems := setting_problems(max_new_tokens, sampling, stop, batch_size):
        raise ConfigError(problems, "generate")
    ids = [list(map(int, prompt)) or [trained.tokenizer.eot_id] for prompt in prompts]
    rows = [_continuation(trained, prompt, max_new_tokens, stop) for prompt in ids]
    seeds = _row_seeds(ids, seed)
    longest = max((row.limit for row in rows), default=1)
    shape = _bucket(max(map(len, ids), default=1)), -(-longest // CHUNK)
    parts = trained.mesh.shape[BATCH_AXES[0]] * trained.mesh.shape[BATCH_AXES[1]]
    size = -(-min(batch_size, len(prompts)) // parts) * parts
    for start in range(0, len(prompts), size or 1):
        batch = slice(start, start + size)
        for tokens in _write(trained, ids[batch], seeds[batch], size, shape, sampling):
            for row, new in zip(rows[batch], tokens, strict=True):
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
    """Chunks of each prompt's tokens; of `size` rows, those without a prompt are idle."""
    length, chunks = shape
    model, weights = trained.model, trained.weights
    sharding = NamedSharding(model.mesh, P(BATCH_AXES))
    rows = local_rows(sharding, (size,))
    tokens = np.zeros((len(rows), length), np.int32)
    lengths = np.ones(len(rows), np.int32)
    row_seeds = np.zeros(len(rows), np.uint32)
    for place, row in enumerate(rows[rows < len(prompts)].tolist()):
        prompt = prompts[row]
        tokens[place, : len(prompt)] = prompt
        lengths[place], row_seeds[place] = len(prompt), seeds[row]
    with jax.set_mesh(model.mesh):
        arrays = global_batch(sharding, (tokens, lengths, row_seeds), size)
        state = prefill(model, weights, *arrays, slots=length + chunks * CHUNK)
    for _ in range(chunks):
        with jax.set_mesh(model.mesh):  # released while the caller looks at the tokens
            state, written = decode(
                model,
                weights,
                state,
                first_slot=length,
                steps=CHUNK,
                vocab_size=min(trained.tokenizer.vocab_size, model.config.vocab_size),
                sampling=sampling,
            )
        yield np.asarray(written)[: len(prompts)].tolist()


def setting_problems(
    max_new_tokens: int, sampling: Sampling, stop: Sequence[str], batch_size: int
) -> list[str]:
    """What is wrong with the arguments of `stream`, whatever the model."""
    temperature, top_k, top_p = sampling.temperature, sampling.top_k, sampling.top_p
    checks = (
        (max_new_tokens >= 1, f"max_new_tokens={max_new_tokens}: must be at least 1"),
        (batch_size >= 1, f"batch_size={batch_size}: must be at least 1"),
        (0 <= temperature < float("inf"), f"temperature={temperature}: must be finite, 0 or above"),
        (top_k >= 0, f"top_k={top_k}: must be 0, for all tokens, or above"),
        (0 < top_p <= 1, f"top_p={top_p}: must be in (0, 1]"),
        ("" not in stop, "stop: an empty string matches everywhere"),
    )
    return [problem for holds, problem in checks if not holds]


def _continuation(
    trained: Trained, prompt: Sequence[int], max_new_tokens: int, stop: Sequence[str]
) -> Continuation:
    """Raises ConfigError where the prompt is longer than the learned positions."""
    c = trained.config
    if c.model.positions != "learned":
        return Continuation(trained.tokenizer, prompt, max_new_tokens, stop)
    # The last position still predicts a token, which is not read.
    room = c.data.sequence_length + 1 - len(prompt)
    if room < 1:
        learned = f"the model has learned {c.data.sequence_length:,} positions"
        problem = f"a prompt has {len(prompt):,} tokens; {learned}; shorten the prompt"
        raise ConfigError([problem], "generate")
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


def sample(
    model: Model, params: Any, config: Config, tokenizer: Tokenizer
) -> list[tuple[str, str]]:
    """Each of `config.sample.prompts`, and what the model writes after it."""
    c = config.sample
    prompts = [[tokenizer.eot_id, *tokenizer.encode(prompt)] for prompt in c.prompts]
    trained = Trained(model, model.weights(params), tokenizer, config, Path(), 0)
    sampling = Sampling(temperature=c.temperature)
    *_, rows = stream(trained, prompts, c.tokens, sampling, seed=config.seed)
    return [(prompt, row.text) for prompt, row in zip(c.prompts, rows, strict=True)]
