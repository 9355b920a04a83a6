"""Attacks on noise itself, without a network: on noise made for the audit, Veilray's way and the naive one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from veilray.errors import UsageError
from veilray.images.radiograph import FloatImage
from veilray.obfuscation.noise import fill_standard_normal
from veilray.privacy.catalogue import AVERAGING, GUESSING, SUBTRACTING
from veilray.privacy.data import AuditData, Variant
from veilray.privacy.recovery import SEARCHED, averages, find_seeds, subtracted, without_field
from veilray.privacy.results import AttackResult, NoiseWay, Skipped
from veilray.privacy.scoring import psnr_of, score_record

_WORDS: dict[NoiseWay, str] = {
    "fresh": "fresh noise for each release",
    "seeded": "a seeded generator",
    "secret": "Veilray's secret noise",
}
_SCALED = "one seeded field scaled to two levels"


class NoiseTrial:
    """Attacks on noise made for the audit, over some of the images of one variant, with each of several seeds."""

    def __init__(self, data: AuditData, variant: Variant, rows: npt.NDArray[np.int64], *, seeds: Sequence[int]) -> None:
        self._data, self._variant, self._rows, self._seeds = data, variant, rows, tuple(seeds)
        self._clean = data.clean(rows)

    def why_no_secret(self) -> str:
        """Why secret nested noise cannot be tried at this level; empty where it can."""
        from veilray.obfuscation.secret import check_level

        try:
            check_level(self._variant.std)
            self._secret_field(0, self._variant.std, (1, 1), self._seeds[0])
        except UsageError as error:
            return f"secret noise was not tried: {error}"
        except ImportError:
            return "secret noise was not tried: it needs the package cryptography (extra `sites`)"
        return ""

    def average(self, counts: Sequence[int], *, nested: bool) -> AttackResult | Skipped:
        """PSNR of the average of ever more releases."""
        way: NoiseWay = "secret" if nested else "fresh"
        variant, scores = self._variant, []
        for seed in self._seeds:
            releases = self._releases(max(counts), way, seed)
            estimates = averages(releases, counts, mean=variant.mean, std=variant.std, clip=variant.clip)
            scores.append([psnr_of(estimate, self._clean) for _, estimate in estimates])
        by_count = np.mean(scores, axis=0)
        curve = [
            (float(count), float(np.mean(of[np.isfinite(of)])) if np.isfinite(of).any() else 99.0)
            for count, of in zip(counts, by_count, strict=True)
        ]
        gain = curve[-1][1] - curve[0][1]
        return self._scored(
            by_count[-1],
            metric="psnr_of_releases",
            unit="dB",
            attacker=f"{AVERAGING}, {_WORDS[way]}",
            noise=way,
            count=counts[-1],
            notes=(f"{gain:+.1f} dB against one release; curve: PSNR by the number of releases",),
            curve=tuple(curve),
        )

    def subtract(self, *, nested: bool) -> AttackResult | Skipped:
        """PSNR of what two levels give when they are subtracted as if one were the other scaled."""
        way: NoiseWay = "secret" if nested else "seeded"
        std = self._variant.std
        other = self._other_level(nested=nested)
        weak_std, strong_std = min(std, other), max(std, other)
        mean, clip = self._variant.mean, self._variant.clip
        scores, alone = [], []
        for seed in self._seeds:
            weak, strong = (self._level(level, way, seed) for level in (weak_std, strong_std))
            estimate = subtracted(weak, strong, mean=mean, weak_std=weak_std, strong_std=strong_std, clip=clip)
            scores.append(psnr_of(estimate, self._clean))
            alone.append(np.mean(psnr_of(np.clip(weak, 0.0, 1.0), self._clean)))
        found, better = np.mean(scores, axis=0), float(np.mean(alone))
        return self._scored(
            found,
            metric="psnr_of_two_levels",
            unit="dB",
            attacker=f"{SUBTRACTING}, {_SCALED if way == 'seeded' else _WORDS[way]}",
            noise=way,
            notes=(
                f"levels {weak_std:g} and {strong_std:g}; curve: the less noisy one alone, {better:.1f} dB, and both",
            ),
            curve=((1.0, better), (2.0, float(found.mean()))),
        )

    def guess(self, tried: int, *, nested: bool) -> list[AttackResult | Skipped]:
        """Share of the images whose seed is found among so many; and what that gives back."""
        true, fields = self._seeded(tried)
        noisy = [self._noisy(field * np.float32(self._variant.std)) for field in fields]
        # All are searched together, since drawing the candidates takes the time.
        secret = [self._level(self._variant.std, "secret", seed) for seed in self._seeds] if nested else []
        beginnings = [images.reshape(len(images), 1, -1)[..., :SEARCHED] for images in (*noisy, *secret)]
        found = find_seeds(np.concatenate(beginnings), seeds=tried, draw=seeded_field)
        each = np.array([-1 if one is None else one for one in found]).reshape(-1, len(self._rows))
        hits = (each[: len(noisy)] == true).astype(np.float64)
        notes = (f"all {tried:,} seeds tried, from the first pixels of the noisy image alone",)
        of_secret = (each[len(noisy) :] >= 0).astype(np.float64)

        def record(values: npt.NDArray[np.float64], way: NoiseWay, *more: str) -> AttackResult | Skipped:
            return self._scored(
                values.mean(axis=0),
                metric="seeds_found",
                unit="share",
                attacker=f"{GUESSING}, {_WORDS[way]}",
                noise=way,
                count=tried,
                notes=(*notes, *more),
                chance=1.0 / tried,
            )

        results = [record(hits, "seeded", *self._recovered(noisy, fields, hits))]
        return [*results, record(of_secret, "secret")] if nested else results

    def _seeded(self, tried: int) -> tuple[npt.NDArray[np.int64], list[FloatImage]]:
        """For each seed of the audit the seeds of the images, (S, n), and the fields that they give, (n, H, W) each."""
        shape = self._clean.shape[1:]
        true = np.stack([np.random.default_rng(seed).integers(tried, size=len(self._rows)) for seed in self._seeds])
        count = int(np.prod(shape))
        fields = [np.stack([seeded_field(one, count).reshape(shape) for one in row]) for row in true.tolist()]
        return true, fields

    def _recovered(
        self, noisy: Sequence[FloatImage], fields: Sequence[FloatImage], hits: npt.NDArray[np.float64]
    ) -> tuple[str, ...]:
        """What a found seed gives back, in a sentence."""
        variant, shares, errors = self._variant, [], []
        for draw, place in np.argwhere(hits > 0.0).tolist():
            image, whole = without_field(
                noisy[draw][place], fields[draw][place], mean=variant.mean, std=variant.std, clip=variant.clip
            )
            shares.append(float(whole.mean()))
            errors.append(float(np.abs(image - self._clean[place])[whole].max(initial=0.0)))
        if not shares:
            return ()
        return (
            f"a found seed gives back {100 * np.mean(shares):.0f} % of the pixels, those that no clamp cut, with an "
            f"error of at most {255 * max(errors):.2g} grey levels",
        )

    def _scored(self, values: npt.NDArray[np.float64], **options: Any) -> AttackResult | Skipped:
        return score_record(self._data, self._variant.name, self._rows, values, seeds=self._seeds, **options)

    def _releases(self, count: int, way: NoiseWay, seed: int) -> Iterator[FloatImage]:
        # A level of secret noise leaves again as it left before, to the bit.
        again = self._level(self._variant.std, way, seed) if way == "secret" else None
        for number in range(count):
            if again is not None:
                yield again
            else:
                yield self._noisy(self._fresh(number, seed) * np.float32(self._variant.std))

    def _level(self, std: float, way: NoiseWay, seed: int) -> FloatImage:
        """The images at a level: of one secret's nested noise, or of one seeded field scaled."""
        if way != "secret":
            return self._noisy(self._fresh(0, seed) * np.float32(std))
        shape = (self._clean.shape[1], self._clean.shape[2])
        return self._noisy(np.stack([self._secret_field(row, std, shape, seed) for row in self._rows.tolist()]))

    def _other_level(self, *, nested: bool) -> float:
        """A noisier level that left as well; of the noisiest of a secret's the one before it."""
        from veilray.obfuscation.secret import LEVELS

        std = self._variant.std
        if not nested:
            return 1.5 * std
        noisier = [level for level in LEVELS if level > std]
        return noisier[0] if noisier else LEVELS[-2]

    def _secret_field(self, row: int, std: float, shape: tuple[int, int], seed: int) -> FloatImage:
        from veilray.obfuscation.secret import secret_field

        secret = hashlib.sha256(f"secret of the audit {seed}".encode()).digest()
        return secret_field(secret=secret, digest=row.to_bytes(32, "big"), geometry="audit", std=std, shape=shape)

    def _fresh(self, number: int, seed: int) -> FloatImage:
        fields = torch.empty(self._clean.shape)
        for field, row in zip(fields, self._rows.tolist(), strict=True):
            fill_standard_normal(field, key=(seed << 80) + (number << 40) + row)
        values: FloatImage = fields.numpy()
        return values

    def _noisy(self, noise: FloatImage) -> FloatImage:
        images: FloatImage = self._clean + np.float32(self._variant.mean) + noise
        if not self._variant.clip:
            return images
        rounded: FloatImage = np.rint(np.clip(images, 0.0, 1.0) * 255.0).astype(np.float32) / np.float32(255.0)
        return rounded


def seeded_field(seed: int, count: int) -> npt.NDArray[np.float32]:
    """The first values of numpy's default generator for a seed, as a script that sets a seed draws them."""
    return np.random.default_rng(seed).standard_normal(count, dtype=np.float32)
