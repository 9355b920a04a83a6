"""Files written aside: whole or not at all, with the permissions that the umask leaves them."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from veilray.files import remove_parts, replacing, replacing_folder


@pytest.fixture
def umask(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], int]]:
    """Sets the umask; nothing else may while a test runs, since another thread's files would have it."""
    ask, before = os.umask, os.umask(0o022)

    def only_here(mask: int) -> int:
        raise AssertionError("the umask is the whole process's")

    monkeypatch.setattr(os, "umask", only_here)
    yield ask
    ask(before)


@pytest.mark.parametrize(
    ("mask", "mode", "file", "folder"),
    [
        (0o022, None, 0o644, 0o755),
        (0o027, None, 0o640, 0o750),
        (0o000, 0o700, 0o700, 0o700),
        (0o277, None, 0o400, 0o500),
    ],
)
def test_the_umask_decides_who_may_read_what_is_done(
    umask: Callable[[int], int], tmp_path: Path, mask: int, mode: int | None, file: int, folder: int
) -> None:
    options = {} if mode is None else {"mode": mode}
    umask(mask)
    with replacing(tmp_path / "file", **options) as part:
        assert stat.S_IMODE(part.stat().st_mode) == 0o600
        part.write_text("whole")
    with replacing_folder(tmp_path / "folder", **options) as part:
        assert stat.S_IMODE(part.stat().st_mode) == 0o700
        (part / "inside").write_text("whole")
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("file", "folder")]
    assert modes == [file, folder]


@pytest.mark.parametrize("aside", [replacing, replacing_folder])
def test_what_fails_leaves_nothing(tmp_path: Path, aside: Callable[..., AbstractContextManager[Path]]) -> None:
    def fail() -> None:
        with aside(tmp_path / "new") as part:
            (part / "inside" if part.is_dir() else part).write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_what_a_kill_left_of_tensors_being_written_is_removed(tmp_path: Path) -> None:
    code = (
        "import sys, torch\n"
        "from pathlib import Path\n"
        "from veilray.models.tensors import write_tensors\n"
        "while True: write_tensors(Path(sys.argv[1]), {'a': torch.zeros(20_000_000)}, {})\n"
    )
    whole = tmp_path / "tensors"
    process = subprocess.Popen([sys.executable, "-c", code, str(whole)])
    try:
        # Of safetensors, in the middle of writing.
        while not (whole.exists() and any(path.name.startswith(".tmp") for path in tmp_path.iterdir())):
            assert process.poll() is None
    finally:
        process.kill()
        process.wait()
    remove_parts(tmp_path)
    assert list(tmp_path.iterdir()) == [whole]
