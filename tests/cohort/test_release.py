"""A release: the noise it states, pairs that fit, and nothing that leads back to a patient."""

from __future__ import annotations

import csv
import itertools
import json
import re
import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from veilray.cohort.build import import_radiographs
from veilray.cohort.cohort import Cohort
from veilray.cohort.noise_source import NoiseSource, seeded_noise
from veilray.cohort.obfuscate import WrittenRelease, write_release
from veilray.cohort.open import open_data
from veilray.cohort.release import Release
from veilray.errors import CohortError, UsageError
from veilray.obfuscation.config import NoiseConfig

NOISE = NoiseConfig(mean=0.1, std=0.2)


def _originals(made: WrittenRelease) -> dict[str, tuple[str, str]]:
    """Original image and patient by pseudonym."""
    with made.pseudonyms.open(newline="") as stream:
        return {
            row["image_id"]: (row["original_image_id"], row["original_patient_id"]) for row in csv.DictReader(stream)
        }


def _row_of(cohort: Cohort) -> dict[str, int]:
    return {name: row for row, name in enumerate(cohort.image_ids)}


def _source(cohort: Cohort, noise: NoiseConfig, seed: int | None) -> NoiseSource | None:
    return None if seed is None else seeded_noise(noise, cohort=cohort, seed=seed)


def _all_bytes(folder: Path) -> bytes:
    return b"".join(path.name.encode() + b"\n" + path.read_bytes() for path in sorted(folder.rglob("*")))


@pytest.mark.parametrize("clip", [True, False])
def test_pairs_are_the_images_they_are_said_to_be(mixed: Cohort, tmp_path: Path, clip: bool) -> None:
    noise = NoiseConfig(mean=0.1, std=(0.05, 0.4), clip=clip)
    made = write_release(mixed, tmp_path / "release", noise=noise, pairs=True)
    release, originals, rows = Release.open(made.path), _originals(made), _row_of(mixed)
    release.verify()
    assert len(release) == len(mixed) == 12
    assert release.sizes == mixed.sizes
    for row, name in enumerate(release.image_ids):
        image, patient = originals[name]
        assert mixed.patient_id(rows[image]) == patient
        assert release.split_codes[row] == mixed.split_codes[rows[image]]
        one = np.array([row])
        clean = release.gather_clean(one)
        np.testing.assert_array_equal(clean, mixed.gather(np.array([rows[image]])))
        (std,) = release.stds(one)
        residual = release.gather_noisy(one) - clean - 0.1
        assert 0.05 <= std <= 0.4
        # Clamped noise is narrower; either way 200 values tell 0.05 from 0.4.
        assert 0.3 * std < residual.std() < 1.4 * std


@pytest.mark.parametrize("seed", [None, 7])
def test_unclipped_noise_has_the_stated_law(tmp_path: Path, seed: int | None, write: Callable[..., Path]) -> None:
    write(tmp_path / "in" / "a.png", np.full((256, 256), 128, np.uint8))
    import_radiographs([tmp_path / "in"], tmp_path / "cohort", workers=1)
    cohort = Cohort.open(tmp_path / "cohort")
    noise = NoiseConfig(mean=-0.2, std=0.3, clip=False)
    made = write_release(cohort, tmp_path / "release", noise=noise, pairs=True, source=_source(cohort, noise, seed))
    release = Release.open(made.path)
    residual = (release.gather_noisy(np.array([0])) - release.gather_clean(np.array([0]))).astype(np.float64)
    n = residual.size
    assert abs(residual.mean() + 0.2) < 5 * 0.3 / n**0.5
    assert abs(residual.std() / 0.3 - 1) < 5 / (2 * n) ** 0.5
    assert release.record.subtractable == (seed is not None)
    # 65,536 values reach beyond 4 standard deviations, which a range cut at [0, 1] would not show.
    assert residual.min() < -0.2 - 3.5 * 0.3


def test_clipped_noise_is_clipped_and_keeps_the_depth(mixed: Cohort, tmp_path: Path) -> None:
    made = write_release(mixed, tmp_path / "release", noise=NoiseConfig(mean=0.1, std=0.5))
    release = Release.open(made.path)
    depth = {name: mixed.dtype(_row_of(mixed)[image]) for name, (image, _) in _originals(made).items()}
    for row, name in enumerate(release.image_ids):
        noisy = release.gather_noisy(np.array([row]))
        assert (noisy.min(), noisy.max()) == (0.0, 1.0)
        assert release.dtype(row) == depth[name]


def test_nothing_leads_back(cohort: Cohort, radiographs: Path, tmp_path: Path) -> None:
    """No original id, no file name and no digest of clean pixels occurs anywhere in the folder."""
    made = write_release(cohort, tmp_path / "release", noise=NOISE, source=_source(cohort, NOISE, 987654321))
    with (cohort.path / "index.csv").open(newline="") as stream:
        index = list(csv.DictReader(stream))
    secrets = {row[column] for row in index for column in ("image_id", "patient_id", "sha256", "source")}
    secrets |= {cohort.digest, *(file.sha256 for file in cohort.record.files.values())}
    secrets |= {"radiographs", ".png", "987654321", str(tmp_path)}
    # In pixels eight digits may occur by chance only if they are pixels, but in what is drawn at random they may.
    content = _all_bytes(made.path)
    written = re.sub(rb"[0-9a-f]{32,64}", b"", content)
    assert not [row["patient_id"] for row in index if row["patient_id"].encode() in written]
    secrets -= {row["patient_id"] for row in index}
    found = [secret for secret in secrets if secret.encode() in content]
    assert not found
    assert {path.name for path in made.path.iterdir()} == {"release.json", "index.csv", "noisy-16x16-uint8.npy"}


