"""From items of input to token ids: what a worker does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from gpt_pjit.core.tokens import SPLITS, BytesTokenizer, Tokenizer, tokenizer_from_bytes
from gpt_pjit.data.documents import pieces_of
from gpt_pjit.data.engines import make_engine
from gpt_pjit.data.readers import Item, Piece

OVERSIZED = 2**20  # bytes of a document that the summary counts as too long to be one


@dataclass(frozen=True)
class Settings:
    """All that a worker must know; `content` is the file of `tokenizer`, None for bytes."""

    tokenizer: str
    content: bytes | None
    column: str
    validation_fraction: float
    fast: bool


@dataclass
class Encoded:
    """The tokens of a task, by split: ids, where documents end in them, bytes of text.

    `changed` are the places of documents that the normaliser changed, `problems` what was left out.
    """

    splits: dict[str, tuple[np.ndarray, np.ndarray, int]] = field(default_factory=dict)
    documents: int = 0
    empty: int = 0
    oversized: int = 0
    changed: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


class Encoder:
    """`encode(items)`, a pure function but for the random share of texts that it checks."""

    def __init__(self, settings: Settings):
        self._settings = settings
        content = settings.content
        self._tokenizer: Tokenizer = (
            BytesTokenizer()
            if content is None
            else tokenizer_from_bytes(settings.tokenizer, content)
        )
        self._engine = make_engine(self._tokenizer, settings.fast)

    def encode(self, items: list[Item]) -> Encoded:
        result = Encoded()
        pieces = [piece for item in items for piece in self._pieces(item, result.problems)]
        for piece in pieces:
            if self._tokenizer.changes(piece.text):
                result.changed.append(piece.path)
            if piece.last:
                result.documents += 1
                result.empty += piece.document_bytes == 0
                result.oversized += piece.document_bytes > OVERSIZED
        ids, stops = self._engine.encode([piece.text for piece in pieces])
        stop_list = stops.tolist()
        encoded = [
            (piece, ids[start:stop])
            for piece, start, stop in zip(pieces, [0, *stop_list], stop_list, strict=False)
        ]
        for split in SPLITS:
            result.splits[split] = self._join([pair for pair in encoded if pair[0].split == split])
        return result

    def _pieces(self, item: Item, problems: list[str]) -> Iterator[Piece]:
        s = self._settings
        can_cut = self._tokenizer.can_cut
        return pieces_of(item, s.column, s.validation_fraction, can_cut, problems)

    def _join(self, encoded: list[tuple[Piece, np.ndarray]]) -> tuple[np.ndarray, np.ndarray, int]:
        """The ids of a split with end-of-text, the places where documents end, the bytes."""
        end_of_text = np.array([self._tokenizer.eot_id], np.uint32)
        parts, ends, length, size = [np.empty(0, np.uint32)], [], 0, 0
        for piece, ids in encoded:
            parts += [ids, end_of_text] if piece.ends else [ids]
            length += len(ids) + piece.ends
            size += len(piece.text.encode())
            if piece.last:
                ends.append(length)
        return np.concatenate(parts), np.array(ends, np.int64), size
