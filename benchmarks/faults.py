"""Trainings of two ranks that meet faults at random places, round after round: how many came out as they must.

    python benchmarks/faults.py [--rounds 20] [--kinds killed,hung] [--save]

A rank is killed by SIGKILL anywhere in a step, inside an all-reduce or inside the writing of a checkpoint, or hangs
(SIGSTOP); torchrun starts both ranks again, and the weights at the end must be those of an undisturbed training bit for
bit, with one message on the way. A full disk on rank 0 (a limit of file sizes) and Ctrl-C must end both ranks with one
message and whole checkpoints; after Ctrl-C the training is gone on with, to the same bits. The faults are those of
tests/distributed/.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for the tests' faults and launcher
os.environ.setdefault("OMP_NUM_THREADS", "1")

from tests.distributed import faults as scenario

from common import save, table
from veilray.cohort.build import import_radiographs
from veilray.cohort.split import Shares
from veilray.images.phantom import write_phantoms

KINDS = (*scenario.KILLS, "full disk", "Ctrl-C")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20, help="faults of each kind")
    parser.add_argument("--kinds", default=",".join(KINDS), help=f"of {', '.join(KINDS)}")
    parser.add_argument("--save", action="store_true", help="write results/faults.json")
    options = parser.parse_args()
    kinds = [kind.strip() for kind in options.kinds.split(",")]
    if unknown := set(kinds) - set(KINDS):
        parser.error(f"no such kind: {', '.join(sorted(unknown))}")
    tally: dict[str, dict[str, object]] = {}
    with tempfile.TemporaryDirectory() as folder:
        cohort, undisturbed = _cohort(Path(folder)), Path(folder) / "undisturbed"
        finished = scenario.train(cohort, undisturbed)
        if finished.status != 0:
            sys.exit(f"the undisturbed training failed:\n{finished.err}")
        for kind in kinds:
            tally[kind] = _rounds(kind, options.rounds, cohort, undisturbed)
    rows = [[kind, f"{one['passed']}/{one['rounds']}", f"{one['median_seconds']:.0f}"] for kind, one in tally.items()]
    print(table(["fault", "as it must be", "seconds (median)"], rows))
    for kind, one in tally.items():
        for wrong in one["wrong"]:
            print(f"{kind}: {wrong}")
    if options.save:
        save("faults", {"ranks": 2, "steps": scenario.STEPS, "faults": tally})
    sys.exit(any(one["wrong"] for one in tally.values()))


def _rounds(kind: str, rounds: int, cohort: Path, undisturbed: Path) -> dict[str, object]:
    wrong, seconds = [], []
    for number in range(rounds):
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            # A training that is nearly done may end before Ctrl-C reaches it.
            places = {"steps": (1, scenario.STEPS // 2)} if kind == "Ctrl-C" else {}
            fault = scenario.Fault.drawn(kind, number + 1, **places)
            faults = _round(fault, Path(folder) / "run", cohort, undisturbed)
        seconds.append(time.monotonic() - began)
        wrong += [f"round {number + 1}, {fault}: {what}" for what in faults]
        print(f"{kind} {number + 1}/{rounds}: {'; '.join(faults) or 'as it must be'}", file=sys.stderr, flush=True)
    failed = len({line.partition(",")[0] for line in wrong})
    return {
        "rounds": rounds,
        "passed": rounds - failed,
        "median_seconds": statistics.median(seconds),
        "wrong": wrong,
    }


def _round(fault: scenario.Fault, out: Path, cohort: Path, undisturbed: Path) -> list[str]:
    """What is wrong with how one training met one fault."""
    match fault.kind:
        case "Ctrl-C":
            stopped = scenario.interrupted(cohort, out, fault.step)
            wrong = scenario.wrong_after_interruption(stopped, out)
            resumed = scenario.train(cohort, out, resume=True)
            wrong += [f"not gone on with: {scenario.told(resumed)}"] if resumed.status else []
            return wrong + scenario.differences(out, undisturbed)
        case "full disk":
            return scenario.wrong_after_full_disk(scenario.train(cohort, out, [fault]), out)
        case _:
            return scenario.wrong_after_kills([fault], scenario.train(cohort, out, [fault]), out, undisturbed)


def _cohort(folder: Path) -> Path:
    write_phantoms(folder / "png", patients=20, follow_ups=2, seed=1, size=32)
    shares = Shares(train=70, validation=15, test=15)
    import_radiographs([folder / "png"], folder / "cohort", size=32, workers=1, shares=shares)
    return folder / "cohort"


if __name__ == "__main__":
    main()
