"""Continue texts with a trained model.

python -m gpt_pjit.generate --checkpoint=runs/quickstart --prompt='def'
python -m gpt_pjit.generate --help
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from gpt_pjit.commandline import Parser, positive
from gpt_pjit.config import SampleConfig
from gpt_pjit.core.errors import ConfigError, Problem
from gpt_pjit.core.validation import CHOICES
from gpt_pjit.generate.continuation import Continuation
from gpt_pjit.generate.generate import ROWS, setting_problems, stream
from gpt_pjit.generate.sample import Sampling
from gpt_pjit.trained import Trained, load_trained, start_devices


def run(flags: argparse.Namespace) -> None:
    start_devices(tensor=flags.tensor, distributed=flags.distributed)
    sampling = Sampling(flags.temperature, flags.top_k, flags.top_p)
    # Before the model is read, which may take long.
    if wrong := setting_problems(flags.max_new_tokens, sampling, flags.stop, flags.batch_size):
        raise ConfigError(wrong, "generate")
    texts = [text for text in _prompts(flags) for _ in range(flags.num_samples)]
    trained = load_trained(flags.checkpoint, tensor=flags.tensor, dtype=flags.dtype)
    tokenizer = trained.tokenizer
    # As documents begin in training: after end-of-text.
    prompts = [[tokenizer.eot_id, *map(int, tokenizer.encode(text))] for text in texts]
    under_way = stream(
        trained, prompts, flags.max_new_tokens, sampling, flags.stop, flags.seed, flags.batch_size
    )
    speed = Speed(under_way)
    shown = Transcript(texts)
    rows: list[Continuation] = []
    for rows in speed:
        if not flags.json and jax.process_index() == 0:
            shown.show(rows)
    if jax.process_index() == 0:
        if flags.json:
            print(json.dumps(_record(trained, texts, rows, speed)))
        else:
            _say_how_it_ended(trained, rows, speed)


class Speed:
    """Passes on what `stream` gives, and takes the time: from the first tokens, which compiled."""

    def __init__(self, under_way: Iterator[list[Continuation]]):
        self._under_way = under_way
        self.tokens_per_second: float | None = None

    def __iter__(self) -> Iterator[list[Continuation]]:
        first: tuple[float, int] | None = None
        for rows in self._under_way:
            now, tokens = time.perf_counter(), sum(len(row.tokens) for row in rows)
            if first is None:
                first = now, tokens
            elif tokens > first[1]:
                self.tokens_per_second = (tokens - first[1]) / (now - first[0])
            yield rows


class Transcript:
    """Writes prompts and continuations one after the other, the one under way as it grows."""

    def __init__(self, prompts: Sequence[str]):
        self._prompts = prompts
        self._row, self._written = -1, 0

    def show(self, rows: Sequence[Continuation]) -> None:
        if self._row < 0:
            self._next()
        while self._row < len(rows):
            row = rows[self._row]
            print(row.text[self._written :], end="", flush=True)
            self._written = len(row.text)
            if not row.finish_reason:
                return
            self._next()

    def _next(self) -> None:
        if self._row >= 0:
            print()
        self._row, self._written = self._row + 1, 0
        if self._row < len(self._prompts):
            if len(self._prompts) > 1:
                print(f"--- {self._row + 1} of {len(self._prompts)}")
            print(self._prompts[self._row], end="")


def _record(
    trained: Trained, prompts: Sequence[str], rows: Sequence[Continuation], speed: Speed
) -> dict[str, Any]:
    results = [
        {
            "prompt": prompt,
            "text": row.text,
            "tokens": row.tokens,
            "finish_reason": row.finish_reason,
        }
        for prompt, row in zip(prompts, rows, strict=True)
    ]
    return {
        "checkpoint": str(trained.workdir),
        "step": trained.step,
        "tokens_per_second": speed.tokens_per_second,
        "results": results,
    }


def _say_how_it_ended(trained: Trained, rows: Sequence[Continuation], speed: Speed) -> None:
    tokens = sum(len(row.tokens) for row in rows)
    rate = speed.tokens_per_second
    print(f"{tokens:,} tokens" + (f", {rate:,.0f} a second" if rate else ""), file=sys.stderr)
    if any(row.finish_reason == "context" for row in rows):
        print(
            f"ended at position {trained.config.data.sequence_length}, the last that the model has "
            "learned; models with model.positions=alibi or none go on",
            file=sys.stderr,
        )


def _prompts(flags: argparse.Namespace) -> list[str]:
    files = [_read(Path(path)) for path in flags.prompt_file]
    if flags.prompt or files:
        for text in flags.prompt:
            _check_utf8("--prompt", text)
        return [*flags.prompt, *files]
    if jax.process_count() > 1:
        problem = "several processes cannot share one stdin; give --prompt or --prompt_file"
        raise ConfigError([problem], "generate")
    if sys.stdin.isatty():
        problem = "no prompt; give --prompt=TEXT (--prompt= for none), --prompt_file, or stdin"
        raise ConfigError([problem], "generate")
    try:
        text = sys.stdin.read()
    except UnicodeDecodeError:
        raise _not_utf8("stdin") from None
    _check_utf8("stdin", text)
    return [text.removesuffix("\n")]


def _check_utf8(source: str, text: str) -> None:
    """Raises ConfigError where Python has put surrogates for bytes that are no UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise _not_utf8(source) from None


def _not_utf8(source: str) -> ConfigError:
    return ConfigError([f"{source} is not UTF-8; give UTF-8 text"], "generate")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").removesuffix("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "is not UTF-8"
        problem = Problem("--prompt_file", str(path), reason, "give a file of UTF-8 text")
        raise ConfigError([problem], "generate") from None


def define(parser: Parser) -> None:
    parser.set_defaults(run=run)
    add = parser.add_argument
    add("--checkpoint", required=True, help="a run's workdir, or WORKDIR/checkpoints/STEP")
    add("--prompt", action="append", default=[], help="text to continue; may be repeated")
    files = "one prompt a file, without its last newline; may be repeated"
    add("--prompt_file", nargs="+", action="extend", default=[], help=files)
    add("--max_new_tokens", type=int, default=200)
    default = Sampling(temperature=SampleConfig().temperature)
    add("--temperature", type=float, default=default.temperature, help="0 takes the likeliest")
    add("--top_k", type=int, default=default.top_k, help="draw from the K likeliest; 0 for all")
    add("--top_p", type=float, default=default.top_p, help="draw from this share of probability")
    add("--stop", action="append", default=[], help="end before this string; may be repeated")
    add("--num_samples", type=positive, default=1, help="continuations of each prompt")
    add("--seed", type=int, default=0)
    add("--batch_size", type=int, default=ROWS, help="continuations under way at once")
    add("--tensor", type=positive, default=1, help="devices that share each head and matrix")
    add("--dtype", choices=CHOICES["model.dtype"], default="", help="default: as trained")
    add("--json", action="store_true", help="one JSON object at the end, nothing as it comes")
    add("--distributed", action="store_true", help="join the other hosts of this pod or job")
