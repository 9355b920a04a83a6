"""Every exception that Veilray raises on purpose.

VeilrayError                    exit status 1
├── UsageError                  exit status 2: wrong usage or configuration
├── DataError                   exit status 3: bad input data
│   ├── ImageError              one file that cannot be used as a radiograph
│   ├── CohortError             a cohort or release that is damaged or does not fit
│   └── RunError                a run folder, checkpoint or result file that is damaged or does not fit
│       └── CutShortError       a checkpoint or weights file that is not whole
├── RefusedError                exit status 4: refused for safety
│   └── BundleError             a bundle or upload that is altered, replayed, or not from or for whom it should be
├── DiskFullError               exit status 1: a file or folder that the disk has no room for
├── TrainingError               exit status 1: training cannot go on
├── LostRankError               exit status 1: another process of a distributed job has gone
├── StoppedError                exit status 1: asked to stop, with all saved; can be gone on with
├── ToldElsewhere               the status of an error that another process of the job tells the user
└── LpipsUnavailable            exit status 1: the weights of LPIPS cannot be had; evaluation goes on without it

Each message is one or two lines: what is wrong, and what to do about it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


class VeilrayError(Exception):
    """Anything Veilray stops for on purpose; the message is written for the user."""

    exit_status = 1


class UsageError(VeilrayError):
    """Wrong usage: an option, an argument or a configuration key."""

    exit_status = 2


class DataError(VeilrayError):
    """Input data that cannot be used."""

    exit_status = 3


class ImageError(DataError):
    """One file that cannot be used as a radiograph; the message is the reason."""


class CohortError(DataError):
    """A cohort or release that is damaged, altered or unfit for what was asked."""


class RunError(DataError):
    """A run folder, checkpoint or result file that is damaged, altered or unfit for what was asked."""


class CutShortError(RunError):
    """A file of weights or a checkpoint that is missing, cut short or foreign."""


class RefusedError(VeilrayError):
    """Refused for safety, though it could have been done."""

    exit_status = 4


class BundleError(RefusedError):
    """A bundle or an upload that is altered, replayed, or not from or for whom it should be.

    `reason` is one word for the log, which holds no names of files and nothing of what came from outside.
    """

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class DiskFullError(VeilrayError):
    """A file or folder that the disk, or a quota, has no room for; `fault` is the message without its advice."""

    def __init__(self, fault: str) -> None:
        super().__init__(f"{fault}; free some space and retry")
        self.fault = fault


class TrainingError(VeilrayError):
    """Training cannot go on: the loss or the gradients are not finite."""


class LostRankError(VeilrayError):
    """Another process of a distributed job has ended or does not answer."""


class StoppedError(VeilrayError):
    """Asked to stop, by Ctrl-C or SIGTERM, with everything saved: the same command can go on."""


class ToldElsewhere(VeilrayError):  # noqa: N818 - it ends a process without a word
    """Another process of the job tells the user; this one only ends, with the same status."""

    def __init__(self, exit_status: int) -> None:
        super().__init__("another rank says why")
        self.exit_status = exit_status


class LpipsUnavailable(VeilrayError):  # noqa: N818 - it is a reason to report, not a fault
    """The weights of LPIPS cannot be had; the message is the reason that evaluation reports for "not computed"."""


def first_fault(error: ValidationError) -> str:
    """The first thing that is wrong with values from outside, as `key: what`; never the value itself."""
    fault = error.errors(include_input=False, include_url=False)[0]
    # A union names the branches that it tried, as function-wrap[...]: of no use to whoever wrote the value.
    where = ".".join(str(part) for part in fault["loc"] if "[" not in str(part))
    what = "unknown key" if fault["type"] == "extra_forbidden" else fault["msg"].removeprefix("Value error, ")
    return f"{where}: {what}" if where else what
