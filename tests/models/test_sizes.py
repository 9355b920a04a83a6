"""Any input size, and how far an output pixel sees."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from veilray.models.build import DenoisingNetwork, build_model
from veilray.models.config import ModelConfig
from veilray.models.layers import Window, pad_to_multiple, upsample


def network(**fields: object) -> DenoisingNetwork:
    torch.manual_seed(3)
    return build_model(ModelConfig.model_validate({"width": 2, "depth": 3, **fields})).eval()


@pytest.mark.slow
@settings(max_examples=30)
@given(
    name=st.sampled_from(["unet", "unetpp"]),
    norm=st.sampled_from(["batch", "group"]),
    depth=st.integers(2, 4),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
)
@torch.no_grad()
def test_any_size_in_the_same_size_out(name: str, norm: str, depth: int, height: int, width: int) -> None:
    model = network(name=name, norm=norm, depth=depth)
    output = model(torch.rand(2, 1, height, width))
    assert output.shape == (2, 1, height, width)
    assert output.isfinite().all()
    assert model.stride == 2 ** (depth - 1)


@pytest.mark.slow
@given(height=st.integers(1, 20), width=st.integers(1, 20), multiple=st.sampled_from([2, 4, 8, 16]))
@settings(max_examples=60)
def test_padding_reflects_and_repeats_only_where_it_must(height: int, width: int, multiple: int) -> None:
    x = torch.rand(1, 1, height, width)
    padded = pad_to_multiple(x, multiple)
    assert padded.shape[-2] % multiple == padded.shape[-1] % multiple == 0
    assert padded.shape[-2] - height < multiple
    assert padded.shape[-1] - width < multiple

    def source(index: int, size: int) -> int:
        reflects = -size % multiple < size
        return index if index < size else 2 * (size - 1) - index if reflects else size - 1

    rows = [source(index, height) for index in range(padded.shape[-2])]
    columns = [source(index, width) for index in range(padded.shape[-1])]
    assert torch.equal(padded[0, 0], x[0, 0][rows][:, columns])


@pytest.mark.parametrize("name", ["unet", "unetpp"])
def test_a_padded_image_is_what_the_network_sees(name: str) -> None:
    model, x = network(name=name), torch.rand(1, 1, 13, 18)
    whole = model(F.pad(x, (0, 2, 0, 3), mode="reflect"))
    torch.testing.assert_close(model(x), whole[..., :13, :18])


def reach(model: DenoisingNetwork, size: int) -> int:
    """The farthest that any output pixel's gradient reaches, along the rows.

    All weights are positive and the activations too, so no path cancels or dies; the image rises or falls, so that the
    max pooling takes the far corner of every window.
    """
    for parameter in model.parameters():
        nn.init.constant_(parameter.data, 0.1)
    farthest = 0
    ramp = torch.linspace(1.0, 2.0, size)
    for image in (ramp, ramp.flip(0)):
        for pixel in range(size // 2, size // 2 + model.stride):
            x = image.repeat(size, 1)[None, None].clone().double().requires_grad_()
            model(x)[0, 0, pixel, pixel].backward()
            assert x.grad is not None
            rows, columns = x.grad[0, 0].nonzero().unbind(1)
            offsets = torch.cat([rows, columns]) - pixel
            farthest = max(farthest, int(offsets.abs().max()))
    return farthest


@pytest.mark.slow
@pytest.mark.parametrize("depth", [2, 3, 4])
@pytest.mark.parametrize("block", ["conv-relu-conv-norm-relu", "conv-norm-relu-conv-norm-relu"])
def test_receptive_radius_of_a_unet_is_the_reach_of_its_gradient(depth: int, block: str) -> None:
    model = network(name="unet", depth=depth, width=1, block=block).double()
    size = 2 * (model.receptive_radius // model.stride + 3) * model.stride
    assert reach(model, size) == model.receptive_radius


@pytest.mark.slow
@pytest.mark.parametrize("depth", [2, 3, 4])
def test_receptive_radius_of_a_unetpp_bounds_the_reach_of_its_gradient(depth: int) -> None:
    # Where aligned corners read depends on the image's size, so the bound is not met at every size.
    model = network(name="unetpp", depth=depth, width=1).double()
    size = 2 * (model.receptive_radius // model.stride + 3) * model.stride
    farthest = reach(model, size)
    assert model.receptive_radius - model.stride < farthest <= model.receptive_radius


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(8, 6), (1, 5), (33, 64)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_tiles_are_upsampled_where_they_lie_in_the_whole(shape: tuple[int, int], layout: torch.memory_format) -> None:
    height, width = shape
    x = torch.rand(1, 3, height, width).contiguous(memory_format=layout)
    whole = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
    top, left, rows, columns = height // 3, width // 2, height - height // 3, width - width // 2
    cut = x[..., top : top + rows, left : left + columns]
    window = Window(tops=(2 * top, 0), lefts=(2 * left, 0), height=2 * height, width=2 * width)
    tiles = torch.cat([cut, x[..., :rows, :columns]])
    placed, corner = upsample(tiles, window=window, level=1)
    # The row and column next to a cut need the pixels beyond it.
    torch.testing.assert_close(placed[:, 1:, 1:], whole[0, :, 2 * top :, 2 * left :][:, 1:, 1:], rtol=0, atol=1e-6)
    inner = whole[0, :, : 2 * rows - 1, : 2 * columns - 1]
    torch.testing.assert_close(corner[:, :-1, :-1], inner, rtol=0, atol=1e-6)
