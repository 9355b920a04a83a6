"""The command line as a whole: exit statuses, errors of one line, no traceback unless asked for."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest
from tests.command_line import veilray, veilray_process

import veilray as package
from veilray.cli import main
from veilray.errors import DataError, RefusedError, RunError, TrainingError, UsageError, VeilrayError

COMMANDS = ("demo", "import", "obfuscate", "train", "evaluate", "compare", "denoise", "models")


def _raising(error: BaseException) -> Callable[..., NoReturn]:
    def command(*arguments: object, **options: object) -> NoReturn:
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (VeilrayError("a"), 1),
        (TrainingError("a"), 1),
        (UsageError("a"), 2),
        (DataError("a"), 3),
        (RunError("a"), 3),
        (RefusedError("a"), 4),
        (MemoryError(), 1),
        (PermissionError(errno.EACCES, "Permission denied", "/some/file"), 1),
        (OSError(errno.ENOSPC, "No space left on device", "/some/file"), 1),
        (ZeroDivisionError("division by zero"), 1),
        (AssertionError(), 1),
    ],
)
def test_every_error_is_one_line_and_a_status(
    error: BaseException, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(main, "app", _raising(error))
    result = veilray("train")
    assert result.status == status
    assert len(result.lines) == 1
    assert result.lines[0].startswith("veilray: ")
    assert "Traceback" not in result.err
    assert result.out == ""


def test_ctrl_c_is_told_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*arguments: object, **options: object) -> NoReturn:
        raise KeyboardInterrupt

    (tmp_path / "in").mkdir()
    monkeypatch.setattr("veilray.parallel.sharding.ordered_map", interrupt)
    result = veilray("import", tmp_path / "in", "--out", tmp_path / "out")
    assert (result.status, result.lines) == (1, ["veilray: stopped"])
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_a_file_that_ends_too_early_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in").mkdir()
    monkeypatch.setattr("veilray.parallel.sharding.ordered_map", _raising(EOFError("marshal data too short")))
    result = veilray("import", tmp_path / "in", "--out", tmp_path / "out")
    assert (result.status, len(result.lines)) == (1, 1)
    assert "a file ended too early: marshal data too short" in result.err


def test_files_and_advice_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(main, "app", _raising(OSError(errno.ENOSPC, "No space left on device", "/some/file")))
    assert "/some/file: No space left on device; free some space" in veilray("train").err
    monkeypatch.setattr(main, "app", _raising(MemoryError()))
    assert "tile" in veilray("denoise").err
    monkeypatch.setattr(main, "app", _raising(ZeroDivisionError("division by zero")))
    assert "--debug" in veilray("denoise").err


def test_debug_shows_the_traceback_wherever_it_stands(tmp_path: Path) -> None:
    words = ["train", "default", "--data", tmp_path / "none", "--out", tmp_path / "run"]
    assert "Traceback" not in veilray(*words).err
    for arguments in (["--debug", *words], [*words, "--debug"]):
        result = veilray(*arguments)
        assert result.status == 3
        assert "Traceback (most recent call last)" in result.err
        assert "CohortError" in result.err
        assert result.lines[-1].startswith(f"veilray: {tmp_path / 'none'} is neither a cohort nor a release")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trian"], "No such command 'trian'"),
        (["--bogus"], "--bogus"),
        (["train", "--bogus"], "--bogus"),
        (["train", "default"], "Missing option '--data'"),
        (["train", "default", "--data", "c"], "Missing option '--out'"),
        (["evaluate", "run"], "--data"),
        (["evaluate"], "run"),
        (["compare"], "runs"),
        (["compare", "run"], "--out"),
        (["denoise"], "INPUT"),
        (["import"], "SOURCE"),
        (["obfuscate"], "cohort"),
        (["evaluate", "run", "--data", "c", "--split", "train"], "--split"),
    ],
)
def test_wrong_usage_is_status_2_and_names_the_fault(words: list[str], said: str) -> None:
    result = veilray(*words)
    assert result.status == 2
    assert said.lower() in result.err.lower()
    assert "Traceback" not in result.err


@pytest.mark.slow
def test_help_names_every_command_and_each_has_its_own() -> None:
    result = veilray("--help")
    assert result.status == 0
    for command in COMMANDS:
        assert re.search(rf"^ +{command} +\w", result.out, re.MULTILINE), command
        own = veilray(command, "--help")
        assert own.status == 0
        assert re.search(rf"^Usage: .* {command} ", own.out)
        assert len(own.out.splitlines()) > 6


def test_version() -> None:
    result = veilray("--version")
    assert (result.status, result.out) == (0, f"veilray {package.__version__}\n")


def test_without_a_command_the_help_is_shown() -> None:
    result = veilray()
    assert result.status == 2
    assert "Usage" in result.out + result.err


@pytest.mark.parametrize(
    "words",
    [
        ["import", "no-such-folder", "--out", "out"],
        ["obfuscate", "no-such-folder", "--out", "out"],
        ["train", "default", "--data", "no-such-folder", "--out", "out"],
        ["train", "no-such-file.toml", "--data", "c", "--out", "out"],
        ["evaluate", "no-such-run", "--data", "c"],
        ["compare", "no-such-run", "--out", "out"],
        ["denoise", "no-such-file.png", "--out", "out", "--model", "no-such-run"],
    ],
)
def test_what_is_missing_is_named_and_nothing_is_made(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = veilray(*words)
    assert result.status in (2, 3)
    assert len(result.lines) == 1
    assert "no-such" in result.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_as_a_real_process(tmp_path: Path) -> None:
    result = veilray_process("train", "default", "--data", "none", "--out", "run", folder=tmp_path)
    assert result.status == 3
    assert result.lines == ["veilray: none is neither a cohort nor a release; make one with: veilray import"]
    assert result.out == ""
    assert veilray_process("unknown").status == 2
    assert veilray_process("--version").out == f"veilray {package.__version__}\n"


ENDING = """
import ctypes, sys, threading, time
from veilray.cli import main
from veilray.errors import DataError

