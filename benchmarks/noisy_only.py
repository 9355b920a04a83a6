"""What training without clean images costs in quality, and how well a criterion without them picks a checkpoint.

    python benchmarks/noisy_only.py --data COHORT --public FOLDER --out DIR [--split test] [--save]

COHORT is the NIH radiographs at 256 px with the split of splits/nih256.csv, FOLDER another hospital's, as PNG. Every
run sees one noisy copy of each training image, drawn once, as a release holds it; only `fresh`, for comparison, draws
noise anew every epoch. All train the same NAFNet on the same crops with the same optimiser, from the same start, which
was trained on FOLDER's clean images and has seen none of COHORT, and get the same work: as many epochs as EPOCHS
supervised ones cost, by the multiply-adds of a step (`work`).

Weights are those of the epoch that the run itself chose: by the
squared error on validation images where it sees clean ones, else by its own criterion, which sees none. Runs that are
in DIR already are taken from there. The test patients are looked at once, at the end; `--split validation` is for
trying.

Differences to the supervised run are paired by image and averaged over seeds; intervals draw whole patients. The choice
of a checkpoint is judged on the validation images at Site One: true PSNR of the best epoch less that of the chosen one.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common import save, table
from veilray.cohort.build import import_radiographs
from veilray.cohort.split import Shares
from veilray.inference.denoiser import Denoiser
from veilray.metrics.psnr import psnr
from veilray.metrics.statistics import clustered_bootstrap, paired_comparison
from veilray.models.weights import load_model
from veilray.training.config import PROBED, RunConfig
from veilray.training.data import TrainingImages
from veilray.training.loop import train
from veilray.training.run import EpochRecord, RunFolder
from veilray.training.start import with_pinned_start
from veilray.training.validation import validate

EPOCHS = 4
PROBE_EVERY = 4
START_EPOCHS = 55
BATCH, CROP = 8, 128
LEVELS = (0.1, 0.2, 0.3)
PAGE = Path(__file__).parent.parent / "docs" / "explanation" / "training-without-clean-images.md"
MARK = "<!-- drawn by benchmarks/noisy_only.py -->"
BOOTSTRAP_SEED = 0
CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A way to train, on one kind of release."""

    objective: str
    clip: bool
    work: float
    """Of a step, in that of a supervised one: multiply-adds, of which a backward pass has twice a forward pass's."""
    seeds: tuple[int, ...] = (1,)
    levels: tuple[float, ...] = (0.2, 0.1, 0.3)
    fresh: bool = False

    @property
    def name(self) -> str:
        return f"{self.objective}{'-fresh' if self.fresh else ''}-{'clamped' if self.clip else 'open'}"

    @property
    def epochs(self) -> int:
        return max(1, round(EPOCHS / self.work))


def _probe() -> float:
    return 1 + 1 / PROBE_EVERY


