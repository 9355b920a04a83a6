"""The Denoiser against the plain network: folding, precision, tiles, the noise's mean, and what it is loaded from."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from veilray.errors import ImageError, RunError, UsageError
from veilray.inference.denoiser import Denoiser
from veilray.inference.engine import pick_precision
from veilray.inference.tiling import tiling_difference
from veilray.models.build import DenoisingNetwork, build_model
from veilray.models.config import ModelConfig
from veilray.models.weights import save_weights
from veilray.obfuscation.config import NoiseConfig, Recorruption
from veilray.parallel.devices import multiplies_bf16
from veilray.training.config import RunConfig
from veilray.training.run import RunFolder

NOISE = NoiseConfig(mean=0.1, std=0.2)
BLOCKS = ("conv-relu-conv-norm-relu", "conv-norm-relu-conv-norm-relu")
CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)
VARIANTS = [(name, norm, block) for name in ("unet", "unetpp") for norm in ("batch", "group") for block in BLOCKS]


def network(**fields: object) -> DenoisingNetwork:
    """A small network whose running statistics are its own and whose outputs span about [0, 1]."""
    torch.manual_seed(7)
    model = build_model(ModelConfig.model_validate({"width": 4, "depth": 3, **fields}))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the average over all batches
    with torch.no_grad():
        for _ in range(3):
            output = model(torch.rand(2, model.config.channels_in, 32, 32))
        for name, head in model.named_modules():
            if name == "head" or (name.startswith("heads.") and isinstance(head, nn.Conv2d)):
                head.weight /= output.std() * 4
                head.bias.fill_(0.5)
    return model.eval()


def denoiser(model: DenoisingNetwork, **options: object) -> Denoiser:
    chosen: dict[str, object] = {"noise": NOISE, "device": "cpu", "precision": "fp32", **options}
    return Denoiser(model, **chosen)  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize(("name", "norm", "block"), VARIANTS)
@torch.no_grad()
def test_equals_the_plain_network(name: str, norm: str, block: str, residual: bool) -> None:
    model = network(name=name, norm=norm, block=block, residual=residual)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    x = torch.rand(3, 1, 29, 22)
    output = denoiser(model).denoise(x)
    assert output.dtype == torch.float32
    torch.testing.assert_close(output, model(x), rtol=0, atol=1e-5)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN")
@pytest.mark.parametrize("block", BLOCKS)
def test_a_relu_is_part_of_its_convolution(block: str) -> None:
    prepared = denoiser(network(block=block)).network.module
    assert not any(isinstance(module, nn.ReLU) for module in prepared.modules())


@pytest.mark.skipif(not multiplies_bf16(torch.device("cpu")), reason="this processor has no bf16 units")
def test_in_bf16_a_relu_is_part_of_its_convolution_but_beside_those_in_float32() -> None:
    for name in ("unet", "unetpp"):
        prepared = denoiser(network(name=name), precision="bf16").network.module
        assert sum(isinstance(module, nn.ReLU) for module in prepared.modules()) == 2


def test_no_batch_normalisation_is_left_to_run() -> None:
    prepared = denoiser(network()).network.module
    assert not any(isinstance(module, nn.BatchNorm2d) for module in prepared.modules())
    assert not any(parameter.requires_grad for parameter in prepared.parameters())


@pytest.mark.parametrize(("name", "norm", "block"), VARIANTS)
@torch.no_grad()
def test_bf16_stays_close_and_gives_float32(name: str, norm: str, block: str) -> None:
    model = network(name=name, norm=norm, block=block, residual=True)
    x = torch.rand(2, 1, 24, 24)
    prepared = denoiser(model, precision="bf16")
    output = prepared.denoise(x)
    assert output.dtype == torch.float32
    error = output - model(x)
    assert 0 < error.abs().max() < 0.05
    # Neither the head nor the residual addition is rounded to bf16's eight digits.
    assert not torch.equal(output, output.bfloat16().float())
    first = prepared.network.module.encoder[0] if name == "unet" else prepared.network.module.nodes["x0_0"]
    packed = [layer._weight for layer in first.modules() if hasattr(layer, "_weight")]
    assert {tensor.dtype for tensor in (*first.parameters(), *packed)} == {torch.float32}
    kept = [
        m for m in prepared.network.module.modules() if isinstance(m, CONVOLUTIONS) and m.weight.dtype == torch.float32
    ]
    assert len(set(kept) - set(first.modules())) == (2 if name == "unet" else 3)  # the last, and the heads
    # In float32 from the start: none of them went through bf16.
    assert not any(torch.equal(module.weight, module.weight.bfloat16().float()) for module in kept)


@pytest.mark.parametrize(
    ("capabilities", "dtype"),
    [
        ({"avx512_f": True, "avx512_bf16": False, "amx_bf16": False}, torch.float32),
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"amx_bf16": True}, torch.bfloat16),
        ({}, torch.float32),
    ],
)
def test_auto_takes_bf16_only_where_the_processor_multiplies_it(
    capabilities: dict[str, bool], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: capabilities)
    assert pick_precision("auto", torch.device("cpu")) == dtype


@pytest.mark.slow
@pytest.mark.parametrize(("name", "norm", "block"), [variant for variant in VARIANTS if variant[1] == "batch"])
@pytest.mark.parametrize("size", [(131, 97), (61, 210), (128, 128)])
@torch.no_grad()
def test_tiles_equal_the_whole_image(name: str, norm: str, block: str, size: tuple[int, int]) -> None:
    model = network(name=name, norm=norm, block=block)
    x = torch.rand(2, 1, *size)
    prepared = denoiser(model, tile=80)
    torch.testing.assert_close(prepared.denoise(x), model(x), rtol=0, atol=1e-5)
    difference = tiling_difference(prepared, x)
    assert difference.rms <= difference.largest <= 1e-5
    assert difference.jump <= 2e-5


@torch.no_grad()
def test_tiles_of_a_network_that_is_told_the_noise_are_compared_under_what_it_is_told() -> None:
    noise = NoiseConfig(mean=(0.0, 0.2), std=(0.05, 0.3))
    prepared = denoiser(network(inputs="image+mean+std"), noise=noise, tile=80)
    x = torch.rand(2, 1, 90, 97)
    difference = tiling_difference(prepared, x, mean=0.1, std=0.2)
    assert difference.largest <= 1e-5
    tiled, other = (prepared.denoise(x, mean=0.1, std=std) for std in (0.2, 0.3))
    assert not torch.allclose(tiled, other, atol=1e-4)
    tiling_difference(prepared, x)  # the mean is 0 then, and the std estimated


@pytest.mark.slow
@pytest.mark.parametrize(("name", "norm", "block"), [variant for variant in VARIANTS if variant[1] == "group"])
@torch.no_grad()
def test_tiles_of_networks_with_global_statistics_show_no_border(name: str, norm: str, block: str) -> None:
    # The left is dark and the right bright, so that the tiles' own statistics are far from the whole image's.
    model = network(name=name, norm=norm, block=block)
    x = torch.rand(1, 1, 131, 150) * torch.linspace(0.2, 1.0, 150)
    prepared = denoiser(model, tile=80)
    torch.testing.assert_close(prepared.denoise(x), model(x), rtol=0, atol=1e-4)
    assert model(x).std() > 0.05
    # What one image leaves behind must not colour the next one.
    torch.testing.assert_close(prepared.denoise(x[..., :64, :64]), model(x[..., :64, :64]), rtol=0, atol=1e-5)
    difference = tiling_difference(prepared, x)
    assert difference.jump < 1e-4
    assert difference.largest < 1e-4


@pytest.mark.slow
@torch.no_grad()
def test_without_pooled_statistics_the_borders_would_show(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("veilray.inference.pooling.PooledGroupNorm.settle", lambda self: self.forget() or 0.0)
    x = torch.rand(1, 1, 131, 150) * torch.linspace(0.2, 1.0, 150)
    assert tiling_difference(denoiser(network(norm="group"), tile=80), x).jump > 1e-2


@pytest.mark.slow
@settings(max_examples=25)
@given(
    name=st.sampled_from(["unet", "unetpp"]),
    depth=st.integers(2, 3),
    height=st.integers(1, 120),
    width=st.integers(1, 120),
    tile=st.integers(62, 90),
)
@torch.no_grad()
def test_tiles_equal_the_whole_image_at_any_size(name: str, depth: int, height: int, width: int, tile: int) -> None:
    model = network(name=name, depth=depth)
    smallest = 2 * -(-model.receptive_radius // model.stride) * model.stride + model.stride
    x = torch.rand(1, 1, height, width)
    output = denoiser(model, tile=max(tile, smallest)).denoise(x)
    torch.testing.assert_close(output, model(x), rtol=0, atol=1e-5)


@pytest.mark.slow
def test_memory_is_bounded_by_the_tile() -> None:
    model, tile = network(), 64
    prepared = denoiser(model, tile=tile)
    passed: list[int] = []
    prepared.network.module.encoder[0].register_forward_hook(lambda _, x, out: passed.append(x[0].numel()))
    prepared.denoise(torch.rand(9, 1, 32, 32))
    prepared.denoise(torch.rand(2, 1, 200, 150))
    prepared.denoise(torch.rand(1, 1, 20, 900))
    assert max(passed) <= tile**2
    assert passed[0] == tile**2  # four images of 32 x 32 at once


def test_layout_of_the_input_does_not_matter() -> None:
    x = torch.rand(2, 1, 40, 24)
    prepared = denoiser(network())
    expected = prepared.denoise(x)
    torch.testing.assert_close(prepared.denoise(x.transpose(2, 3).contiguous().transpose(2, 3)), expected)
    torch.testing.assert_close(prepared.denoise(x.double()), expected)
    assert prepared.denoise(x[:0]).shape == (0, 1, 40, 24)
    expected += 1.0  # an ordinary tensor


def test_a_radiograph_comes_back_clamped() -> None:
    model = network()
    prepared = denoiser(model)
    pixels = np.random.default_rng(1).random((37, 21), dtype=np.float32)
    output = prepared(pixels, warn=False)
    raw = prepared.denoise(torch.from_numpy(pixels)[None, None])[0, 0]
    assert (raw.min() < 0) or (raw.max() > 1)
    assert output.dtype == np.float32
    assert output.shape == pixels.shape
    assert np.array_equal(output, raw.clamp(0, 1).numpy())


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("mean", [0.0, 0.3])
def test_another_mean_is_made_up_for_by_a_shift(mean: float, clip: bool) -> None:
    noise = NoiseConfig(mean=0.1, std=0.2, clip=clip)
    prepared = denoiser(network(), noise=noise)
    pixels = np.random.default_rng(1).random((20, 20), dtype=np.float32)
    shifted = pixels + np.float32(0.1 - mean)
    if clip:
        shifted = shifted.clip(0, 1)
    np.testing.assert_allclose(prepared(pixels, mean=mean, warn=False), prepared(shifted, warn=False), atol=1e-6)
    both = torch.from_numpy(np.stack([shifted, pixels]))[:, None]
    output = prepared.denoise(both, mean=torch.tensor([0.1, mean]))  # each image by its own mean
    torch.testing.assert_close(output[1], output[0], rtol=0, atol=1e-5)
    usual, other = (prepared(pixels, mean=one, warn=False) for one in (0.1, mean))
    np.testing.assert_array_equal(usual, prepared(pixels, warn=False))
    assert not np.allclose(other, usual, atol=1e-4)


def test_noise_far_from_the_training_s_is_warned_of() -> None:
    prepared = denoiser(network(inputs="image+mean"), noise=NoiseConfig(mean=(0.0, 0.2), std=(0.05, 0.3)))
    pixels = np.random.default_rng(1).normal(0.5, 0.1, (40, 40)).astype(np.float32)
    prepared(pixels, mean=0.1)  # which warns of nothing, or the test would fail
    with pytest.warns(UserWarning, match=r"mean of 0\.5"):
        prepared(pixels, mean=0.5)
    with pytest.warns(UserWarning, match=r"std of 0\.7"):
        prepared(pixels, mean=0.1, std=0.7)
    with pytest.warns(UserWarning, match="no mean given") as caught:
        prepared.several(np.stack([pixels, pixels]))
    assert len(caught) == 1
    prepared(pixels, warn=False)


@pytest.mark.slow
def test_threads_are_as_many_after_as_before() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        alone = denoiser(network())
        images = np.random.default_rng(1).random((3, 256, 256), dtype=np.float32)
        together = alone.several(images, warn=False)
        with ThreadPoolExecutor(1) as born_later:
            assert born_later.submit(torch.get_num_threads).result() == 2
        np.testing.assert_allclose(together, np.stack([alone(image, warn=False) for image in images]), atol=1e-6)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("norm", "keeps"), [("batch", False), ("group", True)])
def test_who_keeps_statistics(norm: str, keeps: bool) -> None:
    assert denoiser(network(norm=norm)).keeps_statistics is keeps


@pytest.mark.parametrize("clip", [True, False])
def test_noise_that_was_not_clamped_is_where_the_training_noise_was(clip: bool) -> None:
    prepared = denoiser(network(), noise=NoiseConfig(mean=0.1, std=0.2, clip=clip))
    noisy = torch.from_numpy(np.random.default_rng(1).normal(0.5, 0.5, (1, 1, 20, 20)).astype(np.float32))
    outputs = prepared.denoise(noisy), prepared.denoise(noisy.clamp(0, 1))
    assert torch.equal(*outputs) == clip


@pytest.mark.parametrize("shape", [(3, 8, 8), (8,), (0, 8)])
def test_what_is_no_image_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match=r"\(H, W\)"):
        denoiser(network())(np.zeros(shape, np.float32))


@pytest.mark.parametrize("shape", [(8, 8), (1, 8, 8), (2, 3, 8, 8), (1, 1, 1, 8, 8)])
def test_tensors_that_are_no_images_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match=r"\(N, 1, H, W\)"):
        denoiser(network()).denoise(torch.zeros(shape))


@pytest.mark.parametrize("shape", [(64, 64), (2, 1, 64, 64)])
def test_several_images_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match=rf"\(N, H, W\).*{shape[0]}"):
        denoiser(network(inputs="image+mean+std")).several(np.zeros(shape, np.float32))


def test_what_a_network_is_told_lies_where_its_images_lie() -> None:
    noisy, stds = torch.zeros((2, 1, 16, 16), device="meta"), torch.zeros(2, device="meta")
    inputs = denoiser(network(inputs="image+mean+std")).network_inputs(noisy, mean=0.1, std=stds)
    assert inputs.device == noisy.device


def test_pixels_that_are_not_numbers_are_refused() -> None:
    with pytest.raises(UsageError, match="finite"):
        denoiser(network())(np.full((8, 8), np.nan, np.float32))


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int64", "bool"])
def test_pixels_of_whole_numbers_are_refused(dtype: str) -> None:
    with pytest.raises(UsageError, match=rf"pixels of {dtype}; .*\[0, 1\]"):
        denoiser(network())(np.ones((8, 8), dtype))  # type: ignore[arg-type]


@pytest.mark.parametrize("extreme", [255.0, -255.0, 65535.0])
def test_pixels_far_outside_the_range_are_refused_and_noise_that_was_not_clamped_is_not(extreme: float) -> None:
    pixels = np.random.default_rng(1).normal(0.5, 0.5, (8, 8)).astype(np.float32)
    for value in (5.0, -5.0):
        pixels[3, 4] = value
        assert np.isfinite(denoiser(network())(pixels, warn=False)).all()
    pixels[3, 4] = extreme
    with pytest.raises(UsageError, match=r"magnitude .*\[0, 1\]"):
        denoiser(network())(pixels, warn=False)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_a_mean_that_is_no_number_is_refused(wrong: float) -> None:
    with pytest.raises(UsageError, match=r"a mean of .* finite"):
        denoiser(network())(np.full((32, 32), 0.5, np.float32), mean=wrong, warn=False)


@pytest.mark.parametrize("wrong", [-1.0, np.nan, np.inf])
def test_a_std_that_none_can_be_is_refused(wrong: float) -> None:
    told, pixels = denoiser(network(inputs="image+mean+std")), np.full((2, 32, 32), 0.5, np.float32)
    for std in (wrong, [0.1, wrong]):
        with pytest.raises(UsageError, match=f"a std of {wrong:g} was given"):
            told.several(pixels, std=std, warn=False)
    assert np.isfinite(told.several(pixels, std=0.0, warn=False)).all()


@pytest.mark.parametrize("warn", [True, False])
def test_there_is_one_std_for_all_images_or_one_for_each(warn: bool) -> None:
    told, pixels = denoiser(network(inputs="image+mean+std")), np.full((2, 32, 32), 0.5, np.float32)
    for stds in ([0.1], [0.1, 0.2, 0.3]):
        with pytest.raises(UsageError, match=f"{len(stds)} stds were given for 2 images"):
            told.several(pixels, std=stds, warn=warn)
    each = told.several(pixels, std=[0.2, 0.21], warn=warn)
    np.testing.assert_allclose(each[1], told(pixels[1], std=0.21, warn=warn), atol=1e-6)
    assert not np.array_equal(each[0], each[1])


@pytest.mark.parametrize("recorruption", [None, Recorruption(strength=0.5, count=2)])
def test_an_image_too_small_for_an_estimate_cannot_be_used_without_its_std(recorruption: Recorruption | None) -> None:
    model = network(inputs="image" if recorruption else "image+mean+std")
    prepared = denoiser(model, noise=NoiseConfig(std=(0.1, 0.3)), recorruption=recorruption)
    pixels = np.full((3, 5), 0.5, np.float32)
    with pytest.raises(ImageError, match="18 x 18 pixels on; give its std"):
        prepared(pixels)
    assert prepared(pixels, std=0.2).shape == (3, 5)


def test_options_that_do_not_exist_are_refused() -> None:
    model = network()
    with pytest.raises(UsageError, match="auto, fp32 or bf16"):
        denoiser(model, precision="int8")
    with pytest.raises(UsageError, match="at least"):
        denoiser(model, tile=16)
    with pytest.raises(UsageError, match="nothing to compare"):
        tiling_difference(denoiser(model), torch.rand(1, 1, 16, 16))


def finished_run(folder: Path, model: DenoisingNetwork, noise: NoiseConfig) -> RunFolder:
    run = RunFolder.create(folder, RunConfig(model=model.config, noise=noise))
    save_weights(run.best_weights, model)
    return run


def test_loads_a_run_with_its_noise(tmp_path: Path) -> None:
    model, noise = network(), NoiseConfig(mean=0.05, std=(0.1, 0.3))
    run = finished_run(tmp_path / "run", model, noise)
    loaded = Denoiser.load(run.path, device="cpu", precision="fp32", tile=300)
    assert (loaded.config, loaded.noise, loaded.tile) == (model.config, noise, 300)
    x = torch.rand(1, 1, 16, 16)
    torch.testing.assert_close(loaded.denoise(x), denoiser(model).denoise(x), rtol=0, atol=0)


def test_a_file_without_noise_needs_the_mean(tmp_path: Path) -> None:
    model, pixels = network(), np.full((8, 8), 0.5, np.float32)
    save_weights(tmp_path / "w.safetensors", model)
    loaded = Denoiser.load(tmp_path / "w.safetensors", device="cpu", precision="fp32")
    with pytest.raises(UsageError, match="give the noise's mean"):
        loaded(pixels)
    np.testing.assert_array_equal(loaded(pixels, mean=0.1), denoiser(model)(pixels))
    save_weights(tmp_path / "w.safetensors", model, noise=NOISE)
    assert Denoiser.load(str(tmp_path / "w.safetensors")).noise == NOISE


def test_what_cannot_be_loaded_says_why(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no model 'defualt'.*run folder.*default"):
        Denoiser.load("defualt")
    with pytest.raises(RunError, match=r"config\.toml is missing"):
        Denoiser.load(tmp_path)
    run = finished_run(tmp_path / "run", network(), NOISE)
    run.best_weights.unlink()
    with pytest.raises(RunError, match=r"no checkpoints/best\.safetensors"):
        Denoiser.load(run.path)
    save_weights(run.best_weights, network(name="unetpp"))
    with pytest.raises(RunError, match=r"unetpp .* but unet "):
        Denoiser.load(run.path)


def test_a_head_of_a_unetpp_can_be_chosen_and_of_a_unet_not(tmp_path: Path) -> None:
    model = network(name="unetpp", width=4, depth=4, deep_supervision=True)
    save_weights(tmp_path / "pp.safetensors", model, noise=NoiseConfig(std=0.1))
    pixels = np.random.default_rng(1).random((32, 48), dtype=np.float32)
    chosen = Denoiser.load(tmp_path / "pp.safetensors", device="cpu", precision="fp32", head=1)
    with torch.no_grad():
        expected = model.eval()(torch.from_numpy(pixels)[None, None], head=1)[0, 0].clamp(0.0, 1.0)
    np.testing.assert_allclose(chosen(pixels, warn=False), expected.numpy(), atol=1e-5)
    save_weights(tmp_path / "u.safetensors", network(name="unet", width=4, depth=3), noise=NoiseConfig(std=0.1))
    with pytest.raises(UsageError, match="only a U-Net\\+\\+ has several heads"):
        Denoiser.load(tmp_path / "u.safetensors", device="cpu", head=1)
