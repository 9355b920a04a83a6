"""The memory of a process, for benchmarks whose processes must not load what `common` brings."""

from __future__ import annotations

from pathlib import Path


def peak_bytes(pid: int | None = None) -> float:
    """Largest resident set so far of a running process, this one by default. Linux only.

    From /proc, since what getrusage tells of a child begins with what its parent had taken.
    """
    status = Path(f"/proc/{pid or 'self'}/status").read_text(encoding="ascii")
    return 1024.0 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))
