"""What a start from the shipped model is worth where only another hospital's noisy images are held.

    python benchmarks/noisy_only_shipped.py --public FOLDER --patients FILE --out DIR [--seeds 1 2 3] [--save]
    python benchmarks/noisy_only_shipped.py --pages

FOLDER is a hospital's radiographs, as PNG, on which no shipped model was trained: its patients are split here, 60 % for
training, 10 % for validation, 30 % for the test. Each seed has one clamped release of them, noise 0.2, and the network
of the shipped `fast` is trained on it: on its noisy images alone, from the shipped weights and from drawn ones, and on
its originals from the shipped weights. Every arm gets the same work, and chooses its epoch as noisy_only.py says. From
shipped weights two learning rates are shown; from drawn ones that at which `fast` itself was begun. Runs go on where
they stopped. Differences are to the shipped model as it is, paired by image and averaged over seeds; intervals draw
whole patients.
"""

from __future__ import annotations

import argparse
import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from baselines_pages import with_table
from common import RESULTS, save, table
from noisy_only_arms import BEST, MEAN, PROBE_EVERY, SEEDS, contents, step_ratios
from noisy_only_cells import choice, score, trained
from noisy_only_table import BOOTSTRAP_SEED, PAGE
from veilray.cohort.build import import_radiographs
from veilray.cohort.cohort import Cohort
from veilray.cohort.noise_source import seeded_noise
from veilray.cohort.obfuscate import write_release
from veilray.cohort.split import Shares
from veilray.files import read_json, write_json
from veilray.inference.denoiser import Denoiser
from veilray.metrics.statistics import clustered_bootstrap, paired_comparison
from veilray.obfuscation.config import NoiseConfig
from veilray.training.config import RunConfig
from veilray.training.data import TrainingImages
from veilray.training.start import with_pinned_start

SHIPPED = "fast"
STD, CROP, BATCH = 0.2, 96, 8
EPOCHS = 60
"""Passes of a supervised run; of another, as many as cost the same."""
SHARES = Shares(train=60, validation=10, test=30)
RATES = (1e-3, 1e-4)
DRAWN_RATE = 2.5e-3
"""At which the shipped network itself was begun (models/fast-first.toml)."""
AS_IT_IS, NOISY = "as it ships", "noisy images alone"
RECORD = "noisy_only_shipped"


@dataclass(frozen=True)
class Arm:
    """A way to come to a network."""

    objective: str | None
    """None: nothing is trained."""
    shipped: bool = True
    rate: float = 0.0


ARMS = {
    AS_IT_IS: Arm(None),
    **{f"{NOISY}, from the shipped weights, rate {rate:g}": Arm(BEST[True], rate=rate) for rate in RATES},
    f"{NOISY}, from drawn weights": Arm(BEST[True], shipped=False, rate=DRAWN_RATE),
    **{f"clean images, from the shipped weights, rate {rate:g}": Arm("supervised", rate=rate) for rate in RATES},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--public", type=Path, help="folder of the hospital's radiographs")
    parser.add_argument("--patients", type=Path, help="table of its images and their patients, as for veilray import")
    parser.add_argument("--out", type=Path, help="folder of releases and runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--save", action="store_true", help="write results/noisy_only_shipped.json, and the page")
    parser.add_argument("--pages", action="store_true", help="write the page from the record")
    options = parser.parse_args()
    if options.pages:
        _write_page()
        return
    torch.set_num_threads(1)
    cohort = _cohort(options.public, options.patients, options.out)
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in ARMS}
    for seed, (name, arm) in itertools.product(options.seeds, ARMS.items()):
        results[name].append(_result(name, arm, seed, cohort, options.out))
    record = {"network": SHIPPED, "std": STD, "mean": MEAN, "seeds": options.seeds, **_facts(cohort, results)}
    print(table(*_rows(record)))
    if options.save:
        save(RECORD, record)
        _write_page()


def _cohort(public: Path, patients: Path, out: Path) -> Cohort:
    folder = out / "cohort"
    if not folder.exists():
        out.mkdir(parents=True, exist_ok=True)
        import_radiographs([public], folder, size=256, workers=1, shares=SHARES, patients=patients)
    return Cohort.open(folder)


def _result(name: str, arm: Arm, seed: int, cohort: Cohort, out: Path) -> dict[str, Any]:
    """Scores of an arm on the test images, by image; from its file where it is there."""
    path = out / f"{name.replace(', ', '-').replace(' ', '-')}-{seed}.json"
    if not path.exists():
        release, config = _release(cohort, seed, out), _config(arm, seed)
        images = TrainingImages.open(release, config, verify=False)
        source, chosen = _shipped(), None
        if arm.objective is not None:
            run = trained(path.with_suffix(""), images, path.stem)
            source, chosen = Denoiser.load(run.path, device="cpu"), choice(run)
        write_json(path, {"choice": chosen, "epochs": _epochs(arm), "images": score(source, images, "test")})
    found: dict[str, Any] = read_json(path)
    return found


