"""The page of an audit: a verdict with numbers first, nothing outside itself, and no word of safety."""

from __future__ import annotations

import itertools
import re
from typing import Any

import numpy as np
import pytest
from tests.privacy.records import result, small_audit

from veilray.privacy.gate import judge
from veilray.privacy.policy import Policy
from veilray.privacy.results import AttackResult, Audit, Difference, Skipped
from veilray.report.audit import AuditPanel, audit_page
from veilray.report.audit_figures import frontier_points, spread, utility_words
from veilray.report.audit_text import against_theory, gate_lines, headline, highest_of, verdicts
from veilray.report.audit_values import at_least, predicted_text, value_text

BLIND = "sex, view and age alone"
ROC = ((0.0, 0.0), (0.5, 0.8), (1.0, 1.0))


def _audit(**given: object) -> Audit:
    outcomes = [
        result(attack="linkage", metric="top_1", unit="share", variant="original", value=1.0, low=0.9, high=1.0),
        result(
            attack="linkage",
            metric="top_1",
            unit="share",
            value=0.975,
            low=0.925,
            high=1.0,
            chance=0.01,
            predicted=0.98,
            predicted_at_least=True,
        ),
        result(
            attack="linkage", metric="top_1_patch_16", value=0.5, low=0.4, high=0.6, curve=((2.0, 0.1), (16.0, 0.5))
        ),
        result(metric="auc_matched", value=0.71, low=0.61, high=0.79, curve=ROC),
        result(metric="auc_matched", value=0.99, low=0.98, high=1.0, attacker=BLIND, role="baseline"),
        result(metric="auc_matched", variant="original", value=0.9, low=0.85, high=0.95, curve=ROC),
        result(
            attack="reconstruction",
            metric="psnr",
            unit="dB",
            chance=None,
            value=14.3,
            low=14.1,
            high=14.5,
            attacker="none",
        ),
        result(
            attack="reconstruction",
            metric="psnr_of_releases",
            unit="dB",
            chance=None,
            count=8,
            noise="fresh",
            value=22.9,
            attacker="averaging releases, fresh noise for each release",
            curve=((1.0, 14.3), (8.0, 22.9)),
            low=22.0,
            high=23.0,
            n_patients=12,
        ),
        Skipped(attack="attribute inference", variant="noise 0.2", reason="sex: it is known of no image"),
        Skipped(attack="attribute inference", variant="original", reason="sex: it is known of no image"),
    ]
    return small_audit(outcomes, **given)


def test_the_verdict_comes_first_and_has_numbers() -> None:
    said = headline(_audit())
    assert "at least 92.5 % (measured 97.5 %, 95 % 92.5 to 100 %)" in said.replace("\N{NO-BREAK SPACE}", " ")
    assert "AUC of telling: at least 0.610 (measured 0.710, 95 % 0.610 to 0.790)" in said
    page = audit_page(_audit())
    assert (
        page.index("Verdict")
        < page.index("Not tested")
        < page.index("The formal side")
        < page.index("Method and limits")
    )


def test_who_sees_no_pixels_is_no_attack_on_them() -> None:
    assert "0.990" not in headline(_audit())


def test_every_kind_of_attacker_has_a_sentence() -> None:
    said = {one.attacker: one.plain for one in verdicts(_audit())}
    assert "predicted" not in said["Who sees two released images"]
    assert "Without any protection: 0.900" in said["Who sees two released images"]
    assert (
        "8 of them, +8.6 dB: at least 22.0 dB (measured 22.9 dB, 95 % 22.0 to 23.0 dB; noise 0.2; "
        "from only 12 patients, fewer than 30)" in (said["Who gets several releases of one image"])
    )
    assert "epsilon" in said["Formally"]


def test_of_several_kinds_of_images_the_worst_speaks() -> None:
    audit = small_audit(
        [
            result(metric="auc_matched", value=0.71, low=0.61, high=0.79),
            result(metric="auc_matched", value=0.84, low=0.80, high=0.88, variant="noise 0.2, denoised"),
        ]
    )
    (said,) = [one.plain for one in verdicts(audit) if one.attacker == "Who sees two released images"]
    assert "at least 0.800 (measured 0.840, 95 % 0.800 to 0.880; noise 0.2, denoised)" in said
    assert "0.710" not in said  # one number a sentence; the table has the others


