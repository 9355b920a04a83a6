"""Objectives: values against other implementations, gradients, sums over images, and trainings by each."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from skimage.metrics import structural_similarity
from tests.training.small import Recorder, small_config, train_here
from torch import Tensor, nn
from torchmetrics.functional.image import (
    multiscale_structural_similarity_index_measure,
    structural_similarity_index_measure,
)

from veilray.errors import DataError, UsageError
from veilray.images.phantom.render import chest_phantom
from veilray.models.build import build_model
from veilray.models.config import ModelConfig
from veilray.parallel.group import ALONE
from veilray.training.config import LOSS_WEIGHTS, RunConfig, load_config
from veilray.training.objectives.adversarial import AdversarialL1, PatchDiscriminator
from veilray.training.objectives.frequency import FrequencyL1, frequency_distance
from veilray.training.objectives.perceptual import (
    PerceptualL1,
    backbone_warnings,
    feature_distance,
    with_pinned_backbone,
)
from veilray.training.objectives.pixel import image_losses
from veilray.training.objectives.structure import WEIGHTS, MsSsimL1, ms_ssim
from veilray.training.objectives.supervised import SupervisedObjective, criterion_of
from veilray.training.setup import choose_setup
from veilray.training.state import checkpoints

SHAPES = {0: (64, 3, 11), 3: (192, 64, 5), 6: (384, 192, 3), 8: (256, 384, 3), 10: (256, 256, 3)}


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of AlexNet's shapes, with weights that keep the size of what goes through."""
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for index, (outputs, inputs, side) in SHAPES.items():
        scale = (2.0 / (inputs * side**2)) ** 0.5
        tensors[f"features.{index}.weight"] = scale * torch.randn(outputs, inputs, side, side, generator=generator)
        tensors[f"features.{index}.bias"] = 0.1 * torch.randn(outputs, generator=generator)
    path = tmp_path_factory.mktemp("backbone") / "alexnet.safetensors"
    save_file(tensors, path)
    return path


def pair(side: int, *, count: int = 2) -> tuple[Tensor, Tensor]:
    """Phantoms, noisy and clean."""
    clean = np.stack([chest_phantom(patient=index, follow_up=0, seed=1, size=side) for index in range(count)])
    target = torch.from_numpy(clean)[:, None]
    generator = torch.Generator().manual_seed(2)
    return target + 0.1 * torch.randn(target.shape, generator=generator), target


def criteria(backbone: Path) -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {
        "ms_ssim_l1": MsSsimL1(weight=0.84),
        "frequency": FrequencyL1(weight=0.5),
        "perceptual": PerceptualL1(weight=0.02, distance=feature_distance(backbone, sha256=_sha256(backbone))),
        "adversarial": AdversarialL1(weight=0.1, discriminator=PatchDiscriminator(width=4)),
    }


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_charbonnier_is_square_near_zero_and_absolute_far_away() -> None:
    target = torch.zeros(3, 1, 1, 1, dtype=torch.float64)
    output = torch.tensor([1e-5, 0.5, 0.0], dtype=torch.float64).view(3, 1, 1, 1)
    near, far, none = image_losses("charbonnier", output, target).tolist()
    assert near - none == pytest.approx(1e-5**2 / (2 * 1e-3), rel=1e-3)
    assert far == pytest.approx(0.5, rel=1e-5)


def test_log_mse_counts_ratios_of_errors_and_ends_at_zero() -> None:
    output = torch.tensor([0.3, 0.03, 0.0], dtype=torch.float64).view(3, 1, 1, 1).expand(-1, 1, 2, 2)
    large, small, none = image_losses("log_mse", output, torch.zeros_like(output)).tolist()
    assert large - small == pytest.approx(math.log(100), rel=1e-3)
    assert none == 0


@pytest.mark.parametrize(("side", "scales"), [(192, 5), (120, 4), (32, 2)])
def test_ms_ssim_equals_the_product_over_scales_and_torchmetrics_but_for_borders(side: int, scales: int) -> None:
    output, target = pair(side)
    betas = tuple(weight / sum(WEIGHTS[:scales]) for weight in WEIGHTS[:scales])
    for index in range(2):
        x, y = output[index : index + 1], target[index : index + 1]
        # torchmetrics takes the coarsest scale's mean over windows that reach beyond the image, too.
        near = multiscale_structural_similarity_index_measure(x, y, data_range=1.0, betas=betas, normalize=None)
        expected = 1.0
        for scale, weight in enumerate(betas):
            if scale + 1 == scales:
                expected *= _ssim(x, y) ** weight
            else:
                kwargs: dict[str, Any] = {"data_range": 1.0, "return_contrast_sensitivity": True}
                expected *= structural_similarity_index_measure(x, y, **kwargs)[1].item() ** weight
                x, y = F.avg_pool2d(x, 2), F.avg_pool2d(y, 2)
        value = ms_ssim(output, target)[index].item()
        assert value == pytest.approx(expected, abs=2e-5)
        assert value == pytest.approx(near.item(), abs=5e-3)
    torch.testing.assert_close(ms_ssim(target, target), torch.ones(2), rtol=0, atol=1e-5)