def _release(cohort: Cohort, seed: int, out: Path) -> Path:
    folder = out / f"release-{seed}"
    if not folder.exists():
        noise = NoiseConfig(mean=MEAN, std=STD, clip=True)
        source = seeded_noise(noise, cohort=cohort, seed=seed)
        write_release(cohort, folder, noise=noise, source=source, contents=contents(cohort), pairs=True)
    return folder


def _shipped() -> Denoiser:
    return Denoiser.load(f"shipped:{SHIPPED}", device="cpu")


def _epochs(arm: Arm) -> int:
    if arm.objective is None:
        return 0
    ratio = 1.0 if arm.objective == "supervised" else step_ratios()[f"{arm.objective}, every {PROBE_EVERY}"]
    return round(EPOCHS / ratio)


def _config(arm: Arm, seed: int) -> RunConfig:
    own: dict[str, Any] = {"objective": arm.objective or "supervised", "epochs": max(1, _epochs(arm))}
    own |= {"learning_rate": arm.rate} if arm.rate else {}
    own |= {"probe_every": PROBE_EVERY} if arm.objective == BEST[True] else {}
    own |= {"start": f"shipped:{SHIPPED}"} if arm.shipped else {}
    shared = {"batch_size": BATCH, "crop": CROP, "flips": True, "loss": "mse", "optimizer": "adamw"}
    shared |= {"weight_decay": 1e-4, "ema_decay": 0.99, "validate_every": 5}
    config = RunConfig.model_validate(
        {
            "seed": seed,
            "noise": {"mean": MEAN, "std": STD, "clip": True, "fresh": False},
            "model": _shipped().config.model_dump(mode="json"),
            "train": {**shared, **own},
            "launch": {"device": "cpu", "precision": "fp32"},
        }
    )
    return with_pinned_start(config)


def _facts(cohort: Cohort, results: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    train = cohort.rows("train")
    first = results[AS_IT_IS][0]["images"]
    patients = [one["patient"] for one in first]
    scores = {
        name: np.array([[one["psnr"] for one in run["images"]] for run in runs]) for name, runs in results.items()
    }
    arms = {}
    for name, runs in results.items():
        mean = clustered_bootstrap(scores[name].mean(axis=0), patients, seed=BOOTSTRAP_SEED)
        arms[name] = {
            "epochs": runs[0]["epochs"],
            "psnr": [mean.mean, mean.low, mean.high],
            "psnr_by_seed": scores[name].mean(axis=1).tolist(),
            "choice": [run["choice"] for run in runs],
        }
        if name != AS_IT_IS:
            pair = scores[name], scores[AS_IT_IS]
            gain = paired_comparison(*pair, patients, higher_is_better=True, seed=BOOTSTRAP_SEED).difference
            arms[name]["gain"] = [gain.mean, gain.low, gain.high]
    return {
        "train": {"images": len(train), "patients": len({cohort.patient_id(int(row)) for row in train})},
        "test": {"images": len(patients), "patients": len(set(patients))},
        "arms": arms,
    }


def _rows(record: dict[str, Any]) -> tuple[list[str], list[list[Any]]]:
    header = ["trained on", "passes", "PSNR, dB", "gain on the shipped model, dB"]
    rows = [
        [name, arm["epochs"], _interval(arm["psnr"]), _interval(arm["gain"]) if "gain" in arm else ""]
        for name, arm in record["arms"].items()
    ]
    return header, rows


def _interval(values: list[float]) -> str:
    mean, low, high = values
    return f"{mean:.2f} ({low:.2f} to {high:.2f})"


def _write_page() -> None:
    record = json.loads((RESULTS / f"{RECORD}.json").read_text(encoding="utf-8"))
    header, rows = _rows(record)
    drawn = [f"| {' | '.join(map(str, cells))} |" for cells in (header, ["---"] * len(header), *rows)]
    train, test, seeds = record["train"], record["test"], len(record["seeds"])
    said = (
        f"The network of the shipped `{record['network']}` on another hospital's clamped release, noise "
        f"{record['std']:g}: trained on {train['images']} images of {train['patients']} patients, scored on "
        f"{test['images']} of {test['patients']}; {seeds} seed{'s' if seeds > 1 else ''}, the same work each."
    )
    page = PAGE.read_text(encoding="utf-8")
    text = "\n".join([said, "", *drawn])
    PAGE.write_text(with_table(page, "shipped", text, PAGE, script=f"{RECORD}.py"), encoding="utf-8")


if __name__ == "__main__":
    main()
