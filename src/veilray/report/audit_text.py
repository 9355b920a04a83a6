"""What an audit says in words: a verdict for each kind of attacker, with its figures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from veilray.privacy.gate import PASSED
from veilray.privacy.results import FEW_PATIENTS, AttackResult, Audit, FormalLevel, few_patients_note
from veilray.report.text import listed, number

METADATA = "sex, view and age alone"
"""The attacker who sees no pixels, as re-identification names it."""
_PARTS = "part of the network"
_NBSP = "\N{NO-BREAK SPACE}"

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
    "seeds_found": "seeds found",
    "psnr_of_two_levels": "PSNR of two levels, dB",
    "sex_auc": "sex, AUC",
    "view_auc": "view, AUC",
    "sex_accuracy": "sex, accuracy",
    "view_accuracy": "view, accuracy",
    "age_group_accuracy": "age group, accuracy",
}
"""What readers call a metric; others are spelt out of their own names."""

_SHARES = ("top_1", "precision_at_1", "seeds_found", "accuracy", "tpr")


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What an attacker of one kind can do."""

    attacker: str
    """Who, as a heading."""
    sentences: tuple[str, ...]

    @property
    def plain(self) -> str:
        """One line for a terminal."""
        return f"{self.attacker}: {' '.join(self.sentences)}".replace(_NBSP, " ")


def verdicts(audit: Audit) -> list[Verdict]:
    """A verdict for each kind of attacker that something was measured of, the strongest knowledge first."""
    found = [_of_release(audit), _linkage(audit), _identity(audit), _attributes(audit), _restoring(audit)]
    found += [_averaging(audit), _keys(audit), _members(audit), _formally(audit)]
    return [one for one in found if one.sentences]


def headline(audit: Audit) -> str:
    """The audit in one sentence."""
    noisy = [name for name, kind in audit.audited.variants.items() if kind == "noisy"]
    linked = _by_variant(audit, "linkage", "top_1", noisy)
    known = _by_variant(audit, "re-identification", "auc_matched", noisy) or _by_variant(
        audit, "re-identification", "auc", noisy
    )
    parts = []
    if linked:
        worst = max(linked.values(), key=lambda one: one.value)
        parts.append(f"whoever holds an original finds it again in at least {figure(worst)} of cases")
    if known:
        worst = max(known.values(), key=lambda one: one.value)
        parts.append(
            f"released images of one patient can be told to belong together with an AUC of at least {figure(worst)}"
        )
    if not parts:
        return "Nothing could be measured; the reasons are listed below."
    return f"{'; '.join(parts)}."[0].upper() + f"{'; '.join(parts)}."[1:]


def gate_sentence(audit: Audit) -> str:
    """What the policy said; empty where there was none."""
    if audit.gate is None:
        return ""
    if audit.gate.passed:
        return f"Gate passed: {PASSED} ({audit.gate.rules} limits). This does not say that the release is safe."
    return "Gate not passed: " + "; ".join(breach.reason for breach in audit.gate.breaches) + "."


def figure(result: AttackResult) -> str:
    """A figure with its interval, and in the same breath where it is from few patients."""
    few = few_patients_note(result.n_patients) if result.n_patients < FEW_PATIENTS else ""
    beside = "; ".join(filter(None, [interval_text(result), few]))
    text = value_text(result.metric, result.value)
    return f"{text} ({beside})" if beside else text


def interval_text(result: AttackResult) -> str:
    """The ends of the interval, `0.830 to 0.910`; empty where there is none."""
    if result.low is None or result.high is None:
        return ""
    low, high = (value_text(result.metric, end) for end in (result.low, result.high))
    unit = high.rpartition(_NBSP)[2] if _NBSP in high else ""
    return f"{low.removesuffix(_NBSP + unit)} to {high}"


def value_text(metric: str, value: float) -> str:
    """A value as its metric is written: per cent, dB or three decimals."""
    if metric.startswith("psnr"):
        return f"{number(value, 1)}{_NBSP}dB"
    if any(part in metric for part in _SHARES):
        percent = 100.0 * value
        return f"{number(percent, 0 if percent in (0.0, 100.0) else 1)}{_NBSP}%"
    return number(value, 3)


