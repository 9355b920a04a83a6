"""Objectives that add noise, mask or pair pixels: closed forms against integrals, estimates against the true error."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from tests.training.small import Recorder, small_config, train_here
from torch import Tensor

from veilray.cohort.cohort import Cohort
from veilray.cohort.noise_source import seeded_noise
from veilray.cohort.obfuscate import write_release
from veilray.errors import CohortError, UsageError
from veilray.images.phantom import chest_phantom
from veilray.inference.denoiser import Denoiser
from veilray.models.build import build_model
from veilray.models.weights import load_weights
from veilray.obfuscation.config import NoiseConfig, Recorruption
from veilray.obfuscation.mean_map import mean_map
from veilray.obfuscation.noise import add_gaussian
from veilray.training.companions import matching_rows
from veilray.training.config import Objective
from veilray.training.data import TrainingImages
from veilray.training.draws import draw
from veilray.training.objectives.blind import _halves, blind_spot_losses, neighbour_losses, second_losses
from veilray.training.objectives.build import build_objective, noisy_only
from veilray.training.objectives.choose import choose_objective
from veilray.training.objectives.recorrupted import recorrupted, recorrupted_losses, recorruption_log_likelihood
from veilray.training.objectives.sure import sure_losses
from veilray.training.run import RunFolder

MEAN, STD = 0.1, 0.2
DRAWS, SIDE = 24, 64
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def phantom() -> Tensor:
    return torch.from_numpy(chest_phantom(patient=2, follow_up=0, seed=3, size=SIDE))[None, None].double()


def _noisy(phantom: Tensor, *, clip: bool, seed: int = 1, std: float = STD) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return add_gaussian(phantom.expand(DRAWS, -1, -1, -1), mean=MEAN, std=std, clip=clip, generator=generator)


def _known(std: float = STD) -> Tensor:
    return torch.tensor([[MEAN, std]], dtype=torch.float64).expand(DRAWS, -1)


def _names() -> list[str]:
    return [str(number) for number in range(DRAWS)]


def _normals() -> Tensor:
    normals = draw("r2r", _names(), (SIDE, SIDE), weights=np.ones(DRAWS, dtype=np.float32)).normals
    assert normals is not None
    return normals.double()


def _places(objective: Objective) -> Tensor:
    places = draw(objective, _names(), (SIDE, SIDE), weights=np.ones(DRAWS, dtype=np.float32)).places
    assert places is not None
    return places


def _smoothed(images: Tensor, known: Tensor) -> Tensor:
    y = images - known[:, :1, None, None]
    return torch.nn.functional.avg_pool2d(y, 3, stride=1, padding=1)


def _within_two_standard_errors(difference: Tensor) -> bool:
    return bool(difference.mean().abs() < 2 * difference.std() / math.sqrt(len(difference)))


@pytest.mark.parametrize("std", [0.1, 0.2, 0.3])
@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_recorrupted_losses_are_the_squared_error_within_two_standard_errors(
    phantom: Tensor, strength: float, std: float
) -> None:
    noisy, known = _noisy(phantom, clip=False, std=std), _known(std)
    normals = _normals()
    estimate = recorrupted_losses(_smoothed, noisy, known, normals=normals, strength=strength, clip=False)
    seen, told = recorrupted(noisy, known, normals=normals, strength=strength)
    errors = (_smoothed(seen, told) - phantom).square().mean(dim=(1, 2, 3))
    assert torch.allclose(told[:, 1], torch.tensor(std * math.sqrt(1 + strength**2), dtype=torch.float64))
    assert _within_two_standard_errors(estimate - errors)
    assert (estimate - errors).std() / math.sqrt(DRAWS) < 0.2 * errors.mean()


def _double(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


@pytest.mark.slow
@pytest.mark.parametrize("m", [-0.1, 0.15, 0.5, 1.0, 1.2])
@pytest.mark.parametrize(("std", "added"), [(0.1, 0.05), (0.2, 0.2), (0.3, 0.15)])
def test_the_recorruption_likelihood_is_a_probability(m: float, std: float, added: float) -> None:
    for z in (-0.2, 0.3, 0.98, 1.3):

        def likelihood(y: float, z: float = z) -> float:
            at = {"m": _double(m), "std": _double(std), "added": _double(added)}
            return recorruption_log_likelihood(_double(y), _double(z), **at).exp().item()

        inner = quad(likelihood, 1e-12, 1 - 1e-12, points=[min(max(z, 0.01), 0.99)], limit=200)[0]
        assert inner + likelihood(0.0) + likelihood(1.0) == pytest.approx(1.0, abs=1e-6)


def test_far_from_the_ends_the_likelihood_is_r2r(phantom: Tensor) -> None:
    grey = 0.4 + 0 * phantom
    noisy = add_gaussian(grey.expand(DRAWS, -1, -1, -1), mean=0.1, std=0.02, generator=torch.Generator().manual_seed(0))
    known = torch.tensor([[0.1, 0.02]], dtype=torch.float64).expand(DRAWS, -1)
    normals = _normals()
    open_, clamped = (
        recorrupted_losses(_smoothed, noisy, known, normals=normals, strength=0.5, clip=clip) for clip in (False, True)
    )
    inner = (slice(None), slice(None), slice(2, -2), slice(2, -2))
    assert noisy[inner].min() > 0
    torch.testing.assert_close(open_, clamped, rtol=1e-6, atol=1e-9)


def test_the_likelihood_is_finite_and_smooth_in_float32() -> None:
    grid = torch.linspace(0, 1, 11)
    z, m = torch.meshgrid(torch.linspace(-1.5, 2.5, 15), torch.linspace(-1, 2, 15), indexing="ij")
    m = m.clone().requires_grad_()
    for y in grid:
        at = {"m": m, "std": torch.tensor(0.1), "added": torch.tensor(0.05)}
        value = recorruption_log_likelihood(y.expand_as(z), z, **at)
        value.sum().backward()
        assert bool(value.isfinite().all())
        assert m.grad is not None
        assert bool(m.grad.isfinite().all())


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("objective", ["blind_spot", "noise2noise"])
def test_blind_losses_are_the_error_of_g_and_the_noise_s_variance(phantom: Tensor, objective: str, clip: bool) -> None:
    """A network that looks at nothing: what is left of its loss is known for each pixel."""
    noisy, known, target = _noisy(phantom, clip=clip), _known(), phantom * 0.8 + 0.05
    expected, aim = (mean_map(x, mean=MEAN, std=STD) if clip else x + MEAN for x in (phantom, target))
    second = _noisy(phantom, clip=clip, seed=5)
    error = (aim - expected).square()
    if objective == "noise2noise":
        losses = second_losses(lambda images, known: target.expand_as(images), noisy, known, second=second, clip=clip)
        truth = error.mean() + (second - expected).square().mean(dim=(1, 2, 3))
    else:
        places = _places("blind_spot").double()
        losses = blind_spot_losses(
            lambda images, known: target.expand_as(images), noisy, known, places=places, clip=clip
        )
        masked = places < 8
        assert 0.05 < masked.double().mean() < 0.075
        truth = (error + (noisy - expected).square()).mul(masked).sum(dim=(1, 2, 3)) / masked.sum(dim=(1, 2, 3))
    assert _within_two_standard_errors(losses - truth)


def test_a_masked_pixel_does_not_see_itself() -> None:
    noisy = torch.arange(36, dtype=torch.float32).view(1, 1, 6, 6) / 40
    places = torch.full((1, 1, 6, 6), 100.0)
    places[0, 0, 2, 3] = 4  # the neighbour on the right
    seen = []

    def network(images: Tensor, known: Tensor) -> Tensor:
        seen.append(images)
        return images

    blind_spot_losses(network, noisy, torch.tensor([[0.0, 0.1]]), places=places, clip=True)
    changed = (seen[0] != noisy).nonzero().tolist()
    assert changed == [[0, 0, 2, 3]]
    assert seen[0][0, 0, 2, 3] == noisy[0, 0, 2, 4]


def test_the_halves_are_of_neighbours(phantom: Tensor) -> None:
    numbers = torch.arange(SIDE * SIDE, dtype=torch.float64).view(1, 1, SIDE, SIDE).expand(DRAWS, -1, -1, -1)
    seen = []

    def network(images: Tensor, known: Tensor) -> Tensor:
        seen.append(images)
        return images

    neighbour_losses(network, numbers, _known(), places=_places("neighbor2neighbor"), clip=True)
    whole, half = seen
    assert whole.shape[-2:] == (SIDE, SIDE)
    assert half.shape[-2:] == (SIDE // 2, SIDE // 2)
    rows, columns = half // SIDE, half % SIDE
    assert torch.equal(rows // 2, torch.arange(SIDE // 2).view(-1, 1).expand_as(rows[0, 0]).double().expand_as(rows))
    assert {tuple(pair) for pair in torch.stack([rows % 2, columns % 2]).view(2, -1).T.tolist()} == {
        (0.0, 0.0),
        (0.0, 1.0),
        (1.0, 0.0),
        (1.0, 1.0),
    }


@pytest.mark.parametrize("clip", [True, False])
def test_the_loss_of_neighbours_is_its_equation(phantom: Tensor, clip: bool) -> None:
    noisy, known, places = _noisy(phantom, clip=clip), _known(), _places("neighbor2neighbor")
    scale = torch.tensor(0.9, dtype=torch.float64, requires_grad=True)

    def network(images: Tensor, told: Tensor) -> Tensor:
        return scale * _smoothed(images, told)

    def expected(estimate: Tensor) -> Tensor:
        values = mean_map(estimate.detach(), mean=MEAN, std=STD) if clip else estimate.detach() + MEAN
        return torch.as_tensor(values)

    chosen = places[..., ::2, ::2].long()
    (u, v), (full_u, full_v) = (_halves(images, chosen) for images in (noisy, expected(network(noisy, known))))
    losses = neighbour_losses(network, noisy, known, places=places, clip=clip)
    step = 1e-4
    truth, moved = (
        (error.square() + (error - (full_u - full_v)).square()).mean(dim=(1, 2, 3))
        for error in (expected((1 + shift / 0.9) * network(u, known)) - v for shift in (0.0, step))
    )
    torch.testing.assert_close(losses, truth)
    # The second term's reference has no gradient: it stays where it is when the network moves.
    slope = torch.autograd.grad(losses.sum(), scale)[0]
    torch.testing.assert_close(slope, (moved - truth).sum() / step, rtol=1e-2, atol=1e-3)
    constant = (expected(network(u, known)) - v).square().mean(dim=(1, 2, 3))
    assert bool((truth > 1.2 * constant).all())  # the second term counts


@pytest.mark.parametrize("clip", [True, False])
def test_epochs_by_neighbours_are_compared_by_what_falls_as_the_network_improves(phantom: Tensor, clip: bool) -> None:
    config = small_config(noise={"mean": MEAN, "std": STD, "clip": clip}, train={"objective": "neighbor2neighbor"})
    objective = noisy_only(torch.nn.Identity(), config)
    assert objective is not None
    noisy, known = _noisy(phantom, clip=clip), _known()
    drawn = draw("neighbor2neighbor", _names(), (SIDE, SIDE), weights=np.ones(DRAWS, dtype=np.float32))
    criteria, losses = [], []
    for kept in (1.0, 0.6, 0.3, 0.0):

        class Blend(torch.nn.Module):
            def forward(self, images: Tensor, kept: float = kept) -> Tensor:
                noisy, told = images[:, :1], known[: len(images)]
                return kept * (noisy - MEAN) + (1 - kept) * _smoothed(noisy, told)

        objective.model = Blend()
        criteria.append(objective.criterion(noisy, known, drawn).mean().item())
        losses.append(objective(noisy, known, drawn).mean().item())
    assert criteria == sorted(criteria, reverse=True)
    assert criteria[-1] < 0.8 * criteria[0]
    assert losses[-1] > losses[0]  # which is why they are not compared by the loss


@pytest.mark.parametrize("clip", [True, False])
def test_what_is_trained_by_knows_of_the_clamp(phantom: Tensor, clip: bool) -> None:
    config = small_config(noise={"mean": MEAN, "std": STD, "clip": clip}, model={"norm": "group"})
    objective: Objective = "censored_sure" if clip else "sure"
    config = config.model_copy(update={"train": config.train.model_copy(update={"objective": objective})})
    model = build_model(config.model).double().eval()
    noisy, known = _noisy(phantom, clip=clip)[:2], _known()[:2]
    drawn = draw(objective, _names()[:2], (SIDE, SIDE), weights=np.ones(2, dtype=np.float32))
    assert drawn.signs is not None
    assert drawn.probe_weight is not None
    own = build_objective(model, config)(noisy, known, drawn)
    signs, weight = drawn.signs, drawn.probe_weight
    right, wrong = (
        sure_losses(lambda images, told: model(images), noisy, known, signs=signs, weight=weight, clip=one)
        for one in (clip, not clip)
    )
    torch.testing.assert_close(own, right)
    assert not torch.allclose(own, wrong, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("objective", "clip"),
    [
        ("r2r", False),
        ("noisier2noise", False),
        ("censored_r2r", True),
        ("blind_spot", True),
        ("blind_spot", False),
        ("neighbor2neighbor", True),
        ("neighbor2neighbor", False),
    ],
)
def test_every_objective_learns(cohort: Path, tmp_path: Path, objective: str, clip: bool) -> None:
    config = small_config(
        train={"objective": objective, "epochs": 10, "learning_rate": 2e-2},
        model={"residual": True, "norm": "group"},
        noise={"std": 0.2, "clip": clip, "fresh": False},
    )
    train_here(config, cohort, tmp_path / "run")
    records = RunFolder(tmp_path / "run").epochs()
    assert records[-1].validation_psnr is not None
    assert records[0].validation_psnr is not None
    assert records[-1].validation_psnr > records[0].validation_psnr + 0.3
    assert records[-1].validation_loss < records[0].validation_loss


@pytest.mark.slow
@pytest.mark.parametrize(("objective", "allowed"), [("sure", False), ("supervised", True)])
def test_gpus_do_not_round_while_differences_are_taken(
    cohort: Path, tmp_path: Path, objective: str, allowed: bool
) -> None:
    backends = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [backend.allow_tf32 for backend in backends]
    seen: list[bool] = []
    try:
        for backend in backends:
            backend.allow_tf32 = True
        config = small_config(train={"objective": objective, "epochs": 1}, noise={"clip": False})
        recorder = Recorder(lambda step: seen.extend(backend.allow_tf32 for backend in backends))
        train_here(config, cohort, tmp_path / "run", recorder=recorder)
        assert all(backend.allow_tf32 for backend in backends)
    finally:
        for backend, value in zip(backends, before, strict=True):
            backend.allow_tf32 = value
    assert seen
    assert set(seen) == {allowed}


@pytest.mark.slow
def test_noise_added_in_training_is_added_at_inference(cohort: Path, tmp_path: Path) -> None:
    config = small_config(train={"objective": "r2r", "epochs": 1}, noise={"clip": False})
    train_here(config, cohort, tmp_path / "run")
    weights = load_weights(RunFolder(tmp_path / "run").best_weights)
    assert weights.recorruption == Recorruption(strength=0.5, count=8)
    denoiser = Denoiser.load(tmp_path / "run", device="cpu")
    plain = Denoiser.load(tmp_path / "run", device="cpu")
    plain._recorruption = None
    noisy = torch.rand((2, 1, 32, 32), generator=torch.Generator().manual_seed(0))
    copies = [
        plain.denoise(
            noisy
            + 0.5
            * 0.2
            * torch.from_numpy(np.random.Generator(np.random.Philox(key=k)).standard_normal((32, 32), dtype=np.float32))
        )
        for k in range(8)
    ]
    torch.testing.assert_close(denoiser.denoise(noisy), torch.stack(copies).mean(dim=0))
    assert torch.equal(denoiser.denoise(noisy), denoiser.denoise(noisy))


def test_recorruption_goes_with_its_objectives() -> None:
    with pytest.raises(ValueError, match="positive for objective"):
        small_config(train={"objective": "sure", "recorruption": 0.5})
    with pytest.raises(ValueError, match="positive for objective"):
        small_config(train={"objective": "r2r", "recorruptions": 0})
    config = small_config(train={"objective": "noisier2noise"})
    assert (config.train.recorruption, config.train.recorruptions) == (1.0, 1)


def _renamed(release: Path, names: dict[str, str]) -> None:
    """Give the images of a release other names, as lasting pseudonyms would."""
    from veilray.cohort.records import RELEASE_FILE, ReleaseRecord, record_files, with_digest

    index = release / "index.csv"
    text = index.read_text()
    for old, new in names.items():
        text = text.replace(old, new)
    index.write_text(text)
    record = ReleaseRecord.model_validate_json((release / RELEASE_FILE).read_text())
    update = {"files": record_files(release, list(record.files))}
    (release / RELEASE_FILE).write_text(with_digest(record.model_copy(update=update)).model_dump_json())


@pytest.fixture(scope="module")
def two(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two releases of the same images under the same names, with noise of two seeds."""
    import csv

    folder, data = tmp_path_factory.mktemp("two"), Cohort.open(cohort)
    originals = []
    for seed in (1, 2):
        noise = NoiseConfig(mean=0.1, std=0.2)
        made = write_release(data, folder / str(seed), noise=noise, source=seeded_noise(noise, cohort=data, seed=seed))
        with made.pseudonyms.open(newline="") as stream:
            originals.append({row["original_image_id"]: row["image_id"] for row in csv.DictReader(stream)})
    _renamed(folder / "2", {name: originals[0][original] for original, name in originals[1].items()})
    return folder / "1", folder / "2"


