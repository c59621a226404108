"""What is written after one prompt: tokens to text as they come, stop strings, why it ended."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

from gpt_pjit.core.tokens import Tokenizer

CONTEXT = 8  # prompt tokens that are decoded too: some decoders drop the first space of a text
UNFINISHED = "\ufffd"  # what a decoder makes of the first bytes of a character


class Continuation:
    """`text` is what is certain so far, and only grows; `finish_reason` is empty until the end.

    Reasons: `end` (the model wrote end-of-text), `stop` (a stop string; the text ends before it,
    `tokens` after it), `length` (as many tokens as were asked for), `context` (no learned position
    is left). End-of-text is not among `tokens`.
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
        self._tokenizer, self._at_limit = tokenizer, at_limit
        self._stop = stop
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
            ends = (self._decode(n) for n in range(old + 1, len(self.tokens) + 1))
            number, text = next((n, t) for n, t in enumerate(ends, old + 1) if self._has_stop(t))
            del self.tokens[number:]
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

    def _has_stop(self, text: str) -> bool:
        return self._first_stop(text) is not None

    def _first_stop(self, text: str) -> int | None:
        return min((text.index(stop) for stop in self._stop if stop in text), default=None)

    def _may_become_stop(self, text: str) -> int:
        """The number of characters at the end that could begin a stop string."""
        return max(
            (n for stop in self._stop for n in range(1, len(stop)) if text.endswith(stop[:n])),
            default=0,
        )
