"""Secret noise: Gaussian fields that only the holder of a site's secret can draw again, nested over a few levels.

The noise of an image at level std is the value at time std^2 of one Brownian path for each pixel. So the noise of a
level is that of any lower one plus an increment of its own, and all levels of an image together say no more about it
than the least noisy one, before its clamp, does. The same release made again is the same to the
bit and says nothing new.

Uniform bits come from AES-256 in counter mode (NIST SP 800-38A) under HMAC-SHA-256 (RFC 2104) of the secret and the
image; to whoever lacks the secret they cannot be told from independent ones. It is a computational promise, and equal
images of equal geometry get equal noise. Bits become normal values by inversion. 16 bits choose one of 65,536 bins of
equal probability, 16 more a place in the bin, linearly; the outer 256 bins on each side are inverted in float64 with 52
further bits. The distribution function is off the normal's by less than 1e-7, float32's rounding included, and the
tails end at 10.6 standard deviations. Only tables, products and sums of float32 are used for all but the tails, so
every machine draws the same; a logarithm's last bit may differ in the tails, and rounding to 16 bits hides it.
"""

from __future__ import annotations

import functools
import hmac
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from veilray.errors import UsageError

LEVELS = (0.1, 0.2, 0.3)
"""Standard deviations that secret noise can have, on pixels in [0, 1]: the published ones."""

SECRET_BYTES = 32

# The order in which a path is drawn: the middle, then outwards, below by a Brownian bridge (Levy's construction), so
# that no level needs more than two fields. The number of a level names its stream. A new level may go to the end, where
# it changes none before it; an old one never moves.
_DRAWN = {0.2: 0, 0.1: 1, 0.3: 2}
_TAIL_STREAM = 128

_BINS = 1 << 16
_TAIL_BINS = 256
_PART = 1 << 16
_ZEROS = memoryview(bytes(4 * _PART))


def check_level(std: float) -> float:
    """`std` itself where it is one of LEVELS; UsageError where not."""
    if std not in LEVELS:
        levels = ", ".join(f"{level:g}" for level in LEVELS)
        raise UsageError(f"std {std:g}: noise from a site's secret comes at {levels} only, so that releases nest")
    return std


def secret_field(
    *, secret: bytes, digest: bytes, geometry: str, std: float, shape: tuple[int, int]
) -> npt.NDArray[np.float32]:
    """The noise of one image at a level: (H, W), float32, mean 0, standard deviation `std`.

    `secret`: 32 bytes of the site. `digest`: 32 bytes over the native decoded pixels. `geometry`: all that was done to
    those pixels before the noise (crop, size, resampling). Other pixels must never get the same noise, since the
    difference of two such releases is free of it: so digest, geometry and shape all enter the key.

    Raises UsageError where `std` is not one of LEVELS, or secret or digest is not 32 bytes.
    """
    check_level(std)
    key = _image_key(secret, digest, geometry, shape)
    field = np.empty(shape, dtype=np.float32)
    pixels = torch.from_numpy(field).view(-1)
    streams = {level: _NormalStream(key, _DRAWN[level]) for level in _ancestry(std)}
    # Part by part, so that the whole path of a part stays in the processor's cache.
    parts = {level: torch.empty(_PART) for level in streams}
    for begin in range(0, len(pixels), _PART):
        target = pixels[begin : begin + _PART]
        path = {level: target if level == std else part[: len(target)] for level, part in parts.items()}
        for level, stream in streams.items():
            stream.fill(path[level])
            _to_path(path, level)
    return field


def _image_key(secret: bytes, digest: bytes, geometry: str, shape: tuple[int, int]) -> bytes:
    if len(secret) != SECRET_BYTES or len(digest) != 32:
        raise UsageError("secret noise needs a secret and an image digest of 32 bytes each")
    height, width = shape
    mac = hmac.new(secret, digestmod="sha256")
    for part in (b"veilray secret noise 1", digest, geometry.encode(), f"{height}x{width}".encode()):
        mac.update(len(part).to_bytes(8, "big") + part)
    return mac.digest()


def _ancestry(std: float) -> list[float]:
    """The levels to draw for `std`, in order: itself last, before it those its bridge hangs on, and theirs."""
    needed = {std}
    for level in reversed(_DRAWN):
        if level in needed:
            needed.update(near for near in _neighbours(level) if near)
    return [level for level in _DRAWN if level in needed]