def test_index_and_record_hold_the_allowed_fields_only(mixed: Cohort, tmp_path: Path) -> None:
    made = write_release(mixed, tmp_path / "release", noise=NOISE)
    header = (made.path / "index.csv").read_text().splitlines()[0]
    assert header == "image_id,patient_id,split,height,width,pixels,row"
    record = json.loads((made.path / "release.json").read_text())
    assert set(record) == {
        *("schema_version", "release_id", "noise", "quantisation", "subtractable", "pairs"),
        *("noise_source", "photometric", "fields", "statement"),
        *("images", "patients", "patients_unknown", "files", "digest"),
    }
    assert set(record["noise"]) == {"mean", "std", "clip"}


def test_pseudonyms_are_random_and_rows_follow_them(cohort: Cohort, tmp_path: Path) -> None:
    first, second = (
        write_release(cohort, tmp_path / name, noise=NOISE, source=_source(cohort, NOISE, 1)) for name in ("one", "two")
    )
    one, two = Release.open(first.path), Release.open(second.path)
    for names in (one.image_ids, one.patient_ids):
        assert all(re.fullmatch(r"[0-9a-f]{32}", name) for name in names)
    assert not set(one.image_ids) & set(two.image_ids)
    assert not set(one.patient_ids) & set(two.patient_ids)
    assert list(one.image_ids) == sorted(one.image_ids)
    orders = [
        [_originals(made)[name][0] for name in release.image_ids] for made, release in ((first, one), (second, two))
    ]
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1]) == sorted(cohort.image_ids)
    patients = dict(zip(one.image_ids, one.patient_ids, strict=True))
    originals = _originals(first)
    for a, b in itertools.combinations(one.image_ids, 2):
        assert (patients[a] == patients[b]) == (originals[a][1] == originals[b][1])


def test_noise_differs_from_release_to_release_unless_seeded(cohort: Cohort, tmp_path: Path) -> None:
    def noisy(name: str, seed: int | None) -> list[bytes]:
        made = write_release(cohort, tmp_path / name, noise=NOISE, source=_source(cohort, NOISE, seed))
        release, originals = Release.open(made.path), _originals(made)
        rows = sorted(range(len(release)), key=lambda row: originals[release.image_id(row)])
        return [release.gather_noisy(np.array([row])).tobytes() for row in rows]

    assert noisy("a", 5) == noisy("b", 5)
    assert not set(noisy("c", None)) & set(noisy("d", None))
    assert not set(noisy("e", 6)) & set(noisy("f", 5))


def test_the_list_of_pseudonyms_stays_at_home_and_is_private(cohort: Cohort, tmp_path: Path) -> None:
    made = write_release(cohort, tmp_path / "release", noise=NOISE)
    assert made.pseudonyms.parent == cohort.path / "releases"
    assert stat.S_IMODE(made.pseudonyms.stat().st_mode) == 0o600
    assert made.earlier == 0
    assert write_release(cohort, tmp_path / "again", noise=NOISE).earlier == 1
    Cohort.open(cohort.path).verify()


def test_an_interruption_leaves_neither_release_nor_list(cohort: Cohort, tmp_path: Path) -> None:
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    before = sorted(tmp_path.iterdir())
    with pytest.raises(KeyboardInterrupt):
        write_release(cohort, tmp_path / "release", noise=NOISE, advance=interrupt)
    assert sorted(tmp_path.iterdir()) == before
    assert list((cohort.path / "releases").iterdir()) == []


def test_refusals(cohort: Cohort, tmp_path: Path) -> None:
    made = write_release(cohort, tmp_path / "release", noise=NOISE)
    release = open_data(made.path)
    assert isinstance(release, Release)
    with pytest.raises(UsageError, match="already exists"):
        write_release(cohort, tmp_path / "release", noise=NOISE)
    with pytest.raises(CohortError, match="--pairs"):
        release.gather_clean(np.array([0]))
    with pytest.raises(CohortError, match="it is a cohort"):
        Release.open(cohort.path)
    with pytest.raises(CohortError, match="it is a release"):
        Cohort.open(made.path)


def test_an_altered_cohort_is_not_released(cohort: Cohort, tmp_path: Path) -> None:
    with (cohort.path / "pixels-16x16-uint8.npy").open("r+b") as stream:
        stream.seek(200)
        stream.write(b"altered")
    with pytest.raises(CohortError, match="altered"):
        write_release(cohort, tmp_path / "release", noise=NOISE)
    assert not (tmp_path / "release").exists()


@pytest.mark.parametrize(
    ("field", "value"), [("noise", {"mean": 0.0, "std": 0.2, "clip": True}), ("files", {}), ("quantisation", {})]
)
def test_an_altered_release_is_noticed(
    cohort: Cohort, tmp_path: Path, patched_json: Callable[..., None], field: str, value: object
) -> None:
    made = write_release(cohort, tmp_path / "release", noise=NOISE)
    patched_json(made.path / "release.json", **{field: value})
    with pytest.raises(CohortError, match="altered"):
        Release.open(made.path)


def test_altered_noisy_pixels_are_named(cohort: Cohort, tmp_path: Path) -> None:
    made = write_release(cohort, tmp_path / "release", noise=NOISE)
    path = made.path / "noisy-16x16-uint8.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CohortError, match="noisy-16x16-uint8"):
        Release.open(made.path).verify()