SUPERVISED = "supervised"
BEST = {True: "censored_sure", False: "sure"}
"""What `auto` takes, by whether the release is clamped."""
THREE = (1, 2, 3)
ARMS = (
    *(Arm(objective=SUPERVISED, clip=clip, work=1.0, seeds=THREE) for clip in (True, False)),
    *(Arm(objective=BEST[clip], clip=clip, work=_probe(), seeds=THREE) for clip in (True, False)),
    *(Arm(objective=name, clip=True, work=1.0, levels=(0.2,)) for name in ("censored_r2r", "blind_spot")),
    # The whole image without a gradient, and half-size ones with: a third and a quarter.
    Arm(objective="neighbor2neighbor", clip=True, work=7 / 12, levels=(0.2,)),
    *(Arm(objective=name, clip=False, work=1.0, levels=(0.2,)) for name in ("r2r", "noisier2noise")),
    *(Arm(objective=SUPERVISED, clip=clip, work=1.0, fresh=True, levels=(0.2,)) for clip in (True, False)),
)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run."""

    arm: Arm
    std: float
    seed: int

    @property
    def name(self) -> str:
        return f"{self.arm.name}-{self.std:g}-{self.seed}"

    def config(self, start: Path) -> RunConfig:
        own = {"objective": self.arm.objective, "epochs": self.arm.epochs, "learning_rate": 1e-3}
        probes = {"probe_every": PROBE_EVERY} if self.arm.objective in PROBED else {}
        noise = {"mean": 0.1, "std": self.std, "clip": self.arm.clip, "fresh": self.arm.fresh}
        return recipe(self.seed, noise, {**own, **probes, "start": str(start)})


def recipe(seed: int, noise: dict[str, Any], own: dict[str, Any]) -> RunConfig:
    """The network and the training that all runs share."""
    shared = {"batch_size": BATCH, "crop": CROP, "flips": True, "loss": "mse", "optimizer": "adamw"}
    shared |= {"weight_decay": 1e-4, "ema_decay": 0.99}
    return RunConfig.model_validate(
        {
            "seed": seed,
            "noise": noise,
            "model": {"name": "nafnet", "width": 32, "depth": 3, "fold": 4, "residual": True},
            "train": {**shared, **own},
            "launch": {"device": "cpu", "precision": "fp32"},
        }
    )


def make_start(out: Path, public: Path) -> Path:
    """The run that all others begin from: supervised, on `public`, at noise from 0.05 to 0.35; made once."""
    folder = out / "start"
    if not (folder / "done").exists():
        cohort = out / "public"
        if not cohort.exists():
            shares = Shares(train=90, validation=10, test=0)
            import_radiographs([public], cohort, size=256, workers=1, shares=shares)
        noise = {"mean": 0.1, "std": (0.05, 0.35), "clip": True}
        config = recipe(1, noise, {"epochs": START_EPOCHS, "learning_rate": 3e-3})
        images = TrainingImages.open(cohort, config)
        run = RunFolder(folder) if folder.exists() else RunFolder.create(folder, images.config)
        run.write_environment({"cohort_digest": images.data.digest}, device=CPU)
        train(images.config, images, run, device=CPU, watcher=Silence())
        (folder / "done").touch()
    return folder


class Silence:
    """Follows a training without a word."""

    def begin(self, *, images: int) -> None: ...

    def step(self, *, step: int, images: int, loss: float) -> None: ...

    def epoch(self, record: EpochRecord) -> None:
        print(f"  epoch {record.epoch}: {record.validation_loss:.6f}, {record.validation_psnr:.3f} dB", flush=True)

    def note(self, message: str) -> None: ...


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the cohort")
    parser.add_argument("--public", type=Path, required=True, help="folder of another hospital's radiographs")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--levels", type=float, nargs="+", default=list(LEVELS))
    parser.add_argument("--split", choices=["test", "validation"], default="test")
    parser.add_argument("--only", nargs="+", help="arms, by name")
    parser.add_argument("--seeds", type=int, nargs="+", help="seeds, of those that an arm has")
    parser.add_argument("--no-train", action="store_true", help="take what is there")
    parser.add_argument("--save", action="store_true", help="write the record in results/")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    cells = [cell for cell in plan(options.levels) if not options.only or cell.arm.name in options.only]
    cells = [cell for cell in cells if not options.seeds or cell.seed in options.seeds]
    if not options.no_train:
        make_start(options.out, options.public)
        for cell in cells:
            run_cell(cell, options.data, options.out, options.split)
    results = [json.loads(path.read_text()) for cell in cells if (path := result_path(cell, options)).is_file()]
    record = summary(results)
    header, *rows = lines(record)
    print(table(header, rows))
    if options.save:
        draw(record)
        record |= {"validation_by_epoch": curves(cells, options.out), "start": scores_of_start(cells, options)}
        save("noisy_only", {"split": options.split, "epochs_of_a_supervised_run": EPOCHS, **record})


def result_path(cell: Cell, options: argparse.Namespace) -> Path:
    path: Path = options.out / f"{cell.name}-{options.split}.json"
    return path


def plan(levels: list[float]) -> list[Cell]:
    """All cells, those first that say most: seed by seed, what `auto` takes before the others."""
    cells = [
        Cell(arm=arm, std=std, seed=seed) for arm in ARMS for std in arm.levels for seed in arm.seeds if std in levels
    ]
    main = {SUPERVISED, *BEST.values()}
    order = [0.2, 0.1, 0.3]
    return sorted(
        cells, key=lambda c: (c.seed, c.arm.fresh or c.arm.objective not in main, order.index(c.std), not c.arm.clip)
    )


def run_cell(cell: Cell, data: Path, out: Path, split: str) -> None:
    """Train and score one cell, unless another process has begun it or its result is there."""
    result = out / f"{cell.name}-{split}.json"
    folder = out / cell.name
    if result.exists():
        return
    config = with_pinned_start(cell.config(out / "start"))
    images = TrainingImages.open(data, config, verify=False)
    if not folder.exists():
        print(cell.name, flush=True)
        run = RunFolder.create(folder, images.config)
        run.write_environment({"cohort_digest": images.data.digest}, device=CPU)
    elif not (folder / "processor.json").exists():
        print(f"{cell.name}: begun elsewhere, or cut short; remove {folder} to begin it again", flush=True)
        return
    run = RunFolder(folder)
    if not (folder / "processor.json").exists():
        began = time.process_time()
        train(images.config, images, run, device=CPU, watcher=Silence())
        (folder / "processor.json").write_text(json.dumps({"seconds": time.process_time() - began}))
    scores = score(run, images, split)
    spent = json.loads((folder / "processor.json").read_text())["seconds"]
    facts = {"arm": cell.arm.name, "std": cell.std, "seed": cell.seed, "epochs": cell.arm.epochs}
    result.write_text(json.dumps({**facts, "processor_seconds": spent, "choice": choice(run), "images": scores}))


def score(run: RunFolder, images: TrainingImages, split: str) -> list[dict[str, Any]]:
    """PSNR of every image of a set, output clamped."""
    denoiser = Denoiser.load(run.path, device="cpu")
    scores = []
    for batch in images.held_out_batches(split, CPU, batch_size=8):
        output = denoiser.denoise(batch.noisy, mean=batch.known[:, 0], std=batch.known[:, 1]).clamp(0.0, 1.0)
        for row, decibels in zip(batch.rows, psnr(output, batch.clean, data_range=1.0), strict=True):
            patient = images.data.patient_id(int(row))
            scores.append({"image": images.image_id(int(row)), "patient": patient, "psnr": decibels.item()})
    return sorted(scores, key=lambda one: str(one["image"]))


def choice(run: RunFolder) -> dict[str, float]:
    """How the epoch that a run chose compares with the one that true PSNR would have chosen."""
    records = run.epochs()
    true = [record.validation_psnr for record in records]
    chosen = min(range(len(records)), key=lambda place: records[place].validation_loss)
    best = max(value for value in true if value is not None)
    own = true[chosen]
    assert own is not None  # a cohort holds the clean images
    losses = np.array([record.validation_loss for record in records])
    ranks = [np.argsort(np.argsort(values)) for values in (-losses, np.array(true, dtype=np.float64))]
    agreement = float(np.corrcoef(*ranks)[0, 1]) if len(records) > 2 else 1.0
    return {"gap_db": best - own, "rank_correlation": agreement, "epochs": len(records)}


def curves(cells: list[Cell], out: Path) -> dict[str, list[list[float | None]]]:
    """What each finished run chose by, and true PSNR, on the validation images after each epoch."""
    done = [cell for cell in cells if (out / cell.name / "processor.json").exists()]
    return {
        cell.name: [[one.validation_loss, one.validation_psnr] for one in RunFolder(out / cell.name).epochs()]
        for cell in done
    }


def scores_of_start(cells: list[Cell], options: argparse.Namespace) -> dict[str, list[float | None]]:
    """The same of the weights that all began from, by the criterion of each finished run without clean images."""
    model = load_model(RunFolder(options.out / "start").best_weights)
    found = {}
    for cell in cells:
        if cell.arm.objective in BEST.values() and result_path(cell, options).is_file():
            images = TrainingImages.open(options.data, cell.config(options.out / "start"), verify=False)
            found[cell.name] = list(validate(model, images, images.config, CPU))
    return found


def summary(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Means and paired differences for every level and arm."""
    rows = []
    for std, clip in itertools.product(sorted({one["std"] for one in results}), ("clamped", "open")):
        here = [one for one in results if one["std"] == std and one["arm"].endswith(clip)]
        reference = {one["seed"]: one for one in here if one["arm"] == f"supervised-{clip}"}
        for arm in dict.fromkeys(one["arm"] for one in here):
            own = {one["seed"]: one for one in here if one["arm"] == arm}
            rows.append(_row(arm, std, clip, own, reference))
    return {"arms": rows}


