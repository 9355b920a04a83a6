"""What an audit says in words: a verdict for each kind of attacker, with its figures."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from scipy.special import chdtrc

from veilray.privacy.catalogue import KNOWING, OF_PATCH, listed
from veilray.privacy.formal import ANY_IMAGE
from veilray.privacy.results import AttackResult, Audit, Difference, FormalLevel
from veilray.report.audit_rows import matched_names
from veilray.report.audit_values import NBSP, at_least, difference_text, epsilon_text, figure, value_text
from veilray.report.text import number

_LEAVING = ("noisy", "denoised")
"""Kinds of images that leave, or that a denoiser makes of those."""
_LABELS = ("sex", "view", "age")
"""What must be alike in two people before anything else that tells them apart is called biometric."""
ONE_DRAW = (
    "Re-identification and attributes are attacked in one draw of the noise, also of noise that is made for the audit: "
    "seeds vary the folds alone. Denoised images are made from one draw, too. Intervals hold no variation of the noise."
)
"""Of what these figures tell nothing."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What an attacker of one kind can do."""

    attacker: str
    """Who, as a heading."""
    sentences: tuple[str, ...]

    @property
    def plain(self) -> str:
        """One line for a terminal."""
        return f"{self.attacker}: {' '.join(self.sentences)}".replace(NBSP, " ")


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
        parts.append(f"whoever holds the originals finds the one behind a released image, share of the images: {said}")
    if said := _worst(_seen(audit, "re-identification", "auc_matched") or _seen(audit, "re-identification", "auc")):
        parts.append(f"whether two released images are of one patient, AUC of telling: {said}")
    if not parts:
        return "Nothing could be measured; the reasons are listed below."
    return f"{'; '.join(parts)}."[0].upper() + f"{'; '.join(parts)}."[1:]


def gate_lines(audit: Audit) -> tuple[str, ...]:
    """What the policy said, first in a sentence, then a line for each limit that was not kept to; empty without one."""
    if audit.gate is None:
        return ()
    notes = "".join(f" {note[0].upper()}{note[1:]}." for note in audit.gate.notes)
    if audit.gate.passed:
        return (f"Gate passed: {audit.gate.words}.{notes} This does not say that the release is safe.",)
    return (f"Gate not passed.{notes}", *(f"{breach.reason}." for breach in audit.gate.breaches))


def alike(audit: Audit) -> str:
    """In what the people among whom re-identification was measured are alike, as far as it was known of them."""
    told = [one.matched_on for one in audit.results if one.matched_on]
    return f"alike in {listed(told[0] if told else _LABELS)}"


def against_theory(audit: Audit) -> str:
    """Whether linkage agrees with its closed form at all levels together; empty where fewer than two were compared.

    Noise that is made for the audit is drawn apart at each level, so that the squares of the deviations add up to
    chi-squared; of releases nobody knows that.
    """
    released = {one.variant for one in audit.audited.releases}
    apart = [
        one.deviation
        for one in audit.results
        if one.attack == "linkage" and one.deviation is not None and one.variant not in released
    ]
    if len(apart) < 2:
        return ""
    total = sum(deviation**2 for deviation in apart)
    chance = float(chdtrc(len(apart), total))
    return (
        f"Against the closed form, over {len(apart)} kinds of noise together: chi-squared {number(total, 1)} on "
        f"{len(apart)} degrees of freedom; were the form right, noise alone would make that much or more of it with a "
        f"chance of {number(chance, 3) if chance >= 0.0005 else 'less than 0.001'}."
    )


def highest_of(audit: Audit) -> int:
    """Among how many figures the verdict on re-identification takes the highest."""
    metric = "auc_matched" if _seen(audit, "re-identification", "auc_matched") else "auc"
    names = {name for name, kind in audit.audited.variants.items() if kind in _LEAVING}
    found = _all(audit, "re-identification", metric)
    return sum(one.role == "attacker" and one.variant in names for one in found)


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
        sentences.append(f"finds the right one of {gallery} originals, share of the images: {said}.")
    for metric in sorted({one.metric for one in audit.results if one.metric.startswith(OF_PATCH)})[:1]:
        side = metric.removeprefix(OF_PATCH)
        if said := _worst(_seen(audit, "linkage", metric)):
            sentences.append(f"From the central {side} × {side} pixels alone: {said}.")
    return Verdict(attacker="Who holds the originals", sentences=tuple(sentences))


