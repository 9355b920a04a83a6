"""Who can be recognised: re-identification and attribute inference on real radiographs, clean, noisy and denoised.

    python benchmarks/reidentification.py --data COHORT --labels shared/data/index.csv
        --backbone shared/weights/alexnet_features.safetensors [--denoiser RUN] [--levels 0.1 0.2 0.3]
        [--kinds clean noisy denoised] [--seeds 1 2 3] [--effort default] [--images all | tuning] [--save]

The attackers are those of `veilray audit`. Their settings (components, shrinkage, which features) were chosen on the
training and validation patients of splits/nih256.csv (`--images tuning`), clean and at noise 0.3; `--images all`, the
default, counts the others too. Every patient is scored by attackers trained on other patients.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from common import save, table
from veilray.cohort.cohort import Cohort
from veilray.inference.denoiser import Denoiser
from veilray.privacy.attributes import AttributeInference
from veilray.privacy.data import AuditData, Variant
from veilray.privacy.extent import extent_of
from veilray.privacy.material import open_originals
from veilray.privacy.observing import Observer
from veilray.privacy.reidentification import ReIdentification
from veilray.privacy.results import AttackResult, Skipped
from veilray.privacy.variants import clean_variant, denoised_variant, simulated_variant

NOISE_SEED = 20_017
KINDS = ("clean", "noisy", "denoised")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="cohort of the originals")
    parser.add_argument("--labels", type=Path, help="CSV file of sex, view and age")
    parser.add_argument("--backbone", type=Path, help="AlexNet's convolutions; without them the attacker is weaker")
    parser.add_argument("--denoiser", help="run folder or name of a shipped model, for denoised images")
    parser.add_argument("--levels", type=float, nargs="*", default=[0.1, 0.2, 0.3], help="std of the noise")
    parser.add_argument("--mean", type=float, default=0.1, help="of the noise")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--effort", choices=["quick", "default", "full"], default="default")
    parser.add_argument("--images", choices=["all", "tuning"], default="all")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="only these images")
    parser.add_argument("--save", action="store_true", help="write results/reidentification.json")
    options = parser.parse_args()
    cohort = Cohort.open(options.data)
    data = open_originals(cohort, labels=options.labels).data
    rows = _rows(cohort, data, options.images)
    observer = Observer(options.backbone)
    extent = extent_of(options.effort)
    outcomes: list[AttackResult | Skipped] = []
    seconds: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for variant in _variants(data, options, Path(scratch)):
            started = _processor()
            chosen = dataclasses.replace(variant, rows=tuple(rows.tolist()))
            found: list[AttackResult | Skipped] = []
            for attack in (ReIdentification(observer), AttributeInference(observer)):
                found += attack(data, chosen, extent=extent, seeds=options.seeds, progress=_say)
            seconds[variant.name] = round(_processor() - started, 1)
            _show(found, seconds[variant.name])
            outcomes += found
    if options.save:
        record = {
            "cohort_digest": cohort.digest,
            "images": options.images,
            "effort": options.effort,
            "alexnet": not observer.weakened,
            "denoiser": options.denoiser and Path(options.denoiser).name,
            "noise": {"mean": options.mean, "seed": NOISE_SEED},
            "processor_seconds": seconds,
            "outcomes": [one.model_dump(mode="json", exclude={"curve"}) for one in outcomes],
        }
        save("reidentification", record)


def _rows(cohort: Cohort, data: AuditData, images: str) -> np.ndarray:
    """The images of all patients, or of those that settings were chosen on."""
    held_out = {cohort.image_id(int(row)) for row in cohort.rows("test")}
    tested = np.array([image_id in held_out for image_id in data.image_ids])
    return np.flatnonzero(~tested if images == "tuning" else tested | True)


def _variants(data: AuditData, options: argparse.Namespace, scratch: Path) -> list[Variant]:
    noisy = [simulated_variant(data, mean=options.mean, std=std, seed=NOISE_SEED) for std in options.levels]
    found = [clean_variant(data), *noisy]
    if options.denoiser:
        denoiser = Denoiser.load(options.denoiser)
        digest = denoiser.origin.weights_sha256 if denoiser.origin else options.denoiser
        found += [denoised_variant(one, denoiser, folder=scratch, data=data, digest=digest) for one in noisy]
    return [one for one in found if one.kind in options.kinds]


def _say(message: str) -> None:
    print(f"{time.strftime('%T')} {message}", file=sys.stderr, flush=True)


def _processor() -> float:
    """Processor seconds of this process, which other work on the machine hardly changes."""
    times = os.times()
    return times.user + times.system


def _show(outcomes: list[AttackResult | Skipped], seconds: float) -> None:
    rows = []
    for one in outcomes:
        if isinstance(one, AttackResult):
            interval = "" if one.low is None else f"[{one.low:.3f}, {one.high:.3f}]"
            who = (one.attacker, one.metric, f"{one.value:.3f}", interval, one.n_patients, one.n_pairs or "")
            rows.append((one.variant, *who, "; ".join(one.notes)))
        else:
            rows.append((one.variant, "", "skipped", "", "", "", "", one.reason))
    print(table(["images", "attacker", "metric", "value", "95 %", "patients", "pairs", "notes"], rows))
    print(f"processor seconds: {seconds}", flush=True)


if __name__ == "__main__":
    main()
