"""The page of an audit: a verdict with numbers first, nothing outside itself, and no word of safety."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest
from tests.privacy.records import result, small_audit

from veilray.privacy.gate import Policy, judge
from veilray.privacy.results import Audit, Skipped
from veilray.report.audit import AuditPanel, audit_page
from veilray.report.audit_figures import frontier_points, spread
from veilray.report.audit_text import gate_sentence, headline, value_text, verdicts

ROC = ((0.0, 0.0), (0.5, 0.8), (1.0, 1.0))


def _audit(**given: object) -> Audit:
    outcomes = [
        result(attack="linkage", metric="top_1", variant="original", value=1.0, low=0.9, high=1.0),
        result(attack="linkage", metric="top_1", value=0.975, low=0.9, high=1.0, predicted=0.98),
        result(
            attack="linkage", metric="top_1_patch_16", value=0.5, low=0.4, high=0.6, curve=((2.0, 0.1), (16.0, 0.5))
        ),
        result(metric="auc_matched", value=0.71, low=0.61, high=0.79, curve=ROC),
        result(metric="auc_matched", value=0.99, low=0.98, high=1.0, attacker="sex, view and age alone"),
        result(metric="auc_matched", variant="original", value=0.9, low=0.85, high=0.95, curve=ROC),
        result(attack="reconstruction", metric="psnr", value=14.3, low=14.1, high=14.5, attacker="none"),
        result(
            attack="reconstruction",
            metric="psnr_of_8_releases",
            value=22.9,
            attacker="averaging 8 releases, fresh noise for each release",
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
    assert "at least 97.5 %" in said.replace("\N{NO-BREAK SPACE}", " ")
    assert "AUC of at least 0.710 (0.610 to 0.790)" in said
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
        "+8.6 dB, to 22.9 dB (22.0 to 23.0 dB; noise 0.2; from only 12 patients, fewer than 30)"
        in (said["Who gets several releases of one image"])
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
    assert "at least 0.840 (0.800 to 0.880; noise 0.2, denoised)" in said
    assert "0.710" not in said  # one number a sentence; the table has the others


BLIND = "sex, view and age alone"


@pytest.mark.parametrize(
    ("blind", "said"),
    [
        ((0.75, 0.7, 0.8), "reach 0.750 (0.700 to 0.800) there, which the images do not exceed."),
        ((0.65, 0.6, 0.7), "reach 0.650 (0.600 to 0.700) there, an interval that overlaps with that of the images."),
        ((0.55, 0.5, 0.58), "reach 0.550 (0.500 to 0.580) there."),
    ],
)
def test_what_metadata_reach_among_people_alike_is_said_beside_the_images(
    blind: tuple[float, float, float], said: str
) -> None:
    value, low, high = blind
    alone = result(metric="auc_matched", attacker=BLIND, variant="original", value=value, low=low, high=high)
    audit = small_audit([result(metric="auc_matched", value=0.71, low=0.61, high=0.79), alone])
    (verdict,) = [one.plain for one in verdicts(audit) if one.attacker == "Who sees two released images"]
    assert f"guessing has 0.5, and {BLIND} {said}" in verdict


def test_the_headline_takes_the_strongest_of_noisy_and_denoised_images() -> None:
    audit = small_audit(
        [
            result(metric="auc_matched", value=0.71, low=0.61, high=0.79),
            result(metric="auc_matched", value=0.84, low=0.80, high=0.88, variant="noise 0.2, denoised"),
            result(metric="auc_matched", value=0.99, low=0.98, high=1.0, variant="original"),
        ]
    )
    assert headline(audit).endswith("AUC of at least 0.840 (0.800 to 0.880; noise 0.2, denoised).")


def test_the_headline_says_first_that_the_clean_images_are_there() -> None:
    assert headline(_audit(audited={"holds_clean": True})).startswith("The release holds the clean images: nothing")
    nothing = small_audit([], audited={"holds_clean": True})
    assert headline(nothing) == "The release holds the clean images: nothing protects them."


def test_images_that_were_left_out_are_said_where_everything_was_run() -> None:
    page = audit_page(small_audit([result()], audited={"left_out": ("2 images of another size",)}))
    assert "2 images of another size" in page
    assert "Everything that this audit knows was run" not in page
    assert "Everything that this audit knows was run" in audit_page(small_audit([result()]))


def test_people_are_alike_in_no_more_than_what_is_known_of_them() -> None:
    known = result(metric="auc_matched", notes=("both images agree in sex and view",))
    (said,) = [one.plain for one in verdicts(small_audit([known])) if one.attacker == "Who sees two released images"]
    assert "among people alike in sex and view, with" in said


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
    for at_most, words in ((0.99, "no tested attack exceeded its limit"), (0.5, "Gate not passed: re-identification")):
        limit = {"attack": "re-identification", "metric": "auc_matched", "at_most": at_most}
        limit |= {"variant": "noise 0.2", "attacker": "verification network"}
        policy = Policy.model_validate({"limit": [limit]})
        audit = _audit().model_copy(update={"gate": judge(policy, _audit(), policy_sha256="2" * 64)})
        assert words in gate_sentence(audit)
        assert words in audit_page(audit)
        assert not re.search(r"(?<!that the release )is safe(?!\.)", gate_sentence(audit))
    assert gate_sentence(_audit()) == ""


def test_what_is_in_the_release_itself_is_said_first() -> None:
    first = verdicts(_audit(audited={"holds_clean": True, "subtractable": True}))[0]
    assert "nothing protects them" in first.plain
    assert "subtracts" in first.plain


def test_an_audit_of_nothing_says_so() -> None:
    nothing = small_audit([Skipped(attack="linkage", reason="there is one image alone")], formal=None)
    assert "Nothing could be measured" in headline(nothing)
    assert "there is one image alone" in audit_page(nothing)


def test_values_are_written_as_their_metric_is() -> None:
    assert value_text("psnr", 14.26).replace("\N{NO-BREAK SPACE}", " ") == "14.3 dB"
    assert value_text("top_1", 1.0).replace("\N{NO-BREAK SPACE}", " ") == "100 %"
    assert value_text("auc_matched", 0.81234) == "0.812"