def _row(
    arm: str, std: float, clip: str, own: dict[int, dict[str, Any]], reference: dict[int, dict[str, Any]]
) -> dict[str, Any]:
    patients = [one["patient"] for one in next(iter(own.values()))["images"]]
    scores = np.array([[one["psnr"] for one in run["images"]] for run in own.values()])
    mean = clustered_bootstrap(scores.mean(axis=0), patients, seed=BOOTSTRAP_SEED)
    row: dict[str, Any] = {
        "arm": arm.removesuffix(f"-{clip}"),
        "std": std,
        "clamped": clip == "clamped",
        "seeds": sorted(own),
        "n_images": scores.shape[1],
        "n_patients": len(set(patients)),
        "epochs": [run["epochs"] for run in own.values()],
        "psnr": {"mean": mean.mean, "low": mean.low, "high": mean.high},
        "psnr_by_seed": scores.mean(axis=1).tolist(),
        "processor_seconds": [run["processor_seconds"] for run in own.values()],
        "choice": {seed: run["choice"] for seed, run in own.items()},
    }
    shared = sorted(own.keys() & reference.keys())
    if shared and arm != f"supervised-{clip}":
        pairs = [
            np.array([[one["psnr"] for one in side[seed]["images"]] for seed in shared]) for side in (own, reference)
        ]
        found = paired_comparison(pairs[0], pairs[1], patients, higher_is_better=True, seed=BOOTSTRAP_SEED)
        row["minus_supervised"] = {
            "mean": found.difference.mean,
            "low": found.difference.low,
            "high": found.difference.high,
        }
        row["minus_supervised"]["seeds"] = len(shared)
    return row


