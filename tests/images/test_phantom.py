"""The procedural chest phantom: reproducible, the same at every size, and like a radiograph where it matters."""

from __future__ import annotations

import hashlib
import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from veilray.errors import UsageError
from veilray.images.phantom import chest_phantom, write_phantoms
from veilray.images.phantom.render import draw_patient
from veilray.images.phantom.tissue import dome_height, draw_chest
from veilray.images.radiograph import FloatImage, to_levels, to_pixels
from veilray.images.read import read_radiograph

_SEED = 11


def _statistics(pixels: FloatImage) -> dict[str, float]:
    """What a denoiser meets in an image: grey values, their spread, the spectrum, edges."""
    size = pixels.shape[0]
    window = np.outer(np.hanning(size), np.hanning(size))
    power = np.abs(np.fft.fft2((pixels - pixels.mean()) * window)) ** 2
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.fftfreq(size)[None]) * size
    edges = np.array([4, 8, 16, 32, 64, 96, 128])
    bands = [power[(frequency >= a) & (frequency < b)].mean() for a, b in itertools.pairwise(edges)]
    gradient = np.hypot(np.diff(pixels, axis=1)[:-1], np.diff(pixels, axis=0)[:, :-1])
    return {
        "mean": float(pixels.mean()),
        "deviation": float(pixels.std()),
        "lower quartile": float(np.percentile(pixels, 25)),
        "upper quartile": float(np.percentile(pixels, 75)),
        "black": float((pixels == 0).mean()),
        "white": float((pixels == 1).mean()),
        "spectral slope": float(np.polyfit(np.log(np.sqrt(edges[:-1] * edges[1:])), np.log(bands), 1)[0]),
        "edges": float((gradient > 0.05).mean()),
    }


def _table(images: list[FloatImage]) -> dict[str, np.ndarray]:
    rows = [_statistics(image) for image in images]
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


@pytest.fixture(scope="module")
def population() -> list[FloatImage]:
    """60 phantoms as they come back from 8-bit files."""
    phantoms = (chest_phantom(patient=p, follow_up=p % 3, seed=_SEED) for p in range(60))
    return [to_pixels(to_levels(phantom, np.uint8)) for phantom in phantoms]


@pytest.mark.parametrize("size", [16, 33, 100, 255, 256, 300])
def test_any_size_gives_a_float32_square_in_range(size: int) -> None:
    pixels = chest_phantom(patient=3, follow_up=0, seed=_SEED, size=size)
    assert pixels.shape == (size, size)
    assert pixels.dtype == np.float32
    assert np.isfinite(pixels).all()
    assert pixels.min() >= 0
    assert pixels.max() <= 1


@pytest.mark.slow
def test_another_process_draws_the_same_picture_without_torch() -> None:
    program = (
        "import hashlib, sys; from veilray.images.phantom import chest_phantom;"
        f"print(hashlib.sha256(chest_phantom(patient=5, follow_up=2, seed={_SEED}, size=96).tobytes()).hexdigest());"
        "print('torch' in sys.modules)"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "4711"}
    result = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    # Drawn after others here, first there: nothing may be left over from one picture to the next.
    chest_phantom(patient=1, follow_up=0, seed=_SEED, size=64)
    here = chest_phantom(patient=5, follow_up=2, seed=_SEED, size=96)
    assert result.stdout.split() == [hashlib.sha256(here.tobytes()).hexdigest(), "False"]


def test_patient_follow_up_and_seed_each_change_the_picture() -> None:
    first = chest_phantom(patient=1, follow_up=1, seed=1, size=64)
    for patient, follow_up, seed in ((2, 1, 1), (1, 2, 1), (1, 1, 2), (1, 0, 1), (0, 1, 1)):
        other = chest_phantom(patient=patient, follow_up=follow_up, seed=seed, size=64)
        assert np.abs(other - first).mean() > 0.01


def test_only_the_study_differs_between_follow_ups() -> None:
    anatomies, studies = zip(*(draw_patient(patient=4, follow_up=f, seed=_SEED) for f in range(5)), strict=True)
    assert len(set(anatomies)) == 1
    assert len(set(studies)) == 5
    assert draw_patient(patient=5, follow_up=0, seed=_SEED)[0] != anatomies[0]
    assert draw_patient(patient=4, follow_up=0, seed=_SEED + 1)[0] != anatomies[0]


@pytest.mark.slow
def test_follow_ups_resemble_their_patient_more_than_others() -> None:
    patients, follow_ups = 16, 3
    images = np.stack(
        [chest_phantom(patient=p, follow_up=f, seed=_SEED, size=64) for p in range(patients) for f in range(follow_ups)]
    ).reshape(patients * follow_ups, -1)
    correlation = np.corrcoef(images - images.mean(axis=0))
    owner = np.repeat(np.arange(patients), follow_ups)
    same = (owner[:, None] == owner) & ~np.eye(len(owner), dtype=bool)
    assert correlation[same].mean() > correlation[owner[:, None] != owner].mean() + 0.1


@pytest.mark.slow
@pytest.mark.parametrize("patient", range(2))
def test_every_size_shows_the_same_picture(patient: int) -> None:
    small = chest_phantom(patient=patient, follow_up=1, seed=_SEED, size=256)
    large = chest_phantom(patient=patient, follow_up=1, seed=_SEED, size=1024)
    difference = np.abs(large.reshape(256, 4, 256, 4).mean(axis=(1, 3)) - small)
    # What is left lies along edges finer than a pixel: on the whole less than a grey level of 8 bits.
    assert difference.mean() < 1 / 255
    assert np.percentile(difference, 99) < 0.03
    # The larger picture is no mere enlargement.
    enlarged = np.repeat(np.repeat(small, 4, axis=0), 4, axis=1)
    assert np.abs(large - enlarged).mean() > 2 * difference.mean()


