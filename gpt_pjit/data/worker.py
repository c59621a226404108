"""A worker process: settings, then tasks, from standard input; their results to standard output."""

from __future__ import annotations

import pickle
import sys
from typing import BinaryIO

from gpt_pjit.data.encode import Encoder
from gpt_pjit.data.engines import EngineDiffersError
from gpt_pjit.data.workers import send


def serve(tasks: BinaryIO, answers: BinaryIO) -> None:
    encoder = Encoder(pickle.load(tasks))  # noqa: S301
    while True:
        try:
            items = pickle.load(tasks)  # noqa: S301
        except EOFError:  # the main process is gone
            return
        try:
            send(answers, encoder.encode(items))
        except EngineDiffersError as error:
            send(answers, error)


if __name__ == "__main__":
    serve(sys.stdin.buffer, sys.stdout.buffer)
