"""Secret noise: its law to the tails, its nesting, and that it hangs on all of secret, image and geometry."""

from __future__ import annotations

import hashlib
import hmac
import importlib
import itertools
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import numpy.typing as npt
import pytest
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from scipy import stats
from scipy.special import log_ndtr, ndtr, ndtri

from veilray.errors import UsageError
from veilray.images.radiograph import to_levels, to_pixels
from veilray.obfuscation import secret
from veilray.obfuscation.mean_map import mean_map
from veilray.obfuscation.secret import LEVELS, check_level, secret_field

Field = npt.NDArray[np.float64]
ROOT = 0.2  # the level that is drawn first, whose values are those of one stream


def _field(
    std: float = ROOT,
    *,
    key: bytes = b"s" * 32,
    image: object = 0,
    geometry: str = "native",
    shape: tuple[int, int] = (512, 512),
) -> Field:
    digest = hashlib.sha256(str(image).encode()).digest()
    values = secret_field(secret=key, digest=digest, geometry=geometry, std=std, shape=shape)
    assert values.shape == shape
    assert values.dtype == np.float32
    return values.astype(np.float64)


def _correlation(a: Field, b: Field) -> float:
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


def _aes_by_blocks(key: bytes, stream: int, words: int) -> npt.NDArray[np.uint32]:
    """The counter mode of SP 800-38A written out: the counters, each encrypted as a block."""
    counters = b"".join(((stream << 64) + number).to_bytes(16, "big") for number in range(-(-words // 4)))
    encryptor = Cipher(algorithms.AES(key), modes.ECB()).encryptor()
    return np.frombuffer(encryptor.update(counters), dtype="<u4")[:words]


def test_the_field_is_the_inverted_key_stream_of_secret_and_image() -> None:
    shape, digest = (301, 300), b"d" * 32  # more than one part, and no whole number of them
    parts = (b"veilray secret noise 2", digest, b"crop", b"301x300")
    message = b"".join(len(part).to_bytes(8, "big") + part for part in parts)
    key = hmac.new(b"s" * 32, message, "sha256").digest()
    uniform = (_aes_by_blocks(key, 0, 301 * 300).astype(np.float64) + 0.5) / 2**32
    values = secret_field(secret=b"s" * 32, digest=digest, geometry="crop", std=ROOT, shape=shape).ravel() / ROOT
    inner = np.abs(uniform - 0.5) < 0.5 - 2**-8
    assert inner.mean() < 1
    assert np.abs(ndtr(values.astype(np.float64)) - uniform)[inner].max() < 1e-7
    # Float32 has words to 2^-25 of probability only, which is 2.6e-6 of a value where the tails begin.
    assert np.abs(values - ndtri(uniform))[inner].max() < 4e-6
    # The tails take further bits, which move a value within 2^-32 of probability; float32 rounds it.
    assert np.abs(ndtr(values.astype(np.float64)) - uniform)[~inner].max() < 1e-8


@pytest.mark.parametrize("std", LEVELS)
def test_every_level_is_normal_with_its_own_std(std: float) -> None:
    values = _field(std, shape=(1024, 1024)).ravel() / std
    count = values.size
    assert abs(values.mean()) < 4 / count**0.5
    assert abs(values.var() - 1) < 4 * (2 / count) ** 0.5
    assert abs(stats.skew(values)) < 4 * (6 / count) ** 0.5
    assert abs(stats.kurtosis(values)) < 4 * (24 / count) ** 0.5
    assert stats.kstest(values, "norm").pvalue > 1e-3


@pytest.mark.parametrize("std", LEVELS)
def test_the_tails_hold_as_many_as_they_should(std: float) -> None:
    values = np.concatenate([_field(std, image=image, shape=(1024, 1024)).ravel() for image in range(6)]) / std
    for bound in (2.5, 2.66, 3.0, 4.0, 4.5, 5.0):
        for count in (int((values > bound).sum()), int((values < -bound).sum())):
            assert stats.binomtest(count, values.size, float(ndtr(-bound))).pvalue > 1e-4, bound


def test_the_tails_reach_beyond_ten_standard_deviations_and_are_exact_there() -> None:
    shape = (2, 8)
    for word, sign in ((0, -1.0), (2**32 - 1, 1.0)):

        def words(bits: secret._Bits, count: int, word: int = word) -> npt.NDArray[np.uint32]:
            turned = np.frombuffer(bits._plain[:4], dtype="<u4")  # what the cipher adds to its key stream
            return np.full(count, word, dtype=np.uint32) ^ turned

        with mock.patch.object(secret._Bits, "words", words):
            values = _field(shape=shape) / ROOT
        further = ((word << 32 | word) >> 12) + 0.5
        # The further bits are the same word, so they are all zeros or all ones.
        probability = further * 2.0**-52 * 2.0**-32
        assert np.allclose(values, sign * -ndtri(probability), rtol=1e-6)
    assert log_ndtr(-10.6) == pytest.approx(np.log(2.0**-85), rel=0.01)


def test_levels_are_values_of_one_path_with_independent_increments() -> None:
    path = np.stack([np.zeros((1024, 1024)), *(_field(std, shape=(1024, 1024)) for std in sorted(LEVELS))])
    increments = np.diff(path, axis=0).reshape(len(LEVELS), -1)
    count = increments.shape[1]
    times = np.diff([0.0, *(std**2 for std in sorted(LEVELS))])
    for values, time in zip(increments, times, strict=True):
        assert abs(values.var() / time - 1) < 4 * (2 / count) ** 0.5
        assert stats.kstest(values / time**0.5, "norm").pvalue > 1e-3
    for first, second in itertools.combinations(increments, 2):
        assert abs(_correlation(first, second)) < 4 / count**0.5
        assert abs(_correlation(first**2, second**2)) < 4 / count**0.5


def test_all_levels_together_say_no_more_than_the_least_noisy_one() -> None:
    """The best linear estimate of a pixel from all levels has weight on the least noisy alone."""
    noise = np.stack([_field(std, shape=(1024, 1024)).ravel() for std in sorted(LEVELS)])
    weights = np.linalg.solve(np.cov(noise), np.ones(len(LEVELS)))
    weights /= weights.sum()
    assert weights == pytest.approx([1.0, *[0.0] * (len(LEVELS) - 1)], abs=0.01)
    assert (weights @ noise).std() == pytest.approx(min(LEVELS), rel=0.005)


def test_the_same_again_is_the_same_to_the_bit() -> None:
    for std in LEVELS:
        assert np.array_equal(_field(std), _field(std))


@pytest.mark.parametrize(
    "other",
    [{"key": b"t" * 32}, {"image": 1}, {"geometry": "crop 8"}, {"shape": (256, 1024)}],
    ids=lambda other: next(iter(other)),
)
@pytest.mark.parametrize("std", LEVELS)
def test_another_secret_image_or_geometry_has_independent_noise(std: float, other: dict[str, object]) -> None:
    one, two = _field(std), _field(std, **other)  # type: ignore[arg-type]
    assert abs(_correlation(one, two)) < 4 / one.size**0.5
    assert abs(_correlation(one**2, two**2)) < 4 / one.size**0.5


def test_many_images_are_pairwise_independent() -> None:
    fields = np.stack([_field(image=image, shape=(64, 64)).ravel() for image in range(40)])
    off = np.corrcoef(fields)[np.triu_indices(40, 1)]
    assert np.abs(off).max() < 5 / 64
    assert stats.kstest(off * 64, "norm").pvalue > 1e-3


def test_neighbouring_pixels_are_independent() -> None:
    values = _field(shape=(1024, 1024))
    for down, across in ((0, 1), (1, 0), (1, 1), (64, 0)):
        shifted = values[down:, across:]
        assert abs(_correlation(values[: shifted.shape[0], : shifted.shape[1]], shifted)) < 4 / values.size**0.5


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_rounding_to_levels_leaves_no_bias(dtype: type) -> None:
    noise = _field(0.1, shape=(1024, 1024)).astype(np.float32)
    noisy = np.float32(0.5) + noise
    inside = (noisy >= 0) & (noisy <= 1)
    error = (to_pixels(to_levels(noisy, dtype)) - noisy.astype(np.float64))[inside]
    step = 1 / np.iinfo(dtype).max
    assert abs(error.mean()) < 4 * step / (12 * error.size) ** 0.5
    assert error.var() == pytest.approx(step**2 / 12, rel=0.01)


@pytest.mark.parametrize("level", [0.0, 0.3, 1.0])
def test_clamped_and_rounded_pixels_average_to_the_mean_map(level: float) -> None:
    noise = _field(0.3, shape=(1024, 1024)).astype(np.float32)
    released = to_pixels(to_levels(np.float32(level) + np.float32(0.1) + noise, np.uint8)).astype(np.float64)
    expected = mean_map(torch.tensor([level], dtype=torch.float64), mean=0.1, std=0.3).item()
    assert abs(released.mean() - expected) < 4 * released.std() / 1024


def test_noise_is_that_of_the_releases_made_so_far() -> None:
    """A release can be repeated only as long as these hold: noise of another version would be independent noise."""
    digests = {
        std: hashlib.sha256(np.rint(_field(std, shape=(64, 64)) * 2**14).astype("<i4").tobytes()).hexdigest()[:16]
        for std in LEVELS
    }
    assert digests == {0.1: "1fb0c9b3f4382ccf", 0.2: "d0036e70a36c666c", 0.3: "2a6dd2bb53113a9e"}


def test_the_constants_are_those_of_the_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    poles, factors, error = importlib.import_module("secret_noise_fit").fit()
    assert error < 5e-8
    assert poles == pytest.approx([pole for pole, _ in secret._FRACTIONS], rel=1e-4)
    known = [*(residue for _, residue in secret._FRACTIONS), secret._CONSTANT]
    assert factors == pytest.approx(known, rel=1e-3)


def test_noise_does_not_hang_on_the_processor_s_vector_instructions() -> None:
    """To the last bit, with every instruction set that numpy could choose, and with none."""
    from numpy._core._multiarray_umath import __cpu_dispatch__, __cpu_features__

    chosen = [name for name in __cpu_dispatch__ if __cpu_features__.get(name)]
    if not chosen:
        pytest.skip("numpy has no choice on this processor")
    script = (
        "import hashlib\nfrom veilray.obfuscation.secret import secret_field\n"
        "field = secret_field(secret=b's' * 32, digest=b'd' * 32, geometry='', std=0.3, shape=(300, 301))\n"
        "print(hashlib.sha256(field.tobytes()).hexdigest())"
    )
    environment = {**os.environ, "NPY_DISABLE_CPU_FEATURES": " ".join(chosen)}
    plain = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True, timeout=120
    )
    field = secret_field(secret=b"s" * 32, digest=b"d" * 32, geometry="", std=0.3, shape=(300, 301))
    assert plain.stdout.strip() == hashlib.sha256(field.tobytes()).hexdigest()


@pytest.mark.parametrize("std", [0.0, 0.15, 0.2000001, -0.1, float("nan"), 10.0])
def test_a_level_off_the_list_is_refused(std: float) -> None:
    with pytest.raises(UsageError, match=r"0\.1, 0\.2, 0\.3"):
        _field(std)
    with pytest.raises(UsageError):
        check_level(std)


@pytest.mark.parametrize(("key", "digest"), [(b"short", b"d" * 32), (b"s" * 32, b"d" * 20), (b"", b"")])
def test_a_secret_or_digest_of_another_length_is_refused(key: bytes, digest: bytes) -> None:
    with pytest.raises(UsageError, match="32 bytes"):
        secret_field(secret=key, digest=digest, geometry="", std=0.1, shape=(8, 8))


def test_there_are_at_most_five_levels_the_published_ones_among_them() -> None:
    assert {0.1, 0.2, 0.3} <= set(LEVELS)
    assert len(LEVELS) <= 5
