"""Trainings of two ranks that meet faults at random places, round after round: how many came out as they must.

    python benchmarks/faults.py [--rounds 20] [--first 1] [--save]

A round is three trainings. In the first a rank is killed by SIGKILL anywhere in a step, inside an all-reduce and inside
the writing of a checkpoint, and hangs (SIGSTOP), in a random order, one fault a life: torchrun starts both ranks again
after each, with one message, and the weights at the end must be those of an undisturbed training bit for bit. In the
second the disk of rank 0 is full (a limit of file sizes stands for it): both ranks end with one message and whole
checkpoints. In the third Ctrl-C reaches all processes: one message, and a training that is gone on with ends in the
same bits. The faults are those of tests/distributed/. `--first N` goes on with the rounds on record.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for the tests' faults and launcher
os.environ.setdefault("OMP_NUM_THREADS", "1")

from tests.distributed import faults as scenario

from common import RESULTS, save, table
from veilray.cohort.build import import_radiographs
from veilray.cohort.split import Shares
from veilray.images.phantom import write_phantoms

PARTS = ("deaths", "full disk", "Ctrl-C")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20, help="the last round; each has faults of its own")
    parser.add_argument(
        "--first", type=int, default=1, help="the first round; those before it are taken from the record"
    )
    parser.add_argument("--save", action="store_true", help="write results/faults.json after each round")
    options = parser.parse_args()
    rounds = _recorded(before=options.first)
    with tempfile.TemporaryDirectory() as folder:
        cohort, undisturbed = _cohort(Path(folder)), Path(folder) / "undisturbed"
        finished = scenario.train(cohort, undisturbed)
        if finished.status != 0:
            sys.exit(f"the undisturbed training failed:\n{finished.err}")
        for number in range(options.first, options.rounds + 1):
            rounds.append(_round(number, Path(folder) / f"round {number}", cohort, undisturbed))
            print(f"round {number}: {'; '.join(_wrong(rounds[-1])) or 'as it must be'}", file=sys.stderr, flush=True)
            if options.save:
                save("faults", {"ranks": 2, "steps": scenario.STEPS, "rounds": rounds})
    rows = [[part, sum(not one[part]["wrong"] for one in rounds), len(rounds)] for part in PARTS]
    print(table(["faults", "as they must be", "rounds"], rows))
    sys.exit(any(_wrong(one) for one in rounds))


def _recorded(*, before: int) -> list[dict[str, Any]]:
    """The rounds on record that come before a number."""
    path = RESULTS / "faults.json"
    rounds = json.loads(path.read_text(encoding="utf-8"))["rounds"] if before > 1 else []
    return [one for one in rounds if one["round"] < before]


def _round(number: int, folder: Path, cohort: Path, undisturbed: Path) -> dict[str, Any]:
    """What each training of a round met, what was wrong with how it did, and seconds."""
    kept: dict[str, Any] = {"round": number, "load": os.getloadavg()[0]}
    deaths, full, ctrl_c = scenario.deaths(number), *(scenario.Fault.drawn(kind, number) for kind in PARTS[1:])
    for part, faults in zip(PARTS, (deaths, [full], [ctrl_c]), strict=True):
        began, out = time.monotonic(), folder / part
        match part:
            case "deaths":
                wrong = scenario.wrong_after_kills(faults, scenario.train(cohort, out, faults), out, undisturbed)
            case "full disk":
                wrong = scenario.wrong_after_full_disk(scenario.train(cohort, out, faults), out)
            case _:
                stopped = scenario.interrupted(cohort, out, ctrl_c.step)
                wrong = scenario.wrong_after_interruption(stopped, out)
                resumed = scenario.train(cohort, out, resume=True)
                wrong += [f"not gone on with: {scenario.told(resumed)}"] if resumed.status else []
                wrong += scenario.differences(out, undisturbed)
        met = [f"{fault.kind} at step {fault.step}{_of_whom(fault)}" for fault in faults]
        kept[part] = {"met": met, "wrong": wrong, "seconds": round(time.monotonic() - began, 1)}
    return kept


def _of_whom(fault: scenario.Fault) -> str:
    return "" if fault.kind == "Ctrl-C" else f" of rank {fault.rank}"


def _wrong(one: dict[str, Any]) -> list[str]:
    return [f"{part} ({', '.join(one[part]['met'])}): {what}" for part in PARTS for what in one[part]["wrong"]]


def _cohort(folder: Path) -> Path:
    write_phantoms(folder / "png", patients=20, follow_ups=2, seed=1, size=32)
    shares = Shares(train=70, validation=15, test=15)
    import_radiographs([folder / "png"], folder / "cohort", size=32, workers=1, shares=shares)
    return folder / "cohort"


if __name__ == "__main__":
    main()