def metric_name(metric: str) -> str:
    """What readers call a metric."""
    if metric in METRIC_NAMES:
        return METRIC_NAMES[metric]
    if metric.endswith("_with_metadata"):
        return f"{metric_name(metric.removesuffix('_with_metadata'))}, sex, view and age known"
    if metric.startswith("top_1_patch_"):
        side = metric.removeprefix("top_1_patch_")
        return f"found from {side} × {side} pixels alone"
    if metric.startswith("psnr_of_") and metric.endswith("_releases"):
        return f"PSNR of {metric.split('_')[2]} releases, dB"
    return metric.replace("_", " ")


def epsilon_text(epsilon: float) -> str:
    """An epsilon with three digits."""
    return f"{epsilon:.3g}" if epsilon < 100.0 else number(epsilon, 0)


def _of_release(audit: Audit) -> Verdict:
    sentences = []
    if audit.audited.holds_clean:
        sentences.append("The release holds the clean images: nothing protects them, whatever stands below.")
    if audit.audited.subtractable:
        sentences.append("The noise was made from a seed: whoever has or guesses it subtracts the noise.")
    return Verdict(attacker="Anybody who gets the release", sentences=tuple(sentences))


def _linkage(audit: Audit) -> Verdict:
    sentences = []
    whole = _seen(audit, "linkage", "top_1")
    if whole:
        gallery = number(audit.audited.n_images, 0)
        sentences.append(f"finds the right one of {gallery} originals in at least {_each(whole)}.")
    for metric in sorted({one.metric for one in audit.results if one.metric.startswith("top_1_patch_")})[:1]:
        small = _seen(audit, "linkage", metric)
        side = metric.removeprefix("top_1_patch_")
        if small:
            sentences.append(f"The central {side} × {side} pixels alone are enough in at least {_each(small)}.")
    checked = _by_variant(audit, "linkage", "top_1_checked")
    if checked:
        pairs = "; ".join(
            f"measured {figure(one)}, predicted {value_text(one.metric, one.predicted or 0.0)} for {name}"
            for name, one in checked.items()
        )
        sentences.append(f"Where it is made hard on purpose, to check theory: {pairs}.")
    return Verdict(attacker="Who holds the originals", sentences=tuple(sentences))


def _identity(audit: Audit) -> Verdict:
    sentences = []
    matched = _seen(audit, "re-identification", "auc_matched")
    if matched:
        sentences.append(
            f"tells whether two images are of one patient, among people alike in sex, view and age, with an AUC of at "
            f"least {_each(matched)}; guessing has 0.5.{_clean(audit, 're-identification', 'auc_matched')}"
        )
    whole = _seen(audit, "re-identification", "auc")
    if whole:
        blind = [one for one in _all(audit, "re-identification", "auc") if one.attacker == METADATA]
        beside = f" Sex, view and age alone, without any pixel, have {figure(blind[0])}." if blind else ""
        sentences.append(
            f"Among all patients: at least {_each(whole)}.{_clean(audit, 're-identification', 'auc')}{beside}"
        )
    return Verdict(attacker="Who sees two released images", sentences=tuple(sentences))


def _attributes(audit: Audit) -> Verdict:
    sentences = []
    for metric, what in (("sex_auc", "sex"), ("view_auc", "view"), ("age_group_accuracy", "age group")):
        seen = _seen(audit, "attribute inference", metric)
        if seen:
            kind = "AUC" if metric.endswith("auc") else "accuracy"
            chance = next(iter(seen.values())).chance
            guess = "" if chance is None else f"; guessing has {value_text(metric, chance)}"
            sentences.append(f"{what}: {kind} of at least {_each(seen)}{guess}.")
    return Verdict(attacker="Who infers what the patient is like", sentences=tuple(sentences))


