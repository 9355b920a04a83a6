"""The gate stops what exceeds a limit, and what was not measured; it lets nothing else stop."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from pydantic import ValidationError
from tests.privacy.records import result, small_audit

from veilray.errors import RefusedError, UsageError
from veilray.privacy.gate import demand_passed, judge
from veilray.privacy.policy import Policy, check_policy, read_policy
from veilray.privacy.results import AttackResult, Audit, AuditedRelease, Composition, GateOutcome, Skipped
from veilray.report.audit_text import gate_lines


def _judge(audit: Audit, **policy: object) -> GateOutcome:
    return judge(Policy.model_validate(policy), audit, policy_sha256="2" * 64)


def _limit(at_most: float, **more: object) -> list[dict[str, object]]:
    return [{"attack": "re-identification", "metric": "auc", "at_most": at_most, **more}]


def _without_denoiser(outcomes: Sequence[AttackResult | Skipped], **more: object) -> Audit:
    audited = {"variants": {"original": "clean", "noise 0.2": "noisy"}} | more
    return small_audit(outcomes, audited=audited)


NOISY, DENOISED = "noise 0.2", "noise 0.2, denoised"
QUICK = Skipped(attack="re-identification", reason="under --quick denoised images are only linked and scored")


def test_a_figure_below_its_limit_passes_and_one_above_does_not() -> None:
    audit = _without_denoiser([result(value=0.7, high=0.8)])
    assert _judge(audit, limit=_limit(0.85)).passed
    stopped = _judge(audit, limit=_limit(0.75))
    assert not stopped.passed
    assert "auc 0.7" in stopped.breaches[0].reason


def test_the_upper_end_counts_unless_the_value_is_asked_for() -> None:
    audit = _without_denoiser([result(value=0.7, high=0.8)])
    assert not _judge(audit, limit=_limit(0.75)).passed
    assert _judge(audit, limit=_limit(0.75, compare="value")).passed


def test_originals_do_not_count_and_denoised_images_do() -> None:
    clean, denoised = (result(variant=name, value=0.95, high=0.97) for name in ("original", "noise 0.2, denoised"))
    noisy = result(value=0.6, high=0.65)
    assert _judge(_without_denoiser([clean, noisy]), limit=_limit(0.75)).passed
    assert not _judge(small_audit([clean, noisy, denoised]), limit=_limit(0.75)).passed
    assert _judge(small_audit([noisy, denoised]), limit=_limit(0.75, variant="noise 0.2")).passed


def test_a_model_counts_whatever_the_kinds_of_images() -> None:
    leaking = result(attack="membership inference", variant="run-7", value=0.9, high=0.95)
    limit = [{"attack": "membership inference", "metric": "auc", "at_most": 0.6}]
    assert not _judge(small_audit([leaking]), limit=limit).passed


def test_what_was_not_measured_does_not_pass() -> None:
    skipped = Skipped(attack="re-identification", variant="noise 0.2", reason="no patient has two images")
    (breach,) = _judge(_without_denoiser([skipped]), limit=_limit(0.99)).breaches
    assert "no patient has two images" in breach.reason
    (breach,) = _judge(_without_denoiser([result()]), limit=_limit(0.99, metric="a_slip")).breaches
    assert "a_slip, was not measured on noise 0.2: of re-identification there is auc" in breach.reason


def test_a_release_that_was_not_measured_does_not_pass_for_one_that_was() -> None:
    two = {"variants": {"original": "clean", "release A": "noisy", "release B": "noisy"}}
    skipped = Skipped(attack="re-identification", variant="release B", reason="no patient has two images")
    audit = small_audit([result(variant="release A"), skipped], audited=two)
    (breach,) = _judge(audit, limit=_limit(0.99)).breaches
    assert "not measured on release B: no patient has two images" in breach.reason
    assert _judge(audit, limit=_limit(0.99, variant="release A")).passed
    assert not _judge(audit, limit=_limit(0.99, variant="release B")).passed
    assert not _judge(audit, limit=_limit(0.99, variant="release C")).passed


def test_denoised_images_that_were_not_measured_stop_unless_the_policy_leaves_them_out() -> None:
    audit = small_audit([result(), QUICK])
    (breach,) = _judge(audit, limit=_limit(0.99)).breaches
    assert "not measured on noise 0.2, denoised: under --quick" in breach.reason
    assert breach.reason.endswith("name kinds = ['noisy'] in the limit, or run without --quick")
    assert _judge(audit, limit=_limit(0.99, kinds=["noisy"])).passed
    (only,) = _judge(audit, limit=_limit(0.99, kinds=["denoised"])).breaches
    assert "name kinds" not in only.reason  # there is nothing that it could name


def test_one_attacker_measured_does_not_pass_for_another() -> None:
    outcomes = [result(variant=name, attacker="correlation of thumbnails") for name in (NOISY, DENOISED)]
    audit = small_audit([*outcomes, result(variant=NOISY)])
    assert _judge(audit, limit=_limit(0.99, allow_weak=True)).passed
    (breach,) = _judge(audit, limit=_limit(0.99, attacker="verification network")).breaches
    assert "by verification network, was not measured on noise 0.2, denoised" in breach.reason


def test_without_a_denoiser_the_gate_says_what_it_did_not_test() -> None:
    audit = _without_denoiser([result()])
    judged = _judge(audit, limit=_limit(0.99))
    assert judged.passed
    said = " ".join(gate_lines(audit.model_copy(update={"gate": judged})))
    assert "What a denoiser makes of the images was not tested, since none was given (--denoiser)." in said
    for limit in (_limit(0.99, kinds=["noisy"]), _limit(0.99, variant=NOISY)):
        assert _judge(audit, limit=limit).notes == ()
    both = small_audit([result(), result(variant=DENOISED)])
    assert _judge(both, limit=_limit(0.99)).notes == ()


@pytest.mark.parametrize("kinds", [["denoised"], ["noisy", "denoised"], ["noisy", "baseline"]])
def test_a_kind_that_the_policy_names_must_be_there(kinds: list[str]) -> None:
    (breach,) = _judge(_without_denoiser([result()]), limit=_limit(0.99, kinds=kinds)).breaches
    assert f"there are no {kinds[-1]} images" in breach.reason


def test_a_limit_on_a_model_asks_for_no_images_but_for_the_model() -> None:
    leaking = result(attack="membership inference", variant="run-7", value=0.5, high=0.55)
    limit = [{"attack": "membership inference", "metric": "auc", "at_most": 0.6}]
    assert _judge(small_audit([leaking]), limit=limit).passed
    no_model = Skipped(attack="membership inference", reason="no model was named")
    (breach,) = _judge(small_audit([no_model]), limit=limit).breaches
    assert "no model was named" in breach.reason


def test_a_figure_from_few_patients_does_not_pass() -> None:
    audit = _without_denoiser([result(n_patients=12)])
    (stopped,) = _judge(audit, limit=_limit(0.5)).breaches
    assert stopped.reason.endswith("limit 0.5, from only 12 patients, fewer than 30")
    (breach,) = _judge(audit, limit=_limit(0.99)).breaches
    assert "12 patients" in breach.reason
    assert _judge(audit, limit=_limit(0.99, fewest_patients=10)).passed


@pytest.mark.parametrize(
    ("fact", "allowance"), [("holds_clean", "allow_clean"), ("subtractable", "allow_subtractable")]
)
def test_clean_images_and_seeds_stop_a_release_unless_allowed(fact: str, allowance: str) -> None:
    audit = _without_denoiser([result()], **{fact: True})
    assert not _judge(audit, limit=_limit(0.99)).passed
    assert _judge(audit, limit=_limit(0.99), **{allowance: True}).passed


def test_the_noise_that_is_left_over_all_releases_counts() -> None:
    assert _judge(small_audit([]), least_std=0.2).passed
    assert not _judge(small_audit([]), least_std=0.25).passed
    worn = Composition(source="the ledger", acquisitions=80, least_std=0.1, median_std=0.2)
    assert not _judge(small_audit([], composition=worn), least_std=0.2).passed


def test_without_a_ledger_the_gate_says_what_its_least_std_holds_for() -> None:
    def said(audit: Audit) -> tuple[str, ...]:
        return _judge(audit, least_std=0.1).notes

    worn = {"acquisitions": 80, "least_std": 0.1, "median_std": 0.2}
    (alone,) = said(small_audit([]))
    assert alone == "the least_std holds for this release alone: no ledger was given (--keys)"
    (several,) = said(small_audit([], composition=Composition(source="the releases named here", **worn)))
    assert "for the releases named here alone" in several
    (tried,) = said(small_audit([], audited={"releases": ()}))
    assert "for one release alone" in tried
    assert said(small_audit([], composition=Composition(source="the ledger, with what it does not know", **worn))) == ()
    assert _judge(small_audit([result(), result(variant=DENOISED)]), limit=_limit(0.99)).notes == ()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "limit = 3",
        "[[limit]]\nattack = 'a'\nmetric = 'b'\nat_most = inf",
        "[[limit]]\nattack = 'a'\nmetric = 'b'\nat_mots = 1",
        "least_std = [",
        "[[limit]]\nattack = 'reconstruction'\nmetric = 'lpips'\nat_most = 0.3",
    ],
)
def test_a_policy_that_says_nothing_or_nonsense_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "policy.toml").write_text(text)
    with pytest.raises(UsageError, match="--gate"):
        read_policy(tmp_path / "policy.toml")


def _released(**given: object) -> dict[str, object]:
    usual = {"digest": "1" * 64, "variant": NOISY, "noise": "secret", "audited": 80, "total": 80}
    return {"releases": (AuditedRelease.model_validate(usual | given),)}


def test_images_of_a_release_that_were_left_out_stop_it_unless_allowed() -> None:
    audit = _without_denoiser([result()], **_released(audited=60))
    (breach,) = _judge(audit, limit=_limit(0.99)).breaches
    assert breach.reason.startswith("60 of 80 images of noise 0.2 were audited")
    assert _judge(audit, limit=_limit(0.99), allow_left_out=True).passed
    assert not _judge(audit, least_std=0.1).passed  # whatever the rules are about


TWO_WAYS = [
    result(attack="reconstruction", metric="psnr_of_releases", noise=way, value=value, low=value, high=value)
    for way, value in (("fresh", 34.0), ("secret", 19.0))
]


@pytest.mark.parametrize(("noise", "passed"), [("secret", True), ("fresh", False), (None, False)])
def test_noise_made_another_way_than_the_release_does_not_count(noise: str | None, passed: bool) -> None:
    given = _released(noise=noise) if noise else {"releases": ()}
    limit = {"attack": "reconstruction", "metric": "psnr_of_releases", "at_most": 25.0}
    audit = _without_denoiser(TWO_WAYS, **given)
    assert _judge(audit, limit=[limit]).passed == passed
    assert not _judge(audit, limit=[limit | {"noise": ["fresh", "secret"]}]).passed


def test_a_pass_says_no_more_than_what_its_limits_are_about() -> None:
    audit = _without_denoiser([result()])
    assert _judge(audit, least_std=0.1).words == "the noise has a std of at least 0.1"
    assert _judge(audit, limit=_limit(0.99)).words == "no tested attack exceeded its limit (1 limits)"
    judged = audit.model_copy(update={"gate": _judge(audit, least_std=0.1)})
    assert "attack" not in " ".join(gate_lines(judged))


def test_images_that_the_audit_has_not_are_named_as_that() -> None:
    (breach,) = _judge(_without_denoiser([result()]), limit=_limit(0.99, variant="noise 0.3")).breaches
    assert breach.reason == "there are no images called noise 0.3 in this audit; there are original, noise 0.2"


WEAK = "without AlexNet's features, whose weights were not given"


@pytest.mark.parametrize(
    ("outcome", "reason"),
    [
        (result(weakened=WEAK), f"was measured {WEAK}"),
        (result(attacker="correlation of thumbnails"), "by the verification network was not measured"),
    ],
)
def test_a_weak_attacker_does_not_pass_for_a_strong_one(outcome: AttackResult, reason: str) -> None:
    audit = _without_denoiser([outcome])
    (breach,) = _judge(audit, limit=_limit(0.99)).breaches
    assert reason in breach.reason
    assert _judge(audit, limit=_limit(0.99, allow_weak=True)).passed
    assert _judge(audit, limit=_limit(0.99, attacker=outcome.attacker)).passed


def test_who_sees_no_pixels_is_not_limited_unless_named() -> None:
    blind = result(role="baseline", attacker="sex, view and age alone", value=0.98, low=0.97, high=0.99)
    audit = _without_denoiser([result(), blind])
    assert _judge(audit, limit=_limit(0.9)).passed
    assert not _judge(audit, limit=_limit(0.9, attacker="sex, view and age alone")).passed


@pytest.mark.parametrize(
    ("limit", "said"),
    [
        ({"attack": "re-identifcation"}, "no attack is called re-identifcation; there are linkage, re-identification"),
        ({"metric": "acu"}, "re-identification has no metric acu; there are auc"),
        ({"attacker": "a neighbour"}, "re-identification has no attacker a neighbour; there are verification network"),
        ({"variant": "noise 0.9"}, "there are no images called noise 0.9 in this audit; there are noise 0.2"),
    ],
)
def test_a_limit_on_what_there_is_not_is_found_beforehand(limit: dict[str, str], said: str) -> None:
    usual = {"attack": "re-identification", "metric": "auc", "at_most": 0.9}
    with pytest.raises(UsageError, match=said):
        check_policy(Policy.model_validate({"limit": [usual | limit]}), {"noise 0.2": "noisy"}, where=Path("p.toml"))


@pytest.mark.parametrize(
    ("limit", "said"),
    [
        ({"kinds": ["noisy", "baseline"]}, "no baseline images in this audit"),
        ({"metric": "auc_matched"}, "auc_matched needs sex, view or age"),
        ({"metric": "auc_with_metadata"}, "auc_with_metadata needs sex, view or age"),
        ({"attack": "attribute inference", "metric": "sex_auc"}, "sex_auc needs sex"),
        ({"attack": "attribute inference", "metric": "age_group_accuracy"}, "age_group_accuracy needs age"),
        ({"attack": "reconstruction", "metric": "seeds_found"}, "noisy images alone, never on denoised"),
        ({"attack": "linkage", "metric": "top_1_checked", "variant": DENOISED}, "noisy images alone"),
    ],
)
def test_a_limit_that_can_never_be_measured_is_found_beforehand(limit: dict[str, object], said: str) -> None:
    usual = {"attack": "re-identification", "metric": "auc", "at_most": 0.9}
    policy = Policy.model_validate({"limit": [usual | limit]})
    variants = {"original": "clean", NOISY: "noisy", DENOISED: "denoised"}
    with pytest.raises(UsageError, match=said):
        check_policy(policy, variants, where=None, known=())
    if "needs" in said:
        check_policy(policy, variants, where=None, known=("sex", "age"))


@pytest.mark.parametrize("metric", ["auc_matched", "precision_at_1"])
def test_a_limit_that_nothing_can_exceed_is_no_limit(metric: str) -> None:
    limit = {"attack": "re-identification", "metric": metric}
    with pytest.raises(ValidationError, match=f"at_most = 75: {metric} is at most 1; write 0.75"):
        Policy.model_validate({"limit": [limit | {"at_most": 75}]})
    assert Policy.model_validate({"limit": [limit | {"at_most": 0.75}]}).limit
    assert Policy.model_validate({"limit": [{"attack": "reconstruction", "metric": "psnr", "at_most": 32}]}).limit


@pytest.mark.parametrize("passes", [{"attacker": "correlation of thumbnails"}, {"allow_weak": True}])
def test_a_limit_on_the_strongest_attacker_who_lacks_something_is_found_beforehand(passes: dict[str, object]) -> None:
    usual = {"attack": "re-identification", "metric": "auc", "at_most": 0.9}
    lacking = {"re-identification": "without AlexNet's features"}
    with pytest.raises(
        UsageError, match=r"auc would be measured without AlexNet's features \(--lpips-backbone\); give"
    ):
        check_policy(Policy.model_validate({"limit": [usual]}), {NOISY: "noisy"}, where=None, weakened=lacking)
    check_policy(Policy.model_validate({"limit": [usual | passes]}), {NOISY: "noisy"}, where=None, weakened=lacking)


@pytest.mark.parametrize(
    ("attack", "metric", "attacker"),
    [
        ("linkage", "top_1_patch_16", ""),
        ("re-identification", "auc_matched_with_metadata", "verification network with sex and age"),
        ("re-identification", "auc", "sex and view alone"),
        ("reconstruction", "psnr_of_releases", "averaging releases, Veilray's secret noise"),
        ("attribute inference", "age_group_accuracy", ""),
        ("membership inference", "tpr_at_fpr_0.01", ""),
    ],
)
def test_a_limit_on_what_there_is_is_let_through(attack: str, metric: str, attacker: str) -> None:
    limit = {"attack": attack, "metric": metric, "attacker": attacker, "at_most": 0.9}
    check_policy(Policy.model_validate({"limit": [limit]}), {}, where=None)


def test_what_falls_as_more_is_recovered_cannot_be_limited(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text("[[limit]]\nattack = 'reconstruction'\nmetric = 'lpips'\nat_most = 0.3")
    with pytest.raises(UsageError, match=r"lpips falls as more is recovered.*limit psnr or ssim"):
        read_policy(path)
    path.write_text("[[limit]]\nattack = 'reconstruction'\nmetric = 'ssim'\nat_most = 0.3")
    assert read_policy(path)[0].limit[0].metric == "ssim"


def test_a_policy_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        read_policy(tmp_path / "policy.toml")


def test_only_a_passed_audit_of_that_very_release_will_do() -> None:
    passed = _without_denoiser([result()])
    passed = passed.model_copy(update={"gate": _judge(passed, limit=_limit(0.9))})
    assert demand_passed(passed, release_digest="1" * 64, where=Path("audit")).passed
    own = {"release_digest": "1" * 64, "where": Path("audit")}
    assert demand_passed(passed, **own, policy_sha256="2" * 64).passed
    with pytest.raises(RefusedError, match="another policy"):
        demand_passed(passed, **own, policy_sha256="4" * 64)
    stopped = passed.model_copy(update={"gate": _judge(passed, limit=_limit(0.6))})
    for audit, digest, reason in (
        (passed, "9" * 64, "another release"),
        (stopped, "1" * 64, "did not pass"),
        (_without_denoiser([result()]), "1" * 64, "no gate"),
    ):
        with pytest.raises(RefusedError, match=reason):
            demand_passed(audit, release_digest=digest, where=Path("audit"))
