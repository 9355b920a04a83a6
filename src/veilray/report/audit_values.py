"""How figures of an audit are written: values in their unit, intervals, predictions, and names of metrics."""

from __future__ import annotations

from collections.abc import Sequence

from veilray.privacy.catalogue import KNOWING, OF_PATCH
from veilray.privacy.results import FEW_PATIENTS, AttackResult, Difference, few_patients_note
from veilray.report.text import number

NBSP = "\N{NO-BREAK SPACE}"

METRIC_NAMES = {
    "top_1": "found among all originals",
    "top_1_checked": "made hard, against the closed form",
    "auc": "AUC",
    "auc_matched": "AUC, matched impostors",
    "precision_at_1": "precision at 1",
    "tpr_at_fpr_1e-3": "true positives at 0.1 % false ones",
    "psnr": "PSNR, dB",
    "ssim": "SSIM",
    "lpips": "LPIPS",
    "psnr_of_releases": "PSNR of averaged releases, dB",
    "seeds_found": "seeds found",
    "psnr_of_two_levels": "PSNR of two levels, dB",
    "sex_auc": "sex, AUC",
    "view_auc": "view, AUC",
    "sex_accuracy": "sex, accuracy",
    "view_accuracy": "view, accuracy",
    "age_group_accuracy": "age group, accuracy",
}
"""What readers call a metric; others are spelt out of their own names."""


def at_least(result: AttackResult, *, of: str = "") -> str:
    """What an attacker can do at least: the lower end of the interval, with the figure; or that it did not show."""
    few = few_patients_note(result.n_patients) if result.n_patients < FEW_PATIENTS else ""
    if result.low is None or result.high is None:
        return f"{figure(result, of=of)}, without an interval"
    ends = interval_text(result)
    if result.chance is not None and result.low <= result.chance:
        beside = "; ".join(filter(None, [f"{value_text(result.value, result.unit)}, 95 % {ends}", of, few]))
        return f"not told from guessing by this attacker ({beside})"
    measured = f"measured {value_text(result.value, result.unit)}, 95 % {ends}"
    beside = "; ".join(filter(None, [measured, of, few]))
    return f"at least {value_text(result.low, result.unit)} ({beside})"


def figure(result: AttackResult, *, of: str = "") -> str:
    """A figure with its interval, what it is `of`, and in the same breath where it is from few patients."""
    few = few_patients_note(result.n_patients) if result.n_patients < FEW_PATIENTS else ""
    beside = "; ".join(filter(None, [interval_text(result), of, few]))
    text = value_text(result.value, result.unit)
    return f"{text} ({beside})" if beside else text


def interval_text(result: AttackResult) -> str:
    """The ends of the interval, `0.830 to 0.910`; empty where there is none."""
    if result.low is None or result.high is None:
        return ""
    low, high = (value_text(end, result.unit) for end in (result.low, result.high))
    unit = high.rpartition(NBSP)[2] if NBSP in high else ""
    return f"{low.removesuffix(NBSP + unit)} to {high}"


def difference_text(difference: Difference) -> tuple[str, str]:
    """A difference with its sign, and the ends of its interval, empty where there is none."""
    value = number(difference.value, 3, sign=True)
    if difference.low is None or difference.high is None:
        return value, ""
    return value, f"{number(difference.low, 3, sign=True)} to {number(difference.high, 3, sign=True)}"


def predicted_text(result: AttackResult) -> str:
    """What a closed form says, and how far off the measurement is; empty where there is none."""
    if result.predicted is None:
        return ""
    bound = "at least " if result.predicted_at_least else ""
    text = f"predicted {bound}{value_text(result.predicted, result.unit)}"
    return text if result.deviation is None else f"{text}, z {number(result.deviation, 1, sign=True)}"


def chance_text(results: Sequence[AttackResult]) -> str:
    """What guessing gives, of figures in one row of a table."""
    known = {value_text(one.chance, one.unit) for one in results if one.chance is not None}
    return " / ".join(sorted(known))


def value_text(value: float, unit: str) -> str:
    """A value in its unit: per cent, dB or three decimals."""
    if unit == "dB":
        return f"{number(value, 1)}{NBSP}dB"
    if unit == "share":
        percent = 100.0 * value
        return f"{number(percent, 0 if percent in (0.0, 100.0) else 1)}{NBSP}%"
    return number(value, 3)


def metric_words(result: AttackResult) -> str:
    """What readers call a figure's metric, with how many releases or seeds it took."""
    if result.count is None:
        return metric_name(result.metric)
    if result.metric == "seeds_found":
        return f"found of {number(result.count, 0)} seeds"
    return f"PSNR of {result.count} releases, dB"


def metric_name(metric: str) -> str:
    """What readers call a metric."""
    if metric in METRIC_NAMES:
        return METRIC_NAMES[metric]
    if metric.endswith(KNOWING):
        return f"{metric_name(metric.removesuffix(KNOWING))}, metadata known"
    if metric.startswith(OF_PATCH):
        side = metric.removeprefix(OF_PATCH)
        return f"found from {side} × {side} pixels alone"
    return metric.replace("_", " ")


def epsilon_text(epsilon: float) -> str:
    """An epsilon with three digits."""
    return f"{epsilon:.3g}" if epsilon < 100.0 else number(epsilon, 0)
