"""Training on releases that hold noisy images alone: what is chosen, what is refused, that it learns and resumes."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.training.small import Recorder, small_config, train_here, write_images

from veilray.cohort.build import import_radiographs
from veilray.cohort.cohort import Cohort
from veilray.cohort.leaving import Contents, Leaving
from veilray.cohort.noise_source import seeded_noise
from veilray.cohort.obfuscate import write_release
from veilray.cohort.records import RELEASE_FILE, ReleaseRecord, with_digest
from veilray.cohort.release import Release
from veilray.cohort.split import Shares
from veilray.errors import CohortError, UsageError
from veilray.obfuscation.config import NoiseConfig
from veilray.training import suspicion
from veilray.training.data import TrainingImages
from veilray.training.launch import resolved
from veilray.training.run import RunFolder
from veilray.training.state import checkpoints
from veilray.training.suspicion import noise_warnings

CPU = torch.device("cpu")


def _release(path: Path, out: Path, noise: NoiseConfig, *, pairs: bool = False) -> None:
    """A release whose noise and names, which decide the order of its images, are the same each time."""
    cohort = Cohort.open(path)
    patients = sorted(set(cohort.patient_ids))
    images = [
        Leaving(row=row, image=f"{row:032x}", patient=f"{patients.index(patient):032x}")
        for row, patient in enumerate(cohort.patient_ids)
    ]
    source = seeded_noise(noise, cohort=cohort, seed=1)
    write_release(cohort, out, noise=noise, source=source, contents=Contents(images=images), pairs=pairs)


@pytest.fixture(scope="session")
def releases(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Releases of one cohort, by name."""
    folder = tmp_path_factory.mktemp("releases")
    for name, clip, pairs in (("clamped", True, False), ("open", False, False), ("pairs", True, True)):
        _release(cohort, folder / name, NoiseConfig(mean=0.1, std=0.2, clip=clip), pairs=pairs)
    return {path.name: path for path in folder.iterdir()}


def _restated(source: Path, out: Path, **noise: object) -> Path:
    """A copy of a release that says another thing of its noise, its digest made to fit."""
    shutil.copytree(source, out)
    record = ReleaseRecord.model_validate_json((out / RELEASE_FILE).read_text())
    stated = record.noise.model_copy(update=noise)
    (out / RELEASE_FILE).write_text(with_digest(record.model_copy(update={"noise": stated})).model_dump_json())
    return out


@pytest.mark.parametrize(
    ("data", "objective"), [("clamped", "censored_sure"), ("open", "sure"), ("pairs", "supervised")]
)
def test_auto_takes_what_the_release_allows(releases: dict[str, Path], data: str, objective: str) -> None:
    images = TrainingImages.open(releases[data], small_config())
    assert images.choice.objective == images.config.train.objective == objective
    again = TrainingImages.open(releases[data], images.config)
    assert again.config == images.config


