"""How long work shows itself: a bar on a terminal, a plain line every few seconds elsewhere; on standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn, TaskID

# Seconds between two plain lines: often enough to see that it lives, rarely enough for a log file.
INTERVAL = 5.0


class Reporter(Protocol):
    """Takes notice of work done."""

    def begin_at(self, done: int) -> None:
        """`done` had been done before the block began."""

    def advance(self, n: int = 1) -> None:
        """`n` more are done."""

    def say(self, message: str) -> None:
        """A line of its own, above the bar."""


@contextmanager
def progress(total: int | None, description: str, unit: str) -> Iterator[Reporter]:
    """Show `description` with a count of `unit` done, of `total` where it is known, while the block runs."""
    if not sys.stderr.isatty():
        lines = _Lines(total, description, unit)
        yield lines
        lines.end()
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(*_columns(total, unit), console=Console(stderr=True)) as bars:
        yield _Bar(bars, bars.add_task(description, total=total))


class _Bar:
    def __init__(self, bars: Progress, task: TaskID) -> None:
        self._bars = bars
        self._task = task

    def begin_at(self, done: int) -> None:
        self._bars.reset(self._task, completed=done)  # or its speed would count what was done before

    def advance(self, n: int = 1) -> None:
        self._bars.advance(self._task, n)

    def say(self, message: str) -> None:
        self._bars.console.print(message, markup=False, highlight=False)


class _Lines:
    def __init__(self, total: int | None, description: str, unit: str) -> None:
        self._total, self._description, self._unit = total, description, unit
        self._done = self._before = 0
        self._begun = self._shown = time.monotonic()
        self._current = False

    def begin_at(self, done: int) -> None:
        self._done = self._before = done
        self._begun = self._shown = time.monotonic()

    def advance(self, n: int = 1) -> None:
        self._done += n
        self._current = False
        if time.monotonic() - self._shown >= INTERVAL:
            self._show()

    def say(self, message: str) -> None:
        print(message, file=sys.stderr, flush=True)

    def end(self) -> None:
        if self._done > self._before and not self._current:
            self._show()

    def _show(self) -> None:
        self._shown, self._current = time.monotonic(), True
        seconds = max(self._shown - self._begun, 1e-9)
        rate = max(self._done - self._before, 1e-9) / seconds
        of, left = "", ""
        if self._total is not None:
            of = f" of {self._total:,}"
            left = f", {_clock((self._total - self._done) / rate)} left" if self._done < self._total else ""
        took = f", {_clock(seconds)}" if not left else ""
        self.say(f"{self._description}: {self._done:,}{of} {self._unit}, {_rounded(rate)}/s{left}{took}")


def _rounded(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"


def _columns(total: int | None, unit: str) -> list[str | ProgressColumn]:
    from rich.progress import BarColumn, ProgressColumn, Task, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.text import Text

    class Rate(ProgressColumn):
        """Units a second."""

        def render(self, task: Task) -> Text:
            return Text(f"{_rounded(task.speed)} {unit}/s" if task.speed else "")

    count = "{task.completed:,.0f}" if total is None else "{task.completed:,.0f} of {task.total:,.0f}"
    time_left = TimeElapsedColumn() if total is None else TimeRemainingColumn()
    return [TextColumn("{task.description}"), BarColumn(), TextColumn(f"{count} {unit}"), Rate(), time_left]


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
