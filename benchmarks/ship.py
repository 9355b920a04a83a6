"""Put a trained network into the package: its weights, and a card that says what it is, was trained on and reached.

    veilray evaluate RUN --data COHORT --std 0.1,0.2,0.3 --mean 0.1 --out RESULTS
    python benchmarks/ship.py default --run RUN --data COHORT --results RESULTS
    python benchmarks/ship.py fast --speed      # of what ships already, on this machine, beside the speeds on its card

The scores on the card are those of RESULTS, on the test patients, which neither the training nor the choice of a
checkpoint has looked at. The speed is measured here, with memory handled as `veilray denoise` does: whole images of
256 x 256 in batches of 8, all cores, the median of some rounds.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import time
from pathlib import Path

import numpy as np
import torch

import veilray
from veilray.cohort.cohort import Cohort
from veilray.cohort.split import SPLITS
from veilray.evaluation.results import METRICS, MODEL, read_summary
from veilray.files import sha256_file, write_json
from veilray.images.radiograph import FloatImage
from veilray.inference.denoiser import Denoiser
from veilray.models.build import build_model
from veilray.models.shipped.card import Card, CardData, CardScore, CardSpeed, config_digest
from veilray.models.shipped.find import FOLDER, shipped_model
from veilray.parallel.devices import describe_device, keep_freed_memory, use_huge_pages
from veilray.training.run import RunFolder

MOST_BYTES = {"default": 8_000_000, "fast": 2_000_000}
IMAGENET = "; by the perceptual objective also AlexNet's weights, trained on ImageNet (ILSVRC 2012)"
SUMMARIES = {
    "default": "Takes Gaussian noise of any standard deviation up to 0.4 and a known mean from chest radiographs.",
    "fast": "The same task in a quarter of the parameters, for large numbers of images.",
}
LIMITS = (
    "Trained on frontal chest radiographs of one hospital at 256 x 256 pixels, 8 bits; other sizes, views, body parts "
    "and detectors were not trained on.",
    "Noise other than white Gaussian noise, clamped to [0, 1], was not trained on.",
    "It can remove findings and invent structures; no reader study was made, and PSNR is not diagnostic equivalence.",
    "The mean of the noise cannot be told from an image: it must be given, and is 0 for images without obfuscation.",
)
CHOICES = {
    "default": "The range in which the weight of its perceptual loss was sought goes back to scores of the test "
    "patients (docs/decisions/0022): of all choices the one that they have had a part in.",
}
CLEAN_IMAGES = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=sorted(MOST_BYTES))
    parser.add_argument("--run", type=Path)
    parser.add_argument("--data", type=Path, help="the cohort it was trained on")
    parser.add_argument("--results", type=Path, help="what veilray evaluate wrote, a folder a level")
    parser.add_argument("--speed", action="store_true", help="only add this machine's speed to the card of what ships")
    parser.add_argument("--out", type=Path, default=FOLDER, help="where weights and card go; the package by default")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    use_huge_pages()
    keep_freed_memory()
    if options.speed:
        _add_speed(options.name, options.out, options.rounds)
        return
    missing = [f"--{name}" for name in ("run", "data", "results") if not getattr(options, name)]
    if missing:
        parser.error(f"missing: {', '.join(missing)}")
    _ship(options)


def _add_speed(name: str, folder: Path, rounds: int) -> None:
    model = shipped_model(name)
    measured = _speed(model.weights, rounds)
    others = tuple(one for one in model.card.speed if one.device != measured.device)
    card = model.card.model_copy(update={"speed": (*others, measured)})
    write_json(folder / f"{name}.json", card.model_dump(mode="json"))
    print(f"{name}: {measured.images_per_second:.1f} images/s on {measured.device}")


def _ship(options: argparse.Namespace) -> None:
    run, cohort = RunFolder(options.run), Cohort.open(options.data)
    config = run.config().model_dump(mode="json")
    if run.environment()["cohort_digest"] != cohort.digest:
        raise SystemExit(f"{options.run} was not trained on {options.data}")
    size = run.best_weights.stat().st_size
    if size > MOST_BYTES[options.name]:
        raise SystemExit(f"{run.best_weights} has {size:,} bytes; {MOST_BYTES[options.name]:,} is the most")
    target = options.out / f"{options.name}.safetensors"
    shutil.copyfile(run.best_weights, target)
    card = Card(
        name=options.name,
        summary=SUMMARIES[options.name],
        intended_use="Research on frontal chest radiographs to which Gaussian noise was added; not diagnosis.",
        limits=(*LIMITS, _smoothing(options.run, cohort), *filter(None, [CHOICES.get(options.name)])),
        medical_device=False,
        licence="Apache-2.0",
        data=_data(cohort, perceptual=run.config().train.loss == "perceptual"),
        config=config,
        config_digest=config_digest(config),
        parameters=sum(value.numel() for value in build_model(run.config().model).parameters()),
        weights_sha256=sha256_file(target),
        weights_bytes=size,
        scores=tuple(_score(path) for path in sorted(options.results.glob("std-*"))),
        speed=(_speed(options.run, options.rounds),),
        trained_by=veilray.__version__,
    )
    write_json(options.out / f"{options.name}.json", card.model_dump(mode="json"))
    print(f"written: {target} and its card")


def _data(cohort: Cohort, *, perceptual: bool) -> CardData:
    def patients(code: int) -> int:
        return len({cohort.patient_id(int(row)) for row in np.flatnonzero(cohort.split_codes == code)})

    train, validation = SPLITS.index("train"), SPLITS.index("validation")
    return CardData(
        name=f"NIH ChestX-ray14, {len(cohort.split_codes)} of its images at 256 x 256; training patients of "
        f"benchmarks/splits/nih256.csv{IMAGENET if perceptual else ''}",
        source="https://nihcc.app.box.com/v/ChestXray-NIHCC",
        licence="NIH Clinical Center: no restrictions on use; cite Wang et al., CVPR 2017",
        train_images=int((cohort.split_codes == train).sum()),
        train_patients=patients(train),
        validation_images=int((cohort.split_codes == validation).sum()),
        validation_patients=patients(validation),
        cohort_digest=cohort.digest,
    )


def _smoothing(run: Path, cohort: Cohort) -> str:
    """What it does to images without noise, measured on some of validation, one a patient."""
    denoiser = Denoiser.load(run, device="cpu")
    rows = np.flatnonzero(cohort.split_codes == SPLITS.index("validation"))
    first = {cohort.patient_id(int(row)): row for row in reversed(rows)}
    chosen = np.array(sorted(first.values())[:CLEAN_IMAGES])
    kept = []
    for row in chosen:
        clean = cohort.gather(np.array([row]))[0]
        kept.append(_gradient(denoiser(clean)) / _gradient(clean))
    return (
        f"A clean image comes out a little smoother than it was: of {len(kept)} validation radiographs the mean "
        f"gradient kept {np.mean(kept):.0%} (the least {min(kept):.0%})."
    )


def _gradient(image: FloatImage) -> float:
    """Mean length of the gradient."""
    return float(np.hypot(*np.gradient(image.astype(np.float64))).mean())


def _score(folder: Path) -> CardScore:
    summary = read_summary(folder)
    found = summary.methods[MODEL]
    return CardScore(
        data=f"NIH ChestX-ray14, {summary.split} patients of benchmarks/splits/nih256.csv",
        n_images=summary.n_images,
        n_patients=summary.n_patients,
        noise=summary.noise,
        confidence=summary.confidence,
        metrics={metric: value for metric in METRICS if (value := found.get(metric)) is not None},
    )


def _speed(source: Path, rounds: int) -> CardSpeed:
    denoiser = Denoiser.load(source, device="cpu")
    images = torch.rand((8, 1, 256, 256), generator=torch.Generator().manual_seed(0))
    denoiser.denoise(images, mean=0.1, std=0.2)
    seconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        denoiser.denoise(images, mean=0.1, std=0.2)
        seconds.append(time.perf_counter() - started)
    rate = len(images) / statistics.median(seconds)
    return CardSpeed(device=describe_device(torch.device("cpu")), height=256, width=256, images_per_second=rate)


if __name__ == "__main__":
    main()
