"""The command line as the tests call it: in this process for speed, or as a process of its own."""

from __future__ import annotations

import contextlib
import io
import os
import resource
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from veilray.cli import main
from veilray.metrics import lpips

SMALL = [
    word
    for setting in (
        "model.width=4",
        "model.depth=3",
        "train.epochs=2",
        "train.batch_size=8",
        "launch.device=cpu",
        "launch.precision=fp32",
    )
    for word in ("--set", setting)
]
"""Overrides with which a network trains in a second."""

PROCESS = [sys.executable, "-c", "from veilray.cli.main import run; run()"]
"""What the console script `veilray` does."""

NO_BYTECODE = {"PYTHONDONTWRITEBYTECODE": "1"}
"""For processes that may not write large files: Python would cut short what it keeps of a module that it compiles, and
no process could import that module any more."""

SLOW_EPOCHS = """
import time
from veilray.training.run import RunFolder
append = RunFolder.append
def slowly(self, record):
    append(self, record)
    time.sleep(0.5)
RunFolder.append = slowly
from veilray.cli.main import run
run()
"""
"""The command line in which every epoch takes its time, so that who is to meet one cannot miss it."""


@dataclass(frozen=True)
class Finished:
    """What a command left: its exit status and what it said."""

    status: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        """Lines on standard error."""
        return self.err.splitlines()


def veilray(*words: object) -> Finished:
    """Run a command of Veilray in this process, where no LPIPS backbone is at hand but one that is named."""
    out, err = io.StringIO(), io.StringIO()
    with (
        mock.patch.dict(os.environ),
        mock.patch.object(lpips, "BACKBONE_SHA256", "the digest of no file"),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        os.environ.pop("VEILRAY_LPIPS_BACKBONE", None)
        try:
            status = main._status([str(word) for word in words])
        except SystemExit as end:  # as sys.exit(...) in the entry point would pass it on
            status = int(end.code or 0)
    return Finished(status, out.getvalue(), err.getvalue())


def done(*words: object) -> Finished:
    """Run a command that must succeed."""
    result = veilray(*words)
    assert result.status == 0, result.err
    return result


def start(
    *words: object, folder: Path | None = None, program: Sequence[str] = PROCESS, largest_file: int | None = None
) -> subprocess.Popen[str]:
    """Start the command line as a process of its own, one thread, its output in pipes.

    Writing a file beyond `largest_file` bytes fails, as it does on a full disk.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    if largest_file is not None:
        environment |= NO_BYTECODE

    def limit() -> None:
        if largest_file is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))

    return subprocess.Popen(
        [*program, *(str(word) for word in words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env=environment,
        preexec_fn=limit,
    )


def veilray_process(*words: object, folder: Path | None = None, largest_file: int | None = None) -> Finished:
    """Run a command of Veilray as a process of its own."""
    process = start(*words, folder=folder, largest_file=largest_file)
    out, err = process.communicate(timeout=240)
    return Finished(process.returncode, out, err)


def split_file(path: Path, images: Path, sets: Sequence[str]) -> Path:
    """A file for `import --split`: the sets of NIH's images in a folder, patient by patient in turn.

    Of a cohort without one, the pseudonyms of a release decide its sets, and they are drawn anew each time.
    """
    names = sorted(image.stem for image in images.iterdir())
    lines = [f"{name},{sets[int(name[:8]) % len(sets)]}\n" for name in names]
    path.write_text("image_id,split\n" + "".join(lines), encoding="utf-8")
    return path


def make_cohort(folder: Path, *, patients: int = 20, size: int = 32) -> Path:
    """A cohort of two images a patient, 60/20/20; the images stay beside it in `png`."""
    from tests.training.small import write_images

    write_images(folder / "png", patients=patients, size=size)
    options = ["--size", size, "--shares", "60/20/20", "--workers", 1]
    done("import", folder / "png", "--out", folder / "cohort", *options)
    return folder / "cohort"
