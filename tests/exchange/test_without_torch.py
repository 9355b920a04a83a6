"""What Site One's everyday commands do without: torch takes a second to load and 200 MB of memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tests.command_line import done
from tests.exchange.sites import make_sites
from tests.images.clinical_files import ROOT, cr
from tests.images.dicom_files import save

from veilray.cohort.records import ReleasedNoise
from veilray.exchange.release.pseudonyms import Pseudonyms
from veilray.images.phantom import write_phantoms
from veilray.images.write import write_png
from veilray.inference.record import DenoisedRelease, DenoiseSettings, new_batch, note_denoised

_WITHOUT = "import sys; sys.modules['torch'] = None; from veilray.cli.main import run; run()"


def _run(*words: object) -> str:
    finished = subprocess.run(
        [sys.executable, "-c", _WITHOUT, *map(str, words)], capture_output=True, text=True, timeout=120
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


@pytest.mark.slow
def test_a_release_is_made_sealed_and_opened(tmp_path: Path) -> None:
    make_sites(tmp_path)
    write_phantoms(tmp_path / "png", patients=6, follow_ups=1, seed=2, size=32)
    done("import", tmp_path / "png", "--out", tmp_path / "cohort", "--workers", 1)
    for_two = ["--keys", tmp_path / "one", "--receiver", "two", "--std", "0.3"]
    assert "6 images" in _run("obfuscate", tmp_path / "cohort", "--out", tmp_path / "release", *for_two)
    _run("seal", tmp_path / "release", "--out", tmp_path / "a.veil", "--keys", tmp_path / "one", "--to", "two")
    _run("open", tmp_path / "a.veil", "--out", tmp_path / "opened", "--keys", tmp_path / "two")
    assert (tmp_path / "opened/release.json").read_bytes() == (tmp_path / "release/release.json").read_bytes()


@pytest.mark.slow
def test_images_are_reattached(tmp_path: Path) -> None:
    sites = make_sites(tmp_path)
    (tmp_path / "originals").mkdir()
    uid = f"{ROOT}.9.1"
    values = np.random.default_rng(1).integers(0, 4096, (20, 26)).astype(np.uint16)
    (tmp_path / "originals/1.dcm").write_bytes(save(cr(values, bits=12, SOPInstanceUID=uid)))
    name = Pseudonyms(sites.one.pseudonym_key(sites.two.card.fingerprint).reveal()).image(uid)
    write_png(tmp_path / "back" / f"{name}.png", values * 16)
    noise = ReleasedNoise(mean=0.1, std=0.2, clip=True)
    batch = new_batch(
        weights_sha256="ab" * 32,
        settings=DenoiseSettings(mean=None, tile=64, precision="fp32"),
        release=DenoisedRelease(release_id="0" * 32, noise=noise),
    )
    note_denoised(tmp_path / "back", batch, [f"{name}.png"])
    ours = ["--keys", sites.one.path, "--receiver", "two", "--out", tmp_path / "derived"]
    assert "1 images attached" in _run("denoise", tmp_path / "back", "--reattach", tmp_path / "originals", *ours)
