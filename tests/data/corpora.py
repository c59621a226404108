"""Corpora of random words for the tests, in every kind of file."""

import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import zstandard

from gpt_pjit.core.tokens import TokenDataset
from gpt_pjit.data import Corpus, TokenizeOptions, prepare, train_bpe

LETTERS = [*"etaoinshrdlucm", "é", "ß", "猫", "'", "e\u0301"]


def tokenize(inputs, folder: Path, tokenizer: str = "bytes", workers=0, skip=False, **fields):
    """A set of one input or several, with 3 of 10 documents for validation."""
    inputs = [inputs] if isinstance(inputs, str | Path) else inputs
    corpus = Corpus(tuple(map(str, inputs)), **({"validation_fraction": 0.3} | fields))
    return prepare(corpus, tokenizer, folder, TokenizeOptions(workers, skip))


def documents(path: Path) -> dict[str, list[str]]:
    """The texts of each split of a set, which is verified."""
    dataset = TokenDataset.open(path)
    dataset.verify()
    return {name: documents_of(s, dataset.tokenizer()) for name, s in dataset.splits.items()}


def random_documents(count: int, words: int, seed: int = 0) -> list[str]:
    """Documents of up to twice `words` words, some empty."""
    random = np.random.default_rng(seed)
    vocabulary = ["".join(random.choice(LETTERS, random.integers(1, 9))) for _ in range(3000)]
    separators = np.array([" ", " ", " ", "\n", "  ", "\n\n", ", "])
    documents = []
    for _ in range(count):
        chosen = random.choice(vocabulary, random.integers(0, 2 * words))
        between = random.choice(separators, len(chosen))
        documents.append("".join(np.stack([chosen, between], 1).ravel().tolist()))
    return documents


def write_as(kind: str, path: Path, documents: list[str], column: str = "text") -> None:
    """A file `path.KIND`; for txt, a folder of one file for each document."""
    target = path.with_name(f"{path.name}.{kind}")
    lines = "".join(json.dumps({"id": i, column: d}) + "\n" for i, d in enumerate(documents))
    if kind == "txt":
        path.mkdir()
        for i, document in enumerate(documents):
            (path / f"{i:06}.txt").write_bytes(document.encode())
    elif kind in ("jsonl", "ndjson", "JSONL", "json"):
        target.write_text(lines)
    elif kind in ("jsonl.gz", "json.gz", "gz", "JSON.GZ"):
        target.write_bytes(gzip.compress(lines.encode()))
    elif kind in ("jsonl.zst", "zst", "ndjson.zst"):
        half = len(lines) // 2  # two frames, as parallel writers make them
        frames = (lines[:half].encode(), lines[half:].encode())
        target.write_bytes(b"".join(map(zstandard.compress, frames)))
    elif kind == "parquet":
        table = pyarrow.table({"id": range(len(documents)), column: documents})
        pyarrow.parquet.write_table(table, target, row_group_size=50)


def small_bpe(folder: Path, normalizer: bool = True) -> str:
    """The path of a small byte-level BPE, with the NFC normaliser of GPT-NeoX."""
    path = folder / "small.json"
    train_bpe(random_documents(50, 200), 600, path)
    if normalizer:
        fields = json.loads(path.read_text())
        fields["normalizer"] = {"type": "NFC"}
        path.write_text(json.dumps(fields))
    return str(path)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def truncated(content: bytes, share: float = 0.6) -> bytes:
    return content[: int(len(content) * share)]


def documents_of(split, tokenizer) -> list[str]:
    """The text of each document of a split."""
    if not split.tokens:
        return []
    ids = split.read(np.array([0]), split.tokens)[0]
    offsets = split.document_offsets(0, split.documents + 1).astype(int)
    return [tokenizer.decode(part) for part in np.split(ids, offsets[1:-1])]