def test_two_releases_are_matched_by_name_and_trained_on(cohort: Path, two: tuple[Path, Path]) -> None:
    config = small_config(train={"objective": "noise2noise", "crop": 24, "flips": True})
    images = TrainingImages.open(two[0], config, second=two[1])
    batch = images.training_batch(0, 0, CPU)
    assert batch.drawn is not None
    other = batch.drawn.second
    assert other is not None
    inner = (batch.noisy > 0) & (batch.noisy < 1) & (other > 0) & (other < 1)
    # The same anatomy, other noise: the difference has twice the variance, and is no shift.
    difference = (batch.noisy - other)[inner]
    assert difference.mean().abs() < 0.02
    assert images.config.train.second_digest == images.config.train.second_digest != ""
    with pytest.raises(UsageError, match="--second"):
        TrainingImages.open(two[0], small_config(train={"objective": "noise2noise"}))
    with pytest.raises(UsageError, match="go together"):
        TrainingImages.open(two[0], small_config(), second=two[1])
    with pytest.raises(UsageError, match="exclude each other"):
        TrainingImages.open(two[0], small_config(train={"objective": "noise2noise"}), second=two[1], clean=cohort)
    with pytest.raises(UsageError, match="go together"):  # neither where clean images are there, and `auto` takes them
        choose_objective(small_config(), clip=True, clean=True, second=True, path=two[0])
    with pytest.raises(UsageError, match="begun with --second"):
        TrainingImages.open(
            two[0],
            images.config.model_copy(
                update={"train": images.config.train.model_copy(update={"second_digest": "0" * 64})}
            ),
            second=two[1],
        )


