"""Secret noise: Gaussian fields that only the holder of a site's secret can draw again, nested over a few levels.

The noise of an image at level std is the value at time std^2 of one Brownian path for each pixel. So the noise of a
level is that of any lower one plus an increment of its own, and all levels of an image together say no more about it
than the least noisy one, before its clamp, does. The same release made again is the same to the
bit and says nothing new.

Uniform bits come from AES-256 in counter mode (NIST SP 800-38A) under HMAC-SHA-256 (RFC 2104) of the secret and the
image; to whoever lacks the secret they cannot be told from independent ones. It is a computational promise, and equal
images of equal geometry get equal noise. 32 bits become a normal value by inversion: by partial fractions (see
`benchmarks/secret_noise_fit.py`), and where the probability beyond is below 2^-8 on either side, in float64 with 52
further bits. The distribution function is off the normal's by less than 1e-7, float32's rounding included, and the
tails end at 10.6 standard deviations. Only products, quotients and sums of float32 are used for all but the tails, each
rounded as IEEE 754 has it and none fused, so every machine draws the same; a logarithm's last bit may differ in the
tails, and rounding to 16 bits hides it.
"""

from __future__ import annotations

import functools
import hmac
import math

import numpy as np
import numpy.typing as npt

from veilray.errors import UsageError

LEVELS = (0.1, 0.2, 0.3)
"""Standard deviations that secret noise can have, on pixels in [0, 1]: the published ones."""

SECRET_BYTES = 32

# The order in which a path is drawn: the middle, then outwards, below by a Brownian bridge (Levy's construction), so
# that no level needs more than two fields. The number of a level names its stream. A new level may go to the end, where
# it changes none before it; an old one never moves.
_DRAWN = {0.2: 0, 0.1: 1, 0.3: 2}
_TAIL_STREAM = 128

_PART = 1 << 16
"""Pixels that are drawn at once: few enough for the processor's cache."""
_ZEROS = memoryview(bytes(4 * _PART))
# XORed to the key stream by the cipher, it turns words 0 to 2^32 - 1 into -2^31 to 2^31 - 1, in that order.
_HALVES = memoryview(b"\x00\x00\x00\x80" * _PART)

# With q = p - 1/2, the normal quantile is q times a sum of residue / (pole - q^2) and a constant: poles and residues.
_FRACTIONS = (
    (0.251126596, 1.756335911e-03),
    (0.257931587, 8.380100371e-03),
    (0.283401401, 3.453668834e-02),
    (0.384934216, 1.538373921e-01),
    (1.039780141, 1.084034343e00),
)
_CONSTANT = 0.903075163
# Words are taken as they are, for q times 2^32.
_UNIT = 2.0**32
_INNER_SQUARE = np.float32((2.0**31 - 2.0**24) ** 2)
"""Of words; beyond it, in 2^-8 of all cases on each side, are the tails."""


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
    pixels = field.reshape(-1)
    streams = [_NormalStream(key, _DRAWN[level], weight=weight) for level, weight in _weights(std).items()]
    room = np.empty(min(_PART, pixels.size), dtype=np.float32)
    for begin in range(0, pixels.size, _PART):
        target = pixels[begin : begin + _PART]
        first, *others = streams
        first.fill(target)
        for stream in others:
            more = room[: target.size]
            stream.fill(more)
            np.add(target, more, out=target)
    for stream in streams:
        places, values = stream.tails()
        pixels[places] += values
    return field


def _image_key(secret: bytes, digest: bytes, geometry: str, shape: tuple[int, int]) -> bytes:
    if len(secret) != SECRET_BYTES or len(digest) != 32:
        raise UsageError("secret noise needs a secret and an image digest of 32 bytes each")
    height, width = shape
    mac = hmac.new(secret, digestmod="sha256")
    for part in (b"veilray secret noise 2", digest, geometry.encode(), f"{height}x{width}".encode()):
        mac.update(len(part).to_bytes(8, "big") + part)
    return mac.digest()


