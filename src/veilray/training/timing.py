"""Where a training's seconds go, and how many there are.

On the CPU a part ends when its call returns. On CUDA the parts that the GPU does are timed by events in its stream,
which costs nothing and waits for nothing; `data` and `checkpoint` are the host's time, during which the GPU may still
be at work on the step before, so that there the parts may add up to more than the whole.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

PARTS = ("data", "forward", "backward", "all_reduce", "update", "validation", "metrics", "checkpoint")
"""`data`: preparing the batch, or waiting for it where it is prefetched. `forward` and `backward`: with the exchanges
inside them (synchronised batch statistics; the gradients that cross while others are still being computed).
`all_reduce`: exposed communication only, that is from the last gradient's being ready to the end of the backward pass,
and the wait for the step's loss over all ranks. It holds the wait for slower ranks, but not what the exchange takes
from the cores that compute. `update`: clipping, optimiser, moving average. `validation`: its data and forward passes;
`metrics`: what it computes of their outputs, and adds up over ranks. `checkpoint`: what the steps wait for."""
ON_DEVICE = ("forward", "backward", "all_reduce", "update", "validation", "metrics")


@dataclass(frozen=True)
class _Moment:
    seconds: float
    event: torch.cuda.Event | None


class PartClock:
    """Owns the seconds of a training: those of each part, from one `lap` to the next, and those of the whole.

    It tells `on_lap` of each lap.
    """

    def __init__(self, device: torch.device, *, on_lap: Callable[[], None] = lambda: None) -> None:
        self._on_lap = on_lap
        self._cuda = device.type == "cuda"
        self._spent = dict.fromkeys(PARTS, 0.0)
        self._pending: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []
        self._gradients_ready: _Moment | None = None
        self._last = self._now()
        self._counted = self._saved = self._last.seconds

    def lap(self, part: str) -> None:
        """The time since the last lap was spent on `part`."""
        now = self._now()
        self._add(part, self._last, now)
        self._last = now
        if part == "checkpoint":
            self._saved = now.seconds
        self._on_lap()

    def start(self) -> None:
        """Begin anew: what came before the first step is no part of the training."""
        self._last = self._now()
        self._counted = self._saved = self._last.seconds

    def elapsed(self) -> float:
        """Seconds, whatever was done in them, since this was last asked, or since the start."""
        now = time.perf_counter()
        elapsed, self._counted = now - self._counted, now
        return elapsed

    def minutes_unsaved(self) -> float:
        """Minutes since the last `checkpoint`, or since the start."""
        return (time.perf_counter() - self._saved) / 60

    def gradients_ready(self) -> None:
        """The last gradient of a backward pass is there: from here on there is only waiting for other ranks."""
        self._gradients_ready = self._now()

    def lap_backward(self) -> None:
        """A backward pass has ended: `backward` up to `gradients_ready`, where that was told, then `all_reduce`."""
        ready, self._gradients_ready = self._gradients_ready, None
        if ready is None:
            self.lap("backward")
            return
        self._add("backward", self._last, ready)
        self._last = ready
        self.lap("all_reduce")

    def take(self) -> dict[str, float]:
        """Seconds of each part since they were last taken; on CUDA it waits for the GPU."""
        if self._pending:
            torch.cuda.synchronize()
        for part, start, end in self._pending:
            self._spent[part] += start.elapsed_time(end) / 1000
        spent, self._spent = self._spent, dict.fromkeys(PARTS, 0.0)
        self._pending.clear()
        return spent

    def _now(self) -> _Moment:
        event = None
        if self._cuda:
            event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            event.record()
        return _Moment(time.perf_counter(), event)

    def _add(self, part: str, start: _Moment, end: _Moment) -> None:
        if part in ON_DEVICE and start.event is not None and end.event is not None:
            self._pending.append((part, start.event, end.event))
        else:
            self._spent[part] += end.seconds - start.seconds
