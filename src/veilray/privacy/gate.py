"""The gate: limits that an audit's figures must not exceed, so that a pipeline can stop a release.

A passed gate says that no tested attack exceeded its limit. Attacks are lower bounds: it never says that a release is
safe.
"""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from veilray.errors import RefusedError, UsageError, first_fault
from veilray.privacy.results import FEW_PATIENTS, AttackResult, Audit, Breach, GateOutcome, few_patients_note

PASSED = "no tested attack exceeded its limit"


class _Policy(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Limit(_Policy):
    """How far one attack may get."""

    attack: str
    """Such as `re-identification`, as in the audit."""
    metric: str
    """Such as `auc`, as in the audit."""
    at_most: Annotated[float, Field(allow_inf_nan=False)]
    """The highest figure that passes."""
    attacker: str = ""
    """Only this attacker, as in the audit; empty for each."""
    variant: str = ""
    """Only these images, by name; empty for all of the kinds below."""
    kinds: tuple[Literal["clean", "noisy", "denoised", "baseline"], ...] = ("noisy", "denoised")
    """Kinds of images that count: by default what leaves, and what a denoiser makes of it."""
    compare: Literal["value", "upper"] = "upper"
    """Whether the figure itself or the upper end of its interval must keep to the limit."""
    fewest_patients: Annotated[int, Field(ge=1)] = 30
    """A figure from fewer patients cannot pass."""

    @property
    def words(self) -> str:
        """The rule in words."""
        who = f" by {self.attacker}" if self.attacker else ""
        where = self.variant or " and ".join(self.kinds) + " images"
        end = "upper end of the interval" if self.compare == "upper" else "figure"
        return f"{self.attack}{who}, {self.metric}, {where}: {end} at most {self.at_most:g}"


class Policy(_Policy):
    """`policy.toml`."""

    schema_version: Literal[1] = 1
    limit: tuple[Limit, ...] = ()
    """One `[[limit]]` each."""
    least_std: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = 0.0
    """The least standard deviation of noise that passes, composed over all that left where the ledger was given."""
    allow_clean: bool = False
    """Whether a release that holds the clean images passes."""
    allow_subtractable: bool = False
    """Whether a release whose noise was made from a seed passes."""


def read_policy(path: Path) -> tuple[Policy, str]:
    """A policy and the SHA-256 of its file; UsageError where it is missing, no policy, or says nothing."""
    try:
        content = path.read_bytes()
        policy = Policy.model_validate(tomllib.loads(content.decode("utf-8")))
    except OSError as error:
        raise UsageError(f"--gate {path}: {(error.strerror or str(error)).lower()}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"--gate {path} is not TOML ({error})") from None
    except ValidationError as error:
        raise UsageError(f"--gate {path}: {first_fault(error)}") from None
    if not policy.limit and not policy.least_std:
        raise UsageError(f"--gate {path} sets no limit: give at least one [[limit]], or least_std")
    return policy, hashlib.sha256(content).hexdigest()


def judge(policy: Policy, audit: Audit, *, policy_sha256: str) -> GateOutcome:
    """What a policy says of an audit. A limit for which there is no figure is a breach: nothing passes unmeasured."""
    breaches: list[Breach] = []
    for limit in policy.limit:
        breaches += _breaches(limit, audit)
    breaches += _of_the_noise(policy, audit)
    rules = len(policy.limit) + bool(policy.least_std)
    return GateOutcome(policy_sha256=policy_sha256, passed=not breaches, rules=rules, breaches=tuple(breaches))


def demand_passed(audit: Audit, *, release_digest: str, where: Path) -> GateOutcome:
    """The outcome of an audit's gate; RefusedError unless it was passed, by this very release."""
    if release_digest not in audit.audited.release_digests:
        raise RefusedError(f"the audit in {where} is of another release, not of the one to be sealed; audit this one")
    if audit.gate is None:
        raise RefusedError(f"the audit in {where} had no gate to pass; audit again with --gate POLICY")
    if not audit.gate.passed:
        raise RefusedError(f"the audit in {where} did not pass its gate: {audit.gate.breaches[0].reason}")
    return audit.gate


def _breaches(limit: Limit, audit: Audit) -> list[Breach]:
    results = _meant(limit, audit)
    if not results:
        return [Breach(rule=limit.words, reason=_why_missing(limit, audit))]
    found = []
    for one in results:
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


def _meant(limit: Limit, audit: Audit) -> Sequence[AttackResult]:
    def counts(one: AttackResult) -> bool:
        if limit.variant:
            return one.variant == limit.variant
        kind = audit.audited.variants.get(one.variant)
        return kind is None or kind in limit.kinds  # what is no kind of image is a model, which leaves

    return [
        one
        for one in audit.results
        if (one.attack, one.metric) == (limit.attack, limit.metric)
        and limit.attacker in ("", one.attacker)
        and counts(one)
    ]


def _why_missing(limit: Limit, audit: Audit) -> str:
    reasons = [one.reason for one in audit.skipped if one.attack == limit.attack]
    known = sorted({one.metric for one in audit.results if one.attack == limit.attack})
    if reasons:
        return f"{limit.attack} was not measured: {reasons[0]}"
    return f"there is no such figure; of {limit.attack} there is {', '.join(known) if known else 'none'}"


def _of_the_noise(policy: Policy, audit: Audit) -> list[Breach]:
    found = []
    if audit.audited.holds_clean and not policy.allow_clean:
        rule = "no clean images in the release"
        found.append(Breach(rule=rule, reason="the release holds the clean images beside the noisy ones"))
    if audit.audited.subtractable and not policy.allow_subtractable:
        rule = "no noise from a seed"
        found.append(Breach(rule=rule, reason="the release's noise was made from a seed: it can be subtracted"))
    if policy.least_std:
        levels = [level.std for level in audit.formal.levels] if audit.formal is not None else []
        levels += [audit.composition.least_std] if audit.composition is not None else []
        least = min(levels, default=0.0)
        if least < policy.least_std:
            rule = f"noise of at least std {policy.least_std:g}"
            found.append(Breach(rule=rule, reason=f"the least protected image has noise of std {least:.3g}"))
    return found
