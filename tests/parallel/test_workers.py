"""The ordered map: order, errors, a bounded window, and the end of its processes."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection

import pytest

from veilray.errors import ImageError, VeilrayError
from veilray.parallel.workers import WINDOW, available_cores, ordered_map


def _late_for_even(number: int) -> int:
    time.sleep(0.02 * (number % 2 == 0))
    return number * number


def _refuse_three(number: int) -> int:
    if number == 3:
        raise ImageError("three")
    return number


def _die_at_three(number: int) -> int:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def _die_while_it_tells_of_three(number: int) -> int:
    if number == 3:

        def half(connection: Connection, message: bytes) -> None:
            os.write(connection.fileno(), struct.pack("!i", 2 * len(message)) + message)
            os.kill(os.getpid(), signal.SIGKILL)

        Connection._send_bytes = half  # type: ignore[attr-defined]
    return number


def _pid(_: int) -> int:
    return os.getpid()


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_the_order_of_the_items(workers: int) -> None:
    assert list(ordered_map(_late_for_even, range(20), workers=workers)) == [n * n for n in range(20)]


@pytest.mark.slow
def test_more_than_one_process_works() -> None:
    pids = set(ordered_map(_pid, range(20), workers=2))
    assert os.getpid() not in pids
    assert set(ordered_map(_pid, range(3), workers=1)) == {os.getpid()}


@pytest.mark.parametrize("workers", [1, 2])
def test_errors_come_out_at_their_place(workers: int) -> None:
    results = ordered_map(_refuse_three, range(9), workers=workers)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ImageError, match="three"):
        next(results)


@pytest.mark.slow
@pytest.mark.parametrize("function", [_die_at_three, _die_while_it_tells_of_three])
def test_a_killed_worker_is_a_clear_error(function: Callable[[int], int]) -> None:
    with pytest.raises(VeilrayError, match="worker process ended"):
        list(ordered_map(function, range(9), workers=2))


def test_items_are_read_only_as_far_as_needed() -> None:
    read = 0

    def items() -> Iterator[int]:
        nonlocal read
        for number in range(1000):
            read += 1
            yield number

    results = ordered_map(_late_for_even, items(), workers=2)
    next(results)
    assert read <= 2 * WINDOW
    results.close()  # type: ignore[attr-defined]
    assert read <= 2 * WINDOW


def test_the_modules_of_a_worker_do_not_import_torch() -> None:
    code = "import sys, veilray.cohort.prepare, veilray.parallel.workers; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_available_cores_is_what_the_process_may_use() -> None:
    assert 1 <= available_cores() <= (os.cpu_count() or 1)
