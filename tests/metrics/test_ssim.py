"""SSIM against scikit-image."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter
from skimage.metrics import structural_similarity

from veilray.errors import UsageError
from veilray.metrics import ssim as ssim_module
from veilray.metrics import ssim_cpu
from veilray.metrics.ssim import ssim

Window = Literal["gaussian", 3]
Images = npt.NDArray[np.float64]

OPTIONS: dict[Window, dict[str, Any]] = {
    "gaussian": {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False},
    3: {"win_size": 3},
}
WINDOWS: list[Window] = ["gaussian", 3]


@pytest.fixture(autouse=True, params=["sums", "convolutions"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways to take sums over windows, whatever the size of the images, their dtype and the build of torch."""
    monkeypatch.setattr(ssim_module, "_LARGE", 0 if request.param == "convolutions" else 1 << 40)
    monkeypatch.setattr(ssim_module, "is_fast", lambda dtype: True)


def _expected(output: Images, target: Images, window: Window, data_range: float = 1.0) -> list[float]:
    return [
        structural_similarity(t, o, data_range=data_range, **OPTIONS[window])
        for o, t in zip(output, target, strict=True)
    ]


def _assert_equal(output: Images, target: Images, window: Window, *, within: float, dtype: torch.dtype) -> None:
    """Compare on the very values that the tensors hold, computed by scikit-image in double precision."""
    x, y = (torch.from_numpy(a)[:, None].to(dtype) for a in (output, target))
    expected = _expected(x[:, 0].double().numpy(), y[:, 0].double().numpy(), window)
    result = ssim(x, y, window=window)
    assert result.dtype == dtype
    np.testing.assert_allclose(result.numpy(), expected, rtol=0, atol=within)


def _images(kind: str, shape: tuple[int, int], *, images: int = 3) -> tuple[Images, Images]:
    random = np.random.default_rng(5)
    target = random.uniform(size=(images, *shape))
    if kind == "smooth":
        target = gaussian_filter(target, (0, 6, 6), mode="wrap")
        target = (target - target.min()) / np.ptp(target)
    if kind == "bright":
        target = 0.97 + 0.03 * target
    if kind == "binary":
        target = (target > 0.5).astype(np.float64)
    return np.clip(target + random.normal(0, 0.05, target.shape), 0, 1), target


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("shape", [(64, 64), (63, 81), (11, 11), (12, 200)])
@pytest.mark.parametrize("kind", ["random", "smooth", "bright", "binary"])
@pytest.mark.parametrize("images", [1, 19])
def test_it_equals_scikit_image(images: int, kind: str, shape: tuple[int, int], window: Window) -> None:
    _assert_equal(*_images(kind, shape, images=images), window, within=1e-5, dtype=torch.float32)


@pytest.mark.parametrize("window", WINDOWS)
def test_double_precision_is_exact(window: Window) -> None:
    _assert_equal(*_images("smooth", (40, 57)), window, within=1e-12, dtype=torch.float64)


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("folder", ["nih256", "nih1024", "hannover256"])
def test_it_equals_scikit_image_on_radiographs(folder: str, window: Window, real_data: Path) -> None:
    random = np.random.default_rng(6)
    for path in sorted((real_data / folder).glob("*.png"))[:3]:
        target = np.asarray(Image.open(path).convert("L"), dtype=np.float64)[None] / 255
        for std in (0.01, 0.2):
            output = np.clip(target + random.normal(0.1, std, target.shape), 0, 1)
            _assert_equal(output, target, window, within=1e-5, dtype=torch.float32)


@pytest.mark.parametrize("window", WINDOWS)
def test_large_images_are_cut_into_strips_without_a_seam(window: Window, monkeypatch: pytest.MonkeyPatch) -> None:
    output, target = (torch.from_numpy(a)[:, None] for a in _images("smooth", (173, 60)))
    whole = ssim(output, target, window=window)
    for module in (ssim_module, ssim_cpu):
        monkeypatch.setattr(module, "CPU_PIXELS", 60 * 50)
    torch.testing.assert_close(ssim(output, target, window=window), whole, rtol=0, atol=1e-13)


@pytest.mark.parametrize("window", WINDOWS)
def test_the_data_range_scales_with_the_pixels(window: Window) -> None:
    output, target = _images("random", (32, 32))
    result = ssim(
        torch.from_numpy(output * 4095)[:, None],
        torch.from_numpy(target * 4095)[:, None],
        data_range=4095.0,
        window=window,
    )
    np.testing.assert_allclose(result.numpy(), _expected(output, target, window), atol=1e-12)


@pytest.mark.parametrize("window", WINDOWS)
def test_channels_are_averaged(window: Window) -> None:
    output, target = _images("random", (32, 32))
    result = ssim(torch.from_numpy(output)[None], torch.from_numpy(target)[None], window=window)
    assert result.shape == (1,)
    assert result.item() == pytest.approx(np.mean(_expected(output, target, window)), abs=1e-12)


