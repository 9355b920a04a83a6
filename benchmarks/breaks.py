"""Where a network breaks: hospitals, sizes, noises and pictures it was not trained on, and what it does to detail.

    python benchmarks/breaks.py --data FOLDER [--model default] [--lpips-backbone FILE] [--save]

FOLDER holds nih256, nih1024, hannover256 and index.csv. One image each of so many test patients, drawn by a keyed hash,
is scored under each condition; training patients are never scored, at any size. Beside the network stands total
variation through the inverse of the clamp's mean map, told the same mean and the true std (`breaks_physics.py`): it has
learnt nothing, so it shows what a condition costs anyone. Intervals are clustered by patient. On phantoms: how much
noise is left at which frequency, the response to a slanted edge, the contrast that ribs and nodules keep. With --save
the record is written and docs/explanation/where-it-breaks.md is drawn anew; --pages draws it from the record there is.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from breaks_pages import write_page
from breaks_physics import Restorer, network, physics, total_variation
from common import RESULTS, save
from estimates import interval, scores_of
from veilray.images.radiograph import FloatImage
from veilray.images.read import read_radiograph
from veilray.inference.denoiser import Denoiser
from veilray.metrics.lpips import LPIPS, load_lpips

SPLIT = Path(__file__).parent / "splits" / "nih256.csv"
PATIENTS = 40
Noise = Callable[[FloatImage, np.random.Generator], FloatImage]
Picture = Callable[[FloatImage], FloatImage]


def as_it_is(pixels: FloatImage) -> FloatImage:
    """The radiograph itself."""
    return pixels


@dataclass(frozen=True, kw_only=True, eq=False)
class Case:
    """A clean radiograph."""

    name: str
    patient: str
    pixels: FloatImage
    """(H, W), float32, [0, 1]."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Condition:
    """What is done to which images, and what a method is told of it."""

    group: str
    name: str
    noise: Noise
    told_mean: float
    std: float
    """The noise's true standard deviation, on average over the pixels, before the clamp."""
    data: str = "nih256"
    picture: Picture = as_it_is


def gaussian(*, mean: float = 0.1, std: float, clip: bool = True) -> Noise:
    """White Gaussian noise, the one that was trained on."""

    def add(clean: FloatImage, generator: np.random.Generator) -> FloatImage:
        noisy = clean + mean + std * generator.standard_normal(clean.shape, dtype=np.float32)
        return np.clip(noisy, 0.0, 1.0) if clip else noisy

    return add


def poisson_gaussian(*, gain: float, std: float) -> Noise:
    """Counts of quanta and the detector's noise: variance gain x + std^2 at a clean value x; mean 0."""

    def add(clean: FloatImage, generator: np.random.Generator) -> FloatImage:
        counts = generator.poisson(clean.astype(np.float64) / gain) * gain
        noisy = counts + std * generator.standard_normal(clean.shape)
        return np.clip(noisy, 0.0, 1.0).astype(np.float32)

    return add


def correlated(*, std: float, blur: float) -> Noise:
    """Gaussian noise of which neighbouring pixels share some: white noise blurred by `blur` pixels, mean 0."""

    def add(clean: FloatImage, generator: np.random.Generator) -> FloatImage:
        from scipy.ndimage import gaussian_filter

        field = gaussian_filter(generator.standard_normal(clean.shape), blur, mode="wrap")
        return np.clip(clean + std * field / field.std(), 0.0, 1.0).astype(np.float32)

    return add