@pytest.mark.parametrize(
    ("data", "train", "message"),
    [
        ("clamped", {"objective": "sure"}, "holds for noise that is not clamped.*there its estimate is biased"),
        ("open", {"objective": "censored_sure"}, "is for clamped noise"),
        ("clamped", {"objective": "supervised"}, "needs clean images.*--pairs"),
        ("clamped", {"loss": "ms_ssim_l1"}, "compares with clean images"),
        ("clamped", {"degradation": "three-tasks"}, "degradation"),
    ],
)
def test_what_is_not_valid_is_refused_with_the_reason(
    releases: dict[str, Path], data: str, train: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        TrainingImages.open(releases[data], small_config(train=train))


@pytest.mark.parametrize("objective", ["blind_spot", "neighbor2neighbor"])
@pytest.mark.parametrize("data", ["clamped", "open"])
def test_what_holds_with_the_clamp_and_without_is_taken_on_both(
    releases: dict[str, Path], data: str, objective: str
) -> None:
    images = TrainingImages.open(releases[data], small_config(train={"objective": objective}))
    assert images.choice.objective == objective


def test_heads_and_half_precision_are_refused(releases: dict[str, Path]) -> None:
    heads = small_config(model={"name": "unetpp", "deep_supervision": True})
    with pytest.raises(UsageError, match="deep_supervision"):
        TrainingImages.open(releases["clamped"], heads)
    half = TrainingImages.open(releases["clamped"], small_config(launch={"precision": "bf16"})).config
    with pytest.raises(UsageError, match="too coarse"):
        resolved(half, CPU)


@pytest.mark.slow
@pytest.mark.parametrize("data", ["clamped", "open"])
def test_it_learns_without_a_clean_pixel(releases: dict[str, Path], tmp_path: Path, data: str) -> None:
    recorder = Recorder()
    config = small_config(train={"epochs": 12}, model={"residual": True, "norm": "group"})
    train_here(config, releases[data], tmp_path / "run", recorder)
    assert recorder.records[-1].validation_loss < recorder.records[0].validation_loss - 0.002
    assert {record.validation_psnr for record in recorder.records} == {None}
    with pytest.raises(CohortError, match="no clean images"):
        _ = TrainingImages.open(releases[data], config).training_batch(0, 0, CPU).clean


@pytest.mark.slow
def test_where_clean_images_are_there_the_objective_does_not_look(releases: dict[str, Path], tmp_path: Path) -> None:
    """The same noisy pixels with and without the clean ones beside them end in the same weights."""
    with_clean, without = releases["pairs"], tmp_path / "without"
    shutil.copytree(with_clean, without)
    record = ReleaseRecord.model_validate_json((without / RELEASE_FILE).read_text())
    index = (without / "index.csv").read_text().splitlines()
    columns = index[0].split(",")
    kept = [place for place, name in enumerate(columns) if not name.startswith("clean")]
    lines = [",".join(line.split(",")[place] for place in kept) for line in index]
    (without / "index.csv").write_text("\n".join(lines) + "\n")
    from veilray.cohort.records import record_files

    names = [name for name in record.files if not name.startswith("clean")]
    update = {"pairs": False, "files": record_files(without, names)}
    (without / RELEASE_FILE).write_text(with_digest(record.model_copy(update=update)).model_dump_json())
    config, recorder = small_config(train={"objective": "censored_sure"}), Recorder()
    train_here(config, with_clean, tmp_path / "a", recorder)
    train_here(config, without, tmp_path / "b")
    assert recorder.records[-1].validation_psnr is not None
    a, b = (load_file(RunFolder(tmp_path / name).best_weights) for name in "ab")
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("data", "variant"),
    [
        ("clamped", {}),
        ("open", {"train": {"crop": 24, "flips": True, "accumulate": 2}}),
        ("open", {"train": {"objective": "r2r"}}),
        ("clamped", {"train": {"objective": "blind_spot", "crop": 24}}),
        ("clamped", {"train": {"objective": "neighbor2neighbor"}}),
    ],
)
def test_interrupted_and_resumed_ends_with_the_same_bits(
    releases: dict[str, Path], tmp_path: Path, data: str, variant: dict[str, dict[str, object]]
) -> None:
    config, whole = small_config(**variant), Recorder()
    train_here(config, releases[data], tmp_path / "whole", whole)

    def interrupt(step: int) -> None:
        if step == 4:
            os.kill(os.getpid(), signal.SIGINT)

    first, second = Recorder(interrupt), Recorder()
    assert train_here(config, releases[data], tmp_path / "parts", first).interrupted
    train_here(config, releases[data], tmp_path / "parts", second)
    assert first.losses + second.losses == whole.losses
    a, b = (load_file(checkpoints(tmp_path / name / "checkpoints")[-1]) for name in ("whole", "parts"))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert second.records[-1].validation_loss == whole.records[-1].validation_loss