def late():
    time.sleep(0.3)
    print("late")

def command(**options):
    libc = ctypes.CDLL(None)
    libc.__cxa_atexit(ctypes.cast(libc.abort, ctypes.c_void_p), None, None)  # as a destructor that ends in abort()
    print("work" * 10_000)
    match sys.argv[1]:
        case "thread":
            threading.Thread(target=late).start()
        case "data":
            raise DataError("no such cohort")
        case "unforeseen":
            raise ZeroDivisionError("division by zero")
        case "usage":
            sys.exit(2)

main.app = command
main.run()
"""
RANK = {"RANK": "0", "WORLD_SIZE": "1"}


def _end(case: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", ENDING, case],
        env={**{name: value for name, value in os.environ.items() if name not in RANK}, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.skipif(sys.platform != "linux", reason="the destructor is registered as glibc does it")
@pytest.mark.parametrize(
    ("case", "status", "said"),
    [
        ("done", 0, ""),
        ("thread", 0, ""),
        ("usage", 2, ""),
        ("data", 3, "no such cohort"),
        ("unforeseen", 1, "division"),
    ],
)
def test_a_rank_ends_with_its_status_and_all_it_said_whatever_destructors_do(case: str, status: int, said: str) -> None:
    ended = _end(case, RANK)
    assert ended.returncode == status, ended.stderr
    assert ended.stdout == "work" * 10_000 + "\n" + ("late\n" if case == "thread" else "")
    assert len(ended.stderr.splitlines()) == (1 if said else 0)
    assert said in ended.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="the destructor is registered as glibc does it")
def test_a_process_that_is_no_rank_runs_its_destructors() -> None:
    # Or the test above would not show that a rank leaves them out.
    assert _end("done", {}).returncode == -signal.SIGABRT