ALL = ("sex", "view", "age within 5 years")


def _seeing(*, variant: str = "noise 0.2", matched_on: tuple[str, ...] = ALL, **difference: float) -> AttackResult:
    more = Difference.model_validate(difference)
    given = {"metric": "auc_matched", "value": 0.71, "low": 0.61, "high": 0.79, "variant": variant}
    return result(**given, matched_on=matched_on, above_metadata=more)


def _alone(blind: str = BLIND) -> AttackResult:
    return result(
        metric="auc_matched", attacker=blind, role="baseline", variant="original", value=0.65, low=0.6, high=0.7
    )


def _said_of_two(audit: Audit) -> str:
    (said,) = [one.plain for one in verdicts(audit) if one.attacker.startswith("Who sees two")]
    return said.replace("\N{MINUS SIGN}", "-")


ABOVE, BELOW = {"value": 0.06, "low": 0.01, "high": 0.11}, {"value": 0.07, "low": -0.01, "high": 0.13}


@pytest.mark.parametrize(
    ("difference", "said"),
    [
        (
            ABOVE,
            "The images alone exceed that over the same pairs by +0.060 (+0.010 to +0.110; noise 0.2), "
            "which is biometric.",
        ),
        (
            BELOW,
            "The images alone do not exceed that over the same pairs (+0.070, -0.010 to +0.130; noise 0.2), which is "
            "no evidence of anything biometric.",
        ),
    ],
)
def test_biometric_is_only_what_exceeds_metadata_over_the_same_pairs(difference: dict[str, float], said: str) -> None:
    audit = small_audit([_seeing(**difference), _alone()])
    assert f"Without any pixel, {BLIND} reach 0.650 (0.600 to 0.700) there. {said}" in _said_of_two(audit)


@pytest.mark.parametrize(
    ("matched_on", "said"),
    [
        (("sex", "view"), "beyond sex and view; age is not known here and may be part of it."),
        (("view",), "beyond view; sex and age are not known here and may be part of it."),
    ],
)
def test_nothing_is_biometric_where_sex_view_or_age_is_unknown(matched_on: tuple[str, ...], said: str) -> None:
    audit = small_audit([_seeing(**ABOVE, matched_on=matched_on), _alone()])
    assert f"by +0.060 (+0.010 to +0.110; noise 0.2), {said}" in _said_of_two(audit)
    assert "biometric" not in _said_of_two(audit)


def test_the_verdict_says_of_how_many_kinds_of_images_it_holds() -> None:
    denoised = "noise 0.2, denoised"
    some = small_audit([_seeing(**ABOVE, variant=denoised), _seeing(**BELOW), _alone()])
    assert (
        "exceed that over the same pairs at 1 of 2 kinds of images, by +0.060 (+0.010 to +0.110; noise 0.2, denoised), "
        "which is biometric; at the other 1 there is no evidence of it." in _said_of_two(some)
    )
    every = small_audit([_seeing(**ABOVE, variant=denoised), _seeing(**ABOVE), _alone()])
    assert "at 2 of 2 kinds of images, by up to +0.060" in _said_of_two(every)
    none = small_audit([_seeing(**BELOW, variant=denoised), _seeing(**BELOW), _alone()])
    assert (
        "do not exceed that over the same pairs at any of 2 kinds of images (highest +0.070, -0.010 to +0.130; noise "
        "0.2, denoised): every interval holds 0, which is no evidence of anything biometric." in _said_of_two(none)
    )


def test_the_page_has_what_exceeds_metadata_of_every_kind_of_image() -> None:
    knowing = _seeing(**ABOVE).model_copy(
        update={"metric": "auc_matched_with_metadata", "attacker": f"verification network with {BLIND[:-6]}"}
    )
    audit = small_audit([_seeing(**ABOVE), _seeing(**BELOW, variant="noise 0.2, denoised"), _alone(), knowing])
    (row,) = re.findall(rf"AUC above {BLIND}, matched impostors</th>.*?</tr>", audit_page(audit), flags=re.DOTALL)
    assert "+0.060" in row
    assert "to +0.130" in row
    assert f"AUC above {BLIND}, matched impostors, metadata known</th>" in audit_page(audit)