def test_accumulated_probes_add_up_to_those_of_the_whole_batch(releases: dict[str, Path]) -> None:
    images = TrainingImages.open(releases["clamped"], small_config(train={"batch_size": 9, "probe_every": 4}))
    (whole,) = _probe_weights(images)
    assert whole.tolist() == [3, 0, 0, 0, 3, 0, 0, 0, 3]
    split = TrainingImages.open(
        releases["clamped"], small_config(train={"batch_size": 9, "probe_every": 4, "accumulate": 3})
    )
    parts = _probe_weights(split)
    assert len(parts) == 3
    assert torch.equal(torch.cat(parts), whole)


def _probe_weights(images: TrainingImages) -> list[torch.Tensor]:
    """Of the parts of the first batch."""
    drawn = [part.drawn for part in images.training_parts(0, 0, CPU).parts]
    return [one.probe_weight for one in drawn if one is not None and one.probe_weight is not None]


def test_fixed_noise_belongs_to_the_image_and_not_to_the_cut(cohort: Path) -> None:
    """Cut and mirrored as the image is: where two cuts show one pixel, they show one noise."""
    cut = {"crop": 16, "flips": True}
    images = TrainingImages.open(cohort, small_config(train=cut, noise={"fresh": False, "clip": False}))
    whole = TrainingImages.open(cohort, small_config(noise={"fresh": False, "clip": False}))
    batches = [whole.training_batch(0, index, CPU) for index in range(whole.steps_per_epoch())]
    kept = {int(row): image for batch in batches for row, image in zip(batch.rows, batch.noisy[:, 0], strict=True)}
    for epoch in range(3):
        batch = images.training_batch(epoch, 0, CPU)
        for row, noisy, clean in zip(batch.rows, batch.noisy[:, 0], batch.clean[:, 0], strict=True):
            assert (noisy - clean).std() > 0.1
            windows = kept[int(row)].unfold(0, 16, 1).unfold(1, 16, 1)
            found = [(windows == one).all(dim=-1).all(dim=-1).any() for one in (noisy, noisy.flip(1))]
            assert any(found)


