"""The parts of the loop: schedule, objectives, average, data."""

from __future__ import annotations

import copy
import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.training.small import small_config, write_images
from torch import nn

from veilray.cohort.build import import_radiographs
from veilray.cohort.cohort import Cohort
from veilray.cohort.obfuscate import write_release
from veilray.cohort.split import Shares
from veilray.errors import CohortError, UsageError
from veilray.models.build import build_model
from veilray.models.config import ModelConfig
from veilray.obfuscation.config import NoiseConfig
from veilray.training.average import WeightAverage
from veilray.training.config import TrainConfig
from veilray.training.data import TrainingImages
from veilray.training.objectives import SupervisedObjective, image_losses
from veilray.training.schedule import learning_rate

CPU = torch.device("cpu")


def test_schedule_warms_up_then_falls_to_zero() -> None:
    config = TrainConfig(learning_rate=0.5, warmup_steps=10, schedule="cosine")
    rates = [learning_rate(config, step=step, total_steps=1000) for step in range(1000)]
    assert rates[0] == pytest.approx(0.05)
    assert rates[9] == rates[10] == pytest.approx(0.5)
    assert rates[10 + 495] == pytest.approx(0.25)
    assert 0 < rates[-1] < 1e-5
    assert all(later <= earlier for earlier, later in itertools.pairwise(rates[10:]))


def test_schedule_constant_and_short() -> None:
    constant = TrainConfig(schedule="constant", warmup_steps=0)
    assert {learning_rate(constant, step=step, total_steps=50) for step in range(50)} == {1e-3}
    short = TrainConfig(warmup_steps=100, schedule="cosine")
    assert max(learning_rate(short, step=step, total_steps=20) for step in range(20)) == 1e-3


def test_image_losses() -> None:
    output, target = torch.tensor([[[[1.0, 2.0]]], [[[0.0, 0.0]]]]), torch.zeros(2, 1, 1, 2)
    assert image_losses("l1", output, target).tolist() == [1.5, 0.0]
    assert image_losses("mse", output, target).tolist() == [2.5, 0.0]


def test_deep_supervision_averages_every_head() -> None:
    model = build_model(ModelConfig(name="unetpp", width=4, depth=3, deep_supervision=True)).eval()
    noisy, clean = torch.rand(2, 1, 16, 16), torch.rand(2, 1, 16, 16)
    losses = SupervisedObjective(model, loss="l1", deep_supervision=True)(noisy, clean)
    heads = model.forward_heads(noisy)
    expected = sum(nn.functional.l1_loss(head, clean, reduction="none").mean((1, 2, 3)) for head in heads) / len(heads)
    torch.testing.assert_close(losses, expected)
    assert len(heads) == 2


def test_average_equals_its_recurrence_and_follows_running_statistics() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    average = WeightAverage(model, decay=0.9)
    expected = {name: value.double() for name, value in copy.deepcopy(model.state_dict()).items()}
    generator = torch.Generator().manual_seed(0)
    for step in range(1, 30):
        model(torch.rand(4, 1, 8, 8, generator=generator))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += torch.randn(parameter.shape, generator=generator)
        average.update(model, step=step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = {name: decay * expected[name] + (1 - decay) * value for name, value in model.state_dict().items()}
    for name, value in average.model.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=1e-6)
    assert average.model[1].num_batches_tracked == 29


def test_no_average_without_decay() -> None:
    model = nn.Linear(2, 2)
    assert WeightAverage(model, decay=0.0).model is model


def test_every_epoch_sees_every_image_once_in_another_order(cohort: Path) -> None:
    images = TrainingImages.open(cohort, small_config(train={"batch_size": 7}))
    orders = []
    for epoch in range(2):
        batches = [images.training_batch(epoch, index, CPU).rows for index in range(images.steps_per_epoch())]
        orders.append(np.concatenate(batches).tolist())
    assert sorted(orders[0]) == sorted(orders[1]) == images.sets["train"].tolist()
    assert orders[0] != orders[1]


def test_training_noise_is_fresh_held_out_noise_is_not(cohort: Path) -> None:
    images = TrainingImages.open(cohort, small_config(train={"batch_size": 64}))
    first, second = (images.training_batch(epoch, 0, CPU) for epoch in (0, 1))
    row = int(first.rows[0])
    place = second.rows.tolist().index(row)
    assert torch.equal(first.clean[0], second.clean[place])
    assert not torch.equal(first.noisy[0], second.noisy[place])
    once, again = (list(images.held_out_batches("test", CPU, batch_size=size)) for size in (2, 5))
    assert torch.equal(torch.cat([b.noisy for b in once]), torch.cat([b.noisy for b in again]))


def test_held_out_noise_does_not_depend_on_the_training_seed(cohort: Path) -> None:
    config = small_config()
    one = TrainingImages.open(cohort, config)
    other = TrainingImages.open(cohort, config.model_copy(update={"seed": 99}))
    rows = one.sets["test"]
    assert torch.equal(one.held_out_batch(rows, CPU).noisy, other.held_out_batch(rows, CPU).noisy)


