"""What a set holds, in words: for people, on standard output."""

from __future__ import annotations

import numpy as np

from gpt_pjit.core.tokens import TokenDataset, TokenSplit
from gpt_pjit.data.encode import OVERSIZED
from gpt_pjit.data.tokenize import Counts

QUANTILES = (0, 0.05, 0.25, 0.5, 0.75, 0.95, 1)


def describe(dataset: TokenDataset) -> str:
    """The table of `info`: sizes of each split, and how long its documents are."""
    info = dataset.info
    lines = [
        f"{dataset.path}: tokenizer {info.tokenizer.name}, {info.vocab_size:,} ids, {info.dtype}",
        f"fingerprint {dataset.fingerprint}",
    ]
    for split in dataset.splits.values():
        per_token = split.source_bytes / max(split.tokens - split.documents, 1)
        lines += [
            f"{split.name}:",
            f"  documents        {split.documents:>16,}",
            f"  bytes of text    {split.source_bytes:>16,}",
            f"  tokens           {split.tokens:>16,}",
            f"  bytes a token    {per_token:>16.3f}  (end-of-text not counted)",
            f"  tokens a document{_quantiles(split)}",
        ]
    return "\n".join(lines)


def summarize(counts: Counts) -> str:
    """What tokenising met that the set does not tell."""
    rows = {
        "documents": counts.documents,
        "empty": counts.empty,
        f"above {OVERSIZED:,} bytes": counts.oversized,
        "changed by the tokenizer's normaliser": counts.changed,
        "skipped, with an error": counts.skipped,
    }
    return "\n".join(f"{count:>12,}  {name}" for name, count in rows.items())


def show_tokens(dataset: TokenDataset, split: TokenSplit, start: int, length: int) -> str:
    """The text of `length` tokens from `start` on: each document's part, and where it is."""
    tokenizer = dataset.tokenizer()
    stop = min(start + length, split.tokens)
    ids = split.read(np.array([start]), stop - start)[0]
    lines = [f"tokens {start:,} to {stop:,} of split {split.name!r} of {split.path}"]
    at = start
    while at < stop:
        document = split.document_at(at)
        begin, end = split.document_offsets(document, document + 2).tolist()
        text = tokenizer.decode(ids[at - start : min(end, stop) - start])
        ends = ", to its end" if end <= stop else ""
        lines.append(f"--- document {document:,}, from its token {at - begin:,}{ends}\n{text}")
        at = end
    return "\n".join(lines)


def _quantiles(split: TokenSplit) -> str:
    lengths = np.diff(split.document_offsets(0, split.documents + 1))
    if not lengths.size:
        return "  none"
    values = np.quantile(lengths, QUANTILES)
    names = ("least", *(f"{q:.0%}" for q in QUANTILES[1:-1]), "most")
    return "  " + ", ".join(f"{n} {v:,.0f}" for n, v in zip(names, values, strict=True))
