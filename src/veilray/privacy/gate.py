"""The gate: limits that an audit's figures must not exceed, so that a pipeline can stop a release.

A passed gate says that no tested attack exceeded its limit. Attacks are lower bounds: it never says that a release is
safe.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from veilray.errors import RefusedError
from veilray.privacy.catalogue import MEMBERSHIP, STRONGEST
from veilray.privacy.policy import WEAK_WAY_OUT, Limit, Policy, no_images, takes_the_strongest
from veilray.privacy.results import FEW_PATIENTS, AttackResult, Audit, Breach, GateOutcome, few_patients_note


def judge(policy: Policy, audit: Audit, *, policy_sha256: str) -> GateOutcome:
    """What a policy says of an audit.

    Nothing passes unmeasured: a limit without a figure is a breach, for each variant of the images that it holds for.
    """
    breaches: list[Breach] = []
    for limit in policy.limit:
        breaches += [*_exceeded(limit, audit), *_unmeasured(limit, audit), *_weak(limit, audit)]
    breaches += [*_of_the_release(policy, audit), *_of_the_noise(policy, audit)]
    return GateOutcome(
        policy_sha256=policy_sha256,
        passed=not breaches,
        words=_words(policy),
        rules=len(policy.limit) + bool(policy.least_std),
        breaches=tuple(breaches),
        notes=_notes(policy, audit),
    )


def demand_passed(audit: Audit, *, release_digest: str, where: Path, policy_sha256: str | None = None) -> GateOutcome:
    """The outcome of an audit's gate; RefusedError unless it was passed, by this very release.

    `policy_sha256`: of the policy that it must have passed; of any policy if left out.
    """
    if release_digest not in audit.audited.release_digests:
        raise RefusedError(f"the audit in {where} is of another release, not of the one to be sealed; audit this one")
    if audit.gate is None:
        raise RefusedError(f"the audit in {where} had no gate to pass; audit again with --gate POLICY")
    if policy_sha256 not in (None, audit.gate.policy_sha256):
        raise RefusedError(f"the audit in {where} was judged by another policy; audit again with --gate and this one")
    if not audit.gate.passed:
        raise RefusedError(f"the audit in {where} did not pass its gate: {audit.gate.breaches[0].reason}")
    return audit.gate


def _exceeded(limit: Limit, audit: Audit) -> list[Breach]:
    found = []
    for one in _meant(limit, audit):
        figure = one.high if limit.compare == "upper" and one.high is not None else one.value
        of = f"{one.attack} of {one.variant}" + (f" by {one.attacker}" if one.attacker else "")
        if figure > limit.at_most:
            few = f", {few_patients_note(one.n_patients)}" if one.n_patients < FEW_PATIENTS else ""
            reason = f"{of}: {one.metric} {one.value:.3g}, {limit.compare} {figure:.3g}, limit {limit.at_most:g}{few}"
            found.append(Breach(rule=limit.words, reason=reason))
        elif one.n_patients < limit.fewest_patients:
            reason = f"{of}: measured on {one.n_patients} patients only, fewer than {limit.fewest_patients}"
            found.append(Breach(rule=limit.words, reason=reason))
    return found


def _meant(limit: Limit, audit: Audit) -> list[AttackResult]:
    ways = {release.variant: [release.noise] for release in audit.audited.releases}

    def counts(one: AttackResult) -> bool:
        if limit.variant:
            return one.variant == limit.variant
        # Membership inference is about a model, which leaves whatever the kinds of images.
        return one.attack == MEMBERSHIP or audit.audited.variants.get(one.variant) in limit.kinds

    return [
        one
        for one in audit.results
        if (one.attack, one.metric) == (limit.attack, limit.metric)
        and (limit.attacker == one.attacker or (not limit.attacker and one.role != "baseline"))
        and (not one.noise or one.noise in (limit.noise or ways.get(one.variant, [one.noise])))
        and counts(one)
    ]


def _unmeasured(limit: Limit, audit: Audit) -> list[Breach]:
    """A breach for each variant that the limit holds for and has no figure of, and for each kind that is not there."""
    variants = audit.audited.variants
    measured = {one.variant for one in _meant(limit, audit)}
    if limit.attack == MEMBERSHIP:  # about a model, whatever the images
        reasons = [] if measured else [_why_missing(limit, audit, limit.variant)]
    elif limit.variant and limit.variant not in variants:
        reasons = [no_images(limit.variant, variants)]
    elif limit.variant:
        reasons = [] if measured else [_why_missing(limit, audit, limit.variant)]
    else:
        wanted = [name for name, kind in variants.items() if kind in limit.kinds and name not in measured]
        reasons = [f"{_why_missing(limit, audit, name)}{_way_out(limit, audit, measured)}" for name in wanted]
        reasons += _absent_kinds(limit, variants)
    return [Breach(rule=limit.words, reason=reason) for reason in reasons]


def _absent_kinds(limit: Limit, variants: Mapping[str, str]) -> list[str]:
    """A reason for each kind of images that the limit holds for and that is not there."""
    absent = [kind for kind in limit.kinds if kind not in variants.values()]
    # Nobody who has no denoiser can be asked for what it makes of the images, unless the policy says so.
    if "kinds" not in limit.model_fields_set and len(absent) < len(limit.kinds):
        return []
    return [f"{limit.attack}, {limit.metric}: there are no {kind} images in this audit" for kind in absent]


def _weak(limit: Limit, audit: Audit) -> list[Breach]:
    """A breach for each variant whose strongest attacker was not there, or lacked something."""
    if not takes_the_strongest(limit):
        return []
    name = STRONGEST[limit.attack]
    found: dict[str, list[AttackResult]] = {}
    for one in _meant(limit, audit):
        of_variant = found.setdefault(one.variant, [])
        if one.attacker.startswith(name):
            of_variant.append(one)
    reasons = []
    for variant, strong in found.items():
        lacking = next((one.weakened for one in strong if one.weakened), "")
        if not strong:
            reasons.append(f"{limit.attack} of {variant}: {limit.metric} by the {name} was not measured")
        elif lacking:
            reasons.append(f"{limit.attack} of {variant}: {limit.metric} was measured {lacking}")
    return [Breach(rule=limit.words, reason=f"{reason}{WEAK_WAY_OUT}") for reason in reasons]


def _why_missing(limit: Limit, audit: Audit, variant: str) -> str:
    """Why there is no figure of one variant, or of none at all where its name is empty."""
    of_attack = [one for one in audit.skipped if one.attack == limit.attack]
    known = sorted({one.metric for one in audit.results if one.attack == limit.attack and variant in ("", one.variant)})
    own = [one.reason for one in of_attack if variant in ("", one.variant)]
    # What was not tried at all was not tried on this variant either.
    reasons = own or ([] if known else [one.reason for one in of_attack if not one.variant])
    what = f"{limit.attack}, {limit.metric}," + (f" by {limit.attacker}," if limit.attacker else "")
    where = f" on {variant}" if variant else ""
    if reasons:
        return f"{what} was not measured{where}: {'; '.join(dict.fromkeys(reasons))}"
    return f"{what} was not measured{where}: of {limit.attack} there is {', '.join(known) if known else 'no figure'}"


def _way_out(limit: Limit, audit: Audit, measured: set[str]) -> str:
    """What to do where whole kinds of images were measured and others were not."""
    variants = audit.audited.variants
    by_kind = {kind: {name for name, of in variants.items() if of == kind} for kind in limit.kinds}
    whole = [kind for kind, names in by_kind.items() if names and names <= measured]
    if not whole:
        return ""
    quick = ", or run without --quick" if audit.effort == "quick" and "denoised" not in whole else ""
    return f"; name kinds = {whole} in the limit{quick}"


def _notes(policy: Policy, audit: Audit) -> tuple[str, ...]:
    """What limits hold for by default that this audit has none of, and what it could not know of."""
    found = []
    usual = any(
        not one.variant and one.attack != MEMBERSHIP and "kinds" not in one.model_fields_set for one in policy.limit
    )
    if usual and "denoised" not in audit.audited.variants.values():
        found.append("what a denoiser makes of the images was not tested, since none was given (--denoiser)")
    if policy.least_std and not (audit.composition is not None and audit.composition.by_ledger):
        alone = "this release alone" if audit.composition is None else "the releases named here alone"
        alone = alone if audit.audited.releases else "one release alone"
        found.append(f"the least_std holds for {alone}: no ledger was given (--keys)")
    return tuple(found)


def _words(policy: Policy) -> str:
    """What a pass says: no more than what the limits are about."""
    said = []
    if policy.limit:
        said.append(f"no tested attack exceeded its limit ({len(policy.limit)} limits)")
    if policy.least_std:
        said.append(f"the noise has a std of at least {policy.least_std:g}")
    return "; ".join(said)


def _of_the_release(policy: Policy, audit: Audit) -> list[Breach]:
    """What of the release itself may not leave, and what of it was not looked at."""
    found = []
    if not policy.allow_left_out:
        rule = "every image of the release is audited"
        reasons = [
            f"{one.audited:,} of {one.total:,} images of {one.variant} were audited"
            for one in audit.audited.releases
            if one.audited < one.total
        ]
        found += [Breach(rule=rule, reason=f"{reason}; say allow_left_out = true to allow it") for reason in reasons]
    if audit.audited.holds_clean and not policy.allow_clean:
        rule = "no clean images in the release"
        found.append(Breach(rule=rule, reason="the release holds the clean images beside the noisy ones"))
    if audit.audited.subtractable and not policy.allow_subtractable:
        rule = "no noise from a seed"
        found.append(Breach(rule=rule, reason="the release's noise was made from a seed: it can be subtracted"))
    return found


def _of_the_noise(policy: Policy, audit: Audit) -> list[Breach]:
    found = []
    if policy.least_std:
        levels = [level.std for level in audit.formal.levels] if audit.formal is not None else []
        levels += [audit.composition.least_std] if audit.composition is not None else []
        least = min(levels, default=0.0)
        if least < policy.least_std:
            rule = f"noise of at least std {policy.least_std:g}"
            found.append(Breach(rule=rule, reason=f"the least protected image has noise of std {least:.3g}"))
    return found
