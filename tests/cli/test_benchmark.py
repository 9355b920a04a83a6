"""veilray benchmark: from a plan to the report, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.command_line import make_cohort, veilray
from tests.evaluation.bench import TINY, InProcess

from veilray.evaluation.benchmark.process import Ended


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_cohort(tmp_path_factory.mktemp("bench"))


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    path = tmp_path / "plan.toml"
    path.write_text(f'{TINY}\n[factors]\nsetup = ["single", "dp:2"]\nlayout = ["contiguous"]\n', encoding="utf-8")
    return path


@pytest.mark.slow
def test_a_plan_ends_with_its_report(cohort: Path, plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = InProcess(monkeypatch)
    words = ["benchmark", plan, "--data", cohort, "--out", tmp_path / "out", "--no-download"]
    result = veilray(*words)
    assert result.status == 0, result.err
    assert result.out.splitlines()[-1] == f"1 done, 1 skipped; report: {tmp_path / 'out' / 'report.html'}"
    assert (tmp_path / "out" / "report.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert len(here.commands) == 1
    assert veilray(*words).status == 0
    assert len(here.commands) == 1


@pytest.mark.slow
def test_failures_are_told_at_the_end_and_the_report_is_there(
    cohort: Path, plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = InProcess(monkeypatch)
    here.before = lambda words: Ended(status=1, seconds=1.0, message="out of memory") if "seed8" in words[1] else None
    plan.write_text(f"seeds = [7, 8]\n{TINY}", encoding="utf-8")
    result = veilray("benchmark", plan, "--data", cohort, "--out", tmp_path / "out", "--no-download")
    assert result.status == 1
    assert len(result.lines) == 1
    assert "1 of 2 runs failed" in result.err
    assert "out of memory; the same command tries them again" in result.err
    assert (tmp_path / "out" / "report.html").is_file()


def test_ctrl_c_says_how_to_go_on(cohort: Path, plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(words: list[str]) -> Ended:
        raise KeyboardInterrupt

    InProcess(monkeypatch).before = interrupt
    result = veilray("benchmark", plan, "--data", cohort, "--out", tmp_path / "out", "--no-download")
    assert (result.status, result.lines) == (1, ["veilray: stopped; the same command goes on from here"])


def test_a_dry_run_lists_the_runs_and_makes_nothing(cohort: Path, plan: Path, tmp_path: Path) -> None:
    result = veilray("benchmark", plan, "--data", cohort, "--out", tmp_path / "out", "--dry-run")
    assert result.status == 0, result.err
    first, second = result.out.splitlines()
    assert first == "unet_noise0.2_single_fp32_contiguous_eager_prefetch0_seed17: to be trained"
    assert second.startswith("unet_noise0.2_dp2_fp32_contiguous_eager_prefetch0_seed17: skipped, nn.DataParallel")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["nowhere"], 2, "plans that ship: controlled, paper, quick"),
        (["quick", "--set", "train.epoch=1"], 2, "train.epoch: unknown key"),
        (["quick"], 3, "is neither a cohort nor a release"),
    ],
)
def test_what_cannot_be_run_is_refused_in_one_line(
    tmp_path: Path, arguments: list[str], status: int, message: str
) -> None:
    options = ["--data", tmp_path / "none", "--out", tmp_path / "out", "--no-download"]
    result = veilray("benchmark", *arguments, *options)
    assert result.status == status
    assert len(result.lines) == 1
    assert message in result.err