def _identity(audit: Audit) -> Verdict:
    sentences = []
    among = _seen(audit, "re-identification", "auc_matched")
    if said := _worst(among):
        sentences.append(
            f"tells whether two images are of one patient, among people {alike(audit)}; AUC, guessing has 0.5: {said}."
            f"{_clean(audit, 're-identification', 'auc_matched')}{_blindly(audit, among)}"
        )
    if said := _worst(_seen(audit, "re-identification", "auc")):
        sentences.append(f"Among all patients: {said}.{_clean(audit, 're-identification', 'auc')}")
        blind = _blind(audit, "auc", "original")
        sentences += [f"Without any pixel, {one.attacker} have {figure(one)}." for one in blind[:1]]
    return Verdict(attacker="Who sees two released images", sentences=tuple(sentences))


def _blindly(audit: Audit, seen: dict[str, AttackResult]) -> str:
    """What metadata reach among matched impostors, and whether the images say any more over the same pairs."""
    best = _highest(seen)
    assert best is not None
    blind = _blind(audit, "auc_matched", best.variant)
    said = f" Without any pixel, {blind[0].attacker} reach {figure(blind[0])} there." if blind else ""
    knowing = _seen(audit, "re-identification", f"auc_matched{KNOWING}")
    for found, whose in ((seen, "The images alone"), (knowing, "The images beside what is known")):
        beyond = [(one, one.above_metadata) for one in found.values() if one.above_metadata is not None]
        if beyond:
            said += f" {whose} {_excess(beyond)}."
    return said


def _excess(beyond: Sequence[tuple[AttackResult, Difference]]) -> str:
    """Of how many kinds of images figures exceed that of metadata alone, by the intervals of the paired differences."""
    holding = [pair for pair in beyond if pair[1].low is not None and pair[1].low > 0.0]
    one, more = max(holding or beyond, key=lambda pair: pair[1].value)
    value, ends = difference_text(more)
    beside = f"{ends or 'without an interval'}; {one.variant}"
    count, most = len(beyond), "" if len(beyond) == 1 else "highest "
    if not holding:
        where = "" if count == 1 else f" at any of {count} kinds of images"
        return (
            f"do not exceed that over the same pairs{where} ({most}{value}, {beside}){_holding_zero(beyond)}, which is "
            "no evidence of anything biometric"
        )
    where = "" if count == 1 else f" at {len(holding)} of {count} kinds of images,"
    others = "" if len(holding) == count else f"; at the other {count - len(holding)} there is no evidence of it"
    by = "by up to" if len(holding) > 1 else "by"
    return f"exceed that over the same pairs{where} {by} {value} ({beside}), {_what_is_beyond(one)}{others}"


def _holding_zero(beyond: Sequence[tuple[AttackResult, Difference]]) -> str:
    """That all intervals hold 0, where there are several and they do."""
    ends = [(more.low, more.high) for _, more in beyond]
    hold = all(low is not None and high is not None and low <= 0.0 <= high for low, high in ends)
    return ": every interval holds 0" if hold and len(ends) > 1 else ""


def _what_is_beyond(result: AttackResult) -> str:
    """What it is that images say beyond metadata: biometric only where sex, view and age are all known."""
    known = matched_names(result)
    missing = [name for name in _LABELS if name not in known]
    if not missing:
        return "which is biometric"
    are = "is" if len(missing) == 1 else "are"
    return f"beyond {listed(known or ['guessing'])}; {listed(missing)} {are} not known here and may be part of it"


def _blind(audit: Audit, metric: str, variant: str) -> list[AttackResult]:
    """What who sees no pixels reaches over the pairs of a variant, or over those of the originals."""
    found = [one for one in _all(audit, "re-identification", metric) if one.role == "baseline"]
    return [one for one in found if one.variant == variant] or found


