"""Continue texts with a trained model.

python -m gpt_pjit.generate --checkpoint=runs/quickstart --prompt='def'
"""

from __future__ import annotations

import argparse
import io
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import jax

from gpt_pjit.commandline import Answer, Parser, positive
from gpt_pjit.config import SampleConfig
from gpt_pjit.core.errors import EXIT_DONE, ConfigError
from gpt_pjit.core.validation import CHOICES
from gpt_pjit.generate.continuation import Continuation
from gpt_pjit.generate.decode import Sampling
from gpt_pjit.generate.stream import ROWS, setting_problems, stream
from gpt_pjit.trained import Trained, load_trained, start_devices


def run(flags: argparse.Namespace) -> Answer | None:
    start_devices(tensor=flags.tensor, distributed=flags.distributed)
    sampling = Sampling(flags.temperature, flags.top_k, flags.top_p)
    # Before the model is read, which may take long.
    if wrong := setting_problems(flags.max_new_tokens, sampling, flags.stop, flags.batch_size):
        raise ConfigError(wrong, "generate")
    texts = [text for text in _prompts(flags) for _ in range(flags.num_samples)]
    trained = load_trained(flags.checkpoint, tensor=flags.tensor, dtype=flags.dtype)
    tokenizer = trained.tokenizer
    # Like documents in training, after end-of-text.
    prompts = [[tokenizer.eot_id, *map(int, tokenizer.encode(text))] for text in texts]
    looks = stream(
        trained, prompts, flags.max_new_tokens, sampling, flags.stop, flags.seed, flags.batch_size
    )
    speaks = jax.process_index() == 0
    transcript = Transcript(texts)
    rows: list[Continuation] = []
    times: list[tuple[float, int]] = []
    for rows in looks:
        times.append((time.perf_counter(), sum(len(row.tokens) for row in rows)))
        if speaks and not flags.json:
            transcript.show(rows)
    rate = _tokens_per_second(times)
    if speaks and flags.json:
        return _answer(trained, texts, rows, rate)
    if speaks:
        _say_how_it_ended(trained, rows, rate)
    return None


def _tokens_per_second(times: Sequence[tuple[float, int]]) -> float | None:
    """From the first tokens, which had to be compiled, to the last."""
    (start, first), (end, last) = (times[0], times[-1]) if times else ((0.0, 0), (0.0, 0))
    return (last - first) / (end - start) if last > first else None


class Transcript:
    """Writes prompts and continuations one after the other, the current one as it grows."""

    def __init__(self, prompts: Sequence[str]):
        self._pieces = self._write(prompts)
        self._rows: Sequence[Continuation] = ()

    def show(self, rows: Sequence[Continuation]) -> None:
        """Writes what is new, up to the first row that is not finished."""
        self._rows = rows
        next(self._pieces, None)

    def _write(self, prompts: Sequence[str]) -> Iterator[None]:
        for number, prompt in enumerate(prompts):
            if len(prompts) > 1:
                print(f"--- {number + 1} of {len(prompts)}")
            print(prompt, end="")
            written = 0
            while True:
                row = self._rows[number]
                print(row.text[written:], end="", flush=True)
                written = len(row.text)
                if row.finish_reason:
                    break
                yield
            print()


def _answer(
    trained: Trained, prompts: Sequence[str], rows: Sequence[Continuation], rate: float | None
) -> Answer:
    results = [
        {
            "prompt": prompt,
            "text": row.text,
            "tokens": row.tokens,
            "finish_reason": row.finish_reason,
        }
        for prompt, row in zip(prompts, rows, strict=True)
    ]
    record = {
        "checkpoint": str(trained.workdir),
        "step": trained.step,
        "tokens_per_second": rate,
        "results": results,
    }
    return Answer(EXIT_DONE, record, ())


def _say_how_it_ended(trained: Trained, rows: Sequence[Continuation], rate: float | None) -> None:
    tokens = sum(len(row.tokens) for row in rows)
    print(f"{tokens:,} tokens" + (f", {rate:,.0f} per second" if rate else ""), file=sys.stderr)
    if any(row.finish_reason == "context" for row in rows):
        last = trained.config.data.sequence_length
        print(f"ended at position {last}, the last one the model has learned", file=sys.stderr)


def _prompts(flags: argparse.Namespace) -> list[str]:
    if any("\udc80" <= letter <= "\udcff" for text in flags.prompt for letter in text):
        raise ConfigError(["--prompt is not UTF-8"], "generate")  # Python's escapes of bytes
    files = [
        _text(path, partial(Path(path).read_text, encoding="utf-8")) for path in flags.prompt_file
    ]
    if flags.prompt or files:
        return [*flags.prompt, *files]
    if jax.process_count() > 1:
        raise ConfigError(["several processes cannot share stdin; give --prompt"], "generate")
    if sys.stdin.isatty():
        raise ConfigError(["give --prompt=TEXT, --prompt_file, or a text on stdin"], "generate")
    # Whatever the terminal's encoding is.
    stdin = io.TextIOWrapper(sys.stdin.buffer, encoding="utf-8")
    return [_text("stdin", stdin.read)]


def _text(name: str, read: Callable[[], str]) -> str:
    """What `read` gives, without its last newline."""
    try:
        return read().removesuffix("\n")
    except OSError as error:
        raise ConfigError([f"{name} cannot be read: {error.strerror}"], "generate") from None
    except UnicodeDecodeError:
        raise ConfigError([f"{name} is not UTF-8"], "generate") from None


def define(parser: Parser) -> None:
    parser.set_defaults(run=run)
    add = parser.add_argument
    add("--checkpoint", required=True, help="a run's workdir, or WORKDIR/checkpoints/STEP")
    add("--prompt", action="append", default=[], help="text to continue; may be repeated")
    files = "one prompt per file, without its last newline; may be repeated"
    add("--prompt_file", nargs="+", action="extend", default=[], help=files)
    add("--max_new_tokens", type=int, default=200)
    default = Sampling(temperature=SampleConfig().temperature)
    add("--temperature", type=float, default=default.temperature, help="0 takes the likeliest")
    add("--top_k", type=int, default=default.top_k, help="draw from the K likeliest; 0 for all")
    add("--top_p", type=float, default=default.top_p, help="draw from this share of probability")
    add("--stop", action="append", default=[], help="end before this string; may be repeated")
    add("--num_samples", type=positive, default=1, help="continuations of each prompt")
    add("--seed", type=int, default=0)
    add("--batch_size", type=int, default=ROWS, help="continuations computed at once")
    add("--tensor", type=positive, default=1, help="devices that share each head and matrix")
    add("--dtype", choices=CHOICES["model.dtype"], default="", help="default: as trained")
    add("--json", action="store_true", help="one JSON object at the end")
    add("--distributed", action="store_true", help="join the other hosts of this pod or job")