def test_releases_that_are_not_independent_or_not_of_the_same_images_are_refused(
    cohort: Path, two: tuple[Path, Path], tmp_path: Path
) -> None:
    from dataclasses import replace as replaced

    from veilray.cohort.release import Release

    first, second = (Release.open(path) for path in two)
    keyed = [replaced(one, record=one.record.model_copy(update={"noise_source": "secret"})) for one in (first, second)]
    np.testing.assert_array_equal(matching_rows(*keyed), matching_rows(first, second))  # of two noise keys
    with pytest.raises(UsageError, match="same release"):
        matching_rows(first, first)
    shutil.copytree(two[0], tmp_path / "again")
    again = Release.open(tmp_path / "again")
    again = replaced(again, record=again.record.model_copy(update={"release_id": "0" * 32, "digest": "0" * 64}))
    with pytest.raises(UsageError, match="same noise"):
        matching_rows(first, again)
    louder = replaced(second, record=second.record.model_copy(update={"noise": NoiseConfig(mean=0.1, std=0.3)}))
    with pytest.raises(UsageError, match="mean or std"):
        matching_rows(first, louder)
    other = write_release(Cohort.open(cohort), tmp_path / "other", noise=NoiseConfig())
    with pytest.raises(CohortError, match=r"not in .* by name"):
        matching_rows(first, Release.open(other.path))


