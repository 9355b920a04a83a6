"""What an audit says in words: a verdict for each kind of attacker, with its figures."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from veilray.privacy.gate import PASSED
from veilray.privacy.results import FEW_PATIENTS, AttackResult, Audit, FormalLevel, few_patients_note
from veilray.report.text import number

METADATA = "sex, view and age alone"
"""The attacker who sees no pixels, as re-identification names it."""
AGREEING = "both images agree in "
"""How the note of a figure among matched impostors begins."""
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
    parts = []
    if audit.audited.holds_clean:
        parts.append("the release holds the clean images: nothing protects them")
    if said := _worst(_seen(audit, "linkage", "top_1")):
        parts.append(f"whoever holds the originals finds the one behind a released image in at least {said} of cases")
    if said := _worst(_seen(audit, "re-identification", "auc_matched") or _seen(audit, "re-identification", "auc")):
        parts.append(f"released images of one patient can be told to belong together with an AUC of at least {said}")
    if not parts:
        return "Nothing could be measured; the reasons are listed below."
    return f"{'; '.join(parts)}."[0].upper() + f"{'; '.join(parts)}."[1:]


def gate_sentence(audit: Audit) -> str:
    """What the policy said; empty where there was none."""
    if audit.gate is None:
        return ""
    notes = "".join(f" {note[0].upper()}{note[1:]}." for note in audit.gate.notes)
    if audit.gate.passed:
        return f"Gate passed: {PASSED} ({audit.gate.rules} limits).{notes} This does not say that the release is safe."
    return "Gate not passed: " + "; ".join(breach.reason for breach in audit.gate.breaches) + f".{notes}"


def alike(audit: Audit) -> str:
    """In what the people among whom re-identification was measured are alike, as far as it was known of them."""
    notes = [note for one in audit.results if one.metric == "auc_matched" for note in one.notes]
    told = [note.removeprefix(AGREEING) for note in notes if note.startswith(AGREEING)]
    return f"alike in {told[0] if told else 'sex, view and age'}"


def figure(result: AttackResult, *, of: str = "") -> str:
    """A figure with its interval, what it is `of`, and in the same breath where it is from few patients."""
    few = few_patients_note(result.n_patients) if result.n_patients < FEW_PATIENTS else ""
    beside = "; ".join(filter(None, [interval_text(result), of, few]))
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
    gallery = number(audit.audited.n_images, 0)
    if said := _worst(_seen(audit, "linkage", "top_1")):
        sentences.append(f"finds the right one of {gallery} originals for at least {said} of the images.")
    for metric in sorted({one.metric for one in audit.results if one.metric.startswith("top_1_patch_")})[:1]:
        side = metric.removeprefix("top_1_patch_")
        if said := _worst(_seen(audit, "linkage", metric)):
            sentences.append(f"The central {side} × {side} pixels alone are enough for at least {said} of them.")
    return Verdict(attacker="Who holds the originals", sentences=tuple(sentences))


def _identity(audit: Audit) -> Verdict:
    sentences = []
    among = _seen(audit, "re-identification", "auc_matched")
    if said := _worst(among):
        sentences.append(
            f"tells whether two images are of one patient, among people {alike(audit)}, with an AUC of at least "
            f"{said}; guessing has 0.5{_blindly(audit, among)}.{_clean(audit, 're-identification', 'auc_matched')}"
        )
    if said := _worst(_seen(audit, "re-identification", "auc")):
        sentences.append(f"Among all patients: at least {said}.{_clean(audit, 're-identification', 'auc')}")
        blind = [one for one in _all(audit, "re-identification", "auc") if one.attacker == METADATA]
        sentences += [
            f"What is known of sex, view and age alone, without any pixel, has {figure(one)}." for one in blind
        ]
    return Verdict(attacker="Who sees two released images", sentences=tuple(sentences))


def _blindly(audit: Audit, seen: dict[str, AttackResult]) -> str:
    """What metadata reach among matched impostors, as the end of a sentence, and whether the images say any more."""
    blind = [one for one in _all(audit, "re-identification", "auc_matched") if one.attacker == METADATA]
    if not blind:
        return ""
    best, worst = (max(found, key=lambda one: one.value) for found in (blind, seen.values()))
    said = f", and {METADATA} reach {figure(best)} there"
    if worst.value <= best.value:
        return f"{said}, which the images do not exceed"
    if worst.low is not None and best.high is not None and worst.low <= best.high:
        return f"{said}, an interval that overlaps with that of the images"
    return said


def _attributes(audit: Audit) -> Verdict:
    sentences = []
    for metric, what in (("sex_auc", "sex"), ("view_auc", "view"), ("age_group_accuracy", "age group")):
        seen = _seen(audit, "attribute inference", metric)
        if said := _worst(seen):
            kind = "AUC" if metric.endswith("auc") else "accuracy"
            chance = next(iter(seen.values())).chance
            guess = "" if chance is None else f"; guessing has {value_text(metric, chance)}"
            sentences.append(f"{what}: {kind} of at least {said}{guess}.")
    return Verdict(attacker="Who infers what the patient is like", sentences=tuple(sentences))


def _restoring(audit: Audit) -> Verdict:
    said = _worst(_seen(audit, "reconstruction", "psnr", kinds=("denoised",)))
    sentences = (f"restores the images to a PSNR of at least {said}.",) if said else ()
    return Verdict(attacker="Who has a denoiser", sentences=sentences)


def _averaging(audit: Audit) -> Verdict:
    """Averaging and subtraction: of each way of making noise the image that gave most away."""
    worst: dict[str, AttackResult] = {}
    for one in audit.results:
        gaining = one.attacker.startswith("averaging") and one.curve
        if gaining or one.metric == "psnr_of_two_levels":
            worst[one.attacker] = max(worst.get(one.attacker, one), one, key=_gain)
    sentences = []
    for attacker, one in worst.items():
        gain = f"{number(_gain(one), 1, sign=True)}{_NBSP}dB, to " if one.curve else "to "
        sentences.append(f"{attacker}: {gain}{figure(one, of=one.variant)}.")
    return Verdict(attacker="Who gets several releases of one image", sentences=tuple(sentences))


def _gain(result: AttackResult) -> float:
    """In dB, against one release; of what has no curve its value."""
    return result.curve[-1][1] - result.curve[0][1] if result.curve else result.value


def _keys(audit: Audit) -> Verdict:
    grouped: dict[str, dict[str, AttackResult]] = {}
    for one in audit.results:
        if one.metric == "seeds_found":
            grouped.setdefault(one.attacker, {})[one.variant] = one
    sentences = tuple(f"{attacker}: found in {_worst(each)}." for attacker, each in grouped.items())
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
    best = min(audit.formal.levels, key=_whole_image)
    where = f" ({best.name})" if len(audit.formal.levels) > 1 else ""
    return Verdict(
        attacker="Formally",
        sentences=(
            f"hiding which image it was costs an epsilon of {epsilon_text(_whole_image(best))} or more{where}, where 1 "
            "is protection and 10 hardly any.",
            f"Epsilon 1 would take noise of std {audit.formal.needed_std_at_1:,.0f}.",
        ),
    )


def _whole_image(level: FormalLevel) -> float:
    return max(level.lines, key=lambda line: line.sensitivity).epsilon


def _all(audit: Audit, attack: str, metric: str) -> list[AttackResult]:
    return [one for one in audit.results if (one.attack, one.metric) == (attack, metric)]


def _by_variant(audit: Audit, attack: str, metric: str, variants: Collection[str]) -> dict[str, AttackResult]:
    """The strongest attacker's figure for each variant, of those who see the images."""
    found: dict[str, AttackResult] = {}
    for one in _all(audit, attack, metric):
        if one.attacker == METADATA or one.attacker.startswith(_PARTS) or one.variant not in variants:
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


def _worst(found: dict[str, AttackResult]) -> str:
    """The highest of these figures, and of which images it is; empty where there is none."""
    if not found:
        return ""
    worst = max(found.values(), key=lambda one: one.value)
    alike = len({figure(one) for one in found.values()}) == 1
    return figure(worst, of="" if len(found) == 1 else "all of them alike" if alike else worst.variant)


def _clean(audit: Audit, attack: str, metric: str) -> str:
    found = _seen(audit, attack, metric, kinds=("clean",))
    return "".join(f" Without any protection: {figure(one)}." for one in found.values())
