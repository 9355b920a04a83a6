"""Whether ranks that their launcher starts again are to go on.

torchrun starts ranks again after any failure of one, as often as `--max-restarts` allows on each machine, and whenever
a machine comes or goes, which it does not count. What such ranks must know of the lives before them is in the part of
the launcher's store that outlives those (`lasting`), where torchrun keeps it: how often each launcher has started each
rank, whether a failure would only come back, and whether the launch has begun its work.
"""

from __future__ import annotations

import os
import socket
from typing import Any

from veilray.errors import LostRankError, StoppedError, ToldElsewhere
from veilray.parallel.rendezvous import lasting

OVER = "veilray/over"
"""Where the store says that a failure would only happen again, and with which exit status."""
STARTED = "veilray/started"
"""Where the store counts how often each launcher has started each of its ranks."""
BEGUN = "veilray/begun"
"""Where the store says that this launch has begun what a restart goes on with."""


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


def leave_if_over(store: Any, local_rank: int) -> None:
    """End a rank that its launcher has started again after a failure that would only happen again: ToldElsewhere."""
    kept = lasting(store)
    # A launcher counts its own failures alone, not that it starts its ranks again because another one does.
    starts = kept.add(f"{STARTED}/{socket.gethostname()}/{os.getppid()}/{local_rank}", 1)
    if (starts > 1 or counted()) and kept.check([OVER]):
        raise ToldElsewhere(int(kept.get(OVER)))


def note_begun(store: Any) -> None:
    """Write down that this launch has begun its work."""
    lasting(store).set(BEGUN, "")


def has_begun(store: Any) -> bool:
    """Whether this launch had begun its work before: then this is a restart that goes on with it."""
    return bool(lasting(store).check([BEGUN]))
