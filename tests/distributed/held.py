"""The command line of Veilray with a moment to wait for: `python held.py train ...`.

With $HELD a rank among so many waits in its first life before its third step, or that of $HELD_BEFORE, until it is
asked to stop. With $DIES it is killed in its first life once it has read its data, before it looks at the run folder.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from typing import Any


def main() -> None:
    """Arm what the environment asks for and run the command."""
    from veilray.cli.main import run

    first = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
    if first and os.environ.get("HELD") == os.environ["WORLD_SIZE"]:
        _wait(int(os.environ.get("HELD_BEFORE", "3")))
    if "DIES" in os.environ and first:
        _die()
    run()


def _wait(step: int) -> None:
    from veilray.training import loop
    from veilray.training.interruption import Interruption
    from veilray.training.step import Stepper

    take, deferred, interruptions = Stepper.take, loop.deferred_interruption, list[Interruption]()

    @contextlib.contextmanager
    def watched(**options: Any) -> Iterator[Interruption]:
        with deferred(**options) as interruption:
            interruptions.append(interruption)
            yield interruption

    def taken(self: Stepper, *arguments: Any, **options: Any) -> Any:
        while self._number >= step - 1 and not interruptions[-1].requested:
            time.sleep(0.01)
        return take(self, *arguments, **options)

    loop.deferred_interruption = watched  # type: ignore[assignment]
    Stepper.take = taken  # type: ignore[method-assign]


def _die() -> None:
    from veilray.cli import training

    training.check_agreement = lambda *arguments, **options: os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main()
