"""A clean part of the launcher's store for each life of a group.

torchrun keeps its store when it starts the ranks again after a failure. What ranks now dead have written is still
there, their network addresses among it, and whoever reads those before they are written anew waits for a peer that is
no more. So the ranks of each life first agree on a prefix that nobody has used. They cannot count lives: each machine's
launcher counts only its own failures.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any

HERE = "veilray/here"
LIFE = "veilray/life"
LEFT = "veilray/left"
LEAVING_SECONDS = 5.0
"""Longest time by which a process that holds the store outlives its own work."""
POLL_SECONDS = 0.02
LONGEST_POLL_SECONDS = 0.2
PREPARING_SECONDS = 3600.0
"""Longest that ranks which have met wait for one that is not ready to join: one a machine reads all of its data."""


def new_life(store: Any, *, rank: int, world_size: int, timeout: float) -> Any:
    """A part of `store`, torch.distributed's, that these ranks share, and that no rank before them has written to.

    Every rank says that it is here under a name of its own. The lead calls the names it finds to a life, and calls
    anew when one of them changes, because then it was a dead rank's; it begins a life once all have answered. Raises
    RuntimeError where they have not after `timeout` seconds.
    """
    import torch.distributed as dist

    own = uuid.uuid4().hex
    store.set(f"{HERE}/{rank}", own)
    life = _led(store, world_size, timeout) if rank == 0 else _followed(store, rank, own, timeout)
    return dist.PrefixStore(f"{LIFE}/{life}", store)  # type: ignore[attr-defined]


def lasting(store: Any) -> Any:
    """The part of a store that outlives a restart of the ranks by the launcher."""
    while hasattr(store, "underlying_store"):
        store = store.underlying_store
    return store


def ends_with_lead() -> bool:
    """Whether the lead's process holds the store, as where a batch system starts the ranks, not the launcher."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"  # torch.distributed.rendezvous, `env://`


def await_leaving(store: Any, *, world_size: int, timeout: float) -> None:
    """Wait until every rank has added itself to `LEFT`, at most `timeout` seconds: one that was killed never does."""
    deadline = time.monotonic() + timeout
    with contextlib.suppress(RuntimeError):
        while store.add(LEFT, 0) < world_size and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)


def await_keys(store: Any, keys: Sequence[str]) -> None:
    """Wait until all keys are in the store; DistStoreError where they are not after `PREPARING_SECONDS`.

    The store's own waiting would hold back signals, and with them the word of a rank that is told to end.
    """
    import torch.distributed as dist

    deadline, pause = time.monotonic() + PREPARING_SECONDS, POLL_SECONDS
    while keys and not store.check(list(keys)):
        if time.monotonic() > deadline:
            raise dist.DistStoreError(f"it has said nothing for {PREPARING_SECONDS:.0f} s")
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_POLL_SECONDS)


@contextlib.contextmanager
def unheard() -> Iterator[Callable[[], None]]:
    """Let nothing through to standard error meanwhile: torch's C++ writes a stack trace there when the store is gone.

    For moments in which no other thread has anything to say, since it holds for all of them. What it gives, once
    called, keeps it so to the end of the process for all but Python: where a thread of torch's cannot be ended.
    """
    try:
        kept = os.dup(2)
    except OSError:  # closed
        yield lambda: None
        return
    before = sys.stderr

    def stay() -> None:
        sys.stderr = os.fdopen(kept, "w", buffering=1, encoding=before.encoding, errors=before.errors)

    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield stay
    finally:
        if sys.stderr is before:
            os.dup2(kept, 2)
            os.close(kept)
        os.close(nowhere)


def _led(store: Any, world_size: int, timeout: float) -> str:
    called: list[str] = []
    life = ""
    for _ in _waiting(timeout, "the other ranks did not all come"):
        here = [store.get(f"{HERE}/{rank}").decode() for rank in range(world_size)]
        if here != called:
            called, life = here, uuid.uuid4().hex
            store.set(LIFE, json.dumps({"life": life, "called": called}))
        if store.add(f"{LIFE}/{life}/answers", 0) == world_size - 1:
            store.set(f"{LIFE}/{life}/begun", "")
            break
    return life


def _followed(store: Any, rank: int, own: str, timeout: float) -> str:
    answered = ""
    for _ in _waiting(timeout, "rank 0 did not call"):
        if not store.check([LIFE]):
            continue
        call = json.loads(store.get(LIFE))
        if own not in call["called"][rank : rank + 1]:
            continue
        if call["life"] != answered:
            answered = call["life"]
            store.add(f"{LIFE}/{answered}/answers", 1)
        if store.check([f"{LIFE}/{answered}/begun"]):
            break
    return answered


def _waiting(timeout: float, why: str) -> Iterator[None]:
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        yield
        time.sleep(POLL_SECONDS)
    raise RuntimeError(f"{why} within {timeout:.0f} s")
