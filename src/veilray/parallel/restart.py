"""Whether ranks that their launcher starts again are to go on.

torchrun starts ranks again after any failure of one, as often as `--max-restarts` allows on each machine, and whenever
a machine comes or goes, which it does not count. What such ranks must know of the lives before them is in the part of
the launcher's store that outlives those (`lasting`), where torchrun keeps it: how often each launcher has started each
rank, whether a failure would only come back, and whether the launch has begun its work.
"""

from __future__ import annotations

import os
import socket
import time
from typing import Any

from veilray.errors import LostRankError, StoppedError, ToldElsewhere
from veilray.parallel.ending import pass_over_signals
from veilray.parallel.rendezvous import POLL_SECONDS, lasting

OVER = "veilray/over"
"""Where the store says that a failure would only happen again, and with which exit status."""
STARTED = "veilray/started"
"""Where the store counts how often each launcher has started each of its ranks."""
BEGUN = "veilray/begun"
"""Where the store says that this launch has begun what a restart goes on with."""
LEAVING = "veilray/leaving"
"""Where the store counts the ranks that have learned, in their lives after it, that the launch is over."""
GATHERING_SECONDS = 20.0
"""Longest time by which ranks of one life start apart; a launcher kills a rank 30 after it has told it to end."""


def counted() -> bool:
    """Whether the launcher has started this process again after a failure on its machine, the only ones it counts."""
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"


def comes_back(error: BaseException) -> bool:
    """Whether ranks that are started again after this error would only meet it again.

    Not where a rank was lost or asked to stop: a launcher stops sound ranks with SIGTERM when a machine comes or goes.
    A launcher that was itself told to end starts nothing again.
    """
    return not isinstance(error, (LostRankError, StoppedError, KeyboardInterrupt))


def note_over(store: Any, status: int) -> None:
    """Write down that a failure with this exit status would only happen again."""
    lasting(store).set(OVER, str(status))


def leave_if_over(store: Any, *, local_rank: int, world_size: int) -> None:
    """End a rank that its launcher has started again after a failure that would only happen again: ToldElsewhere."""
    kept = lasting(store)
    # A launcher counts its own failures alone, not that it starts its ranks again because another one does.
    starts = kept.add(f"{STARTED}/{socket.gethostname()}/{os.getppid()}/{local_rank}", 1)
    if (starts > 1 or counted()) and kept.check([OVER]):
        _leave_together(kept, world_size)
        raise ToldElsewhere(int(kept.get(OVER)))


def _leave_together(kept: Any, world_size: int) -> None:
    """Wait until all ranks of this life know that it is over, at most `GATHERING_SECONDS`.

    The launcher of rank 0 holds the store and ends with its last rank: one that starts later would look for it in vain.
    """
    pass_over_signals()  # of a launcher that has seen another rank of its own leave
    deadline = time.monotonic() + GATHERING_SECONDS
    number = kept.add(LEAVING, 1)
    whole_lives = -(-number // world_size) * world_size
    while kept.add(LEAVING, 0) < whole_lives and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)


def note_begun(store: Any) -> None:
    """Write down that this launch has begun its work."""
    lasting(store).set(BEGUN, "")


def has_begun(store: Any) -> bool:
    """Whether this launch had begun its work before: then this is a restart that goes on with it."""
    return bool(lasting(store).check([BEGUN]))
