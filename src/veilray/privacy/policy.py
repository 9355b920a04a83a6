"""The policy of a gate: limits that an audit's figures must not exceed, as a file in TOML says them."""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from veilray.errors import UsageError, first_fault
from veilray.privacy.catalogue import MEMBERSHIP, STRONGEST, never_measured, unknown
from veilray.privacy.results import NoiseWay

_FALLING = ("lpips",)
"""Metrics that fall as more is recovered, which nothing can be `at_most`."""


WEAK_WAY_OUT = "; give what is missing, name an attacker, or say allow_weak = true in the limit"
"""How a limit can still pass whose strongest attacker lacks something."""


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
    """Only this attacker, as in the audit; empty for each who sees the images."""
    variant: str = ""
    """Only these images, by name; empty for all of the kinds below."""
    noise: tuple[NoiseWay, ...] | None = None
    """Of attacks tried on noise made for the audit, the ways to make it that count.

    By default that of each release, and every way where there is none.
    """
    kinds: tuple[Literal["clean", "noisy", "denoised", "baseline"], ...] = ("noisy", "denoised")
    """Kinds of images that count: by default what leaves, and what a denoiser makes of it where there is one.

    Every image variant of these kinds must have been measured, and of each kind that is named there must be one.
    """
    compare: Literal["value", "upper"] = "upper"
    """Whether the figure itself or the upper end of its interval must keep to the limit."""
    fewest_patients: Annotated[int, Field(ge=1)] = 30
    """A figure from fewer patients cannot pass."""
    allow_weak: bool = False
    """Whether it passes where the strongest attacker of its attack was not there, or lacked something."""

    @field_validator("metric")
    @classmethod
    def _rises(cls, metric: str) -> str:
        if metric in _FALLING:
            raise ValueError(
                f"{metric} falls as more is recovered, so that at_most would pass the best reconstruction; limit "
                "psnr or ssim instead (also psnr_of_two_levels, psnr_of_releases or seeds_found)"
            )
        return metric

    @model_validator(mode="after")
    def _can_be_exceeded(self) -> Limit:
        if self.at_most > 1.0 and not self.metric.startswith("psnr"):
            raise ValueError(f"at_most = {self.at_most:g}: {self.metric} is at most 1; write 0.75 for 75 %")
        return self

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
    """The least standard deviation of noise that passes, composed over all that left where the ledger was given.

    Without the ledger it holds for what is audited alone, and the gate says so.
    """
    allow_clean: bool = False
    """Whether a release that holds the clean images passes."""
    allow_subtractable: bool = False
    """Whether a release whose noise was made from a seed passes."""
    allow_left_out: bool = False
    """Whether a release passes of which some images were not audited."""


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


def check_policy(
    policy: Policy,
    variants: Mapping[str, str],
    *,
    where: Path | None,
    known: Collection[str] | None = None,
    weakened: Mapping[str, str] | None = None,
) -> None:
    """UsageError where a limit speaks of what no audit has, or of what this one will not have.

    `variants`: name and kind of the images that will be attacked; `known`: which of sex, view and age are known of any;
    `weakened`: by attack, what its strongest attacker lacks.
    """
    for limit in policy.limit:
        reason = unknown(attack=limit.attack, metric=limit.metric, attacker=limit.attacker)
        if limit.variant and limit.attack != MEMBERSHIP and limit.variant not in variants:
            reason = reason or no_images(limit.variant, variants)
        if not reason and variants and limit.attack != MEMBERSHIP:
            there = {variants[limit.variant]} if limit.variant else set(limit.kinds) & set(variants.values())
            reason = never_measured(limit.metric, there, known=known)
            absent = [] if limit.variant or "kinds" not in limit.model_fields_set else set(limit.kinds) - there
            reason = f"there are no {min(absent)} images in this audit" if absent else reason
        lacks = (weakened or {}).get(limit.attack, "")
        if not reason and lacks and takes_the_strongest(limit):
            reason = f"{limit.attack}: {limit.metric} would be measured {lacks} (--lpips-backbone){WEAK_WAY_OUT}"
        if reason:
            raise UsageError(f"--gate {where}: {reason}")


def takes_the_strongest(limit: Limit) -> bool:
    """Whether the limit holds only where the strongest attacker of its attack was there, and lacked nothing."""
    return limit.attack in STRONGEST and not (limit.attacker or limit.allow_weak)


def no_images(variant: str, variants: Mapping[str, str]) -> str:
    """That an audit has no images of this name, and which it has."""
    return f"there are no images called {variant} in this audit; there are {', '.join(variants)}"