@pytest.mark.slow
def test_clean_public_images_go_beside_noisy_ones(two: tuple[Path, Path], cohort: Path, tmp_path: Path) -> None:
    config = small_config(train={"batch_size": 6, "clean_share": 0.34, "epochs": 3})
    images = TrainingImages.open(two[0], config, clean=cohort)
    parts = images.training_parts(0, 0, CPU)
    (part,) = parts.parts
    assert part.public is not None
    assert (len(part.rows), len(part.public.rows), parts.images) == (4, 2, 6)
    assert len(part.arguments(config.model)) == 5
    train_rows, steps = len(images.sets["train"]), images.steps_per_epoch()
    assert steps == -(-train_rows // 4)
    seen = [
        row
        for step in range(3 * steps)
        for row in images.training_parts(*divmod(step, steps), CPU).parts[0].public.rows.tolist()  # type: ignore[union-attr]
    ]
    public = TrainingImages.open(cohort, small_config()).sets["train"].tolist()
    assert sorted(seen[: len(public)]) == sorted(public)  # a whole pass before any image comes again
    train_here_mixed = RunFolder.create(tmp_path / "run", images.config)
    train_here_mixed.write_environment({"cohort_digest": images.data.digest}, device=CPU)
    from tests.training.small import Recorder

    from veilray.training.loop import train

    recorder = Recorder()
    train(images.config, images, train_here_mixed, device=CPU, watcher=recorder)
    assert images.images_before(len(recorder.losses)) == 3 * (train_rows + 2 * steps)
    assert recorder.records[-1].validation_psnr is None
    with pytest.raises(UsageError, match="begun with --clean"):
        TrainingImages.open(two[0], images.config)
    with pytest.raises(UsageError, match="sees no clean image"):
        TrainingImages.open(cohort, small_config(), clean=cohort)
