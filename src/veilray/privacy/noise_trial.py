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
from veilray.privacy.data import AuditData, Variant
from veilray.privacy.recovery import averages, find_seeds, subtracted, without_field
from veilray.privacy.results import AttackResult, Skipped
from veilray.privacy.scoring import psnr_of, score_record


class NoiseTrial:
    """Attacks on noise made for the audit, over some of the images of one variant."""

    def __init__(self, data: AuditData, variant: Variant, rows: npt.NDArray[np.int64], *, seed: int) -> None:
        self._data, self._variant, self._rows, self._seed = data, variant, rows, seed
        self._clean = data.clean(rows)
        self._secret = hashlib.sha256(f"secret of the audit {seed}".encode()).digest()

    def why_no_secret(self) -> str:
        """Why secret nested noise cannot be tried at this level; empty where it can."""
        from veilray.obfuscation.secret import check_level

        try:
            check_level(self._variant.std)
            self._secret_field(0, self._variant.std, (1, 1))
        except UsageError as error:
            return f"secret noise was not tried: {error}"
        except ImportError:
            return "secret noise was not tried: it needs the package cryptography (extra `sites`)"
        return ""

    def average(self, counts: Sequence[int], *, nested: bool) -> AttackResult | Skipped:
        """PSNR of the average of ever more releases."""
        variant, curve, last = self._variant, [], np.zeros(0)
        releases = self._releases(max(counts), nested=nested)
        for count, estimate in averages(releases, counts, mean=variant.mean, std=variant.std, clip=variant.clip):
            last = psnr_of(estimate, self._clean)
            curve.append((float(count), float(np.mean(last[np.isfinite(last)])) if np.isfinite(last).any() else 99.0))
        gain = curve[-1][1] - curve[0][1]
        way = "Veilray's secret noise" if nested else "fresh noise for each release"
        return self._scored(
            last,
            metric=f"psnr_of_{counts[-1]}_releases",
            attacker=f"averaging {counts[-1]} releases, {way}",
            notes=(f"{gain:+.1f} dB against one release; curve: PSNR by the number of releases",),
            curve=tuple(curve),
        )

    def subtract(self, *, nested: bool) -> AttackResult | Skipped:
        """PSNR of what two levels give when they are subtracted as if one were the other scaled."""
        std = self._variant.std
        other = self._other_level(nested=nested)
        weak_std, strong_std = min(std, other), max(std, other)
        weak, strong = (self._level(level, nested=nested) for level in (weak_std, strong_std))
        mean, clip = self._variant.mean, self._variant.clip
        estimate = subtracted(weak, strong, mean=mean, weak_std=weak_std, strong_std=strong_std, clip=clip)
        way = "Veilray's secret noise" if nested else "one seeded field scaled to two levels"
        return self._scored(
            psnr_of(estimate, self._clean),
            metric="psnr_of_two_levels",
            attacker=f"subtracting two levels, {way}",
            notes=(
                f"levels {weak_std:g} and {strong_std:g}; the less noisy one alone has "
                f"{np.mean(psnr_of(np.clip(weak, 0.0, 1.0), self._clean)):.1f} dB",
            ),
        )

    def guess(self, seeds: int, *, nested: bool) -> list[AttackResult | Skipped]:
        """Share of the images whose seed is found; and what that gives back."""
        generator = np.random.default_rng(self._seed)
        true = generator.integers(seeds, size=len(self._rows)).tolist()
        shape = self._clean.shape[1:]
        fields = np.stack([seeded_field(seed, int(np.prod(shape))).reshape(shape) for seed in true])
        noisy = self._noisy(fields * np.float32(self._variant.std))
        # Both are searched together, since drawing the candidates takes the time.
        secret = self._level(self._variant.std, nested=True) if nested else noisy[:0]
        both = find_seeds(np.concatenate([noisy, secret]), seeds=seeds, draw=seeded_field)
        found, taken = both[: len(noisy)], both[len(noisy) :]
        hits = np.array([one == seed for one, seed in zip(found, true, strict=True)], dtype=np.float64)
        notes = (f"all {seeds:,} seeds tried, from the first pixels of the noisy image alone",)
        chance = 1.0 / seeds
        results = [
            self._scored(
                hits,
                metric="seeds_found",
                attacker=f"guessing one of {seeds:,} seeds, seeded generator",
                notes=(*notes, *self._recovered(noisy, fields, hits)),
                share=True,
                chance=chance,
            )
        ]
        if nested:
            results.append(
                self._scored(
                    np.array([one is not None for one in taken], dtype=np.float64),
                    metric="seeds_found",
                    attacker=f"guessing one of {seeds:,} seeds, Veilray's secret noise",
                    notes=notes,
                    share=True,
                    chance=chance,
                )
            )
        return results

    def _recovered(self, noisy: FloatImage, fields: FloatImage, hits: npt.NDArray[np.float64]) -> tuple[str, ...]:
        """What a found seed gives back, in a sentence."""
        variant, shares, errors = self._variant, [], []
        for place in np.flatnonzero(hits).tolist():
            image, whole = without_field(
                noisy[place], fields[place], mean=variant.mean, std=variant.std, clip=variant.clip
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
        return score_record(self._data, self._variant.name, self._rows, values, seeds=(self._seed,), **options)

    def _releases(self, count: int, *, nested: bool) -> Iterator[FloatImage]:
        # A level of secret noise leaves again as it left before, to the bit.
        again = self._level(self._variant.std, nested=True) if nested else None
        for number in range(count):
            yield again if again is not None else self._noisy(self._fresh(number) * np.float32(self._variant.std))

    def _level(self, std: float, *, nested: bool) -> FloatImage:
        """The images at a level: of one secret's nested noise, or of one seeded field scaled."""
        if not nested:
            return self._noisy(self._fresh(0) * np.float32(std))
        shape = (self._clean.shape[1], self._clean.shape[2])
        return self._noisy(np.stack([self._secret_field(row, std, shape) for row in self._rows.tolist()]))

    def _other_level(self, *, nested: bool) -> float:
        from veilray.obfuscation.secret import LEVELS

        std = self._variant.std
        if nested:
            return next(level for level in (0.2, *LEVELS) if level != std)
        return 1.5 * std

    def _secret_field(self, row: int, std: float, shape: tuple[int, int]) -> FloatImage:
        from veilray.obfuscation.secret import secret_field

        digest = row.to_bytes(32, "big")
        return secret_field(secret=self._secret, digest=digest, geometry="audit", std=std, shape=shape)

    def _fresh(self, number: int) -> FloatImage:
        fields = torch.empty(self._clean.shape)
        for field, row in zip(fields, self._rows.tolist(), strict=True):
            fill_standard_normal(field, key=(self._seed << 80) + (number << 40) + row)
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