def test_flips_mirror_clean_and_noisy_alike(cohort: Path) -> None:
    plain = TrainingImages.open(cohort, small_config(train={"batch_size": 64}))
    flipped = TrainingImages.open(cohort, small_config(train={"batch_size": 64, "flips": True}))
    a, b = plain.training_batch(0, 0, CPU), flipped.training_batch(0, 0, CPU)
    same = [torch.equal(x, y) for x, y in zip(a.clean, b.clean, strict=True)]
    mirrored = [torch.equal(x.flip(-1), y) for x, y in zip(a.clean, b.clean, strict=True)]
    assert all(x != y for x, y in zip(same, mirrored, strict=True))
    assert 0 < sum(mirrored) < len(mirrored)


def test_crops_are_parts_of_the_image_and_change_with_the_epoch(cohort: Path) -> None:
    whole = TrainingImages.open(cohort, small_config(train={"batch_size": 64})).training_batch(0, 0, CPU).clean
    cropped = TrainingImages.open(cohort, small_config(train={"batch_size": 64, "crop": 20}))
    places = []
    for epoch in (0, 1):
        batch = cropped.training_batch(epoch, 0, CPU)
        if epoch == 0:
            for image, part in zip(whole, batch.clean, strict=True):
                windows = image[0].unfold(0, 20, 1).unfold(1, 20, 1)
                found = (windows == part[0]).all(-1).all(-1).nonzero().tolist()
                assert len(found) == 1
                places.append(tuple(found[0]))
        else:
            assert not any(torch.equal(batch.clean[0], part) for part in cropped.training_batch(0, 0, CPU).clean)
    assert len(set(places)) > len(places) / 2
    assert {place[0] for place in places} != {places[0][0]}
    last = whole.shape[-1] - 20
    assert sum(place[0] in (0, last) for place in places) > len(places) / 4  # borders are met as often as the inside


def test_the_papers_split_shares_patients_and_ours_does_not(cohort: Path) -> None:
    ours = TrainingImages.open(cohort, small_config())
    papers = TrainingImages.open(cohort, small_config(split={"rule": "paper"}))
    assert ours.shared_patients() == 0
    assert papers.shared_patients() > 0
    assert [len(papers.sets[name]) for name in ("train", "validation", "test")] == [20, 13, 7]


def test_a_release_with_pairs_is_trained_on_as_released(cohort: Path, tmp_path: Path) -> None:
    write_release(Cohort.open(cohort), tmp_path / "release", noise=NoiseConfig(mean=0.1, std=0.3), pairs=True)
    images = TrainingImages.open(tmp_path / "release", small_config(train={"batch_size": 64}))
    assert images.noise.std == 0.3
    first, second = (images.training_batch(epoch, 0, CPU) for epoch in (0, 1))
    place = second.rows.tolist().index(int(first.rows[0]))
    assert torch.equal(first.noisy[0], second.noisy[place])
    difference = (first.noisy - first.clean)[first.noisy.gt(0) & first.noisy.lt(1)]
    assert 0.1 < difference.std() < 0.3
    with pytest.raises(UsageError, match=r"asks for noise mean 0\.1, std 0\.2.*std 0\.3"):
        TrainingImages.open(tmp_path / "release", small_config(noise={"std": 0.2}))


def test_images_of_several_sizes_are_refused_unless_cropped(tmp_path: Path) -> None:
    write_images(tmp_path / "a", patients=4, size=32)
    write_images(tmp_path / "b", patients=4, size=40)
    for path in (tmp_path / "b").iterdir():
        path.rename(path.with_name("9" + path.name[1:]))
    halves = Shares(train=50, validation=50, test=0)
    import_radiographs([tmp_path / "a", tmp_path / "b"], tmp_path / "cohort", size=None, workers=1, shares=halves)
    with pytest.raises(CohortError, match=r"2 sizes, 32x32 to 40x40.*--size.*train\.crop"):
        TrainingImages.open(tmp_path / "cohort", small_config())
    images = TrainingImages.open(tmp_path / "cohort", small_config(train={"crop": 24}))
    assert images.training_batch(0, 0, CPU).clean.shape[1:] == (1, 24, 24)
    assert sorted({tuple(b.clean.shape[2:]) for b in images.held_out_batches("train", CPU, batch_size=3)}) == [
        (32, 32),
        (40, 40),
    ]
    with pytest.raises(UsageError, match="smallest side of an image, 32"):
        TrainingImages.open(tmp_path / "cohort", small_config(train={"crop": 33}))


@pytest.mark.parametrize("train", [{"crop": 8}, {"crop": 8, "loss": "ms_ssim_l1"}, {"crop": 4, "loss": "adversarial"}])
def test_a_crop_that_is_too_small_is_to_blame_and_not_the_images(cohort: Path, train: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=rf"^train\.crop = {train['crop']} is too small: .* 11 pixels"):
        TrainingImages.open(cohort, small_config(train=train))


def test_images_that_are_too_small_are_to_blame_whatever_the_crop(tmp_path: Path) -> None:
    write_images(tmp_path / "png", patients=4, size=10)
    halves = Shares(train=50, validation=50, test=0)
    import_radiographs([tmp_path / "png"], tmp_path / "cohort", size=None, workers=1, shares=halves)
    for crop in (0, 8, 11):
        with pytest.raises(CohortError, match="images of 10 pixels a side"):
            TrainingImages.open(tmp_path / "cohort", small_config(train={"crop": crop}))


def test_rates_are_finite_for_any_step() -> None:
    config = TrainConfig()
    assert all(math.isfinite(learning_rate(config, step=step, total_steps=1)) for step in (0, 1))
