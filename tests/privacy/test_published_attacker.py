"""The attacker whose figures are published, through convolutions of AlexNet's shape: it can succeed, and can fail."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from safetensors.torch import save_file
from tests.privacy.alexnet import random_weights
from tests.privacy.planted import anonymous, as_they_are, audit_data, recognisable

from veilray.privacy.catalogue import NETWORK, REIDENTIFICATION
from veilray.privacy.extent import QUICK
from veilray.privacy.observing import Observer
from veilray.privacy.reidentification import ReIdentification
from veilray.privacy.results import find_results

PATIENTS = 20


@pytest.fixture(scope="module")
def observer(tmp_path_factory: pytest.TempPathFactory) -> Observer:
    """Who looks through random convolutions, which keep what they are shown."""
    path = tmp_path_factory.mktemp("weights") / "alexnet.safetensors"
    save_file(random_weights(), path)
    return Observer(path)


def _attack(observer: Observer, images: np.ndarray, patients: np.ndarray) -> tuple[float, float]:
    """The areas of the whole attacker, and of the best part of it that looks through AlexNet alone."""
    # The digest is that of the images alone, so that they are looked at once whoever they are said to be of.
    data = dataclasses.replace(audit_data(images, patients), digest=str(images.sum()))
    outcomes = ReIdentification(observer)(data, as_they_are(data), extent=QUICK, seeds=[1], progress=lambda _: None)
    found = find_results(outcomes, attack=REIDENTIFICATION, metric="auc")
    (whole,) = [one for one in found if one.attacker == NETWORK]
    assert not whole.weakened
    return whole.value, max(one.value for one in found if one.role == "part" and "AlexNet" in one.attacker)


@pytest.mark.slow
def test_it_recognises_who_can_be_recognised(observer: Observer) -> None:
    patients = np.repeat(np.arange(PATIENTS), 3)
    whole, through_alexnet = _attack(observer, recognisable(PATIENTS, each=3), patients)
    assert whole > 0.95
    assert through_alexnet > 0.9


@pytest.mark.slow
def test_it_recognises_nobody_where_there_is_nobody_to_recognise(observer: Observer) -> None:
    images = anonymous(PATIENTS, each=3)
    patients = np.repeat(np.arange(PATIENTS), 3)
    areas = [_attack(observer, images, np.random.default_rng(draw).permutation(patients))[0] for draw in range(4)]
    assert np.mean(areas) == pytest.approx(0.5, abs=0.1)
