"""The commands at the end of a report: for runs, for their noise levels, and for networks that ship."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from veilray.evaluation.compare import compare
from veilray.evaluation.comparison import Comparison
from veilray.evaluation.results import read_scores, read_summary, write_results
from veilray.report.repeating import commands

MakeRun = Callable[..., Path]


def _levels(run: Path) -> list[Path]:
    folders = []
    for std in (0.1, 0.3):
        folders.append(run / "levels" / f"std-{std}-mean-0.1")
        summary = read_summary(run)
        noise = summary.noise.model_copy(update={"std": std})
        write_results(folders[-1], summary.model_copy(update={"model": "../..", "noise": noise}), read_scores(run))
    return folders


def test_a_level_is_repeated_from_its_run(make_run: MakeRun) -> None:
    assert commands(compare(_levels(make_run("a", methods=("noisy", "model"))))) == [
        "veilray train a/config.toml --data cohort --out a-again",
        "veilray evaluate a-again --data cohort --split test --std 0.1 --mean 0.1 --out again",
        "veilray evaluate a-again --data cohort --split test --std 0.3 --mean 0.1 --out again",
        "veilray compare again/std-0.1-mean-0.1 again/std-0.3-mean-0.1 --out report.html",
    ]


def test_a_network_that_ships_is_not_trained_again(make_run: MakeRun) -> None:
    comparison = compare(_levels(make_run("a"))[:1])
    (level,) = comparison.levels
    arms = tuple(
        replace(arm, runs=tuple(replace(run, source="shipped:default") for run in arm.runs)) for arm in level.arms
    )
    shipped: Comparison = replace(comparison, levels=(replace(level, arms=arms),))
    assert commands(shipped) == [
        "veilray evaluate default --data cohort --split test --std 0.1 --mean 0.1 --out again",
        "veilray compare again/std-0.1-mean-0.1 --out report.html",
    ]


def test_a_run_is_trained_and_evaluated_as_it_was(make_run: MakeRun) -> None:
    gains = {method: {} for method in ("bm3d", "tv-naive")}
    run = make_run("a", methods=("noisy", "model", "bm3d", "tv-naive"), summary={"model_minus": gains})
    assert commands(compare([run])) == [
        "veilray train a/config.toml --data cohort --out a-again",
        "veilray evaluate a-again --data cohort --split test --methods bm3d,tv-naive",
        "veilray compare a-again --out report.html",
    ]
