"""A workdir that is made of other weights rather than by training: averaged, grown, imported."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gpt_pjit.config import Config
from gpt_pjit.core.runtime import new_folder, this_start, write_record


@contextmanager
def derived_workdir(
    out: Path,
    config: Config,
    *,
    source: dict[str, Any],
    data: list[dict[str, Any]],
    tokenizer: tuple[str | None, bytes],
    starts: list[dict[str, Any]],
) -> Iterator[Path]:
    """`new_folder(out)` with its `run.json` and tokenizer; the block writes the checkpoints.

    `source` says what the weights are made of. `data` and `starts` are those of the run, if it
    goes on; with no starts, a run begins here, from step 0.
    """
    name, content = tokenizer
    record = {"config": dataclasses.asdict(config), "starts": starts, "data": data}
    with new_folder(out) as draft:
        if name:
            (draft / name).write_bytes(content)
        write_record(draft / "run.json", record | {"source": source | {"made": this_start()}})
        yield draft


def no_data_yet(origin: str, tokenizer_sha256: str, vocab_size: int) -> list[dict[str, Any]]:
    """The `data` of weights from which no run has begun: their tokenizer, and no set."""
    identity = {"path": origin, "tokenizer": tokenizer_sha256, "vocab_size": vocab_size}
    return [identity | {"sha256": None}]