def _attributes(audit: Audit) -> Verdict:
    sentences = []
    for metric, what in (("sex_auc", "sex"), ("view_auc", "view"), ("age_group_accuracy", "age group")):
        worst = _highest(seen := _seen(audit, "attribute inference", metric))
        if worst is not None:
            kind = "AUC" if metric.endswith("auc") else "accuracy"
            guess = "" if worst.chance is None else f", guessing has {value_text(worst.chance, worst.unit)}"
            sentences.append(f"{what}: {kind}{guess}: {_worst(seen)}.")
    return Verdict(attacker="Who infers what the patient is like", sentences=tuple(sentences))


def _restoring(audit: Audit) -> Verdict:
    said = _worst(_seen(audit, "reconstruction", "psnr", kinds=("denoised",)))
    sentences = (f"restores the images, PSNR: {said}.",) if said else ()
    return Verdict(attacker="Who has a denoiser", sentences=sentences)


def _averaging(audit: Audit) -> Verdict:
    """Averaging and subtraction: of each way of making noise the image that gave most away."""
    worst: dict[str, AttackResult] = {}
    for one in audit.results:
        if one.metric in ("psnr_of_releases", "psnr_of_two_levels"):
            worst[one.attacker] = max(worst.get(one.attacker, one), one, key=_gain)
    sentences = []
    for attacker, one in worst.items():
        gained = f"{number(_gain(one), 1, sign=True)}{NBSP}dB"
        what = f"{one.count} of them, {gained}" if one.count else f"{gained} beside the less noisy of the two alone"
        sentences.append(f"{attacker}: {what}: {at_least(one, of=one.variant)}.")
    return Verdict(attacker="Who gets several releases of one image", sentences=tuple(sentences))


def _gain(result: AttackResult) -> float:
    """In dB, against one release: of several alike, or the less noisy of two; of what has no curve its value."""
    return result.curve[-1][1] - result.curve[0][1] if result.curve else result.value


def _keys(audit: Audit) -> Verdict:
    grouped: dict[str, dict[str, AttackResult]] = {}
    for one in audit.results:
        if one.metric == "seeds_found":
            grouped.setdefault(one.attacker, {})[one.variant] = one
    sentences = tuple(
        f"{attacker}, {number(next(iter(each.values())).count or 0, 0)} seeds tried, found: {_worst(each)}."
        for attacker, each in grouped.items()
    )
    return Verdict(attacker="Who guesses how the noise was made", sentences=sentences)


def _members(audit: Audit) -> Verdict:
    sentences = tuple(
        f"{one.attacker}: whether a patient was in the training set of {one.variant}, AUC, guessing has 0.5: "
        f"{at_least(one)}."
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
    return next(line for line in level.lines if line.adjacency == ANY_IMAGE).epsilon


def _all(audit: Audit, attack: str, metric: str) -> list[AttackResult]:
    return [one for one in audit.results if (one.attack, one.metric) == (attack, metric)]


def _by_variant(audit: Audit, attack: str, metric: str, variants: Collection[str]) -> dict[str, AttackResult]:
    """The strongest attacker's figure for each variant, of those who see the images."""
    found: dict[str, AttackResult] = {}
    for one in _all(audit, attack, metric):
        if one.role != "attacker" or one.variant not in variants:
            continue
        if one.variant not in found or one.value > found[one.variant].value:
            found[one.variant] = one
    return found


def _seen(audit: Audit, attack: str, metric: str, *, kinds: Sequence[str] = _LEAVING) -> dict[str, AttackResult]:
    """Of the images that leave, and of what a denoiser makes of them."""
    names = [name for name, kind in audit.audited.variants.items() if kind in kinds]
    return _by_variant(audit, attack, metric, names)


def _worst(found: dict[str, AttackResult]) -> str:
    """What the highest of these figures says at least, and of which images it is; empty where there is none."""
    worst = _highest(found)
    if worst is None:
        return ""
    alike = len({figure(one) for one in found.values()}) == 1
    return at_least(worst, of="" if len(found) == 1 else "all of them alike" if alike else worst.variant)


def _highest(found: dict[str, AttackResult]) -> AttackResult | None:
    return max(found.values(), key=lambda one: one.value, default=None)


def _clean(audit: Audit, attack: str, metric: str) -> str:
    found = _seen(audit, attack, metric, kinds=("clean",))
    return "".join(f" Without any protection: {figure(one)}." for one in found.values())
