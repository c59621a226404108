"""The parts of a set put together, to the bytes that one process would have written."""

import json
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from gpt_pjit.core.console import Progress
from gpt_pjit.core.errors import ConfigError
from gpt_pjit.core.tokens import MANIFEST, TokenDataset, TokenSplit
from gpt_pjit.data.corpus import SKIPPED, CorpusFile
from gpt_pjit.data.prepare import PROVENANCE, Provenance, begun_provenance, stored_provenance
from gpt_pjit.data.share import Share, parts_folder
from gpt_pjit.data.tokenize import PART, Counts, check_text
from gpt_pjit.data.writer import SHARD, DatasetWriter, SplitWriter, partial_folder, writing

NAME_OF_PART = r"\d+-of-(\d+)(?:\.partial)?"


def join(out: Path) -> Counts | None:
    """Makes the set `out` of its parts; None if it is there already.

    Raises ConfigError that names each part that is missing, unfinished, or made of other input.
    """
    folders = [share.folder(out) for share in _complete(out)]
    source = _provenance(folders)
    made = replace(source, files=[file for file in source.files if file.sha256 != SKIPPED])
    if stored := stored_provenance(out):
        stored.check_same(made, out)
        return None
    if begun := begun_provenance(out):
        begun.check_same(made, partial_folder(out))
    parts = [TokenDataset.open(folder) for folder in folders]
    splits = [(name, split) for part in parts for name, split in part.splits.items()]
    total, done = sum(split.tokens for _, split in splits), 0
    counts = _counts(folders)
    counts["skipped"] += len(source.files) - len(made.files)
    with (
        writing(out),
        DatasetWriter(out, parts[0].tokenizer()) as writer,
        Progress("joining", total) as progress,
    ):
        if writer.saved is not None:
            problem = "holds a set that `tokenize` has begun; finish it, or delete the folder"
            raise ConfigError([problem], str(partial_folder(out)))
        writer.add_file(PROVENANCE, made.to_json())
        for name, split in splits:
            _copy(split, writer.splits[name])
            done += split.tokens
            progress.update(done)
        check_text(writer, counts)
    return counts


def _complete(out: Path) -> list[Share]:
    """The parts of `out`, in order; ConfigError names those that are not complete."""
    folder = parts_folder(out)
    names = os.listdir(folder) if folder.is_dir() else []
    numbers = {found[1] for name in names if (found := re.fullmatch(NAME_OF_PART, name))}
    if len(numbers) != 1:
        problem = "holds no parts: gpt_pjit data tokenize --part=1/N makes the first of N"
        if numbers:
            problem = f"holds parts of {' and of '.join(sorted(numbers))}; keep only those of one"
        raise ConfigError([problem], str(folder))
    shares = [Share(number, int(*numbers)) for number in range(1, int(*numbers) + 1)]
    problems = []
    for share in shares:
        path = share.folder(out)
        if not all((path / name).exists() for name in (MANIFEST, PROVENANCE, PART)):
            begun = path.exists() or partial_folder(path).exists()
            state = "is unfinished" if begun else "is missing"
            command = f"`data tokenize` with --part={share} makes it"
            problems.append(f"part {share} {state} ({path}): {command}")
    if problems:
        raise ConfigError(problems, f"join {out}")
    return shares


def _provenance(folders: Sequence[Path]) -> Provenance:
    """What the parts in `folders` are made of together; ConfigError where they do not belong so."""
    sources = [Provenance.read(folder) for folder in folders]
    own = [{**source.settings, "part": None} for source in sources]
    problems = []
    for number, (source, settings) in enumerate(zip(sources, own, strict=True), 1):
        problems += [
            f"part {number}: {name} is {value!r}, in part 1 {own[0].get(name)!r}"
            for name, value in settings.items()
            if value != own[0].get(name)
        ]
        listed, expected = ([(f.path, f.size) for f in s.files] for s in (source, sources[0]))
        if listed != expected:
            other = sorted(set(listed) ^ set(expected))[0][0]
            problems.append(f"part {number} was made from other files than part 1, such as {other}")
    if not problems:
        files = [_merged(versions) for versions in zip(*(s.files for s in sources), strict=True)]
        problems = [f"{file.path} differed between the parts" for file in files if not file.sha256]
    if problems:
        raise ConfigError(problems, f"parts in {folders[0].parent}")
    del sources[0].settings["part"]
    return Provenance(sources[0].settings, files)


def _merged(versions: Sequence[CorpusFile]) -> CorpusFile:
    """A file by the parts that have read it; without a hash if they have read different content."""
    read = [file for file in versions if file.sha256]
    same = len({file.sha256 for file in read}) == 1
    return read[0] if same else replace(versions[0], sha256="")


def _counts(folders: Sequence[Path]) -> Counts:
    """The summary of all parts; a document that was changed in two of them counts once."""
    counts: Counts = Counter()
    last_changed = ""
    for folder in folders:
        tally = json.loads((folder / PART).read_bytes())
        counts.update(tally["counts"])
        first, last = tally["changed"]
        counts["changed"] -= bool(first) and first == last_changed
        last_changed = last or last_changed
    return counts


def _copy(split: TokenSplit, writer: SplitWriter) -> None:
    """Appends the split of a part, whose last document may go on in the next one."""
    writer.append(np.zeros(0, np.int32), np.zeros(0, np.int64), split.source_bytes)
    ends = split.document_offsets(1, split.documents + 1).astype(np.int64)
    for start in range(0, split.tokens, SHARD):
        stop = min(start + SHARD, split.tokens)
        ids = split.read(np.array([start]), stop - start)[0]
        first, last = np.searchsorted(ends, [start, stop], side="right")
        if stop == split.tokens and ids[-1] != split.eot_id:
            last -= 1  # the writer of the part has ended it there
        writer.append(ids, ends[first:last] - start, 0)
