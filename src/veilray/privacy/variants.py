"""The variants of an audit: releases, simulated noise, what a denoiser makes of them, and other obfuscations."""

from __future__ import annotations

import functools
import hashlib
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from veilray.errors import UsageError
from veilray.images.radiograph import FloatImage
from veilray.obfuscation.noise import fill_standard_normal, keyed
from veilray.privacy.catalogue import DENOISER
from veilray.privacy.data import AuditData, Rows, Variant, VariantKind

LEVELS_OF_GREY = 255
_PURPOSE = b"veilray audit"
"""Of what is drawn here: see `obfuscation.noise.keyed`."""


class Restoring(Protocol):
    """A network that takes away what was done to images, such as `veilray.Denoiser`."""

    def several(self, pixels: FloatImage, *, mean: float | None = None) -> FloatImage:
        """(N, H, W) under noise of this mean -> (N, H, W), [0, 1]."""


def clean_variant(data: AuditData) -> Variant:
    """The originals themselves: what no protection would give away."""
    return Variant(name="original", kind="clean", draw=lambda rows, _: data.clean(rows), digest=data.digest, draws=1)


def simulated_variant(
    data: AuditData, *, mean: float, std: float, clip: bool = True, seed: int, kind: VariantKind = "noisy"
) -> Variant:
    """The originals under Gaussian noise drawn for the audit alone, as `veilray obfuscate` would release them.

    Rounded to 8 bits where they are clamped. `kind` is `baseline` where the noise is there for scale alone. The noise
    of a row and a draw is a function of `seed` and both. UsageError for a std that is not positive.
    """
    if not 0.0 < std <= 10.0:
        raise UsageError(f"std {std:g} must be positive and at most 10")
    name = f"noise {std:g}" if clip else f"noise {std:g}, not clamped"

    def draw(rows: Rows, number: int) -> FloatImage:
        images = data.clean(rows).copy()
        field = torch.empty(images.shape[1:])
        for image, row in zip(images, rows.tolist(), strict=True):
            fill_standard_normal(field, key=keyed(f"{seed}/{name}/{mean}/{number}/{row}", _PURPOSE))
            image += np.float32(mean) + np.float32(std) * field.numpy()
        return _rounded(images) if clip else images

    digest = _digest(data.digest, f"simulated {mean} {std} {clip} {seed}")
    return Variant(name=name, kind=kind, draw=draw, digest=digest, mean=mean, std=std, clip=clip)