def test_the_page_says_that_attackers_saw_one_draw_of_the_noise() -> None:
    assert "Intervals hold no variation of the noise" in audit_page(_audit())


def test_the_network_that_knows_metadata_is_held_against_them_too() -> None:
    more = Difference(value=0.02, low=0.005, high=0.03)
    knowing = result(metric="auc_matched_with_metadata", value=0.9, low=0.88, high=0.92, above_metadata=more)
    said = _said_of_two(small_audit([_seeing(**BELOW), _alone(), knowing]))
    assert "The images beside what is known exceed that over the same pairs by +0.020" in said


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"value": 0.7, "low": 0.6, "high": 0.8}, "at least 0.600 (measured 0.700, 95 % 0.600 to 0.800)"),
        (
            {"value": 0.6, "low": 0.5, "high": 0.7},
            "not told from guessing by this attacker (0.600, 95 % 0.500 to 0.700)",
        ),
        ({"value": 0.6, "low": None, "high": None}, "0.600, without an interval"),
        (
            {"value": 20.0, "low": 19.0, "high": 21.0, "unit": "dB", "chance": None},
            "at least 19.0 dB (measured 20.0 dB, 95 % 19.0 to 21.0 dB)",
        ),
    ],
)
def test_at_least_is_the_lower_end_or_that_it_did_not_show(given: dict[str, Any], said: str) -> None:
    assert at_least(result(**given)).replace("\N{NO-BREAK SPACE}", " ") == said


def test_the_page_says_of_how_many_figures_the_verdict_takes_the_highest() -> None:
    page = audit_page(_audit())
    assert "its interval does not allow for its having been chosen" in page
    three = [result(metric="auc_matched", attacker=f"attacker {k}") for k in range(3)]
    audit = small_audit([*three, _seeing(**ABOVE), _alone()])
    assert highest_of(audit) == 4
    assert "the highest of 4;" in audit_page(audit)


def test_what_is_predicted_says_whether_it_is_a_bound_and_how_far_off_it_is() -> None:
    bound = result(unit="share", predicted=1.0, predicted_at_least=True)
    exact = result(unit="share", predicted=0.75, deviation=-0.42)
    said = [
        predicted_text(one).replace("\N{NO-BREAK SPACE}", " ").replace("\N{MINUS SIGN}", "-") for one in (bound, exact)
    ]
    assert said == ["predicted at least 100 %", "predicted 75.0 %, z -0.4"]


@pytest.mark.parametrize(
    ("deviations", "said"),
    [
        ((3.0, -4.0), "over 2 kinds of noise together: chi-squared 25.0 on 2 degrees of freedom; .* than 0.001"),
        ((1.0, -1.0, 2.0), "chi-squared 6.0 on 3 degrees of freedom; .* a chance of 0.112"),
    ],
)
def test_deviations_from_the_closed_form_are_taken_together(deviations: tuple[float, ...], said: str) -> None:
    given = {"attack": "linkage", "metric": "top_1_checked", "unit": "share", "predicted": 0.75}
    checked = [
        result(variant=f"noise {place}", deviation=deviation, **given) for place, deviation in enumerate(deviations)
    ]
    audit = small_audit(checked)
    assert re.search(said, against_theory(audit))
    assert against_theory(audit) in audit_page(audit)
    # Levels of releases may be of one field, and one level alone says it itself.
    release = audit.audited.releases[0].model_copy(update={"variant": "noise 0"})
    of_releases = audit.audited.model_copy(update={"releases": (release,)})
    assert not against_theory(small_audit(checked[:2]).model_copy(update={"audited": of_releases}))


def test_guessing_is_that_of_the_figure_that_the_verdict_takes() -> None:
    figures = [
        result(
            attack="attribute inference",
            metric="age_group_accuracy",
            unit="share",
            variant=name,
            value=value,
            low=value - 0.05,
            high=value + 0.05,
            chance=chance,
        )
        for name, value, chance in (("noise 0.2", 0.5, 0.42), ("noise 0.2, denoised", 0.6, 0.48))
    ]
    (said,) = [one.plain for one in verdicts(small_audit(figures)) if "infers" in one.attacker]
    assert "guessing has 48.0 %: at least 55.0 %" in said


