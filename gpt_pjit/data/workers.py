"""The worker processes that encode, seen from the main process.

They are started by hand, not by `multiprocessing`, which would import the main program, and with
it JAX, into each. Tasks and results are pickled over their standard input and output.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import subprocess
import sys
from types import TracebackType
from typing import IO, Self

from gpt_pjit.data.encode import Encoded, Encoder, Settings
from gpt_pjit.data.engines import EngineDiffersError
from gpt_pjit.data.readers import Item

WORKER = "gpt_pjit.data.worker"
ONE_THREAD = {"RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


class Workers:
    """`workers.encode(items)` from any number of threads; `count` 1 encodes in this process."""

    def __init__(self, settings: Settings, count: int):
        self._processes = [_Process(settings) for _ in range(count)] if count > 1 else []
        self._idle: queue.SimpleQueue[_Process] = queue.SimpleQueue()
        for process in self._processes:
            self._idle.put(process)
        self._encoder = Encoder(settings) if count == 1 else None

    def encode(self, items: list[Item]) -> Encoded:
        if self._encoder:
            return self._encoder.encode(items)
        process = self._idle.get()
        try:
            return process.encode(items)
        finally:
            self._idle.put(process)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        for process in self._processes:
            process.end()


class _Process:
    """One worker process."""

    def __init__(self, settings: Settings):
        # A session of its own keeps Ctrl-C from it: the main process decides when it ends.
        self._process = subprocess.Popen(
            [sys.executable, "-m", WORKER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | ONE_THREAD,
            start_new_session=True,
        )
        assert self._process.stdin
        assert self._process.stdout
        self._tasks, self._answers = self._process.stdin, self._process.stdout
        send(self._tasks, settings)

    def encode(self, items: list[Item]) -> Encoded:
        try:
            send(self._tasks, items)
            answer = pickle.load(self._answers)  # noqa: S301
        except (EOFError, BrokenPipeError):
            raise RuntimeError(
                f"a worker ended with code {self._process.wait()}; -9 often means that memory ran "
                "out: use fewer --workers"
            ) from None
        if isinstance(answer, EngineDiffersError):
            raise answer
        return answer

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        with contextlib.suppress(BrokenPipeError):
            self._tasks.close()
        self._answers.close()


def send(stream: IO[bytes], value: object) -> None:
    pickle.dump(value, stream, protocol=pickle.HIGHEST_PROTOCOL)
    stream.flush()
