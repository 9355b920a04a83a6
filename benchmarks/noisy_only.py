"""What training without clean images costs in quality, and how well a criterion without them chooses.

    python benchmarks/noisy_only.py --data COHORT --public FOLDER --out DIR --search
    python benchmarks/noisy_only.py --data COHORT --public FOLDER --out DIR [--levels 0.2] [--seeds 1 2 3]
        [--clamp yes] [--arms supervised sure ...] [--minutes 30] [--split test] [--save]

COHORT is the NIH radiographs at 256 px with the split of splits/nih256.csv, FOLDER another hospital's, as PNG. Each
seed has a release of its own at each noise level, clamped and not: 8 or 16 bits, one noisy copy of each image, and
its originals beside it. All arms train the same network (or say that it is wider) on crops of that release:
`supervised` against its originals, the others on the noisy images alone. So supervised sees the very noise that the
others see, drawn once; arms with fresh noise draw it anew every pass, which no release can give. `mixed` and `started`
have the help of another hospital's clean images; `started` arms are held against supervised training from the same
weights. Every arm gets the same work, or says how many times that: as many passes as EPOCHS supervised ones cost, by
the measured processor seconds of a step (`Arm.work` in noisy_only_arms.py).

`--search` tries learning rates on the validation images, apart for clean targets (by the true error) and without (by
the criterion that Site Two has). The chosen ones are constants of noisy_only_arms.py. The weights scored are those of
the epoch that the run itself chose, after each of its passes: by the squared error where it sees clean images, else by
its own criterion. The choice is judged on the validation images at Site One: true PSNR of the best epoch less that
of the chosen one. Nothing is chosen by the test patients; `--split validation` is for trying.

Everything can be cut short: runs go on from their last pass, and what is in DIR already is taken from there. `--save`
keeps the scores of all cells, in results/noisy_only_cells.json, and what is kept is not run again, wherever that was.
`--minutes` begins no further run after so many minutes of processor time. Differences to the supervised run are paired
by image and averaged over seeds; intervals draw whole patients.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch

from common import save, table
from noisy_only_arms import LEVELS, SEEDS, Cell, Places, plan, search, setting
from noisy_only_cells import made_by, read_result, result_path, run_cell
from noisy_only_kept import keep, kept
from noisy_only_table import draw, lines, summary

RECORD = "noisy_only"
CLAMPS = {"both": (True, False), "yes": (True,), "no": (False,)}
"""Which releases to train on."""


def main() -> None:
    """Run what was asked for, print the table of all that is there, and record it."""
    options = _options()
    torch.set_num_threads(1)
    places = Places(data=options.data, public=options.public, out=options.out)
    options.out.mkdir(parents=True, exist_ok=True)
    split = "validation" if options.search else options.split
    chosen = [cell for cell in (search() if options.search else plan()) if _wanted(cell, options)]
    cells = {result_path(cell.name, places, options.split).name: cell for cell in plan()}
    cells |= {result_path(cell.name, places, "validation").name: cell for cell in search()}
    if not options.no_train:
        known = _known(cells, places)
        _run([cell for cell in chosen if result_path(cell.name, places, split).name not in known], places, options)
    results = _known(cells, places)
    record = summary(list(results.values()))
    header, *rows = lines(record)
    print(table(header, rows))
    for one in record["search"]:
        print(one)
    if options.save:
        draw(record)
        save(RECORD, {"split": options.split, "setting": setting(), **record})
        keep(results)


def _run(cells: list[Cell], places: Places, options: argparse.Namespace) -> None:
    began = time.process_time()
    for cell in cells:
        if options.minutes and time.process_time() - began > 60 * options.minutes:
            break
        run_cell(cell, places, "validation" if options.search else options.split)


def _known(cells: dict[str, Cell], places: Places) -> dict[str, dict[str, Any]]:
    """What was kept and what is in the folder, by the name of its file, as long as it is of what the cell is now."""
    there = {name: read_result(places.out / name) for name in cells if (places.out / name).is_file()}
    found = {
        name: result
        for name, result in (*kept().items(), *there.items())
        if name in cells and result["made_by"] == made_by(cells[name], places)
    }
    return {name: found[name] for name in cells if name in found}


def _wanted(cell: Cell, options: argparse.Namespace) -> bool:
    if options.search:
        return True
    arms = options.arms or [cell.arm.name]
    where = cell.std in options.levels and cell.seed in options.seeds and cell.arm.clip in CLAMPS[options.clamp]
    return where and cell.arm.name in arms


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the cohort")
    parser.add_argument("--public", type=Path, required=True, help="folder of another hospital's radiographs")
    parser.add_argument("--out", type=Path, required=True, help="folder of releases and runs")
    parser.add_argument("--search", action="store_true", help="try learning rates, on the validation images")
    parser.add_argument("--levels", type=float, nargs="+", default=list(LEVELS), help="standard deviations")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--arms", nargs="+", help="by name, as the table has them")
    parser.add_argument("--clamp", choices=CLAMPS, default="both")
    parser.add_argument("--minutes", type=float, default=0.0, help="of processor time, after which no run is begun")
    parser.add_argument("--split", choices=["test", "validation"], default="test")
    parser.add_argument("--no-train", action="store_true", help="take what is there")
    parser.add_argument("--save", action="store_true", help="write the record in results/ and the table in the docs")
    return parser.parse_args()


if __name__ == "__main__":
    main()
