"""Progress where there is no terminal: plain lines on standard error, none on standard output."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from veilray.cli import progress as module
from veilray.cli.progress import _rounded, progress


def test_ends_with_the_whole_count(capsys: pytest.CaptureFixture[str]) -> None:
    with progress(1_200, "importing", "images") as bar:
        bar.advance(1_000)
        bar.advance(200)
        bar.say("one was odd")
    shown = capsys.readouterr()
    lines = shown.err.splitlines()
    assert lines[0] == "one was odd"
    assert lines[1].startswith("importing: 1,200 of 1,200 images, ")
    assert shown.out == ""


def _tick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a second pass whenever the progress looks at the clock; the clock itself goes on for others."""
    clock = iter(range(1000))
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: float(next(clock))))


def test_a_line_every_few_seconds(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    _tick(monkeypatch)
    with progress(None, "importing", "files") as bar:
        for _ in range(20):
            bar.advance()
    lines = capsys.readouterr().err.splitlines()
    assert 3 <= len(lines) <= 6
    assert lines[-1].startswith("importing: 20 files, ")


def test_nothing_is_said_of_no_work(capsys: pytest.CaptureFixture[str]) -> None:
    with progress(None, "importing", "files"):
        pass
    assert capsys.readouterr().err == ""


def test_what_was_done_before_counts_but_not_as_speed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _tick(monkeypatch)
    with progress(100, "training", "images") as bar:
        bar.begin_at(90)
        bar.advance(2)
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("training: 92 of 100 images, ")
    assert "90" not in last
    assert float(last.split("images, ")[1].split("/s")[0]) <= 2


def test_speeds_are_written_out() -> None:
    assert [_rounded(rate) for rate in (0.01234, 12.34, 2600.4)] == ["0.0123", "12.3", "2,600"]