def test_ms_ssim_of_one_scale_is_ssim() -> None:
    output, target = pair(20, count=1)
    assert ms_ssim(output, target).item() == pytest.approx(_ssim(output, target), abs=1e-5)


def _ssim(x: Tensor, y: Tensor) -> float:
    """scikit-image's, by Gaussian windows that lie wholly inside."""
    options: dict[str, Any] = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    return float(structural_similarity(x[0, 0].numpy(), y[0, 0].numpy(), data_range=1.0, **options))


def test_frequency_distance_equals_numpys_transform() -> None:
    output, target = torch.rand(2, 1, 12, 15, dtype=torch.float64), torch.rand(2, 1, 12, 15, dtype=torch.float64)
    error = (output - target)[:, 0].numpy()
    half = np.fft.fft2(error, norm="ortho")[:, :, : 15 // 2 + 1]
    expected = (np.abs(half.real) + np.abs(half.imag)).mean(axis=(1, 2))
    np.testing.assert_allclose(frequency_distance(output, target).numpy(), expected, rtol=1e-12)


def test_feature_distance_equals_a_network_written_out(backbone: Path) -> None:
    output, target = pair(40)
    weights = load_file(backbone)

    def features(images: Tensor) -> list[Tensor]:
        mean, deviation = (torch.tensor(v).view(1, 3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
        x, found = (images.expand(-1, 3, -1, -1) - mean) / deviation, []
        for index, (stride, padding) in zip(SHAPES, [(4, 2), (1, 2), (1, 1), (1, 1), (1, 1)], strict=True):
            x = F.max_pool2d(x, 3, 2) if index in (3, 6) else x
            x = F.conv2d(
                x, weights[f"features.{index}.weight"], weights[f"features.{index}.bias"], stride, padding
            ).relu()
            found.append(F.normalize(x, dim=1))
        return found

    expected = sum(
        (a - b).square().sum(dim=1).mean(dim=(1, 2)) for a, b in zip(features(output), features(target), strict=True)
    )
    distance = feature_distance(backbone, sha256=_sha256(backbone))(output, target)
    torch.testing.assert_close(distance, expected, rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["ms_ssim_l1", "frequency", "perceptual", "adversarial"])
def test_a_batch_is_its_images_and_a_perfect_output_costs_least(backbone: Path, name: str) -> None:
    criterion = criteria(backbone)[name].eval()
    output, target = pair(48)
    together = criterion(output, target)
    alone = torch.cat([criterion(a[None], b[None]) for a, b in zip(output, target, strict=True)])
    assert together.shape == (2,)
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    if name != "adversarial":
        assert (criterion(target, target) < 1e-4).all()
        worse = criterion(target + 2 * (output - target), target)
        assert (worse > together).all()


@pytest.mark.parametrize("loss", ["l1", "mse", "log_mse", "charbonnier"])
def test_gradients_of_pixel_losses(loss: Any) -> None:
    drawn = torch.Generator().manual_seed(0)  # so that no pixel lies where the absolute difference has its kink
    output, target = torch.rand(2, 2, 1, 4, 5, dtype=torch.float64, generator=drawn)
    assert torch.autograd.gradcheck(lambda x: image_losses(loss, x, target), output.requires_grad_())


@pytest.mark.parametrize("name", ["ms_ssim_l1", "frequency", "perceptual", "adversarial"])
def test_gradients_of_criteria(backbone: Path, name: str) -> None:
    criterion = criteria(backbone)[name].double().eval()  # a discriminator's power method stands still
    output, target = (image.double() for image in pair(32, count=1))
    torch.manual_seed(0)
    assert torch.autograd.gradcheck(lambda x: criterion(x, target), output.requires_grad_(), eps=1e-7, fast_mode=True)


def test_weights_weigh(backbone: Path) -> None:
    output, target = pair(48)
    pixels = image_losses("l1", output, target)
    torch.testing.assert_close(MsSsimL1(weight=0.0)(output, target), pixels)
    torch.testing.assert_close(MsSsimL1(weight=1.0)(output, target), 1 - ms_ssim(output, target))
    once, twice = (FrequencyL1(weight=weight)(output, target) - pixels for weight in (1.0, 2.0))
    torch.testing.assert_close(twice, 2 * once)


def test_an_adversarial_step_moves_each_network_by_its_own_loss() -> None:
    torch.manual_seed(0)
    discriminator = PatchDiscriminator(width=4).double().eval()
    criterion = AdversarialL1(weight=0.3, discriminator=discriminator)
    output, target = (image.double() for image in pair(32))
    output.requires_grad_()
    losses = criterion(output, target)
    scores = discriminator(output)
    expected = image_losses("l1", output, target) - 0.3 * scores.mean(dim=(1, 2, 3))
    torch.testing.assert_close(losses, expected)
    losses.sum().backward()
    (of_output,) = torch.autograd.grad(expected.sum(), output)
    torch.testing.assert_close(output.grad, of_output)
    hinge = (1 - discriminator(target)).relu() + (1 + discriminator(output.detach())).relu()
    own = torch.autograd.grad(hinge.mean(dim=(1, 2, 3)).sum(), list(discriminator.parameters()))
    for parameter, gradient in zip(discriminator.parameters(), own, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_a_discriminators_layers_have_singular_values_of_one() -> None:
    torch.manual_seed(0)
    discriminator = PatchDiscriminator(width=4).train()
    for _ in range(200):
        discriminator(torch.rand(1, 1, 16, 16))
    for layer in discriminator.eval().convolutions:
        largest = torch.linalg.matrix_norm(layer.weight.flatten(1), ord=2)
        assert largest.item() == pytest.approx(1.0, abs=2e-2)
    for side in (8, 11, 50):
        assert discriminator(torch.rand(2, 1, side, side)).shape[:2] == (2, 1)


def test_a_discriminator_learns_to_tell_noisy_from_clean() -> None:
    torch.manual_seed(0)
    discriminator = PatchDiscriminator(width=8)
    criterion = AdversarialL1(weight=0.1, discriminator=discriminator)
    output, target = pair(32, count=4)
    optimizer = torch.optim.Adam(discriminator.parameters(), lr=5e-3, betas=(0.5, 0.999))
    for _ in range(25):
        optimizer.zero_grad()
        criterion(output, target).mean().backward()
        optimizer.step()
    assert discriminator(target).mean() > discriminator(output).mean() + 0.3


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["charbonnier", "ms_ssim_l1", "frequency", "perceptual", "adversarial"])
def test_training_learns_by_every_objective(cohort: Path, tmp_path: Path, backbone: Path, loss: str) -> None:
    launch = {"perceptual_backbone": str(backbone)} if loss == "perceptual" else {}
    own = {"discriminator_width": 4} if loss == "adversarial" else {}
    config = small_config(train={"epochs": 5, "loss": loss, **own}, launch=launch, model={"residual": True})
    recorder = Recorder()
    train_here(config, cohort, tmp_path / "run", recorder)
    assert recorder.records[-1].validation_loss < 0.9 * recorder.records[0].validation_loss
    # Whatever is trained on, validation is by pixels: the best output there can be would score 0.
    assert 0 < recorder.records[-1].validation_loss < 0.2
    held = load_file(checkpoints(tmp_path / "run" / "checkpoints")[-1])
    assert any(name.startswith("discriminator/") for name in held) == (loss == "adversarial")


NETWORKS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "unet": ({"width": 4, "depth": 3, "inputs": "image+mean"}, {"loss": "charbonnier"}),
    "unetpp": ({"width": 4, "depth": 3, "deep_supervision": True}, {"loss": "ms_ssim_l1"}),
    "attention_unet": ({"width": 4, "depth": 3, "residual": True}, {"loss": "frequency"}),
    "nafnet": ({"width": 4, "depth": 3, "residual": True}, {"loss": "l1"}),
    "restormer": ({"width": 4, "depth": 2, "residual": True}, {"loss": "adversarial", "discriminator_width": 4}),
    "dncnn": ({"width": 4, "layers": 4}, {"loss": "mse"}),
    "tnrd": ({"width": 8, "stages": 2}, {"loss": "mse"}),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_takes_a_few_steps(name: str) -> None:
    model_fields, train_fields = NETWORKS[name]
    config = RunConfig.model_validate({"model": {"name": name, **model_fields}, "train": train_fields})
    torch.manual_seed(0)
    model, (noisy, clean) = build_model(config.model), pair(32)
    discriminator = PatchDiscriminator(width=4) if config.train.loss == "adversarial" else None
    objective = SupervisedObjective(
        model,
        loss=config.train.loss,
        deep_supervision=config.model.deep_supervision,
        criterion=criterion_of(config, discriminator=discriminator),
    )
    given = torch.cat([noisy, torch.full_like(noisy, 0.1)], dim=1) if config.model.channels_in > 1 else noisy
    optimizer = torch.optim.Adam(objective.parameters(), lr=3e-3)
    errors = []
    for _ in range(12):
        optimizer.zero_grad()
        objective(given, clean).mean().backward()
        optimizer.step()
        with torch.no_grad():
            errors.append((model(given) - clean).abs().mean().item())
    assert errors[-1] < errors[0]


def test_a_backbone_is_pinned_by_its_digest(backbone: Path, tmp_path: Path) -> None:
    config = small_config(train={"loss": "perceptual"}, launch={"perceptual_backbone": str(backbone)})
    pinned = with_pinned_backbone(config)
    assert pinned.train.perceptual_sha256 == _sha256(backbone)
    assert with_pinned_backbone(pinned) == pinned
    altered = tmp_path / "altered.safetensors"
    altered.write_bytes(backbone.read_bytes()[:-1] + b"?")
    moved = pinned.model_copy(update={"launch": pinned.launch.model_copy(update={"perceptual_backbone": str(altered)})})
    with pytest.raises(DataError, match=r"not the perceptual backbone this run was begun with .*begin a new run"):
        with_pinned_backbone(moved)
    with pytest.raises(DataError, match=r"no perceptual backbone .*set launch\.perceptual_backbone"):
        with_pinned_backbone(small_config(train={"loss": "perceptual"}, launch={"perceptual_backbone": "absent"}))
    with pytest.raises(UsageError, match=r"needs launch\.perceptual_backbone"):
        with_pinned_backbone(small_config(train={"loss": "perceptual"}))
    assert with_pinned_backbone(small_config()) == small_config()


def test_other_convolutions_than_torchvisions_are_warned_of(backbone: Path) -> None:
    config = small_config(train={"loss": "perceptual"}, launch={"perceptual_backbone": str(backbone)})
    (warning,) = backbone_warnings(with_pinned_backbone(config))
    assert f"{backbone} holds other convolutions than torchvision's AlexNet" in warning
    assert backbone_warnings(small_config(train={"loss": "l1"}, launch={"perceptual_backbone": "absent"})) == []


def test_the_real_backbone_is_read(lpips_backbone: Path) -> None:
    output, target = pair(64)
    near = feature_distance(lpips_backbone, sha256=_sha256(lpips_backbone))(target + 0.2 * (output - target), target)
    far = feature_distance(lpips_backbone, sha256=_sha256(lpips_backbone))(output, target)
    assert (near > 0).all()
    assert (near < far).all()


def test_weights_of_losses_have_defaults_of_their_own() -> None:
    for loss, weight in LOSS_WEIGHTS.items():
        assert load_config("default", [f"train.loss={loss}"]).train.loss_weight == weight
    assert load_config("default", ["train.loss=frequency", "train.loss_weight=0.25"]).train.loss_weight == 0.25
    assert load_config("default").train.loss_weight == 0


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.loss_weight=0.5"], "loss_weight needs a loss that adds"),
        (["train.loss=ms_ssim_l1", "train.loss_weight=2"], "a share from 0 to 1"),
        (["train.discriminator_width=8"], "discriminator_width needs loss = 'adversarial'"),
        (["train.loss=perceptual", "train.crop=20"], "crops of 32"),
        (["train.loss=perceptual", "train.perceptual_sha256=abc"], "perceptual_sha256"),
        (["train.loss=l2"], r"train\.loss"),
    ],
)
def test_options_without_effect_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_config("default", overrides)


def test_adversarial_training_is_not_compiled() -> None:
    config = small_config(train={"loss": "adversarial"}, launch={"compile": True})
    with pytest.raises(UsageError, match=r"launch\.compile = false"):
        choose_setup(config, ALONE, torch.device("cpu"))


def test_initial_weights_do_not_depend_on_the_objective(cohort: Path, tmp_path: Path) -> None:
    torch.manual_seed(17)
    fresh = build_model(ModelConfig(width=4, depth=3)).state_dict()
    rate = {"epochs": 1, "learning_rate": 1e-30, "ema_decay": 0.0}
    for loss in ("l1", "adversarial"):
        train_here(small_config(train={"loss": loss, **rate}), cohort, tmp_path / loss)
        held = load_file(checkpoints(tmp_path / loss / "checkpoints")[-1])
        assert all(torch.equal(held[f"model/{name}"], fresh[name]) for name in fresh if name.endswith("weight"))
