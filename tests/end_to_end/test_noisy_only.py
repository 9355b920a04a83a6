"""The story of two sites where no clean pixel crosses (docs/how-to/train-without-clean-images.md), command by command.

Site One releases noisy images; Site Two trains on them with the default configuration and sends the model; Site One
scores it against the originals, and means return.
"""

from __future__ import annotations

import base64
import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

pytest.importorskip("pydicom")
pytest.importorskip("pyrage")
pytest.importorskip("fastapi")

from PIL import Image
from tests.command_line import SMALL
from tests.end_to_end.sites import (
    SHAPE,
    Site,
    Sites,
    clean_pixels,
    clinical_image,
    leaks,
    names_and_numbers,
    readable,
    two_sites,
    write_ward,
)
from tests.exchange.sites import decrypted, members

from veilray.cohort.release import Release
from veilray.evaluation.results import read_summary
from veilray.exchange.keys.folder import KeyFolder

# The first test waits for the whole story, some twenty processes.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

WARD = 3
SETS = ["train"] * 8 + ["validation"] * 3 + ["test"] * 11
FEW_STEPS = [*SMALL, "--set", "train.learning_rate=0.01", "--set", "train.ema_decay=0.5"]
Pixels = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Story:
    """What the story left: both sites, the bundles that crossed with who opened them, and what was said."""

    sites: Sites
    cohort: Path
    bundles: list[tuple[Path, KeyFolder]]
    trained: str
    scored: str
    sealed_means: str


@pytest.fixture
def story(tmp_path: Path) -> Iterator[Story]:
    with two_sites(tmp_path) as sites:
        one, two = sites.one, sites.two
        _import(one)
        for_centre = ["--keys", "keys", "--receiver", "centre", "--std", "0.2"]
        one.done("obfuscate", "cohort", "--out", "release", *for_centre)
        bundles = [_crossed(sites, one, "release", "release")]
        trained = two.done("train", "default", "--data", "release", "--out", "run", *FEW_STEPS)
        bundles.append(_crossed(sites, two, "run", "model"))
        against = ["--data", "release", "--originals", "cohort", "--out", "evaluation"]
        scored = one.done("evaluate", "model", *against, "--no-download", "--device", "cpu")
        bundles.append(_crossed(sites, one, "evaluation", "means"))
        log = (one.home / "keys/exchange/log.jsonl").read_text()
        yield Story(sites, one.home / "cohort", bundles, trained, scored, log)