@pytest.mark.parametrize("window", WINDOWS)
def test_constant_images_leave_the_luminance_term(window: Window) -> None:
    for images in (1, 9):
        dark, bright = torch.full((images, 1, 20, 20), 0.2), torch.full((images, 1, 20, 20), 0.7)
        expected = (2 * 0.2 * 0.7 + 1e-4) / (0.2**2 + 0.7**2 + 1e-4)
        assert ssim(dark, bright, window=window).tolist() == pytest.approx([expected] * images, abs=1e-6)
        assert ssim(dark, dark, window=window).tolist() == [1.0] * images


@pytest.mark.parametrize("window", WINDOWS)
def test_flat_regions_of_any_two_levels_keep_their_digits(window: Window) -> None:
    levels = torch.linspace(0.0, 1.0, 21)
    dark, bright = torch.cartesian_prod(levels, levels).unbind(1)
    x, y = (flat.view(-1, 1, 1, 1).expand(-1, 1, 18, 40).contiguous() for flat in (dark, bright))
    x[:, :, :, :3] = y[:, :, :, :3] = 1.0  # a border, as a collimated radiograph's
    single, double = ssim(x, y, window=window), ssim(x.double(), y.double(), window=window)
    torch.testing.assert_close(single.double(), double, rtol=0, atol=1e-5)


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("shape", [(11, 300), (300, 11), (40, 41)])
def test_cut_in_any_way_images_keep_their_scores(
    shape: tuple[int, int], window: Window, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, target = (torch.from_numpy(a)[:, None].float() for a in _images("smooth", shape, images=5))
    whole = ssim(output, target, window=window)
    for pixels in (200, 2 * shape[0] * shape[1]):  # less than a row; two images, and one that is left over
        for module in (ssim_module, ssim_cpu):
            monkeypatch.setattr(module, "CPU_PIXELS", pixels)
        torch.testing.assert_close(ssim(output, target, window=window), whole, rtol=0, atol=1e-6)


@pytest.mark.parametrize("window", WINDOWS)
def test_equal_images_score_exactly_one_and_order_does_not_matter(window: Window) -> None:
    output, target = (torch.from_numpy(a)[:, None].float() for a in _images("random", (40, 40)))
    assert (ssim(target, target, window=window) == 1.0).all()
    torch.testing.assert_close(ssim(output, target, window=window), ssim(target, output, window=window))


@pytest.mark.slow
@pytest.mark.parametrize("window", WINDOWS)
def test_its_gradient_is_right(window: Window) -> None:
    output, target = (torch.from_numpy(a[:1])[:, None] for a in _images("random", (13, 12)))
    assert torch.autograd.gradcheck(lambda x: ssim(x, target, window=window), output.requires_grad_())
    assert torch.autograd.gradcheck(lambda y: ssim(output.detach(), y, window=window), target.requires_grad_())


def test_batches_have_the_gradient_of_their_images() -> None:
    output, target = (torch.from_numpy(a)[:, None].float() for a in _images("random", (24, 20), images=8))
    ssim(output.requires_grad_(), target).sum().backward()
    assert output.grad is not None
    for index in range(8):
        alone = output.detach()[index : index + 1].double().requires_grad_()
        (expected,) = torch.autograd.grad(ssim(alone, target[index : index + 1].double()).sum(), alone)
        torch.testing.assert_close(output.grad[index : index + 1], expected.float(), rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("place", [(0, 0), (3, 3), (23, 19)])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -1e20])
def test_one_bad_image_spoils_no_other_and_autocast_no_digit(bad: float, place: tuple[int, int]) -> None:
    output, target = (torch.from_numpy(a)[:, None].float() for a in _images("smooth", (24, 20), images=9))
    expected = ssim(output, target)
    output[4, 0, *place] = bad
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = ssim(output, target)
    assert result.isnan().nonzero().flatten().tolist() == [4]
    torch.testing.assert_close(result[~result.isnan()], expected[~result.isnan()], rtol=0, atol=0)


@pytest.mark.parametrize("images", [3, 8])
def test_the_inputs_are_left_alone(images: int) -> None:
    output, target = (torch.from_numpy(a)[:, None].float() for a in _images("random", (24, 24), images=images))
    before = output.clone(), target.clone()
    ssim(output, target)
    assert torch.equal(output, before[0])
    assert torch.equal(target, before[1])


def test_an_empty_batch_has_no_scores() -> None:
    assert ssim(torch.zeros(0, 1, 16, 16), torch.zeros(0, 1, 16, 16)).shape == (0,)


@pytest.mark.parametrize(("window", "size"), [("gaussian", 10), (3, 2)])
def test_an_image_smaller_than_the_window_is_named(window: Window, size: int) -> None:
    with pytest.raises(UsageError, match="too small"):
        ssim(torch.zeros(1, 1, size, 30), torch.zeros(1, 1, size, 30), window=window)


def test_an_unknown_window_is_named() -> None:
    with pytest.raises(UsageError, match="'gaussian' or 3"):
        ssim(torch.zeros(1, 1, 30, 30), torch.zeros(1, 1, 30, 30), window=7)  # type: ignore[arg-type]