def denoised_variant(
    noisy: Variant, denoiser: Restoring, *, folder: Path, data: AuditData, digest: str, most: int | None = None
) -> Variant:
    """What a denoiser makes of a variant's first draw: each image once, kept in `folder` while the audit runs.

    `digest` names the denoiser; `most`: of how many images at most, those of patients with several images first. The
    file holds patients' images and stays at Site One.
    """
    rows = noisy.available(data)
    if most is not None and len(rows) > most:
        count = Counter(data.patient_ids[row] for row in rows.tolist())
        alone = np.array([count[data.patient_ids[row]] == 1 for row in rows.tolist()])
        rows = np.sort(rows[np.argsort(alone, kind="stable")][:most])
    whole = _digest(noisy.digest, f"denoised by {digest}")
    mean = noisy.mean

    def restore(images: FloatImage) -> FloatImage:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that the network knows other noise is what is measured
            return denoiser.several(images, mean=mean)

    store = _Store(
        path=folder / f"denoised-{whole[:16]}.npy", count=len(data), size=data.size, source=noisy, restore=restore
    )
    return Variant(
        name=f"{noisy.name}, denoised",
        kind="denoised" if noisy.kind == "noisy" else "baseline",
        draw=store.draw,
        source=noisy.name,
        restorer=DENOISER,
        digest=_digest(whole, f"of {rows.tolist()}"),
        draws=1,
        rows=tuple(rows.tolist()),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Store:
    """Denoised images on disk, each made when first asked for; as uint16, with a mark for those that are there."""

    path: Path
    count: int
    size: tuple[int, int]
    source: Variant
    restore: Callable[[FloatImage], FloatImage]

    def draw(self, rows: Rows, _: int) -> FloatImage:
        levels, there = self._maps
        missing = np.unique(np.asarray(rows)[there[rows] == 0])
        for begin in range(0, len(missing), 8):
            part = missing[begin : begin + 8]
            levels[part] = np.rint(self.restore(self.source.draw(part, 0)) * 65535.0).astype(np.uint16)
            levels.flush()
            there[part] = 1
            there.flush()
        images: FloatImage = levels[rows].astype(np.float32) / np.float32(65535.0)
        return images

    @functools.cached_property
    def _maps(self) -> tuple[Any, Any]:
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        marks = self.path.with_suffix(".there.npy")
        levels = _mapped(self.path, np.dtype(np.uint16), (self.count, *self.size))
        return levels, _mapped(marks, np.dtype(np.uint8), (self.count,))


def _mapped(path: Path, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Any:
    n_bytes = int(np.prod(shape)) * dtype.itemsize
    mode = "r+" if path.is_file() and path.stat().st_size == n_bytes else "w+"
    found: Any = np.memmap(path, dtype=dtype, mode=mode, shape=shape)  # type: ignore[call-overload]
    path.chmod(0o600)
    return found


def baseline_variants(data: AuditData, *, seed: int) -> list[Variant]:
    """Other ways to make an image harder to recognise, for scale: blur, down-sampling, DP-Pix, stronger noise."""
    simple: Mapping[str, Callable[[FloatImage], FloatImage]] = {
        "blur, sigma 4 px": functools.partial(_blurred, sigma=4.0),
        "blur, sigma 8 px": functools.partial(_blurred, sigma=8.0),
        "down-sampled to 1/4": functools.partial(_down_sampled, factor=4),
        "down-sampled to 1/8": functools.partial(_down_sampled, factor=8),
    }
    found = [
        Variant(
            name=name,
            kind="baseline",
            draw=functools.partial(_apply, data, change),
            digest=_digest(data.digest, name),
            draws=1,
        )
        for name, change in simple.items()
    ]
    return [
        *found,
        dp_pix_variant(data, block=16, differing=16, epsilon=0.5, seed=seed),
        simulated_variant(data, mean=0.0, std=0.5, seed=seed, kind="baseline"),
        simulated_variant(data, mean=0.0, std=1.0, seed=seed, kind="baseline"),
    ]


def dp_pix_variant(data: AuditData, *, block: int, differing: int, epsilon: float, seed: int) -> Variant:
    """Pixelation with Laplace noise (Fan, DBSec 2018): epsilon-differential privacy for `differing` pixels.

    Each block of `block` x `block` pixels becomes its mean plus Laplace noise of scale differing / (block^2 epsilon),
    in units of the [0, 1] range, then is clamped.
    """
    scale = differing / (block**2 * epsilon)

    def draw(rows: Rows, number: int) -> FloatImage:
        images = data.clean(rows)
        height, width = images.shape[1:]
        means = _block_means(images, block)
        for image, row in zip(means, rows.tolist(), strict=True):
            generator = np.random.Generator(np.random.Philox(key=keyed(f"{seed}/dp-pix/{number}/{row}", _PURPOSE)))
            image += generator.laplace(0.0, scale, image.shape).astype(np.float32)
        wide = np.repeat(np.repeat(np.clip(means, 0.0, 1.0), block, axis=1), block, axis=2)
        return _rounded(wide[:, :height, :width])

    name = f"DP-Pix, {block} px, epsilon {epsilon:g} for {differing} px"
    return Variant(name=name, kind="baseline", draw=draw, digest=_digest(data.digest, f"{name} {seed}"))


def _apply(data: AuditData, change: Callable[[FloatImage], FloatImage], rows: Rows, _: int) -> FloatImage:
    return change(data.clean(rows))


def _blurred(images: FloatImage, *, sigma: float) -> FloatImage:
    from scipy.ndimage import gaussian_filter

    return _rounded(gaussian_filter(images, sigma=(0.0, sigma, sigma), mode="nearest"))


def _down_sampled(images: FloatImage, *, factor: int) -> FloatImage:
    """Block means, and back to the old size bilinearly."""
    means = torch.from_numpy(_block_means(images, factor))[:, None]
    wide = torch.nn.functional.interpolate(means, scale_factor=factor, mode="bilinear", align_corners=False)
    return _rounded(wide[:, 0, : images.shape[1], : images.shape[2]].numpy())


def _block_means(images: FloatImage, block: int) -> FloatImage:
    """(N, H, W) -> (N, ceil(H / block), ceil(W / block)); what is missing at the edges repeats the last pixel."""
    below, right = (-side % block for side in images.shape[1:])
    padded = np.pad(images, ((0, 0), (0, below), (0, right)), mode="edge")
    count, height, width = padded.shape
    means: FloatImage = padded.reshape(count, height // block, block, width // block, block).mean(axis=(2, 4))
    return means


def _rounded(images: FloatImage) -> FloatImage:
    rounded: FloatImage = np.rint(np.clip(images, 0.0, 1.0) * LEVELS_OF_GREY).astype(np.float32)
    rounded /= np.float32(LEVELS_OF_GREY)
    return rounded


def _digest(first: str, then: str) -> str:
    return hashlib.sha256(f"{first}\n{then}".encode()).hexdigest()