def lines(record: dict[str, Any]) -> list[list[str]]:
    """The table: a row for each level and arm."""
    found = [
        ["noise", "clamp", "objective", "seeds", "PSNR, dB", "less than supervised, dB", "epochs", "gap of choice"]
    ]
    for row in record["arms"]:
        difference, psnr_ = row.get("minus_supervised"), row["psnr"]
        gaps = [one["gap_db"] for one in row["choice"].values()]
        less = "" if difference is None else _text(-difference["mean"], -difference["high"], -difference["low"])
        found.append(
            [
                f"{row['std']:g}",
                "yes" if row["clamped"] else "no",
                row["arm"].replace("-fresh", ", fresh noise"),
                str(len(row["seeds"])),
                _text(psnr_["mean"], psnr_["low"], psnr_["high"]),
                less,
                str(row["epochs"][0]),
                f"{max(gaps):.3f}",
            ]
        )
    return found


def _text(mean: float, low: float, high: float) -> str:
    return f"{mean:.2f} ({low:.2f} to {high:.2f})"


def draw(record: dict[str, Any]) -> None:
    """Put the table on its page, between its marks."""
    header, *rows = lines(record)
    drawn = [f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows)]
    before, _, after = PAGE.read_text(encoding="utf-8").split(MARK)
    PAGE.write_text(MARK.join([before, "\n" + "\n".join(drawn) + "\n", after]), encoding="utf-8")


if __name__ == "__main__":
    main()
