"""Ctrl-C ends a run after the current step, with a checkpoint; a second one ends it at once."""

from __future__ import annotations

import signal
from types import FrameType

import jax

from gpt_pjit.core.console import say


class Interrupt:
    """`requested` turns True at the first Ctrl-C inside the `with` block.

    With several processes it stays False and Ctrl-C ends them at once: they would stop at
    different steps.
    """

    def __init__(self) -> None:
        self.requested = False

    def _handle(self, _: int, __: FrameType | None) -> None:
        self.requested = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        say("Ctrl-C: saving after this step; press again to stop without saving")

    def __enter__(self) -> Interrupt:
        self._single = jax.process_count() == 1
        if self._single:
            self._previous = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        if self._single:
            signal.signal(signal.SIGINT, self._previous)
