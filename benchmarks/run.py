"""Run every benchmark that needs no data of its own, one after the other: `make bench`.

The quality benchmark needs radiographs and an hour: see quality.py. The last one, faults, takes about half an hour.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPTS = ("imports", "importing", "loader", "memory", "metrics", "inference", "training_step", "validation", "faults")


def main() -> None:
    """Run them with --save, so that results/ holds this machine's figures."""
    folder = Path(__file__).parent
    for name in SCRIPTS:
        print(f"\n== {name}", flush=True)
        subprocess.run([sys.executable, str(folder / f"{name}.py"), "--save"], check=True)


if __name__ == "__main__":
    main()