def _weights(level: float) -> dict[float, float]:
    """The path at `level` as a sum of normal values: by the level they are drawn for, how much of each.

    In the order of drawing. With the neighbours' values w and v at times s < t < u, it is a bridge: their mean,
    weighted by nearness, and variance (t - s) (u - t) / (u - s) of its own; beyond the last, w and variance t - s.
    """
    below, above = _neighbours(level)
    low, time = below**2, level**2
    if above is None:
        shares, own = {below: 1.0}, time - low
    else:
        high = above**2
        shares = {below: (high - time) / (high - low), above: (time - low) / (high - low)}
        own = (time - low) * (high - time) / (high - low)
    total = {level: math.sqrt(own)}
    for near, share in shares.items():
        for drawn, weight in _weights(near).items() if near else ():
            total[drawn] = total.get(drawn, 0.0) + share * weight
    return {drawn: total[drawn] for drawn in _DRAWN if drawn in total}


@functools.cache
def _neighbours(level: float) -> tuple[float, float | None]:
    """The nearest values of the path that are known before `level` is drawn: below it (0 at worst) and above it."""
    earlier = [other for other in _DRAWN if _DRAWN[other] < _DRAWN[level]]
    below = max((other for other in earlier if other < level), default=0.0)
    return below, min((other for other in earlier if other > level), default=None)


class _NormalStream:
    """The normal values of one level of one image times `weight`, in the order of the pixels."""

    def __init__(self, key: bytes, number: int, *, weight: float) -> None:
        self._bits = _Bits(key, number, plain=_HALVES)
        self._tail_bits = _Bits(key, _TAIL_STREAM + number, plain=_ZEROS)
        self._weight = weight
        self._square, self._term, self._sum = (np.empty(_PART, dtype=np.float32) for _ in range(3))
        self._fractions = [
            (np.float32(pole * _UNIT**2), np.float32(residue * _UNIT * weight)) for pole, residue in _FRACTIONS
        ]
        self._constant = np.float32(_CONSTANT / _UNIT * weight)
        self._tails: list[tuple[npt.NDArray[np.intp], npt.NDArray[np.int32]]] = []
        self._filled = 0

    def fill(self, out: npt.NDArray[np.float32]) -> None:
        """The next values into `out`: (n,), n at most _PART; 0 where they are of the tails."""
        words = self._bits.words(out.size).view(np.int32)
        square, term, total = self._square[: out.size], self._term[: out.size], self._sum[: out.size]
        np.copyto(out, words)
        np.multiply(out, out, out=square)
        (pole, residue), *others = self._fractions
        np.divide(residue, np.subtract(pole, square, out=term), out=total)
        for pole, residue in others:
            np.divide(residue, np.subtract(pole, square, out=term), out=term)
            np.add(total, term, out=total)
        np.multiply(out, np.add(total, self._constant, out=total), out=out)
        where = np.flatnonzero(square > _INNER_SQUARE)
        out[where] = 0
        self._tails.append((where + self._filled, words[where]))
        self._filled += out.size

    def tails(self) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float32]]:
        """Places and values (m,) of all that `fill` has left out; for all at once, since a call costs more than it."""
        places, words = (np.concatenate(parts) for parts in zip(*self._tails, strict=True))
        at_once = _PART // 2
        parts = [self._beyond(words[begin : begin + at_once]) for begin in range(0, words.size, at_once)]
        return places, np.concatenate([np.empty(0, dtype=np.float32), *parts])

    def _beyond(self, words: npt.NDArray[np.int32]) -> npt.NDArray[np.float32]:
        from scipy.special import ndtri

        near = words.astype(np.int64)
        upper = near >= 0
        depth = np.where(upper, 2**31 - 1 - near, near + 2**31)
        further = (self._tail_bits.words(2 * words.size).view(np.uint64) >> np.uint64(12)).astype(np.float64) + 0.5
        tail = self._weight * ndtri((depth + further * 2.0**-52) * 2.0**-32)
        return np.where(upper, -tail, tail).astype(np.float32)


class _Bits:
    """A stream of pseudorandom words: AES-256-CTR of `plain`, the stream's number in the upper half of the counter."""

    def __init__(self, key: bytes, stream: int, *, plain: memoryview) -> None:
        from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

        self._cipher = Cipher(algorithms.AES(key), modes.CTR(stream.to_bytes(8, "big") + bytes(8))).encryptor()
        self._plain = plain
        self._room = bytearray(4 * _PART + 16)

    def words(self, count: int) -> npt.NDArray[np.uint32]:
        """The next words: (count,), uint32, the same on machines of either byte order; good until the next call."""
        self._cipher.update_into(self._plain[: 4 * count], self._room)
        return np.frombuffer(self._room, dtype="<u4", count=count).astype(np.uint32, copy=False)
