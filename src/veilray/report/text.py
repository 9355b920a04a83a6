"""Numbers and sentences as a reader of a paper expects them; every figure comes from the comparison."""

from __future__ import annotations

import math

from veilray.evaluation.comparison import SIGNIFICANCE, Arm, Comparison, Level, Pair
from veilray.evaluation.labels import percent
from veilray.metrics.interval import Interval
from veilray.metrics.statistics import smallest_p_value

METRIC_NAMES = {
    "psnr": "PSNR",
    "ssim": "SSIM",
    "ssim_3x3": "SSIM 3×3",
    "lpips": "LPIPS",
    "psnr_unclamped": "PSNR unclamped",
}
METRIC_UNITS = {"psnr": "dB", "psnr_unclamped": "dB"}
_DIGITS = {"psnr": 2, "psnr_unclamped": 2}
_NARROW = "\N{NARROW NO-BREAK SPACE}"


def number(value: float, digits: int, *, sign: bool = False) -> str:
    """A number with a true minus sign and thousands set apart; `sign` writes the plus sign too."""
    text = f"{value:{'+' if sign else ''},.{digits}f}"
    if not float(text.replace(",", "")):
        text = text.lstrip("+-")
    return text.replace("-", "−").replace(",", _NARROW)


def score(metric: str, value: float, *, sign: bool = False) -> str:
    """A value of a metric without its unit: two decimals for dB, four for the others."""
    return number(value, _DIGITS.get(metric, 4), sign=sign)


def ends(metric: str, interval: Interval, *, sign: bool = False) -> str:
    """The ends of an interval, `29.98 to 30.26`."""
    return f"{score(metric, interval.low, sign=sign)} to {score(metric, interval.high, sign=sign)}"


def with_unit(metric: str, text: str) -> str:
    """A value followed by the metric's unit, where it has one."""
    unit = METRIC_UNITS.get(metric)
    return f"{text}\N{NO-BREAK SPACE}{unit}" if unit else text


def p_text(p_value: float) -> str:
    """A p-value: `< 0.001`, or three decimals."""
    return "<\N{NO-BREAK SPACE}0.001" if p_value < 0.001 else number(p_value, 3)


def p_phrase(p_value: float) -> str:
    """A p-value within a sentence: `p < 0.001`, `p = 0.012`."""
    text = p_text(p_value)
    return f"p {text}" if text.startswith("<") else f"p = {text}"


def share(value: float) -> str:
    """A share in per cent."""
    return f"{number(100 * value, 0)}{_NARROW}%"


def seconds(value: float | None) -> str:
    """A duration in seconds as in the paper's tables; a dash where it is not known."""
    return "–" if value is None else number(value, 1)


def core_seconds(value: float | None) -> str:
    """The time of one core in seconds, with two digits that count; a dash where it is not known."""
    if value is None:
        return "–"
    return number(value, max(0, 1 - math.floor(math.log10(value))) if 0 < value < 10 else 0)


def count(number_of: int, noun: str, plural: str = "") -> str:
    """A count with its noun: `1 patient`, `84 patients`."""
    return f"{number(number_of, 0)} {noun if number_of == 1 else plural or noun + 's'}"


def listed(items: list[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join(filter(None, [", ".join(items[:-1]), items[-1]])) if items else ""


def kind_of_data(comparison: Comparison) -> str:
    """What the images came from: a release, which has its noise, or a cohort."""
    return "release" if all(level.test_noise_seed is None for level in comparison.levels) else "cohort"


def title(comparison: Comparison) -> str:
    """What was compared, and at which noise."""
    families = list(dict.fromkeys(arm.label.split(",")[0] for level in comparison.levels for arm in level.models))
    strengths = listed([percent(level.noise) for level in comparison.levels])
    return f"Denoising obfuscated chest radiographs with {listed(families)} at {strengths} Gaussian noise"


def abstract(comparison: Comparison) -> list[str]:
    """The result in a few sentences: what was done, then the outcome at each noise level."""
    patients = count(len(set(comparison.patient_ids)), "patient")
    models = {arm.label for level in comparison.levels for arm in level.models}
    strengths = listed([percent(level.noise) for level in comparison.levels])
    opening = (
        f"{count(len(comparison.image_ids), 'chest radiograph')} of {patients} ({comparison.split} set) were "
        f"obfuscated with Gaussian noise of {strengths} of the intensity range "
        f"and restored by {count(len(models), 'trained denoiser')}, from {count(len(comparison.runs), 'training run')}."
    )
    return [opening, *(_outcome(level, comparison) for level in comparison.levels)]


def _outcome(level: Level, comparison: Comparison) -> str:
    ranked = sorted(level.models, key=lambda arm: -_psnr(arm).mean)
    noisy = next((arm for arm in level.arms if arm.kind == "noisy"), None)
    gain = "" if noisy is None else f" from {with_unit('psnr', score('psnr', _psnr(noisy).mean))} of the noisy input"
    leader = ranked[0]
    verb = "brought" if noisy is None else "raised" if _psnr(leader).mean >= _psnr(noisy).mean else "lowered"
    seeds = f"; mean of {count(len(leader.runs), 'seed')}" if len(leader.runs) > 1 else "; one seed"
    sentence = (
        f"At {percent(level.noise)}, {leader.label} {verb} the mean PSNR{gain} to "
        f"{with_unit('psnr', score('psnr', _psnr(leader).mean))} "
        f"({confidence(comparison)} {ends('psnr', _psnr(leader))}{seeds})."
    )
    return sentence if len(ranked) < 2 else f"{sentence} {_against(level, leader, ranked[1], comparison)}"


def _against(level: Level, leader: Arm, other: Arm, comparison: Comparison) -> str:
    labels = {leader.label, other.label}
    pair = next(pair for pair in level.pairs if pair.metric == "psnr" and {pair.first, pair.second} == labels)
    value = with_unit("psnr", score("psnr", pair.difference.mean, sign=True))
    tests = sum(len(each.pairs) for each in comparison.levels)
    few = smallest_p_value(len(set(comparison.patient_ids)), tests=tests) >= SIGNIFICANCE
    undecided = ": too few patients to test." if few else ", too little to tell the two apart."
    verdict = "." if pair.significant else undecided
    return (
        f"The paired difference {difference(pair)} is {value} ({confidence(comparison)} "
        f"{ends('psnr', pair.difference, sign=True)}; Holm-corrected {p_phrase(pair.p_holm)}){verdict}"
    )


def difference(pair: Pair) -> str:
    """The two arms of a pair as a subtraction."""
    return f"{pair.first} − {pair.second}"


def confidence(comparison: Comparison) -> str:
    """The kind of the intervals: `95 % CI`."""
    return f"{number(100 * comparison.confidence, 0)}{_NARROW}%\N{NO-BREAK SPACE}CI"


def _psnr(arm: Arm) -> Interval:
    interval = arm.metrics["psnr"]
    assert interval is not None, "PSNR is always computed"
    return interval