def collimated(pixels: FloatImage) -> FloatImage:
    """Black outside a field that leaves out a fifth of the sides, as a shutter does."""
    height, width = pixels.shape
    shut = np.zeros_like(pixels)
    rows, columns = slice(height // 8, height - height // 8), slice(width // 5, width - width // 5)
    shut[rows, columns] = pixels[rows, columns]
    return shut


def conditions() -> list[Condition]:
    """Every condition, those of the training first."""
    inside = [
        Condition(group="as in training", name=f"noise {std}", noise=gaussian(std=std), told_mean=0.1, std=std)
        for std in (0.1, 0.2, 0.3)
    ]
    level = [
        Condition(group="noise level", name=f"noise {std}", noise=gaussian(std=std), told_mean=0.1, std=std)
        for std in (0.5, 0.7)
    ]
    mean = [
        Condition(
            group="mean", name=f"mean {true}, told {told}", noise=gaussian(mean=true, std=0.2), told_mean=told, std=0.2
        )
        for true, told in ((0.0, 0.0), (-0.1, -0.1), (0.3, 0.3), (0.1, 0.0), (0.1, 0.2))
    ]
    unclamped = gaussian(std=0.2, clip=False)
    kinds = [
        Condition(group="kind of noise", name="not clamped", noise=unclamped, told_mean=0.1, std=0.2),
        Condition(
            group="kind of noise",
            name="Poisson and Gaussian",
            noise=poisson_gaussian(gain=0.06, std=0.1),
            told_mean=0.0,
            std=0.2,
        ),
        *(
            Condition(
                group="kind of noise",
                name=f"correlated over {blur} px",
                noise=correlated(std=0.2, blur=blur),
                told_mean=0.0,
                std=0.2,
            )
            for blur in (0.5, 1.0)
        ),
    ]
    return [*inside, *level, *mean, *kinds, *_pictures()]


def _pictures() -> list[Condition]:
    noise = gaussian(std=0.2)
    shown: list[tuple[str, Picture]] = [
        ("upside down", lambda pixels: np.ascontiguousarray(pixels[::-1])),
        ("on its side", lambda pixels: np.ascontiguousarray(pixels.T)),
        ("collimated", collimated),
        ("grey values inverted", lambda pixels: np.float32(1.0) - pixels),
    ]
    pictures = [
        Condition(group="picture", name=name, noise=noise, told_mean=0.1, std=0.2, picture=picture)
        for name, picture in shown
    ]
    hospital = [
        Condition(
            group="hospital",
            name=f"Hannover, noise {std}",
            noise=gaussian(std=std),
            told_mean=0.1,
            std=std,
            data="hannover256",
        )
        for std in (0.1, 0.2, 0.3)
    ]
    sizes = [
        Condition(group="size", name=name, noise=noise, told_mean=0.1, std=0.2, data="nih1024", picture=picture)
        for name, picture in (("1024 px", as_it_is), ("the same at 256 px", _reduced))
    ]
    return [*pictures, *hospital, *sizes]


def _reduced(pixels: FloatImage) -> FloatImage:
    """Averages of squares of four pixels' side."""
    height, width = (side // 4 for side in pixels.shape)
    reduced: FloatImage = pixels[: 4 * height, : 4 * width].reshape(height, 4, width, 4).mean(axis=(1, 3))
    return reduced


def main() -> None:
    """Score every condition, measure on phantoms, print, and record where --save is given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with nih256, nih1024, hannover256 and index.csv")
    parser.add_argument("--model", default="default", help="run folder or shipped name")
    parser.add_argument("--lpips-backbone", type=Path)
    parser.add_argument("--patients", type=int, default=PATIENTS, help="of each set, at most; one image each")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--save", action="store_true", help="write results/breaks.json and the page")
    parser.add_argument("--pages", action="store_true", help="write the page from results/breaks.json")
    options = parser.parse_args()
    if options.pages:
        write_page(json.loads((RESULTS / "breaks.json").read_text(encoding="utf-8")))
        return
    if options.data is None:
        parser.error("--data names the radiographs")
    torch.set_num_threads(options.threads)
    denoiser = Denoiser.load(options.model, device="cpu")
    assert denoiser.origin is not None  # it was loaded from a file
    lpips = load_lpips(options.lpips_backbone) if options.lpips_backbone else None
    methods = {"network": network(denoiser), "tv": total_variation}
    sets = {name: _cases(options.data, name, options.patients) for name in ("nih256", "hannover256", "nih1024")}
    record: dict[str, Any] = {
        "model": str(options.model) if str(options.model) == Path(options.model).name else "a run",
        "weights_sha256": denoiser.origin.weights_sha256,
        "sets": {name: {"images": len(cases)} for name, cases in sets.items()},
        "conditions": [_scored(one, sets[one.data], methods, lpips) for one in conditions()],
        "physics": physics(methods),
    }
    if options.save:
        save("breaks", record)
        write_page(json.loads((RESULTS / "breaks.json").read_text(encoding="utf-8")))


def _cases(data: Path, name: str, patients: int) -> list[Case]:
    """The first image each of so many patients of a set; of NIH's, patients of whom no image trained or validated."""
    with SPLIT.open(encoding="utf-8", newline="") as stream:
        seen = {row["image_id"].partition("_")[0] for row in csv.DictReader(stream) if row["split"] != "test"}
    with (data / "index.csv").open(encoding="utf-8", newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["file"].startswith(f"{name}/")]
    tested = {row["image_id"] for row in csv.DictReader(SPLIT.read_text(encoding="utf-8").splitlines())}
    first: dict[str, str] = {}
    for row in sorted(rows, key=lambda row: row["file"]):
        known = name != "nih256" or Path(row["file"]).stem in tested
        if known and row["patient_id"] not in seen:
            first.setdefault(row["patient_id"], row["file"])
    order = sorted(first, key=lambda patient: hashlib.blake2b(patient.encode(), key=b"benchmarks/breaks").digest())
    return [
        Case(name=Path(first[patient]).stem, patient=patient, pixels=read_radiograph(data / first[patient]).pixels)
        for patient in order[:patients]
    ]


def _scored(
    condition: Condition, cases: Sequence[Case], methods: dict[str, Restorer], lpips: LPIPS | None
) -> dict[str, Any]:
    """Means with intervals of what each method reaches under a condition, and of the network's gain over the other."""
    found: dict[str, list[dict[str, float]]] = {"noisy": [], **{name: [] for name in methods}}
    for case in cases:
        clean = condition.picture(case.pixels)
        key = hashlib.blake2b(f"{condition.name}/{case.name}".encode(), digest_size=16).digest()
        noisy = condition.noise(clean, np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little"))))
        found["noisy"].append(scores_of(noisy, clean, None))
        for name, restore in methods.items():
            output = restore(noisy, mean=condition.told_mean, std=condition.std)
            found[name].append(scores_of(output, clean, lpips if name == "network" else None))
    patients = [case.patient for case in cases]
    metrics = {
        name: {metric: interval([one[metric] for one in scores], patients) for metric in scores[0]}
        for name, scores in found.items()
    }
    gain = [mine["psnr"] - other["psnr"] for mine, other in zip(found["network"], found["tv"], strict=True)]
    record = {"group": condition.group, "name": condition.name, "images": len(cases), "methods": metrics}
    record["network_minus_tv"] = interval(gain, patients)
    shown = (f"{name} {metrics[name]['psnr']['mean']:.2f}" for name in ("noisy", "tv", "network"))
    print(f"{condition.group}, {condition.name}: {', '.join(shown)} dB", flush=True)
    return record


if __name__ == "__main__":
    main()