@functools.cache
def _neighbours(level: float) -> tuple[float, float | None]:
    """The nearest values of the path that are known before `level` is drawn: below it (0 at worst) and above it."""
    earlier = [other for other in _DRAWN if _DRAWN[other] < _DRAWN[level]]
    below = max((other for other in earlier if other < level), default=0.0)
    return below, min((other for other in earlier if other > level), default=None)


def _to_path(path: Mapping[float, Tensor], level: float) -> None:
    """Turn the standard normal values in `path[level]` into W(level^2), given its neighbours on the path; in place."""
    value = path[level]
    below, above = _neighbours(level)
    low, time = below**2, level**2
    # Products and sums apart: a fused one rounds differently, and not every processor has it.
    if above is None:
        value.mul_((time - low) ** 0.5)
        if below:
            value.add_(path[below])
        return
    high = above**2
    value.mul_(((time - low) * (high - time) / (high - low)) ** 0.5)
    value.add_(path[above].mul((time - low) / (high - low)))
    if below:
        value.add_(path[below].mul((high - time) / (high - low)))


class _NormalStream:
    """The standard normal values of one level of one image, in the order of the pixels."""

    def __init__(self, key: bytes, number: int) -> None:
        self._bits, self._tail_bits = _Bits(key, number), _Bits(key, _TAIL_STREAM + number)
        self._start, self._step = (torch.from_numpy(table) for table in _tables())
        self._bins = torch.empty(_PART, dtype=torch.int32)
        self._slope, self._place = torch.empty(_PART), torch.empty(_PART)

    def fill(self, out: Tensor) -> None:
        """The next values into `out`: (n,), float32, contiguous, n at most _PART."""
        words = self._bits.words(len(out))
        bins, slope, place = self._bins[: len(out)], self._slope[: len(out)], self._place[: len(out)]
        numbers = bins.numpy().view(np.uint32)
        np.bitwise_and(words, np.uint32(_BINS - 1), out=numbers)
        place.copy_(bins)
        np.right_shift(words, np.uint32(16), out=numbers)
        torch.index_select(self._start, 0, bins, out=out)
        torch.index_select(self._step, 0, bins, out=slope)
        out.add_(slope.mul_(place))
        _invert_tails(out.numpy(), words, self._tail_bits)


def _invert_tails(values: npt.NDArray[np.float32], words: npt.NDArray[np.uint32], bits: _Bits) -> None:
    """Put in the values of the outer bins, in place."""
    from scipy.special import ndtri

    # The outer bins on both sides are one run of numbers that wraps round at 2^32.
    turned = words + np.uint32(_TAIL_BINS << 16)
    where = np.flatnonzero(turned < np.uint32(2 * _TAIL_BINS << 16))
    upper = words[where] >= np.uint32(1 << 31)
    depth = np.where(upper, ~words[where], words[where])
    further = (bits.words(2 * len(where)).view(np.uint64) >> np.uint64(12)).astype(np.float64) + 0.5
    tail = ndtri((depth + further * 2.0**-52) * 2.0**-32)
    values[where] = np.where(upper, -tail, tail)


@functools.cache
def _tables() -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """For each bin the normal quantile half a step above its lower edge, and the step: (65536,), float32 each."""
    from scipy.special import ndtri

    edges = np.zeros(_BINS + 1)
    half = _BINS // 2
    edges[1:half] = ndtri(np.arange(1, half) / _BINS)
    edges[half + 1 : -1] = -edges[half - 1 : 0 : -1]
    step = np.diff(edges) / _BINS
    return (edges[:-1] + step / 2).astype(np.float32), step.astype(np.float32)


class _Bits:
    """A stream of pseudorandom words: AES-256-CTR of zeros, the stream's number in the upper half of the counter."""

    def __init__(self, key: bytes, stream: int) -> None:
        from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

        self._cipher = Cipher(algorithms.AES(key), modes.CTR(stream.to_bytes(8, "big") + bytes(8))).encryptor()
        self._room = bytearray(4 * _PART + 16)

    def words(self, count: int) -> npt.NDArray[np.uint32]:
        """The next words: (count,), uint32, the same on machines of either byte order; good until the next call."""
        self._cipher.update_into(_ZEROS[: 4 * count], self._room)
        return np.frombuffer(self._room, dtype="<u4", count=count).astype(np.uint32, copy=False)
