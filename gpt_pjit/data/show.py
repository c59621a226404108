"""Tokens as text: of a set, or of the batch that a run reads at a step."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from gpt_pjit.config import Config
from gpt_pjit.core.errors import ConfigError
from gpt_pjit.core.tokens import TokenDataset, TokenSplit, Walk, first_walk, open_data, walks_of


class Part(NamedTuple):
    """What an excerpt shows of a document, from its token `start` on."""

    document: int
    start: int
    text: str
    to_its_end: bool


class Excerpt(NamedTuple):
    """Tokens that follow each other in a split; an example of a run is one, with its number."""

    where: str
    parts: list[Part]
    number: int = 0

    @property
    def text(self) -> str:
        """Each document's part, and where it is."""
        lines = [self.where]
        for part in self.parts:
            ends = ", to its end" if part.to_its_end else ""
            head = f"--- document {part.document:,}, from its token {part.start:,}{ends}"
            lines.append(f"{head}\n{part.text}")
        return "\n".join(lines)


class BatchTexts:
    """The examples that the run in `workdir` reads at `step`, counted from 0, or would read there
    if it began with this config; ConfigError if it has read other sets.
    """

    def __init__(self, config: Config, workdir: Path, step: int):
        self.data = open_data(config.data, workdir / "data", config.model.vocab_size)
        self.walk = _walk(config, self.data.fingerprints(), workdir, step)
        self.step, self.rows = step, self.walk.batch_size

    def example(self, row: int) -> Excerpt:
        examples = self.data.examples(self.walk, self.step, np.array([row]))
        of_sets = zip(self.data.datasets, examples, strict=True)
        dataset, (split, _, number, starts) = next(one for one in of_sets if one[1][1].size)
        found = excerpt(dataset, split, int(starts[0]), self.walk.sequence_length + 1)
        return found._replace(number=int(number[0]))


def excerpt(dataset: TokenDataset, split: TokenSplit, start: int, length: int) -> Excerpt:
    """The text of `length` tokens from `start` on, or of those until the end of the split."""
    tokenizer = dataset.tokenizer()
    stop = min(start + length, split.tokens)
    ids = split.read(np.array([start]), stop - start)[0]
    parts, at = [], start
    while at < stop:
        document = split.document_at(at)
        begin, end = split.document_offsets(document, document + 2).tolist()
        if not begin <= at < end:
            problem = f"the documents of split {split.name!r} do not cover token {at:,}"
            raise ConfigError([problem], f"token dataset {split.path}")
        text = tokenizer.decode(ids[at - start : min(end, stop) - start])
        parts.append(Part(document, at - begin, text, end <= stop))
        at = end
    where = f"tokens {start:,} to {stop:,} of split {split.name!r} of {split.path}"
    return Excerpt(where, parts)


def _walk(config: Config, sets: list[str], workdir: Path, step: int) -> Walk:
    """How the run in `workdir` reads at `step`, or would if it began with this config."""
    from gpt_pjit.core.runtime import has_begun, read_run  # imports JAX

    walks = [first_walk(config, sets)]
    if (workdir / "run.json").exists():
        began, record = read_run(workdir)
        walks = walks_of(began, record) if has_begun(record) else walks
    walk = [walk for walk in walks if walk.step <= step][-1]
    if [each.sha256 for each in walk.sets] != sets:
        raise ConfigError([f"step {step} of the run in {workdir} has read other sets"], "show")
    return walk
