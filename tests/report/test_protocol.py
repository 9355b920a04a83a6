"""The tables of settings: none without its words, none that has no effect."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest

from veilray.evaluation.compare import compare
from veilray.evaluation.labels import flatten, phrase, settings_of
from veilray.evaluation.results import Summary
from veilray.report.protocol import protocol
from veilray.training.config import Loss, RunConfig

# Shown by other rows: the noise by that of the test and of the training, the seeds by that of all runs.
ELSEWHERE = {"model.name", "model.width", "noise.training", "data.trained_on"}
KEYS = sorted(flatten(RunConfig()))


def _told_apart(make_run: Callable[..., Path]) -> set[str]:
    """Keys that decide which arm a run belongs to."""
    folder = make_run("a")
    summary = Summary.model_validate_json((folder / "evaluation" / "summary.json").read_text())
    return set(settings_of(RunConfig(), summary, {}))


def test_every_setting_that_tells_runs_apart_has_a_phrase(make_run: Callable[..., Path]) -> None:
    told = _told_apart(make_run) - ELSEWHERE
    assert told & set(KEYS) > {"train.loss", "train.degradation", "model.layers"}
    nameless = [key for key in sorted(told) if phrase(key, "17").startswith(f"{key} ")]
    assert not nameless


def test_every_setting_that_is_shown_has_a_name(make_run: Callable[..., Path]) -> None:
    runs = [
        make_run("a", model={"name": "unetpp"}, train={"loss": "perceptual", "perceptual_sha256": "5" * 64}),
        make_run("b", model={"name": "nafnet"}, train={"loss": "adversarial"}),
        make_run("c", model={"name": "dncnn"}),
        make_run("d", model={"name": "tnrd", "width": 48}),
    ]
    shown = {setting.name for rows in protocol(compare(runs)).values() for setting in rows}
    assert {"Convolutions", "Stages of diffusion", "Weight of what the loss adds to pixels"} <= shown
    keyed = [name for name in shown if "." in name or name != name[:1].upper() + name[1:]]
    assert not keyed


def test_a_setting_without_effect_is_not_shown(make_run: Callable[..., Path]) -> None:
    shown = {
        setting.name
        for rows in protocol(compare([make_run("a", model={"name": "dncnn"})])).values()
        for setting in rows
    }
    assert {"Convolutions", "Loss"} <= shown
    hidden = {"Levels", "Block", "Stages of diffusion", "Weight of what the loss adds to pixels"}
    assert not hidden & shown


@pytest.mark.parametrize("loss", get_args(Loss))
def test_every_objective_is_written_in_words(make_run: Callable[..., Path], loss: str) -> None:
    run = make_run("a", train={"loss": loss})
    (value,) = {s.values[0][0] for rows in protocol(compare([run])).values() for s in rows if s.name == "Loss"}
    assert value != loss
    assert phrase("train.loss", loss) != loss
