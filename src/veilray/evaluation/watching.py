"""How an evaluation lets itself be watched."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

Advance = Callable[[int], None]
Show = Callable[[str, int], AbstractContextManager[Advance]]
"""Shows work under way: called with what it is and how many images it has, gives what is to be told of images done."""


def show_nothing(description: str, total: int) -> AbstractContextManager[Advance]:
    """Work that nobody watches."""
    return nullcontext(_ignore)


def _ignore(count: int) -> None:
    pass