@pytest.mark.slow
def test_lungs_are_darker_than_the_mediastinum_and_lie_where_they_should() -> None:
    for patient in range(20):
        anatomy, study = draw_patient(patient=patient, follow_up=0, seed=_SEED)
        canvas = study.to_patient(128)
        chest = draw_chest(canvas, anatomy, study)
        grey = chest_phantom(patient=patient, follow_up=0, seed=_SEED, size=128)
        mediastinum = (np.abs(canvas.x) < 0.03) & (np.abs(canvas.y - 0.03) < 0.08)
        lungs = chest.lung > 0.15
        assert lungs.mean() > 0.08
        assert grey[lungs].mean() < grey[mediastinum].mean() - 0.1
        assert chest.lung[mediastinum].max() < 0.1


@pytest.mark.slow
def test_the_heart_points_to_the_patients_left_and_the_right_dome_stands_higher() -> None:
    heart, step_down = [], []
    for patient in range(40):
        anatomy, study = draw_patient(patient=patient, follow_up=0, seed=_SEED)
        if max(study.effusion) > 0:
            continue  # fluid hides both
        canvas = study.to_patient(128)
        chest = draw_chest(canvas, anatomy, study)
        left = canvas.x > 0
        displaced = chest.full_lung - chest.lung
        beside = (np.abs(canvas.y - 0.08) < 0.03) & (np.abs(np.abs(canvas.x) - 0.12) < 0.02)
        heart.append(displaced[beside & left].mean() - displaced[beside & ~left].mean())
        right_dome, left_dome = dome_height(np.array([-0.17, 0.17], dtype=np.float32), anatomy, study)
        step_down.append(left_dome - right_dome)
    assert len(heart) > 20
    # One raised right dome may cover more than the heart does; most do not.
    assert np.mean(heart) > 0.08
    assert np.mean(step_down) > 0.01


@pytest.mark.slow
def test_grey_values_and_edges_are_plausible_for_radiographs(population: list[FloatImage]) -> None:
    """The ranges hold 5 to 95 % of NIH radiographs at 256 pixels; the phantoms' average must lie inside each."""
    ranges = {
        "mean": (0.40, 0.67),
        "deviation": (0.16, 0.29),
        "lower quartile": (0.16, 0.57),
        "upper quartile": (0.58, 0.85),
        "black": (0.0, 0.093),
        "white": (0.0, 0.0005),
        "spectral slope": (-3.51, -3.05),
        "edges": (0.022, 0.122),
    }
    table = _table(population)
    outside = {
        name: table[name].mean() for name, (low, high) in ranges.items() if not low <= table[name].mean() <= high
    }
    assert not outside
    # Exposures differ from image to image, as they do in a hospital.
    assert table["mean"].std() > 0.03


@pytest.mark.slow
@pytest.mark.real
def test_phantoms_measure_like_real_radiographs(population: list[FloatImage], real_data: Path) -> None:
    files = sorted((real_data / "nih256").glob("*.png"))[:: 864 // 60][:60]
    real = _table([to_pixels(np.asarray(Image.open(file).convert("L"))) for file in files])
    phantom = _table(population)
    for name in ("mean", "deviation", "lower quartile", "upper quartile", "black", "spectral slope", "edges"):
        assert abs(phantom[name].mean() - real[name].mean()) < 1.2 * real[name].std(), name


@pytest.mark.slow
def test_files_are_named_as_nih_does_and_read_back_with_their_patients(tmp_path: Path) -> None:
    written = write_phantoms(tmp_path / "phantoms", patients=6, follow_ups=4, seed=_SEED, size=32)
    assert written == sorted((tmp_path / "phantoms").iterdir())
    radiographs = [read_radiograph(path) for path in written]
    counts = [sum(r.patient_id == f"{p:08d}" for r in radiographs) for p in range(1, 7)]
    assert sum(counts) == len(written)
    assert all(1 <= count <= 4 for count in counts)
    assert len(set(counts)) > 1
    last = radiographs[-1]
    expected = chest_phantom(patient=6, follow_up=counts[-1] - 1, seed=_SEED, size=32)
    assert last.bit_depth == 8
    assert np.abs(last.pixels - expected).max() <= 0.5 / 255 + 1e-6


@pytest.mark.slow
def test_a_larger_folder_begins_with_the_smaller_one(tmp_path: Path) -> None:
    small = write_phantoms(tmp_path / "small", patients=2, follow_ups=3, seed=_SEED, size=32)
    large = write_phantoms(tmp_path / "large", patients=4, follow_ups=3, seed=_SEED, size=32)
    assert [path.read_bytes() for path in small] == [path.read_bytes() for path in large[: len(small)]]


@pytest.mark.parametrize(("patients", "follow_ups"), [(0, 1), (1, 0)])
def test_empty_populations_are_refused(tmp_path: Path, patients: int, follow_ups: int) -> None:
    with pytest.raises(UsageError, match="at least 1"):
        write_phantoms(tmp_path, patients=patients, follow_ups=follow_ups, seed=1)


@pytest.mark.parametrize("wrong", [{"patient": -1}, {"follow_up": -1}, {"seed": -1}, {"size": 8}])
def test_impossible_arguments_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(UsageError):
        chest_phantom(**{"patient": 0, "follow_up": 0, "seed": 0, **wrong})
