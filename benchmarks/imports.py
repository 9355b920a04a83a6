"""How long a command takes before it does anything: `veilray --help`, `import veilray`, and torch for scale.

python benchmarks/imports.py [--rounds 7] [--save]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

from common import save, table

COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "import veilray": ["-c", "import veilray"],
    "veilray --help": ["-c", "import sys; sys.argv = ['veilray', '--help']; from veilray.cli.main import run; run()"],
    "import torch": ["-c", "import torch"],
    "veilray.UNet": ["-c", "import veilray; veilray.UNet"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--save", action="store_true", help="write results/imports.json")
    options = parser.parse_args()
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(options.rounds):
        for name, arguments in COMMANDS.items():
            began = time.perf_counter()
            subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
            seconds[name].append(time.perf_counter() - began)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    print(table(["command", "seconds"], [[name, f"{value:.2f}"] for name, value in medians.items()]))
    if options.save:
        save("imports", {"rounds": options.rounds, "median_seconds": medians})


if __name__ == "__main__":
    main()