def test_the_headline_takes_the_strongest_of_noisy_and_denoised_images() -> None:
    audit = small_audit(
        [
            result(metric="auc_matched", value=0.71, low=0.61, high=0.79),
            result(metric="auc_matched", value=0.84, low=0.80, high=0.88, variant="noise 0.2, denoised"),
            result(metric="auc_matched", value=0.99, low=0.98, high=1.0, variant="original"),
        ]
    )
    assert headline(audit).endswith("at least 0.800 (measured 0.840, 95 % 0.800 to 0.880; noise 0.2, denoised).")


def test_the_headline_says_first_that_the_clean_images_are_there() -> None:
    assert headline(_audit(audited={"holds_clean": True})).startswith("The release holds the clean images: nothing")
    nothing = small_audit([], audited={"holds_clean": True})
    assert headline(nothing) == "The release holds the clean images: nothing protects them."


def test_images_that_were_left_out_are_said_where_everything_was_run() -> None:
    page = audit_page(small_audit([result()], audited={"left_out": ("2 images of another size",)}))
    assert "2 images of another size" in page
    assert "Everything that this audit knows was run" not in page
    assert "Everything that this audit knows was run" in audit_page(small_audit([result()]))


def test_labels_that_are_not_known_of_all_are_said() -> None:
    audit = small_audit([result()])
    some = audit.audited.model_copy(update={"labels_known": ("sex known of 20 of 80 images",)})
    assert "sex known of 20 of 80 images." in audit_page(audit.model_copy(update={"audited": some}))


def test_people_are_alike_in_no_more_than_what_is_known_of_them() -> None:
    known = result(metric="auc_matched", matched_on=("sex", "view"))
    (said,) = [one.plain for one in verdicts(small_audit([known])) if one.attacker == "Who sees two released images"]
    assert "among people alike in sex and view; AUC" in said


def _protected() -> Audit:
    """Two protections of which one was restored, and the originals."""
    names = {
        "original": "clean",
        "noise 0.2": "noisy",
        "noise 0.2, restored": "denoised",
        "blur": "baseline",
    }
    figures = [("original", 0.9, None), ("noise 0.2", 0.7, 14.0), ("noise 0.2, restored", 0.8, 30.0)]
    figures += [("blur", 0.75, 25.0)]
    outcomes = []
    for name, risk, utility in figures:
        outcomes.append(result(metric="auc_matched", variant=name, value=risk, low=risk - 0.05, high=risk + 0.05))
        if utility is not None:
            outcomes.append(result(attack="reconstruction", metric="psnr", variant=name, value=utility, n_patients=12))
    restored = {"noise 0.2, restored": "noise 0.2"}
    return small_audit(outcomes, audited={"variants": names, "restored": restored})


def test_the_frontier_is_of_restored_images_and_of_the_higher_risk() -> None:
    points = {one.protection: one for one in frontier_points(_protected())}
    assert set(points) == {"noise 0.2", "blur"}
    noise, blur = points["noise 0.2"], points["blur"]
    assert (noise.utility.value, noise.risk.value, noise.restored) == (30.0, 0.8, True)
    assert (blur.utility.value, blur.risk.value, blur.restored) == (25.0, 0.75, False)
    # A network that makes it worse is not what the image is worth: who uses it leaves the network out.
    worse = result(attack="reconstruction", metric="psnr", variant="blur, restored", value=24.0, attacker="a network")
    audit = _protected()
    names = audit.audited.variants | {"blur, restored": "baseline"}
    changed = {"variants": names, "restored": audit.audited.restored | {"blur, restored": "blur"}}
    audit = small_audit([*audit.outcomes, worse], audited=changed)
    (blur,) = [one for one in frontier_points(audit) if one.protection == "blur"]
    assert (blur.utility.value, blur.restored) == (25.0, False)


