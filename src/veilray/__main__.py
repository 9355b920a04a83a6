"""`python -m veilray`, and so `torchrun ... -m veilray train ...`."""

from __future__ import annotations

from veilray.cli.main import run

if __name__ == "__main__":
    run()
