"""Work done ahead of its use."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

S = TypeVar("S")
T = TypeVar("T")


def ahead(
    function: Callable[[S], T], items: Iterable[S], *, threads: int, depth: int
) -> Generator[T, None, None]:
    """`function` of each item, in order, computed by `threads` threads at most `depth` early.

    An error is raised in its place. Closing the generator cancels what has not begun.
    """
    pending: deque[Future[T]] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="ahead")
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > depth:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
