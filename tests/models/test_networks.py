"""Attention U-Net, NAFNet, Restormer, DnCNN and TNRD: what each computes, how large it is, how far a pixel sees."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from veilray.errors import UsageError
from veilray.inference.denoiser import Denoiser
from veilray.inference.engine import prepare
from veilray.models.attention_unet import AdditiveGate, AttentionUNet
from veilray.models.build import DenoisingNetwork, build_model
from veilray.models.config import ModelConfig
from veilray.models.dncnn import DnCNN
from veilray.models.nafnet import NAFNet
from veilray.models.restormer import ChannelAttention, Restormer
from veilray.models.tnrd import TNRD, Influence
from veilray.models.unet import UNet
from veilray.models.unetpp import UNetPlusPlus
from veilray.obfuscation.config import NoiseConfig

SMALL: dict[str, dict[str, Any]] = {
    "attention_unet": {"width": 4, "depth": 3},
    "nafnet": {"width": 4, "depth": 3, "residual": True},
    "restormer": {"width": 4, "depth": 3, "residual": True},
    "dncnn": {"width": 4, "layers": 5},
    "tnrd": {"width": 6, "stages": 2},
}
CPU = torch.device("cpu")


def network(name: str, **fields: Any) -> DenoisingNetwork:
    """A small one whose every parameter is off its initial value, so that no layer acts as the identity."""
    model = build_model(ModelConfig.model_validate({"name": name, **SMALL.get(name, {}), **fields}))
    generator = torch.Generator().manual_seed(0)
    for value in model.state_dict().values():
        if value.is_floating_point():
            value += 0.2 * torch.randn(value.shape, generator=generator).to(value.dtype)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_var.copy_(torch.rand(module.num_features, generator=generator) + 0.5)
    return model.eval()


@pytest.mark.slow
@settings(max_examples=25)
@given(name=st.sampled_from(list(SMALL)), height=st.integers(1, 30), width=st.integers(1, 30))
@torch.no_grad()
def test_any_size_in_the_same_size_out(name: str, height: int, width: int) -> None:
    output = network(name)(torch.rand(2, 1, height, width))
    assert output.shape == (2, 1, height, width)
    assert output.isfinite().all()


# Counted by hand from the papers' descriptions: weights, biases, and two numbers for each normalised channel.
def _conv(channels_in: int, channels_out: int, side: int, *, bias: bool = True) -> int:
    return channels_in * channels_out * side**2 + bias * channels_out


def _attention_unet() -> int:
    gates = sum(_conv(c, c // 2, 2, bias=False) + _conv(2 * c, c // 2, 1) + c // 2 + 1 for c in (64, 128, 256, 512))
    return 31_036_481 + gates  # the published U-Net's, and the gates'


def _nafnet(width: int = 32, depth: int = 4) -> int:
    def block(c: int) -> int:
        expand, depthwise = _conv(c, 2 * c, 1), 2 * c * 9 + 2 * c
        return 4 * c + expand + depthwise + _conv(c, c, 1) + _conv(c, 2 * c, 1) + _conv(c, c, 1) + 2 * c

    levels = [width * 2**level for level in range(depth)]
    blocks = 2 * block(levels[0]) + sum(4 * block(c) for c in levels[1:-1]) + 2 * block(levels[-1])
    ways = sum(_conv(c, 2 * c, 2) + _conv(2 * c, 4 * c, 1) for c in levels[:-1])
    return _conv(4, width, 3) + blocks + ways + _conv(width, 4, 3)


def _restormer(width: int = 24, depth: int = 4) -> int:
    def block(c: int, heads: int) -> int:
        inner = int(2.66 * c)
        attention = heads + 3 * c * c + 3 * c * 9 + c * c
        return 4 * c + attention + c * 2 * inner + 2 * inner * 9 + inner * c

    levels = [width * 2**level for level in range(depth)]
    blocks = block(width, 1) + block(2 * width, 1) + 2 * block(levels[-1], 2 ** (depth - 1))
    blocks += sum(4 * block(c, 2**level) for level, c in enumerate(levels) if 0 < level < depth - 1)
    ways = sum(c * c // 2 * 9 + 2 * c * 4 * c * 9 for c in levels[:-1])
    joins = sum(2 * c * c for c in levels[1:-1])
    return 4 * width * 9 + blocks + ways + joins + 2 * width * 4 * 9


def _dncnn(layers: int) -> int:
    return _conv(1, 64, 3) + (layers - 2) * (_conv(64, 64, 3, bias=False) + 2 * 64) + _conv(64, 1, 3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (AttentionUNet, _attention_unet()),
        (NAFNet, _nafnet()),
        (Restormer, _restormer()),
        (DnCNN, _dncnn(17)),
        (lambda: DnCNN(layers=20), _dncnn(20)),
        (TNRD, 5 * (48 * 48 + 48 * 63 + 1) + 63),  # 26,645 in the paper, which has no function of brightness
    ],
)
def test_parameters_are_those_counted_by_hand(model: Any, expected: int) -> None:
    assert sum(parameter.numel() for parameter in model().parameters()) == expected
    said = (model if isinstance(model, type) else DnCNN).__doc__ or ""
    assert f"{expected:,} parameters" in said or model not in (AttentionUNet, Restormer, DnCNN, TNRD)


def _reach(model: DenoisingNetwork, *, images: int) -> int:
    """The farthest row that any output pixel's gradient reaches, over several random images."""
    height = 2 * (model.receptive_radius // model.stride + 2) * model.stride
    farthest = 0
    for pixel in range(height // 2, height // 2 + model.stride):
        x = torch.rand(images, 1, height, model.stride + 4, dtype=torch.float64, requires_grad=True)
        model(x)[:, :, pixel, 3].sum().backward()
        assert x.grad is not None
        rows = x.grad.abs().sum(dim=(0, 1, 3)).nonzero().flatten()
        farthest = max(farthest, int((rows - pixel).abs().max()))
    return farthest


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("attention_unet", {"depth": 2}),
        ("attention_unet", {"depth": 3}),
        ("nafnet", {"depth": 2}),
        ("nafnet", {"depth": 3, "fold": 4}),
        ("restormer", {"depth": 2}),
        pytest.param("restormer", {"depth": 3}, marks=pytest.mark.slow),
        ("dncnn", {}),
        ("tnrd", {}),
    ],
)
def test_receptive_radius_is_the_reach_of_the_gradient(name: str, fields: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = network(name, **fields).double()
    for module in model.modules():
        if isinstance(module, ChannelAttention):
            nn.init.zeros_(module.temperature)  # what attention sees is the whole image, and no part of the radius
    # The farthest pixel must win its max pooling, and pass through no ReLU that is shut.
    assert _reach(model, images=24 if name == "attention_unet" else 2) == model.receptive_radius


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("size", [(101, 130), (64, 160)])
def test_tiles_equal_the_whole_image(name: str, size: tuple[int, int]) -> None:
    torch.manual_seed(2)
    fields = {"dncnn": {"layers": 3}, "tnrd": {"stages": 1}}.get(name, {"depth": 2})
    model, x = network(name, **fields), torch.rand(1, 1, *size)
    halo = -(-model.receptive_radius // model.stride) * model.stride
    tiled = Denoiser(
        model, noise=NoiseConfig(), tile=2 * halo + max(4 * model.stride, 16), device="cpu", precision="fp32"
    )
    assert tiled.tile**2 < size[0] * size[1]
    with torch.no_grad():
        torch.testing.assert_close(tiled.denoise(x), model(x), rtol=0, atol=2e-5)
    assert model.has_global_statistics == (name == "restormer")


def test_the_attention_of_a_tile_alone_is_not_that_of_the_image() -> None:
    model, x = network("restormer", depth=2), torch.rand(1, 1, 64, 64)
    x[..., 32:] = 0.5
    with torch.no_grad():
        part = model(x[..., :48])
    assert (part[..., :8] - model(x)[..., :8]).abs().max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["unet", "unetpp", "attention_unet", "nafnet", "restormer", "dncnn"])
def test_networks_may_be_told_of_the_noise(name: str) -> None:
    residual = {} if name == "dncnn" else {"residual": True}
    model = network(
        name, **({"width": 4, "depth": 3} if name.startswith("unet") else {}), **residual, inputs="image+mean+std"
    )
    x = torch.rand(1, 3, 20, 24)
    more = x + torch.tensor([0.0, 0.0, 0.2]).view(1, 3, 1, 1)
    with torch.no_grad():
        assert model(x).shape == (1, 1, 20, 24)
        assert (model(x) - model(more)).abs().max() > 1e-4
        for value in model.parameters():
            nn.init.zeros_(value)
        torch.testing.assert_close(model(x), x[:, :1] - x[:, 1:2])  # nothing is predicted: the mean alone goes


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*should not be instantiated")  # torch's own, of the Function it traces
@pytest.mark.parametrize("name", SMALL)
def test_one_graph_without_breaks_that_trains(name: str) -> None:
    model = network(name).train()
    compiled = torch.compile(model, backend="eager", fullgraph=True)  # a break is found before any back end is asked
    x = torch.rand(2, 1, 16, 24)
    output = compiled(x)
    torch.testing.assert_close(output, model(x), rtol=1e-4, atol=1e-5)
    output.square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        # TNRD's first stage is pulled towards the image it begins with, by nothing.
        assert parameter.grad.any() or name == "stages.0.force", name


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_bf16_is_near_fp32(name: str) -> None:
    model, x = network(name), torch.rand(1, 1, 32, 32)
    with torch.no_grad():
        fast = prepare(model, device=CPU, dtype=torch.bfloat16)(x)
        exact = model(x)
    assert fast.dtype == torch.float32
    assert (fast - exact).square().mean().sqrt() < 0.03 * exact.std()
    if name != "tnrd":
        assert not torch.equal(fast, exact)


@pytest.mark.slow
def test_autocast_trains_every_network() -> None:
    for name in SMALL:
        model = network(name).train()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = model(torch.rand(2, 1, 16, 16))
        output.float().abs().mean().backward()
        assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_shapes_alone_can_be_computed(name: str) -> None:
    with torch.device("meta"):  # as arithmetic is counted
        model = build_model(ModelConfig.model_validate({"name": name, **SMALL[name]}))
        output = model(torch.empty(1, 1, 32, 40))
    output.mean().backward()
    assert output.shape == (1, 1, 32, 40)


def test_a_gate_is_what_the_papers_equations_say() -> None:
    gate = AdditiveGate(4, 6)
    skip, below = torch.rand(1, 4, 6, 8), torch.rand(1, 6, 3, 4)
    state = gate.state_dict()
    for row in range(3):
        for column in range(4):
            window = skip[0, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            of_skip = torch.einsum("ochw,chw->o", state["of_skip.weight"], window)
            of_below = state["of_below.weight"][:, :, 0, 0] @ below[0, :, row, column] + state["of_below.bias"]
            score = state["score.weight"][0, :, 0, 0] @ (of_skip + of_below).relu() + state["score.bias"]
            if 0 < row < 2 and 0 < column < 3:
                continue
            at_corner = (row, column) in {(0, 0), (0, 3), (2, 0), (2, 3)}
            if at_corner:  # where the upsampled gate is that of one place
                y, x = 5 * (row == 2), 7 * (column == 3)
                expected = skip[0, :, y, x] * torch.sigmoid(score)
                torch.testing.assert_close(gate(skip, below)[0, :, y, x], expected)


def test_without_gates_an_attention_unet_is_a_unet() -> None:
    gated, plain = network("attention_unet"), network("unet", width=4, depth=3)
    assert isinstance(gated, AttentionUNet)
    assert isinstance(plain, UNet)
    plain.load_state_dict({name: value for name, value in gated.state_dict().items() if not name.startswith("gates")})
    for gate in gated.gates:
        nn.init.zeros_(gate.score.weight)
        nn.init.constant_(gate.score.bias, 40.0)  # a sigmoid of 1
    x = torch.rand(1, 1, 21, 16)
    torch.testing.assert_close(gated(x), plain(x))


def test_attention_between_channels_is_that_of_the_papers_equation() -> None:
    torch.manual_seed(0)
    attention, x = ChannelAttention(6, 2).double(), torch.randn(1, 6, 5, 4, dtype=torch.float64)
    nn.init.constant_(attention.temperature, 1.7)
    queries, keys, values = attention.depthwise(attention.expand(x))[0].flatten(1).split(6)
    heads = []
    for q, k, v in zip(queries.split(3), keys.split(3), values.split(3), strict=True):
        weights = torch.softmax(1.7 * F.cosine_similarity(q[:, None], k[None], dim=-1), dim=1)
        heads.append(weights @ v)
    torch.testing.assert_close(attention(x), attention.project(torch.cat(heads).view(1, 6, 5, 4)))


def test_dncnn_equals_a_forward_pass_written_from_the_paper() -> None:
    model, x = network("dncnn").double(), torch.rand(2, 1, 9, 12, dtype=torch.float64)
    state = model.state_dict()
    y = F.relu(F.conv2d(x, state["chain.0.weight"], state["chain.0.bias"], padding=1))
    for place in (2, 5, 8):
        y = F.conv2d(y, state[f"chain.{place}.weight"], padding=1)
        mean, variance, weight, bias = (
            state[f"chain.{place + 1}.{name}"].view(1, -1, 1, 1)
            for name in ("running_mean", "running_var", "weight", "bias")
        )
        y = F.relu((y - mean) / (variance + 1e-5).sqrt() * weight + bias)
    torch.testing.assert_close(model(x), x - F.conv2d(y, state["chain.11.weight"], state["chain.11.bias"], padding=1))


def _mixture(z: Tensor, weights: Tensor) -> Tensor:
    """The influence functions kernel by kernel, in the paper's grey levels: (N, C, H, W) and (C, 63)."""
    levels, total = 255 * z, torch.zeros_like(z)
    for index, centre in enumerate(range(-310, 311, 10)):
        total += weights[:, index].view(1, -1, 1, 1) * torch.exp(-((levels - centre) ** 2) / (2 * 10**2))
    return total / 255


def test_influence_functions_are_the_papers_mixtures() -> None:
    influence = Influence(3)
    nn.init.normal_(influence.weights, generator=torch.Generator().manual_seed(0))
    z = torch.linspace(-1.6, 1.6, 3 * 400).view(1, 3, 20, 20)
    torch.testing.assert_close(influence(z), _mixture(z, influence.weights), rtol=0, atol=1e-3 / 255 * 2)


@pytest.mark.slow
def test_gradient_of_an_influence_function() -> None:
    influence = Influence(2).double()
    nn.init.normal_(influence.weights, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    z = (torch.rand(2, 2, 3, 3, dtype=torch.float64) * 3.0 - 1.5).requires_grad_()
    assert torch.autograd.gradcheck(influence, (z,), eps=1e-7, atol=1e-5)
    z = z.detach()
    (gradient,) = torch.autograd.grad(influence(z).square().sum(), influence.weights)
    exact = influence.weights.detach().clone().requires_grad_()
    (expected,) = torch.autograd.grad(_mixture(z, exact).square().sum(), exact)
    torch.testing.assert_close(gradient, expected, rtol=1e-2, atol=1e-6)


def test_influence_functions_keep_one_tensor_of_responses() -> None:
    influence, z, kept = Influence(2), torch.rand(1, 2, 200, 200, requires_grad=True), []  # larger than the table
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        influence(z)
    assert sum(count for count in kept if count >= z.numel()) == z.numel()


def test_a_diffusion_step_is_the_papers_equation() -> None:
    model = network("tnrd", stages=1).double()
    assert isinstance(model, TNRD)
    step, x = model.stages[0], torch.rand(1, 1, 10, 12, dtype=torch.float64)
    noisy = torch.rand_like(x)
    filters = step.filters()[:, 0]
    total = torch.zeros_like(x)
    for index, own in enumerate(filters):
        response = F.conv2d(F.pad(x, (3, 3, 3, 3), mode="replicate"), own[None, None])
        influence = _mixture(response, step.influence.weights[index : index + 1])
        total += F.conv2d(F.pad(influence, (3, 3, 3, 3)), own.flip(0, 1)[None, None])
    torch.testing.assert_close(step(x, noisy), x - total - step.force * (x - noisy), rtol=0, atol=1e-5)


def test_tnrds_filters_begin_as_cosines_without_the_constant() -> None:
    basis = TNRD().stages[0].filters().flatten(1)
    torch.testing.assert_close(basis @ basis.T, torch.eye(48), rtol=0, atol=1e-6)
    torch.testing.assert_close(basis.sum(dim=1), torch.zeros(48), rtol=0, atol=1e-5)
    # The first one rises along a line as half a wave.
    assert (basis[0].view(7, 7).diff(dim=1) < 0).all() or (basis[0].view(7, 7).diff(dim=0) < 0).all()


@pytest.mark.slow
def test_tnrd_begins_as_a_smoothing_that_keeps_edges() -> None:
    torch.manual_seed(0)
    clean = torch.zeros(1, 1, 64, 64)
    clean[..., 32:] = 0.6
    noisy = clean + 0.05 * torch.randn_like(clean)
    with torch.no_grad():
        output = TNRD()(noisy)
    error = (output - clean)[..., 8:-8, 8:-8]
    assert error.square().mean() < 0.5 * 0.05**2
    assert (output[..., 33].mean() - output[..., 30].mean()) > 0.5


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"name": "tnrd", "width": 64}, "48 filters"),
        ({"name": "restormer", "width": 3}, "an even one"),
        ({"name": "tnrd", "width": 48, "inputs": "image+mean"}, "inputs needs name"),
        ({"name": "dncnn", "residual": True}, "residual needs name"),
        ({"name": "unet", "layers": 20}, "layers needs name = 'dncnn'"),
    ],
)
def test_options_without_effect_are_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ModelConfig.model_validate(fields)
    if fields["name"] == "tnrd" and "inputs" not in fields:
        with pytest.raises(UsageError, match="no such model: width = 64: 'tnrd' has 48"):
            TNRD(width=64)


@pytest.mark.parametrize("kind", [UNet, UNetPlusPlus, AttentionUNet, NAFNet, Restormer, DnCNN, TNRD])
def test_a_configuration_that_names_no_size_gets_the_size_of_the_class(kind: type[DenoisingNetwork]) -> None:
    with torch.device("meta"):
        own = kind().config
    config = ModelConfig(name=own.name)
    assert (config.width, config.depth) == (own.width, own.depth)


@pytest.mark.slow
def test_every_architecture_says_what_it_is() -> None:
    for name in ModelConfig.model_fields["name"].annotation.__args__:
        config = ModelConfig(name=name, width=8)
        model = build_model(config)
        assert model.config == config
        assert config.has_batch_norm == any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
        assert math.isfinite(model.receptive_radius)
