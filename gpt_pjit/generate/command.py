"""Continue texts with a trained model.

gpt_pjit generate --checkpoint=runs/quickstart --prompt='def'
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import astuple
from typing import Any

import jax

from gpt_pjit.commandline import Answer, Parser, any_path, local_path, positive
from gpt_pjit.config import SampleConfig
from gpt_pjit.core.errors import EXIT_DONE, ConfigError
from gpt_pjit.core.files import file_errors
from gpt_pjit.core.runtime import ending_together, from_process_0
from gpt_pjit.core.validation import CHOICES
from gpt_pjit.generate.decode import Sampling
from gpt_pjit.generate.stream import ROWS, Continuation, setting_problems, stream
from gpt_pjit.trained import load_trained, start_devices


@ending_together()
def run(flags: argparse.Namespace) -> Answer | None:
    start_devices(tensor=flags.tensor, distributed=flags.distributed)
    speaks = jax.process_index() == 0
    # The flags and files of process 0 are those of all.
    texts, loading, settings = from_process_0(_asked(flags) if speaks else None)
    trained = load_trained(**loading)
    tokenizer = trained.tokenizer
    # Like documents in training, after end-of-text.
    prompts = [[tokenizer.eot_id, *map(int, tokenizer.encode(text))] for text in texts]
    looks = stream(trained, prompts, **settings | {"sampling": Sampling(*settings["sampling"])})
    transcript = Transcript(texts)
    rows: list[Continuation] = []
    times: list[tuple[float, int]] = []
    for rows in looks:
        times.append((time.perf_counter(), sum(len(row.tokens) for row in rows)))
        if speaks and not flags.json:
            transcript.show(rows)
    # From the first tokens, which had to be compiled, to the last.
    (start, first), (end, n_tokens) = times[0], times[-1]
    rate = (n_tokens - first) / (end - start) if n_tokens > first else None
    if speaks and flags.json:
        names = ("text", "tokens", "finish_reason")
        record = {
            "checkpoint": str(trained.workdir),
            "step": trained.step,
            "tokens_per_second": rate,
            "results": [
                {"prompt": text} | {name: getattr(row, name) for name in names}
                for text, row in zip(texts, rows, strict=True)
            ],
        }
        return Answer(EXIT_DONE, record, ())
    if speaks:
        speed = f", {rate:,.0f} per second" if rate else ""
        print(f"{n_tokens:,} tokens{speed}", file=sys.stderr)
        if any(row.finish_reason == "context" for row in rows):
            last = trained.config.data.sequence_length
            print(f"ended at position {last}, the last one the model has learned", file=sys.stderr)
    return None


def _asked(flags: argparse.Namespace) -> tuple[list[str], dict[str, Any], dict[str, Any]]:
    """The prompts, and the arguments of `load_trained` and `stream`, which are checked."""
    sampling = Sampling(flags.temperature, flags.top_k, flags.top_p)
    # Before the model is read, which may take long.
    if wrong := setting_problems(flags.max_new_tokens, sampling, flags.stop, flags.batch_size):
        raise ConfigError(wrong, "generate")
    texts = [text for text in _prompts(flags) for _ in range(flags.num_samples)]
    loading = {name: getattr(flags, name) for name in ("tensor", "dtype")}
    names = ("max_new_tokens", "stop", "seed", "batch_size")
    settings = {name: getattr(flags, name) for name in names} | {"sampling": astuple(sampling)}
    return texts, loading | {"checkpoint": str(flags.checkpoint)}, settings


class Transcript:
    """Writes prompts and continuations one after the other, the current one as it grows."""

    def __init__(self, prompts: Sequence[str]):
        self._prompts = prompts
        self._row = 0
        self._written = -1  # characters of the current row; -1 before its prompt

    def show(self, rows: Sequence[Continuation]) -> None:
        """Writes what is new, up to the first row that is not finished."""
        for row in rows[self._row :]:
            if self._written < 0:
                if len(rows) > 1:
                    print(f"--- {self._row + 1} of {len(rows)}")
                print(self._prompts[self._row], end="")
                self._written = 0
            print(row.text[self._written :], end="", flush=True)
            self._written = len(row.text)
            if not row.finish_reason:
                return
            print()
            self._row, self._written = self._row + 1, -1


def _prompts(flags: argparse.Namespace) -> list[str]:
    if any("\udc80" <= letter <= "\udcff" for text in flags.prompt for letter in text):
        raise ConfigError(["--prompt is not UTF-8"], "generate")  # Python's escapes of bytes
    files = [_text(str(path), path.read_bytes) for path in flags.prompt_file]
    if flags.prompt or files:
        return [*flags.prompt, *files]
    if jax.process_count() > 1 or sys.stdin.isatty():
        alternative = "" if jax.process_count() > 1 else ", or a text on stdin"
        raise ConfigError([f"give --prompt=TEXT or --prompt_file{alternative}"], "generate")
    return [_text("stdin", sys.stdin.buffer.read)]


def _text(name: str, read: Callable[[], bytes]) -> str:
    """What `read` gives as UTF-8, whatever the terminal's encoding, without its last newline."""
    with file_errors(f"{name} cannot be read", "generate"):
        content = read()
    try:
        return content.decode().replace("\r\n", "\n").removesuffix("\n")
    except UnicodeDecodeError:
        raise ConfigError([f"{name} is not UTF-8"], "generate") from None


def define(parser: Parser) -> None:
    parser.set_defaults(run=run)
    add = parser.add_argument
    add("--checkpoint", type=any_path, required=True, help="a workdir, or its checkpoints/STEP")
    add("--prompt", action="append", default=[], help="text to continue; may be repeated")
    files = "one prompt per file, without its last newline; may be repeated"
    add("--prompt_file", type=local_path, nargs="+", action="extend", default=[], help=files)
    add("--max_new_tokens", type=int, default=200, help="tokens of a continuation, at most")
    default = Sampling(temperature=SampleConfig().temperature)
    add("--temperature", type=float, default=default.temperature, help="0: the likeliest token")
    add("--top_k", type=int, default=default.top_k, help="draw from the K likeliest; 0 for all")
    add("--top_p", type=float, default=default.top_p, help="draw from this share of probability")
    add("--stop", action="append", default=[], help="end before this string; may be repeated")
    add("--num_samples", type=positive, default=1, help="continuations of each prompt")
    add("--seed", type=int, default=0, help="of the draws; the same seed, the same text")
    add("--batch_size", type=int, default=ROWS, help="continuations computed at once")
    add("--tensor", type=positive, default=1, help="number of devices to split the model over")
    add("--dtype", choices=CHOICES["model.dtype"], default="", help="default: as trained")
    add("--json", action="store_true", help="one JSON object at the end")
    parser.add_distributed()