def _import(one: Site) -> None:
    """The archive as a cohort whose sets a file decides, so that enough patients are in the test set."""
    write_ward(one.home / "archive", WARD, patients=len(SETS))
    with (one.home / "sets.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["image_id", "split"])
        for patient, name in enumerate(SETS):
            writer.writerows([clinical_image(WARD, patient, visit).SOPInstanceUID, name] for visit in range(2))
    one.done("import", "archive", "--out", "cohort", "--size", "native", "--split", "sets.csv", "--workers", 1)


def _crossed(sites: Sites, sender: Site, folder: str, name: str) -> tuple[Path, KeyFolder]:
    """Seal, send and open a folder; the bundle, and the keys that open it."""
    receiver = sites.two if sender is sites.one else sites.one
    bundle = sites.deliver(sender, folder, name)
    receiver.done("open", bundle.relative_to(receiver.home), "--out", name, "--keys", "keys")
    return bundle, KeyFolder.open(receiver.home / "keys")


def test_a_centre_without_clean_images_trains_and_is_told_how_well(story: Story) -> None:
    # One test, since the story takes most of its time.
    _the_centre_trained_on_noisy_images_alone(story)
    _the_model_was_scored_against_the_originals_and_means_returned(story)
    _no_clean_pixel_and_no_name_crossed(story)


def _the_centre_trained_on_noisy_images_alone(story: Story) -> None:
    release = Release.open(story.sites.two.home / "release")
    assert not release.pairs
    assert not list(release.path.glob("clean-*"))
    assert "objective" in story.trained
    assert (story.sites.two.home / "run/checkpoints/best.safetensors").is_file()
    told = json.loads((story.sites.one.home / "model/model.json").read_text())
    assert told["release"] == {"release_id": release.record.release_id, "digest": release.digest}


def _the_model_was_scored_against_the_originals_and_means_returned(story: Story) -> None:
    summary = read_summary(story.sites.one.home / "evaluation")
    assert (summary.n_images, summary.n_patients) == (22, 11)
    assert "22 test images of 11 patients" in story.scored
    means = json.loads((story.sites.two.home / "means/evaluation.json").read_text())
    exact = summary.methods["model"]["psnr"]
    assert exact is not None
    assert means["scores"]["model"]["psnr"]["mean"] == round(exact.mean, 2)
    assert (
        means["weights_sha256"] == json.loads((story.sites.one.home / "model/model.json").read_text())["weights_sha256"]
    )
    events = story.sites.one.done("ledger", "list", "keys", "--events")
    assert f"{means['release_id']} evaluation sealed: of weights {means['weights_sha256']}, for centre" in events


def _no_clean_pixel_and_no_name_crossed(story: Story) -> None:
    """Neither byte for byte nor to the eye: in the bundles, opened, and in all that lies at the centre."""
    one, two = story.sites.one.home, story.sites.two.home
    crossed = []
    for bundle, keys in story.bundles:
        crossed += list(members(decrypted(bundle, keys)).items())
    assert len(crossed) == 2 + 3 + 2 + 3 + 2 + 2  # each with its manifest and its signature
    canaries = names_and_numbers(story.cohort) | clean_pixels(story.cohort)
    texts = [*crossed, *readable(two), *(("what it said", text.encode()) for text in story.sites.two.said)]
    assert not leaks(texts, canaries)
    clean = _clean(story.cohort)
    seen = [*_pictures(crossed), *_pictures(_files(two))]
    assert len(seen) >= 2 * len(clean)  # the release, sealed and opened
    assert min(_nearest(image, clean) for image in seen) > 0.03
    # Both scans find the originals where they are.
    assert len(leaks(readable(story.cohort), clean_pixels(story.cohort))) >= len(clean_pixels(story.cohort))
    assert sum(_nearest(image, clean) == 0 for image in _pictures(_files(one))) >= len(clean)


def _clean(cohort: Path) -> Pixels:
    return np.concatenate([np.load(file) for file in sorted(cohort.glob("pixels-*.npy"))]).astype(np.float64) / 65535


def _files(folder: Path) -> list[tuple[str, bytes]]:
    return [(str(path), path.read_bytes()) for path in sorted(folder.rglob("*")) if path.is_file()]


def _pictures(files: Sequence[tuple[str, bytes]]) -> Iterator[Pixels]:
    """Every image of the originals' shape: in numpy files, in PNG files, and inside pages."""
    for name, data in files:
        if name.endswith(".npy"):
            levels = np.load(io.BytesIO(data))
            yield from levels.reshape(-1, *levels.shape[-2:]).astype(np.float64) / np.iinfo(levels.dtype).max
        elif name.endswith(".html"):
            for found in re.findall(rb"data:image/png;base64,([A-Za-z0-9+/=]+)", data):
                yield from _decoded(base64.b64decode(found))
        elif name.endswith(".png"):
            yield from _decoded(data)


def _decoded(png: bytes) -> Iterator[Pixels]:
    with Image.open(io.BytesIO(png)) as image:
        pixels = np.asarray(image.convert("I" if image.mode.startswith("I") else "L"), dtype=np.float64)
        scale = 65535 if image.mode.startswith("I") else 255
    if pixels.shape == SHAPE:
        yield pixels / scale


def _nearest(image: Pixels, clean: Pixels) -> float:
    """Root mean square of the difference to the original that is nearest; infinite for another shape."""
    if image.shape != clean.shape[1:]:
        return float("inf")
    return float(np.sqrt(((clean - image) ** 2).mean(axis=(1, 2))).min())
