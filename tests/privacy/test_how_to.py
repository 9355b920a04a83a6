"""The pipeline of docs/how-to/audit.md: its command measures what its policy asks for."""

from __future__ import annotations

import re
from pathlib import Path

from tests.privacy.records import result, small_audit

from veilray.privacy.gate import judge
from veilray.privacy.policy import Policy, check_policy, read_policy
from veilray.privacy.results import AttackResult, Audit, Composition

PAGE = Path(__file__).parents[2] / "docs/how-to/audit.md"
VARIANTS = {"original": "clean", "noise 0.2": "noisy", "noise 0.2, denoised": "denoised"}


def _policy(tmp_path: Path) -> Policy:
    (text,) = re.findall(r"```toml\n(# policy\.toml\n.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    path = tmp_path / "policy.toml"
    path.write_text(text, encoding="utf-8")
    return read_policy(path)[0]


def _audit(*, weakened: str = "", psnr: float = 30.0, denoised: bool = True) -> Audit:
    """What an audit with labels, a denoiser and AlexNet's convolutions finds of noise that protects well."""
    there = [name for name, kind in VARIANTS.items() if kind == "noisy" or (denoised and kind == "denoised")]
    given = {"metric": "auc_matched", "value": 0.6, "low": 0.5, "high": 0.7, "weakened": weakened}
    outcomes: list[AttackResult] = [result(**given, variant=name) for name in there]
    restored = {"attack": "reconstruction", "attacker": "the denoiser", "metric": "psnr", "unit": "dB", "chance": None}
    ends = {"low": psnr - 1.0, "high": psnr + 1.0}
    outcomes += [result(**restored, **ends, value=psnr, variant=name) for name in there if name.endswith("denoised")]
    left = Composition(source="the ledger", acquisitions=80, least_std=0.2, median_std=0.2)
    kinds = {name: kind for name, kind in VARIANTS.items() if name in (*there, "original")}
    return small_audit(outcomes, audited={"variants": kinds}, composition=left)


def _passes(policy: Policy, audit: Audit) -> bool:
    return judge(policy, audit, policy_sha256="2" * 64).passed


def test_the_policy_can_be_met_by_what_its_command_measures(tmp_path: Path) -> None:
    policy = _policy(tmp_path)
    check_policy(policy, VARIANTS, where=tmp_path / "policy.toml")
    assert _passes(policy, _audit())
    assert not _passes(policy, _audit(psnr=32.0))


def test_the_command_names_what_the_policy_cannot_be_met_without(tmp_path: Path) -> None:
    policy = _policy(tmp_path)
    assert not _passes(policy, _audit(denoised=False))
    assert not _passes(policy, _audit(weakened="without AlexNet's features"))
    (command,) = re.findall(r"^veilray audit [^`]*?--gate policy\.toml", PAGE.read_text("utf-8"), flags=re.MULTILINE)
    for option in ("--denoiser", "--labels", "--lpips-backbone", "--keys"):
        assert option in command