@pytest.fixture(scope="session")
def large(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """Releases of images large enough to estimate their noise from, by whether it is clamped."""
    folder = tmp_path_factory.mktemp("large")
    write_images(folder / "png", patients=6, size=128)
    import_radiographs(
        [folder / "png"], folder / "cohort", size=128, workers=1, shares=Shares(train=60, validation=20, test=20)
    )
    for clip in (True, False):
        _release(folder / "cohort", folder / str(clip), NoiseConfig(std=0.2, clip=clip))
    return {clip: folder / str(clip) for clip in (True, False)}


@pytest.mark.parametrize("clip", [True, False])
def test_a_wrong_std_is_told_with_the_estimate(large: dict[bool, Path], tmp_path: Path, clip: bool) -> None:
    right = TrainingImages.open(large[clip], small_config())
    assert noise_warnings(right) == []
    wrong = TrainingImages(Release.open(_restated(large[clip], tmp_path / "wrong", std=0.3)), small_config())
    (line,) = noise_warnings(wrong)
    assert "has std 0.3" in line
    looks = float(line.split("looks like ")[1].split()[0])
    assert looks == pytest.approx(0.2, abs=0.02)
    near = TrainingImages(Release.open(_restated(large[clip], tmp_path / "near", std=0.23)), small_config())
    assert "has std 0.23" in noise_warnings(near)[0]


def test_small_images_are_given_the_doubt(
    large: dict[bool, Path], releases: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(suspicion, "estimate_noise_std", lambda pixels, *, clip: 0.2 / 1.1)
    assert noise_warnings(TrainingImages.open(large[True], small_config()))
    assert noise_warnings(TrainingImages.open(releases["clamped"], small_config())) == []
    monkeypatch.setattr(suspicion, "estimate_noise_std", lambda pixels, *, clip: 0.2 / 1.2)
    assert noise_warnings(TrainingImages.open(releases["clamped"], small_config()))


def test_clamped_noise_that_is_stated_without_a_clamp_is_refused(large: dict[bool, Path], tmp_path: Path) -> None:
    images = TrainingImages(Release.open(_restated(large[True], tmp_path / "r", clip=False)), small_config())
    with pytest.raises(CohortError, match="was clamped after all"):
        noise_warnings(images)


def test_noise_without_a_clamp_that_is_stated_with_one_is_refused(large: dict[bool, Path], tmp_path: Path) -> None:
    images = TrainingImages(Release.open(_restated(large[False], tmp_path / "r", clip=True)), small_config())
    with pytest.raises(CohortError, match=r"clamped to \[0, 1\], but .* it was not"):
        noise_warnings(images)


@pytest.mark.parametrize("std", [0.0, -0.1, (0.0, 0.2)])
def test_noise_of_no_width_is_refused(releases: dict[str, Path], tmp_path: Path, std: object) -> None:
    with pytest.raises(CohortError, match="std"):
        Release.open(_restated(releases["clamped"], tmp_path / "r", std=std))


def test_a_release_without_its_noise_is_refused(releases: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(releases["clamped"], tmp_path / "release")
    path = tmp_path / "release" / RELEASE_FILE
    record = json.loads(path.read_text())
    del record["noise"]
    path.write_text(json.dumps(record))
    with pytest.raises(CohortError, match="noise"):
        Release.open(tmp_path / "release")


@pytest.mark.parametrize(("images", "message"), [(1, "this is one image"), (3, "all its 3 images are of one patient")])
def test_too_few_images_or_patients_are_refused(tmp_path: Path, images: int, message: str) -> None:
    write_images(tmp_path / "all", patients=2)
    (tmp_path / "png").mkdir()
    for index, path in enumerate(sorted((tmp_path / "all").iterdir())[:images]):
        path.rename(tmp_path / "png" / f"00000000_{index:03d}.png")
    shares = Shares(train=100, validation=0, test=0)
    import_radiographs([tmp_path / "png"], tmp_path / "cohort", size=32, workers=1, shares=shares)
    write_release(Cohort.open(tmp_path / "cohort"), tmp_path / "release", noise=NoiseConfig())
    with pytest.raises(CohortError, match=message):
        TrainingImages.open(tmp_path / "release", small_config())


def test_a_cohort_may_be_trained_on_as_if_it_were_a_release(cohort: Path) -> None:
    images = TrainingImages.open(cohort, small_config(train={"objective": "censored_sure"}, noise={"fresh": False}))
    first, second = (images.training_batch(epoch, 0, CPU) for epoch in (0, 1))
    place = second.rows.tolist().index(int(first.rows[0]))
    np.testing.assert_array_equal(first.noisy[0], second.noisy[place])
    assert first.drawn is not None
    assert first.drawn.signs is not None
    assert second.drawn is not None
    assert second.drawn.signs is not None
    assert not torch.equal(first.drawn.signs[0], second.drawn.signs[place])


@pytest.mark.parametrize("objective", ["noisier2noise", "r2r", "censored_r2r"])
@pytest.mark.parametrize("fresh", [True, False])
def test_what_an_objective_draws_is_independent_of_the_noise(cohort: Path, objective: str, fresh: bool) -> None:
    noise = {"clip": objective == "censored_r2r", "fresh": fresh}
    images = TrainingImages.open(cohort, small_config(train={"objective": objective}, noise=noise))
    batch = images.training_batch(0, 0, CPU)
    assert batch.drawn is not None
    assert batch.drawn.normals is not None
    both = torch.stack([(batch.noisy - batch.clean).flatten(), batch.drawn.normals.flatten()])
    assert abs(torch.corrcoef(both)[0, 1]) < 0.05
