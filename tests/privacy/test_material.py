"""Originals and releases meet again by the list of pseudonyms; labels come from the index or from a file."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.privacy.phantoms import phantom_data

from veilray.cohort.build import import_radiographs
from veilray.cohort.cohort import Cohort
from veilray.cohort.noise_source import seeded_noise
from veilray.cohort.obfuscate import write_release
from veilray.cohort.records import NoiseKind
from veilray.cohort.release import Release
from veilray.errors import CohortError, DataError
from veilray.obfuscation.config import NoiseConfig
from veilray.privacy.formal import composition_of
from veilray.privacy.material import (
    audited_release,
    open_originals,
    release_name,
    release_variant,
    releases_together,
    taken_for_granted,
)
from veilray.privacy.variants import baseline_variants, denoised_variant, dp_pix_variant, simulated_variant

NOISE = NoiseConfig(mean=0.1, std=0.01)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    """Two images each of 6 patients, 24x24, and one image of another size."""
    root = tmp_path_factory.mktemp("material")
    (root / "png").mkdir()
    rng = np.random.default_rng(3)
    for patient in range(6):
        for follow_up in range(2):
            levels = rng.integers(0, 255, (24, 24), dtype=np.uint8)
            Image.fromarray(levels).save(root / "png" / f"{patient:08}_{follow_up:03}.png")
    Image.fromarray(rng.integers(0, 255, (30, 24), dtype=np.uint8)).save(root / "png" / "00000009_000.png")
    import_radiographs([root / "png"], root / "cohort", size=None, workers=1)
    return Cohort.open(root / "cohort")


def test_images_of_another_size_are_left_out_and_said_to_be(cohort: Cohort) -> None:
    originals = open_originals(cohort)
    assert (len(originals.data), originals.data.n_patients, originals.data.size) == (12, 6, (24, 24))
    assert originals.left_out == ("1 images of another size than 24 x 24 pixels",)
    assert originals.grey_step == pytest.approx(1 / 255)


def test_an_audit_of_some_images_takes_patients_with_several_first(cohort: Cohort) -> None:
    originals = open_originals(cohort, most=7)
    assert len(originals.data) == 7
    counts = sorted(originals.data.patient_ids.count(one) for one in set(originals.data.patient_ids))
    assert counts == [1, 2, 2, 2]
    assert originals.left_out[1] == "5 images, so that the audit takes less time (--images 7)"
    assert set(originals.data.sets) <= {"train", "validation", "test"}
    assert open_originals(cohort, most=12).data.digest == open_originals(cohort).data.digest


def test_each_released_image_lies_at_its_original(cohort: Cohort, tmp_path: Path) -> None:
    write_release(cohort, tmp_path / "r", noise=NOISE)
    originals, release = open_originals(cohort), Release.open(tmp_path / "r")
    variant = release_variant(release, cohort, originals, name=release_name(release))
    rows = np.array([5, 0, 11])
    difference = variant.draw(rows, 0) - np.clip(originals.data.clean(rows) + 0.1, 0.0, 1.0)
    assert np.abs(difference).max() < 0.08  # as small as the noise, which that of another image would not be
    assert (variant.std, variant.mean, variant.draws, variant.rows) == (0.01, 0.1, 1, None)
    assert variant.name == "release, noise 0.01"


def test_how_much_of_a_release_is_audited_is_counted(cohort: Cohort, tmp_path: Path) -> None:
    write_release(cohort, tmp_path / "r", noise=NOISE)
    release = Release.open(tmp_path / "r")
    for most, audited in ((None, 12), (7, 7)):  # the one of another size is in the release as well
        originals = open_originals(cohort, most=most)
        variant = release_variant(release, cohort, originals, name="r")
        found = audited_release(release, variant, originals.data)
        assert (found.audited, found.total, found.noise, found.variant) == (audited, 13, "fresh", "r")
        assert found.digest == release.digest


def test_a_release_of_another_cohort_does_not_fit(cohort: Cohort, tmp_path: Path) -> None:
    made = write_release(cohort, tmp_path / "r", noise=NOISE)
    release, originals = Release.open(tmp_path / "r"), open_originals(cohort)
    kept = made.pseudonyms.read_text()
    made.pseudonyms.write_text(kept.replace(release.image_id(0), "0" * 32))
    with pytest.raises(DataError, match="lacks some"):
        release_variant(release, cohort, originals, name="r")
    made.pseudonyms.unlink()
    with pytest.raises(DataError, match="no list of pseudonyms"):
        release_variant(release, cohort, originals, name="r")


def test_independent_releases_wear_the_noise_off(cohort: Cohort, tmp_path: Path) -> None:
    originals, releases = open_originals(cohort), []
    for name, pairs in (("a", False), ("b", False), ("c", True)):
        write_release(cohort, tmp_path / name, noise=NoiseConfig(mean=0.1, std=0.2), pairs=pairs)
        releases.append(Release.open(tmp_path / name))
    variants = [release_variant(one, cohort, originals, name=str(one.path)) for one in releases]
    assert releases_together(releases[:2], variants[:2], originals.data) == pytest.approx([0.2 / 2**0.5] * 12)
    assert releases_together(releases, variants, originals.data) == [0.0] * 12


@pytest.mark.parametrize(("kind", "said"), [("secret", "change of the secret"), ("seeded", "subtracts it")])
def test_without_a_ledger_nothing_is_taken_for_one_secret_or_one_seed(
    cohort: Cohort, tmp_path: Path, kind: NoiseKind, said: str
) -> None:
    originals, releases = open_originals(cohort), []
    for name, std in (("a", 0.2), ("b", 0.3)):
        noise = NoiseConfig(mean=0.1, std=std)
        source = dataclasses.replace(seeded_noise(noise, cohort=cohort, seed=len(name)), kind=kind)
        write_release(cohort, tmp_path / name, noise=noise, source=source)
        releases.append(Release.open(tmp_path / name))
    variants = [release_variant(one, cohort, originals, name=str(one.path)) for one in releases]
    together = releases_together(releases, variants, originals.data)
    assert together == pytest.approx([(0.2**-2 + 0.3**-2) ** -0.5] * 12)
    (note,) = taken_for_granted(releases)
    assert said in note
    found = composition_of(together, source="the releases named here", notes=(note,))
    assert found is not None
    assert (found.notes, found.by_ledger) == ((note,), False)


def test_labels_are_read_by_file_or_by_image(cohort: Cohort, tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text(
        "file,sex,age,view_position\nnih/00000000_000.png,f,63,pa\nnih/00000001_001.png,M,058Y,AP\n"
        "nih/00000002_000.png,?,none,\nnih/00000003_000.png,M,412,PA\n"
    )
    originals = open_originals(cohort, labels=path)
    data = originals.data
    known = {name: place for place, name in enumerate(data.image_ids)}
    read = [(data.labels.sex[at], data.labels.age[at], data.labels.view[at]) for at in known.values()]
    by_name = dict(zip(known, read, strict=True))
    assert by_name["00000000_000"] == ("F", 63.0, "PA")
    assert by_name["00000001_001"] == ("M", 58.0, "AP")
    assert by_name["00000002_000"] == (None, None, None)
    assert by_name["00000003_000"] == ("M", None, "PA")
    assert by_name["00000005_000"] == (None, None, None)
    assert data.digest != open_originals(cohort).data.digest


def test_what_is_not_known_or_not_understood_is_said(cohort: Cohort, tmp_path: Path) -> None:
    assert (open_originals(cohort).labels_known, open_originals(cohort).labels_not_understood) == ((), ())
    path = tmp_path / "labels.csv"
    ages = ("006M", "003W", "010D", "58", "old", "412")
    sexes = ("W", "w", "M", "1", "2", "?")
    lines = [f"{i:08}_000,{sex},{age}\n" for i, (sex, age) in enumerate(zip(sexes, ages, strict=True))]
    path.write_text("image_id,sex,age\n" + "".join(lines))
    found = open_originals(cohort, labels=path)
    known = {name: place for place, name in enumerate(found.data.image_ids)}
    places = [known[f"{i:08}_000"] for i in range(6)]
    assert [found.data.labels.sex[at] for at in places] == ["F", "F", "M", None, None, None]
    read = [found.data.labels.age[at] for at in places[:4]]
    assert read == pytest.approx([0.5, 21 / 365.25, 10 / 365.25, 58.0])
    assert found.labels_known == tuple(
        f"{name} known of {count} of 12 images" for name, count in (("sex", 3), ("view", 0), ("age", 4))
    )
    assert found.labels_not_understood == (
        "sex not understood of 2 images: 1, 2",
        "age not understood of 2 images: OLD, 412",
    )


def test_lines_that_differ_are_told_apart_by_their_folder_or_refused(cohort: Cohort, tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    for other, same in (("a/png", "F"), ("b", "F"), ("a/other", "female")):
        path.write_text(f"file,sex\nsmall/00000000_000.png,{same}\n{other}/00000000_000.png,F\n")
        assert open_originals(cohort, labels=path).labels_known[0] == "sex known of 1 of 12 images"
    path.write_text("file,sex\nsmall/00000000_000.png,M\nall/png/00000000_000.png,F\n")
    data = open_originals(cohort, labels=path).data
    assert data.labels.sex[data.image_ids.index("00000000_000")] == "F"
    for name in ("small", "large/none"):
        path.write_text(f"file,sex\nother/00000000_000.png,M\n{name}/00000000_000.png,F\n")
        with pytest.raises(DataError, match="different things of the sex, age or view of 00000000_000, in 2 lines"):
            open_originals(cohort, labels=path)
    path.write_text("image_id,age\n00000000_000,58\n00000000_000,59\n")
    with pytest.raises(DataError, match="different things"):
        open_originals(cohort, labels=path)


@pytest.mark.parametrize("text", ["", "image_id\na\n", "name,sex\na,M\n", "image_id,sex\nnobody,M\n"])
def test_a_file_that_tells_nothing_is_refused(cohort: Cohort, tmp_path: Path, text: str) -> None:
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(DataError, match=r"labels\.csv"):
        open_originals(cohort, labels=tmp_path / "labels.csv")


def test_a_release_of_none_of_them_does_not_fit(cohort: Cohort, tmp_path: Path) -> None:
    made = write_release(cohort, tmp_path / "r", noise=NOISE)
    lines = made.pseudonyms.read_text().splitlines()
    strangers = [line.rsplit(",", 2)[0] + ",stranger,stranger" for line in lines[1:]]
    made.pseudonyms.write_text("\n".join([lines[0], *strangers]) + "\n")
    with pytest.raises(CohortError, match="none of the audited images"):
        release_variant(Release.open(tmp_path / "r"), cohort, open_originals(cohort), name="r")


def test_simulated_noise_has_the_asked_law_and_can_be_drawn_again() -> None:
    data = phantom_data(4)
    noise = simulated_variant(data, mean=0.1, std=0.2, clip=False, seed=1)
    rows = np.arange(4)
    difference = noise.draw(rows, 0) - data.clean(rows)
    assert difference.mean() == pytest.approx(0.1, abs=0.01)
    assert difference.std() == pytest.approx(0.2, rel=0.03)
    assert (noise.draw(rows[::-1], 0)[::-1] == noise.draw(rows, 0)).all()
    assert not (noise.draw(rows, 1) == noise.draw(rows, 0)).any(axis=(1, 2)).all()
    other = simulated_variant(data, mean=0.1, std=0.3, clip=False, seed=1)
    shared = np.corrcoef(difference.ravel(), (other.draw(rows, 0) - data.clean(rows)).ravel())[0, 1]
    assert abs(shared) < 0.05  # another level has a field of its own


def test_denoised_images_are_made_once(tmp_path: Path) -> None:
    data = phantom_data(4, follow_ups=1)
    made: list[int] = []

    class Halving:
        def several(self, pixels: np.ndarray, *, mean: float) -> np.ndarray:
            made.append(len(pixels))
            return pixels / 2

    noisy = simulated_variant(data, mean=0.1, std=0.2, seed=1)
    for _ in range(2):  # the second finds what the first kept, as after a kill
        variant = denoised_variant(noisy, Halving(), folder=tmp_path, data=data, digest="w", most=3)  # type: ignore[arg-type]
        rows = variant.available(data)
        assert variant.draw(rows, 0) == pytest.approx(noisy.draw(rows, 0) / 2, abs=1e-5)
    assert (len(rows), made) == (3, [3])
    assert all(path.stat().st_mode & 0o077 == 0 for path in tmp_path.glob("*.npy"))


def test_other_obfuscations_lose_what_they_say() -> None:
    data = phantom_data(3)
    clean, rows = data.clean(np.arange(3)), np.arange(3)
    errors = {one.name: float(((one.draw(rows, 0) - clean) ** 2).mean()) for one in baseline_variants(data, seed=1)}
    assert errors["blur, sigma 4 px"] < errors["blur, sigma 8 px"]
    assert errors["down-sampled to 1/4"] < errors["down-sampled to 1/8"]
    assert errors["noise 0.5"] < errors["noise 1"]
    pixelated = dp_pix_variant(data, block=16, differing=16, epsilon=0.5, seed=1).draw(rows, 0)
    assert (pixelated[:, :16, :16] == pixelated[:, :1, :1]).all()
    means = clean.reshape(3, 4, 16, 4, 16).mean(axis=(2, 4))
    exact = dp_pix_variant(data, block=16, differing=16, epsilon=1e9, seed=1).draw(rows, 0)
    assert exact[:, ::16, ::16] == pytest.approx(means, abs=1 / 255)
