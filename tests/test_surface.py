"""The public surface: names, signatures and docstrings, as users rely on them."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import veilray as vr

SOURCE = Path(vr.__file__).parent

SIGNATURES = {
    "Denoiser": "model, *, noise, device, precision, tile, origin, recorruption",
    "UNet": "*, width, depth, norm, block, residual, inputs",
    "UNetPlusPlus": "*, width, depth, norm, block, residual, deep_supervision, inputs",
    "add_gaussian": "x, *, mean, std, clip, generator",
    "inverse_mean_map": "y, *, mean, std",
    "mean_map": "x, *, mean, std",
    "psnr": "output, target, *, data_range",
    "read_radiograph": "path, *, modalities",
    "ssim": "output, target, *, data_range, window",
}


def _signature(function: object) -> str:
    words: list[str] = []
    for name, parameter in inspect.signature(function).parameters.items():  # type: ignore[arg-type]
        if parameter.kind is parameter.KEYWORD_ONLY and "*" not in words:
            words.append("*")
        words.append(name)
    return ", ".join(words)


def test_the_names_are_these() -> None:
    assert sorted(vr.__all__) == sorted([*SIGNATURES, "VeilrayError", "__version__"])
    assert sorted(dir(vr)) == sorted(vr.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Unet'"):
        vr.Unet  # noqa: B018


@pytest.mark.parametrize("name", SIGNATURES)
def test_the_signatures_are_these(name: str) -> None:
    assert _signature(getattr(vr, name)) == SIGNATURES[name]


@pytest.mark.parametrize("name", [*SIGNATURES, "VeilrayError"])
def test_every_name_says_what_it_is(name: str) -> None:
    documented = getattr(vr, name).__doc__
    assert documented is not None
    assert len(documented) > 40


def test_the_networks_as_documented() -> None:
    x = torch.rand(2, 1, 16, 24)
    for network in (vr.UNet(width=4), vr.UNetPlusPlus(width=4)):
        assert network.eval()(x).shape == x.shape


def test_the_functions_as_documented() -> None:
    x = torch.rand(3, 1, 16, 16)
    g = torch.Generator().manual_seed(1)
    noisy = vr.add_gaussian(x, mean=0.1, std=0.2, clip=True, generator=g)
    assert noisy.shape == x.shape
    assert 0 <= noisy.min() <= noisy.max() <= 1
    back = vr.inverse_mean_map(vr.mean_map(x.double(), mean=0.1, std=0.2), mean=0.1, std=0.2)
    torch.testing.assert_close(back, x.double(), atol=1e-9, rtol=0)
    assert vr.psnr(noisy, x, data_range=1.0).shape == (3,)
    assert vr.ssim(noisy, x, data_range=1.0, window="gaussian").shape == (3,)
    assert vr.ssim(noisy, x, data_range=1.0, window=3).shape == (3,)


def test_reading_as_documented(tmp_path: Path) -> None:
    levels = np.random.default_rng(0).integers(0, 256, (12, 17), dtype=np.uint8)
    Image.fromarray(levels).save(tmp_path / "00000012_003.png")
    radiograph = vr.read_radiograph(tmp_path / "00000012_003.png")
    assert (radiograph.pixels.shape, radiograph.pixels.dtype) == ((12, 17), np.float32)
    np.testing.assert_allclose(radiograph.pixels, levels / 255, atol=1e-7)
    assert (radiograph.image_id, radiograph.patient_id, radiograph.bit_depth) == ("00000012_003", "00000012", 8)


def test_denoising_as_documented(tmp_path: Path) -> None:
    from tests.training.small import small_config

    from veilray.models.build import build_model
    from veilray.models.weights import save_weights
    from veilray.training.run import RunFolder

    run = RunFolder.create(tmp_path / "a", small_config())
    save_weights(run.best_weights, build_model(run.config().model))
    pixels = np.random.default_rng(0).random((19, 23), dtype=np.float32)
    output = vr.Denoiser.load(str(tmp_path / "a"))(pixels, mean=0.1, warn=False)
    assert (output.shape, output.dtype) == ((19, 23), np.float32)
    assert 0 <= output.min() <= output.max() <= 1


def _public(tree: ast.Module | ast.ClassDef) -> list[ast.FunctionDef | ast.ClassDef]:
    found: list[ast.FunctionDef | ast.ClassDef] = []
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and any(ast.unparse(name) == "overload" for name in node.decorator_list):
            continue  # the implementation that follows speaks for it
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            found.append(node)
            if isinstance(node, ast.ClassDef):
                found.extend(_public(node))
    return found


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE)))
def test_everything_public_has_a_docstring(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    private = {node for node in tree.body if isinstance(node, ast.ClassDef) and node.name.startswith("_")}
    missing = [node.name for node in _public(tree) if node not in private and not ast.get_docstring(node)]
    assert missing == []
    if tree.body:
        assert ast.get_docstring(tree), "the module says nothing of itself"


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE)))
def test_fields_of_configurations_say_what_they_are(path: Path) -> None:
    """A field's docstring is the string after it."""
    if path.name != "config.py":
        return
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if not isinstance(node, ast.ClassDef) or node.name == "RunConfig":
            continue
        for field, after in zip(node.body, [*node.body[1:], None], strict=True):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                said = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
                assert said, f"{node.name}.{field.target.id}"
