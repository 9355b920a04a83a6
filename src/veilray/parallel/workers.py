"""Map a function over a stream of items on all cores, in order, with a bounded number of items under way."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures import wait as wait_for_futures
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from typing import TypeVar

from veilray.errors import VeilrayError
from veilray.parallel.quota import quota_cores

Item = TypeVar("Item")
Result = TypeVar("Result")

# Items under way for each worker: enough that a slow one does not leave the others idle, few enough to bound memory.
WINDOW = 4
_LOOK_SECONDS, _PATIENT_LOOKS = 1.0, 5


def available_cores() -> int:
    """Cores that this process may use, which in a container or a batch job are fewer than the machine has."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, quota_cores() or cores)


def ordered_map(
    function: Callable[[Item], Result], items: Iterable[Item], *, workers: int
) -> Generator[Result, None, None]:
    """`function` of each item, in the order of the items, computed by `workers` processes.

    `items` is read only as far as results are taken. `function`, items and results are pickled; one worker means this
    process. An exception in `function` is raised here. Raises VeilrayError where a worker is killed. When the iterator
    is closed, by an error or by Ctrl-C, what has not begun is dropped and the workers end.
    """
    if workers <= 1:
        yield from map(function, items)
        return
    # Spawned, because forking a process that may hold threads (torch's, a progress bar's) can deadlock.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_begin)
    pending: deque[Future[Result]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) >= WINDOW * workers:
                yield _result(pending.popleft(), pool)
        while pending:
            yield _result(pending.popleft(), pool)
    except BrokenProcessPool:
        raise VeilrayError(
            "a worker process ended before its work was done: it was killed, or memory ran out; "
            "retry with fewer workers (--workers 1)"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _result(future: Future[Result], pool: ProcessPoolExecutor) -> Result:
    """What a future gives; BrokenProcessPool where a worker was killed, also in the middle of sending a result.

    Of such a message the pool's own thread awaits the rest for ever: the end of a pipe that it waits for does not come
    while this process and the other workers hold the pipe open as well.
    """
    looks = 0
    while not future.done():
        wait_for_futures([future], timeout=_LOOK_SECONDS)
        processes = list((pool._processes or {}).values())
        looks += any(process.exitcode is not None for process in processes)
        if looks == _PATIENT_LOOKS:  # where it did not come to a message, the pool has noticed by now
            for process in processes:
                process.kill()
            pool._result_queue._writer.close()  # type: ignore[attr-defined]
    return future.result()


def _begin() -> None:
    # Ctrl-C reaches every process of the terminal; only the parent decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A worker holds both ends of its queue, so it would wait for ever once the parent has been killed.
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
