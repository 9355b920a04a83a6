"""Membership inference on models that remember and on models that cannot."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from veilray.errors import UsageError
from veilray.privacy.catalogue import LIRA, LOSS
from veilray.privacy.membership import lira, loss_threshold, patient_losses
from veilray.privacy.results import AttackResult, Skipped

PATIENTS = 120


def _value(outcomes: list[AttackResult | Skipped], metric: str) -> AttackResult:
    found = [one for one in outcomes if isinstance(one, AttackResult) and one.metric == metric]
    assert len(found) == 1
    return found[0]


class _Regression:
    """Least squares on planted data; with nearly as many inputs as patients it remembers them."""

    def __init__(self, inputs: int) -> None:
        rng = np.random.default_rng(0)
        self.inputs = rng.normal(size=(PATIENTS, inputs))
        # Some patients are harder than others, which a threshold on the loss takes for non-members.
        self.targets = rng.normal(size=PATIENTS) * rng.lognormal(0.0, 1.0, PATIENTS)

    def __call__(self, mask: np.ndarray, seed: int) -> np.ndarray:
        slopes = np.linalg.lstsq(self.inputs[mask], self.targets[mask], rcond=None)[0]
        losses: np.ndarray = (self.inputs @ slopes - self.targets) ** 2
        return losses[None]


MEMBER = np.random.default_rng(5).permutation(PATIENTS) < PATIENTS // 2


def test_a_model_that_remembers_tells_whom() -> None:
    model = _Regression(40)
    losses = model(MEMBER, 0)
    threshold = _value(loss_threshold(losses, MEMBER, model="m"), "auc")
    assert threshold.low is not None
    assert threshold.low > 0.5
    assert threshold.attacker == LOSS
    attacked = lira(losses, MEMBER, model, model="m", shadows=16, seed=1, progress=lambda _: None)
    ratio = _value(attacked, "auc")
    assert ratio.value > max(0.7, threshold.value)
    assert ratio.attacker == LIRA
    assert "16 shadow models" in ratio.notes[0]


def test_a_model_that_cannot_remember_tells_nothing() -> None:
    model = _Regression(1)
    losses = model(MEMBER, 0)
    for outcomes in (
        loss_threshold(losses, MEMBER, model="m"),
        lira(losses, MEMBER, model, model="m", shadows=16, seed=1, progress=lambda _: None),
    ):
        assert abs(_value(outcomes, "auc").value - 0.5) < 0.12


def test_area_and_rate_are_those_of_the_definition() -> None:
    rng = np.random.default_rng(0)
    member = np.arange(2000) < 1000
    losses = rng.normal(size=2000) - 1.0 * member
    outcomes = loss_threshold(losses[None], member, model="m")
    expected = stats.mannwhitneyu(-losses[member], -losses[~member]).statistic / 1000**2
    assert _value(outcomes, "auc").value == pytest.approx(expected)
    # At 1 % of 1,000 others, the fewest that a rate is given of: as low as the eleventh lowest of them, or lower.
    limit = np.sort(losses[~member])[10]
    assert _value(outcomes, "tpr_at_fpr_0.01").value == pytest.approx((losses[member] < limit).mean())
    assert any("0.001" in one.reason for one in outcomes if isinstance(one, Skipped))


def test_figures_are_averaged_over_noises() -> None:
    member = np.arange(40) < 20
    telling, silent = np.where(member, 0.0, 1.0), np.ones(40)
    found = _value(loss_threshold(np.stack([telling, silent]), member, model="m"), "auc")
    assert found.value == pytest.approx(0.75)


def test_certainty_has_an_interval() -> None:
    member = np.arange(70) < 30
    found = _value(loss_threshold(np.where(member, 0.0, 1.0)[None], member, model="m"), "auc")
    assert (found.value, found.high) == (1.0, 1.0)
    assert found.low == pytest.approx(0.025 ** (1 / 30))


def test_patients_have_the_mean_of_their_images() -> None:
    found = patient_losses(np.array([1.0, 3.0, 5.0]), np.array([1, 1, 0]))
    assert found.tolist() == [5.0, 2.0]


@pytest.mark.parametrize("members", [10, 20])
def test_the_smaller_of_members_and_others_is_what_counts(members: int) -> None:
    found = _value(loss_threshold(np.arange(30.0)[None], np.arange(30) < members, model="m"), "auc")
    assert (found.n_patients, found.n_images) == (10, 30)
    assert found.notes[0] == "from only 10 patients, fewer than 30"
    enough = _value(loss_threshold(np.arange(60.0)[None], np.arange(60) < 30, model="m"), "auc")
    assert not any("fewer" in note for note in enough.notes)


def test_too_few_patients_or_shadows_are_said_to_be() -> None:
    few = np.arange(30) < 25
    outcomes = loss_threshold(np.arange(30.0)[None], few, model="m")
    assert [type(one) for one in outcomes] == [Skipped]
    with pytest.raises(UsageError, match="at least 16"):
        lira(np.ones((1, 30)), few, lambda *_: np.ones((1, 30)), model="m", shadows=8, seed=0, progress=lambda _: None)
