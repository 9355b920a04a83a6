"""Perception against distortion: what each objective reaches from one common start, and what it invents.

    python benchmarks/frontier.py --data COHORT --lpips-backbone FILE --out DIR [--split test] [--start fast] [--save]

COHORT holds the radiographs with the patients of splits/nih256.csv. The common start is a network that ships (or a run
folder of the same architecture), trained with L1. From it each objective trains for the same number of epochs at noise
0.2, one seed, the same images in the same order with the same noise; the weights after the last step are taken, not
those of the best validation error, which is one of pixels. Then the patients of --split are scored once, by default
those of validation; the record is of --split test. What is there in
DIR is not trained again; --only trains some of them and stops, so that several processes can share the work.
--save writes results/frontier.json, the tables of docs/explanation/frontier.md and its picture of a phantom.

Invention is measured by a property of the posterior mean: it is uncorrelated with its own error, E[f (f - x)] = 0. In a
band of detail, E[f (f - x)] / E[x^2] is below 0 where the output f holds less structure than the noisy image supports,
and above 0 where it holds structure that the clean image x does not bear out. Blobs are counted too: local extremes
of the finest band beyond a threshold, in the output without one in the clean image within 3 pixels, and the reverse.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.ndimage import binary_dilation, gaussian_filter, maximum_filter

from common import RESULTS, save
from equal_compute import Quiet
from estimates import interval, scores_of
from frontier_pages import draw_phantom, write_page
from veilray.evaluation.levels import at_noise
from veilray.images.radiograph import FloatImage
from veilray.inference.denoiser import Denoiser
from veilray.metrics.lpips import LPIPS, load_lpips
from veilray.models.build import build_model
from veilray.obfuscation.config import NoiseConfig
from veilray.training.config import RunConfig, load_config
from veilray.training.data import TrainingImages
from veilray.training.loop import train
from veilray.training.objectives.supervised import discriminator_of
from veilray.training.run import RunFolder
from veilray.training.source import open_weights
from veilray.training.start import with_pinned_files
from veilray.training.state import TrainingState, checkpoints

NOISE = NoiseConfig(mean=0.1, std=0.2)
OBJECTIVES: dict[str, list[str]] = {
    "L1": [],
    "mean squared error": ["train.loss=mse"],
    "Charbonnier": ["train.loss=charbonnier"],
    "MS-SSIM + L1": ["train.loss=ms_ssim_l1"],
    "frequency": ["train.loss=frequency"],
    "perceptual, 0.02": ["train.loss=perceptual"],
    "perceptual, 0.1": ["train.loss=perceptual", "train.loss_weight=0.1"],
    "adversarial, 0.005": ["train.loss=adversarial"],
    "adversarial, 0.02": ["train.loss=adversarial", "train.loss_weight=0.02"],
}
COMMON = [
    *("seed=1", "noise.mean=0.1", "noise.std=0.2", "split.rule=cohort", "launch.device=cpu", "launch.precision=fp32"),
    *("train.batch_size=16", "train.crop=128", "train.flips=true", "train.optimizer=adamw", "train.weight_decay=1e-4"),
    *("train.learning_rate=5e-4", "train.warmup_steps=20", "train.ema_decay=0.98"),
]
BANDS = {"1 to 2 px": (0.5, 1.0), "2 to 4 px": (1.0, 2.0), "4 to 8 px": (2.0, 4.0)}
"""Detail by its size: differences of two Gaussians, with their sigmas in pixels."""
BLOB, REACH = 0.03, 3
"""Least height of a blob in the band of 2 to 4 px, in units of the [0, 1] range, and how far apart two are the same."""
Pixels = npt.NDArray[np.float64]


def main() -> None:
    """Train what is missing, score, print, and record where --save is given."""
    options = _options()
    if options.pages:
        write_page(json.loads((RESULTS / "frontier.json").read_text(encoding="utf-8")))
        return
    torch.set_num_threads(options.threads)
    chosen = options.only or list(OBJECTIVES)
    runs = {name: _trained(name, options) for name in chosen}
    if options.only:
        return
    lpips = load_lpips(options.lpips_backbone)
    start = open_weights(options.start)
    denoisers = {"the common start": Denoiser.load(options.start, device="cpu")}
    denoisers |= {name: _last(run) for name, run in runs.items()}
    first = next(iter(runs.values()))
    images = TrainingImages.open(options.data, at_noise(first.config(), NOISE))
    record: dict[str, Any] = {
        "start": str(options.start) if str(options.start) == Path(options.start).name else "a run",
        "start_sha256": start.sha256,
        "split": options.split,
        "epochs": options.epochs,
        "steps": first.epochs()[-1].step,
        "images": len(images.sets[options.split]),
        "patients": images.patients()[options.split],
        "cohort_digest": images.data.digest,
        "noise": NOISE.model_dump(mode="json"),
        "common": COMMON,
        "objectives": {
            name: measured(name, one, images, lpips, split=options.split) for name, one in denoisers.items()
        },
    }
    for name, run in runs.items():
        record["objectives"][name]["seconds"] = run.epochs()[-1].seconds
    if options.save:
        save("frontier", record)
        write_page(json.loads((RESULTS / "frontier.json").read_text(encoding="utf-8")))
        draw_phantom({name: denoisers[name] for name in OBJECTIVES if name in denoisers})


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="the cohort")
    parser.add_argument("--out", type=Path, help="folder of the runs")
    parser.add_argument("--start", default="fast", help="shipped name or run folder that all begin from")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--only", action="append", choices=list(OBJECTIVES), help="train these and stop")
    parser.add_argument("--lpips-backbone", type=Path, help="AlexNet, for the perceptual objective and for LPIPS")
    parser.add_argument("--split", choices=["validation", "test"], default="validation")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--save", action="store_true", help="write results/frontier.json, the page and its picture")
    parser.add_argument("--pages", action="store_true", help="write the page from results/frontier.json")
    options = parser.parse_args()
    missing = [f"--{name}" for name in ("data", "out", "lpips_backbone") if not getattr(options, name)]
    if missing and not options.pages:
        parser.error(f"missing: {', '.join(missing).replace('_', '-')}")
    return options


def _trained(name: str, options: argparse.Namespace) -> RunFolder:
    """The run of an objective, trained where it is not finished yet."""
    model = open_weights(options.start).weights.config.model_dump(mode="json")
    settings = [*COMMON, *(f"model.{key}={json.dumps(value)}" for key, value in model.items())]
    settings += [f"train.start={options.start}", f"train.epochs={options.epochs}", *OBJECTIVES[name]]
    settings += [f"launch.perceptual_backbone={options.lpips_backbone}"]
    config = with_pinned_files(load_config("default", settings))
    path = options.out / "".join(letter if letter.isalnum() else "-" for letter in name)
    there = (path / "config.toml").exists()
    run = RunFolder.resume(path, config) if there else RunFolder.create(path, config)
    if not any(record.epoch == options.epochs for record in run.epochs()):
        images = TrainingImages.open(options.data, config)
        run.write_environment(
            {"cohort": str(options.data), "cohort_digest": images.data.digest}, device=torch.device("cpu")
        )
        train(config, images, run, device=torch.device("cpu"), watcher=Quiet())
    return run


def _last(run: RunFolder) -> Denoiser:
    """The network after the last step, averaged weights where there are any."""
    config: RunConfig = run.config()
    state = TrainingState(
        build_model(config.model),
        config.train,
        device=torch.device("cpu"),
        scale_loss=False,
        discriminator=discriminator_of(config),
    )
    state.restore(checkpoints(run.checkpoints)[-1])
    return Denoiser(state.average.model, noise=config.noise, device="cpu")


def measured(name: str, denoiser: Denoiser, images: TrainingImages, lpips: LPIPS, *, split: str) -> dict[str, Any]:
    """Scores and inventions of a network at the noise of `images`, means over a set with intervals by patient."""
    rows = images.sets[split]
    found: dict[str, list[float]] = {}
    for row in rows:
        batch = images.held_out_batch(np.array([row]), torch.device("cpu"))
        clean, noisy = batch.clean[0, 0].numpy(), batch.noisy[0, 0].numpy()
        output = denoiser(noisy, mean=images.noise.single_mean)
        for key, value in {**scores_of(output, clean, lpips), **inventions(output, clean)}.items():
            found.setdefault(key, []).append(value)
    patients = [images.data.patient_id(int(row)) for row in rows]
    record = {key: interval(values, patients) for key, values in found.items()}
    print(f"{name}: " + ", ".join(f"{key} {value['mean']:.4g}" for key, value in record.items()), flush=True)
    return record


def inventions(output: FloatImage, clean: FloatImage) -> dict[str, float]:
    """Unsupported structure by band, and numbers of blobs invented and lost, of (H, W) in [0, 1]."""
    found = {}
    for name, sigmas in BANDS.items():
        mine, true = band(output, *sigmas), band(clean, *sigmas)
        found[f"unsupported, {name}"] = float((mine * (mine - true)).mean() / (true * true).mean())
    mine, true = (blobs(band(image, *BANDS["2 to 4 px"])) for image in (output, clean))
    near = np.ones((2 * REACH + 1, 2 * REACH + 1), dtype=bool)
    found["blobs invented"] = float((mine & ~binary_dilation(true, near)).sum())
    found["blobs lost"] = float((true & ~binary_dilation(mine, near)).sum())
    return found


def band(image: FloatImage, fine: float, coarse: float) -> Pixels:
    """What an image holds between two Gaussians, (H, W)."""
    pixels = image.astype(np.float64)
    between: Pixels = gaussian_filter(pixels, fine) - gaussian_filter(pixels, coarse)
    return between


def blobs(detail: Pixels) -> npt.NDArray[np.bool_]:
    """Bright spots of a band: largest within 2 pixels around, and above the threshold."""
    bright: npt.NDArray[np.bool_] = (detail == maximum_filter(detail, size=5)) & (detail > BLOB)
    return bright


if __name__ == "__main__":
    main()
