"""How much of the machine's processors a container or a batch job may use: the CPU quotas of Linux's control groups.

Version 2 keeps "QUOTA PERIOD" or "max PERIOD" in `cpu.max` (kernel documentation, admin-guide/cgroup-v2, CPU interface
files), version 1 microseconds in `cpu.cfs_quota_us`, -1 for none, and `cpu.cfs_period_us` (scheduler/sched-bwc).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

CONTROL = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")


def quota_cores(*, control: Path = CONTROL, own: Path = OWN) -> int | None:
    """Cores that this process's control groups allow it, rounded up: the least of all; None where nothing limits them.

    `control`: where the groups are mounted; `own`: what says which are this process's.
    """
    shares = [share for folder in _folders(control, own) if (share := _share(folder)) is not None]
    return max(1, math.ceil(min(shares))) if shares else None


def _folders(control: Path, own: Path) -> Iterator[Path]:
    """Folders of the groups that this process is in, from its own up to the mount; a limit of each holds."""
    try:
        lines = own.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        if controllers and "cpu" not in controllers.split(","):
            continue
        mount = control / controllers if controllers else control
        if controllers and not mount.is_dir():
            mount = control / "cpu"
        place = PurePosixPath(path.lstrip("/"))
        # In a container the path may be the host's, which is not there: then the mount itself is the container's.
        yield from (mount / part for part in (place, *place.parents))


def _share(folder: Path) -> float | None:
    """Quota over period of one group; None where it has none."""
    try:
        if (folder / "cpu.max").is_file():
            quota, period = (folder / "cpu.max").read_text(encoding="ascii").split()
        else:
            quota, period = ((folder / f"cpu.cfs_{name}_us").read_text(encoding="ascii") for name in _VERSION_1)
        return int(quota) / int(period) if quota != "max" and int(quota) > 0 else None
    except (OSError, ValueError, ZeroDivisionError):
        return None


_VERSION_1 = ("quota", "period")
