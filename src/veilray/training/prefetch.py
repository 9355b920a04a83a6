"""Batches prepared ahead of their steps, in background threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Batch = TypeVar("Batch")


def prefetched(
    make: Callable[[int], Batch], steps: Iterable[int], *, ahead: int, threads: int = 1
) -> Generator[Batch, None, None]:
    """`make(step)` for each step, in their order, with `ahead` of them prepared by threads before they are asked for.

    0 prepares each when it is asked for, in the thread that asks. `make` must depend on the step alone. An exception in
    it is raised at its own step. Close the iterator to end the threads; what has not begun is then dropped.
    """
    if not ahead:
        yield from map(make, steps)
        return
    # Threads: their work, copies and random draws, is done by library code that lets the interpreter go on.
    pool = ThreadPoolExecutor(threads, thread_name_prefix="batches")
    pending: deque[Future[Batch]] = deque()
    try:
        for step in steps:
            pending.append(pool.submit(make, step))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