def test_the_frontier_says_what_its_utility_is() -> None:
    assert utility_words(small_audit([])) == "as they leave"
    trained = small_audit([], audited={"restorer_steps": 600})
    assert utility_words(trained) == "after the better of nothing and a network trained 600 steps"
    given = result(attack="reconstruction", metric="psnr", variant="noise 0.2, denoised", attacker="the denoiser")
    both = small_audit([given], audited={"restorer_steps": 600, "restored": {"noise 0.2, denoised": "noise 0.2"}})
    assert utility_words(both) == "after the better of nothing, a network trained 600 steps and the given denoiser"


def test_the_frontier_is_drawn_and_says_where_patients_are_few() -> None:
    page = audit_page(_protected())
    assert "The frontier" in page
    assert "Some of it is from only 12 patients, fewer than 30." in page


def test_names_of_the_frontier_do_not_lie_on_each_other() -> None:
    for crowded in ([0.5] * 8, [0.97, 0.98, 0.99, 1.0], [0.0, 0.01, 0.9], [0.1, 0.5]):
        placed = spread(crowded, apart=0.08)
        assert min(upper - lower for lower, upper in itertools.pairwise(placed)) >= 0.08 - 1e-9
        assert min(placed) >= -1e-9
        assert max(placed) <= 1.0 + 1e-9
    assert spread([0.1, 0.5], apart=0.08) == [0.1, 0.5]


def test_notes_with_figures_from_few_patients_say_so() -> None:
    few = result(n_patients=12, notes=("0.931 where every pair weighs the same",))
    page = audit_page(small_audit([few]))
    assert "0.931 where every pair weighs the same (from only 12 patients, fewer than 30)" in page


def test_few_patients_are_said_beside_the_figure() -> None:
    page = audit_page(_audit())
    cell = re.search(r"<td class=\"n\">22\.9.*?</td>", page, flags=re.DOTALL)
    assert cell is not None
    assert "from only 12 patients, fewer than 30" in cell[0]


def test_a_reason_is_said_once_for_all_its_images() -> None:
    page = audit_page(_audit())
    assert page.count("it is known of no image") == 1
    assert "noise 0.2, original" in page


@pytest.mark.slow
def test_the_page_refers_to_nothing_outside_itself() -> None:
    page = audit_page(_audit(), panels=[AuditPanel(variant="original", images=np.zeros((1, 8, 8), dtype=np.float32))])
    assert "<script" not in page
    assert not re.findall(r"(?:src|href)=\"(?!data:|#)", page)
    assert page.count("<svg") == 3  # no frontier of a single kind of image
    assert 'src="data:image/png' in page
    assert 'src="data:image/png' not in audit_page(_audit())


@pytest.mark.slow
def test_a_gate_never_speaks_of_safety() -> None:
    for at_most, words in ((0.99, "no tested attack exceeded its limit"), (0.5, "Gate not passed. re-identification")):
        limit = {"attack": "re-identification", "metric": "auc_matched", "at_most": at_most}
        limit |= {"variant": "noise 0.2", "attacker": "verification network"}
        policy = Policy.model_validate({"limit": [limit]})
        audit = _audit().model_copy(update={"gate": judge(policy, _audit(), policy_sha256="2" * 64)})
        assert words in " ".join(gate_lines(audit))
        assert all(line in audit_page(audit) for line in gate_lines(audit))
        assert not re.search(r"(?<!that the release )is safe(?!\.)", " ".join(gate_lines(audit)))
    assert gate_lines(_audit()) == ()


def test_what_is_in_the_release_itself_is_said_first() -> None:
    first = verdicts(_audit(audited={"holds_clean": True, "subtractable": True}))[0]
    assert "nothing protects them" in first.plain
    assert "subtracts" in first.plain


def test_an_audit_of_nothing_says_so() -> None:
    nothing = small_audit([Skipped(attack="linkage", reason="there is one image alone")], formal=None)
    assert "Nothing could be measured" in headline(nothing)
    assert "there is one image alone" in audit_page(nothing)


def test_values_are_written_in_their_unit() -> None:
    assert value_text(14.26, "dB").replace("\N{NO-BREAK SPACE}", " ") == "14.3 dB"
    assert value_text(1.0, "share").replace("\N{NO-BREAK SPACE}", " ") == "100 %"
    assert value_text(0.81234, "") == "0.812"