def _restoring(audit: Audit) -> Verdict:
    restored = _seen(audit, "reconstruction", "psnr", kinds=("denoised",))
    if not restored:
        return Verdict(attacker="Who has a denoiser", sentences=())
    noisy = _seen(audit, "reconstruction", "psnr", kinds=("noisy",))
    before = f", from {_each(noisy)}" if noisy else ""
    return Verdict(
        attacker="Who has a denoiser",
        sentences=(f"restores the images to a PSNR of at least {_each(restored)}{before}.",),
    )


def _averaging(audit: Audit) -> Verdict:
    grouped: dict[str, list[str]] = {}
    for one in audit.results:
        if one.attacker.startswith("averaging") and one.curve:
            gain = number(one.curve[-1][1] - one.curve[0][1], 1, sign=True)
            grouped.setdefault(one.attacker, []).append(f"{gain}{_NBSP}dB, to {figure(one)}, for {one.variant}")
    sentences = tuple(f"{attacker}: {'; '.join(gains)}." for attacker, gains in grouped.items())
    return Verdict(attacker="Who gets several releases of one image", sentences=sentences)


def _keys(audit: Audit) -> Verdict:
    grouped: dict[str, list[str]] = {}
    for one in audit.results:
        if one.metric == "seeds_found":
            grouped.setdefault(one.attacker, []).append(f"{figure(one)} for {one.variant}")
    sentences = tuple(f"{attacker}: found in {listed(shares)}." for attacker, shares in grouped.items())
    return Verdict(attacker="Who guesses how the noise was made", sentences=sentences)


def _members(audit: Audit) -> Verdict:
    sentences = tuple(
        f"{one.attacker}: tells with an AUC of at least {figure(one)} whether a patient was in the training set of "
        f"{one.variant}; guessing has 0.5."
        for one in _all(audit, "membership inference", "auc")
    )
    return Verdict(attacker="Who has the released model", sentences=sentences)


def _formally(audit: Audit) -> Verdict:
    if audit.formal is None or not audit.formal.levels:
        return Verdict(attacker="Formally", sentences=())
    formal = audit.formal
    levels = listed([f"{epsilon_text(_whole_image(level))} ({level.name})" for level in formal.levels])
    return Verdict(
        attacker="Formally",
        sentences=(
            f"hiding which image it was costs an epsilon of {levels}, where 1 is protection and 10 hardly any; "
            f"epsilon 1 would take noise of std {formal.needed_std_at_1:,.0f}.",
        ),
    )


def _whole_image(level: FormalLevel) -> float:
    return max(level.lines, key=lambda line: line.sensitivity).epsilon


def _all(audit: Audit, attack: str, metric: str) -> list[AttackResult]:
    return [one for one in audit.results if (one.attack, one.metric) == (attack, metric)]


def _by_variant(
    audit: Audit, attack: str, metric: str, variants: Iterable[str] | None = None
) -> dict[str, AttackResult]:
    """The strongest attacker's figure for each variant, of those who see the images."""
    found: dict[str, AttackResult] = {}
    for one in _all(audit, attack, metric):
        if one.attacker == METADATA or one.attacker.startswith(_PARTS):
            continue
        if variants is not None and one.variant not in variants:
            continue
        if one.variant not in found or one.value > found[one.variant].value:
            found[one.variant] = one
    return found


def _seen(
    audit: Audit, attack: str, metric: str, *, kinds: Sequence[str] = ("noisy", "denoised")
) -> dict[str, AttackResult]:
    """Of the images that leave, and of what a denoiser makes of them."""
    names = [name for name, kind in audit.audited.variants.items() if kind in kinds]
    return _by_variant(audit, attack, metric, names)


def _each(found: dict[str, AttackResult]) -> str:
    if len(found) > 1 and len({figure(one) for one in found.values()}) == 1:
        return f"{figure(next(iter(found.values())))} for each of {listed(list(found))}"
    return listed([f"{figure(one)} for {name}" for name, one in found.items()])


def _clean(audit: Audit, attack: str, metric: str) -> str:
    found = _seen(audit, attack, metric, kinds=("clean",))
    return "".join(f" Without any protection: {figure(one)}." for one in found.values())
