"""Benchmarks: what is run, what is not repeated, and what becomes of failures and of being killed."""

from __future__ import annotations

import fcntl
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.command_line import SLOW_EPOCHS, done, make_cohort, start, veilray
from tests.evaluation.bench import PEAK, InProcess, run_here, tiny_plan

from veilray.errors import DataError, UsageError
from veilray.evaluation.benchmark import hardware as benchmark_hardware
from veilray.evaluation.benchmark.groups import analyse
from veilray.evaluation.benchmark.plan import expand
from veilray.evaluation.benchmark.process import Ended, count_start, locked, run_process
from veilray.evaluation.benchmark.record import read_record
from veilray.evaluation.benchmark.run import run_folder
from veilray.evaluation.results import MODEL, read_scores, read_summary
from veilray.metrics.statistics import clustered_bootstrap
from veilray.training.run import RunFolder

EPOCHS = 30
_SLOW_TRAINING = f"""
from veilray.cli.main import run
from veilray.evaluation.benchmark import process
begin, found, _ = process._CHILD.partition("from veilray.cli.main import run")
assert found
process._CHILD = begin + {SLOW_EPOCHS!r}
run()
"""
"""A benchmark whose trainings take their time over every epoch."""
MODELS = '[factors]\nmodel = ["unet", "unetpp"]\n'


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> InProcess:
    return InProcess(monkeypatch)


@pytest.mark.slow
def test_every_run_is_trained_scored_and_recorded_once(scored_cohort: Path, tmp_path: Path, here: InProcess) -> None:
    plan = tiny_plan(tmp_path, seeds=(1, 2))
    records = run_here(plan, scored_cohort, tmp_path / "out")
    planned = expand(plan, device=torch.device("cpu"))
    assert [(record.name, record.seed, record.status) for record in records] == [
        (run.name, run.seed, "done") for run in planned
    ]
    for record in records:
        run = RunFolder(run_folder(tmp_path / "out", record.name))
        summary = read_summary(run.path)
        assert summary.split == record.split == "test"
        assert record.figures == summary.methods[MODEL]
        assert record.cohort_digest == summary.cohort_digest == run.environment()["cohort_digest"]
        assert run.config().model_dump(mode="json") == record.config
        (epoch,) = run.epochs()
        assert record.timings is not None
        assert (record.timings.seconds, record.timings.images_per_second) == (epoch.seconds, epoch.images_per_second)
        assert record.timings.parts == epoch.parts
        assert sum(epoch.parts.values()) <= epoch.seconds * 1.5
        assert record.arithmetic is not None
        assert record.arithmetic.peak_per_second == PEAK
        share = record.arithmetic.operations_per_image * epoch.images_per_second / PEAK
        assert record.arithmetic.share_of_peak == pytest.approx(share)
        assert read_record(tmp_path / "out", record.name) == record
    assert all("--no-evaluate" in words and "--resume" not in words for words in here.commands)

    again = run_here(plan, scored_cohort, tmp_path / "out")
    assert again == records
    assert len(here.commands) == len(records)


@pytest.mark.slow
def test_more_levels_run_only_what_is_new(scored_cohort: Path, tmp_path: Path, here: InProcess) -> None:
    run_here(tiny_plan(tmp_path, '[factors]\nmodel = ["unet"]\n'), scored_cohort, tmp_path / "out")
    records = run_here(tiny_plan(tmp_path, MODELS), scored_cohort, tmp_path / "out")
    assert [record.status for record in records] == ["done"] * 2
    assert [Path(words[1]).name.partition("_")[0] for words in here.commands] == ["unet", "unetpp"]


@pytest.mark.slow
def test_a_dry_run_checks_all_and_says_what_would_be_done(scored_cohort: Path, tmp_path: Path, here: InProcess) -> None:
    out = tmp_path / "out"
    run_here(tiny_plan(tmp_path, '[factors]\nmodel = ["unet"]\n'), scored_cohort, out)
    before = sorted(out.rglob("*"))
    tiny_plan(tmp_path, '[factors]\nmodel = ["unet", "unetpp"]\nsetup = ["single", "dp:2"]\n')
    words = ["benchmark", tmp_path / "tiny.toml", "--out", out, "--dry-run"]
    said = [line.partition(": ")[2] for line in done(*words, "--data", scored_cohort).out.splitlines()]
    assert [what.partition(",")[0] for what in said] == ["done already", "skipped", "to be trained", "skipped"]
    other = veilray(*words, "--data", make_cohort(tmp_path / "other", patients=21))
    assert (other.status, len(other.lines)) == (2, 1)
    assert "other data" in other.err
    assert veilray(*words, "--data", tmp_path / "none").status == 3
    done("obfuscate", scored_cohort, "--out", tmp_path / "noisy", "--std", 0.2)
    blind = veilray(
        "benchmark", tmp_path / "tiny.toml", "--out", tmp_path / "o", "--dry-run", "--data", tmp_path / "noisy"
    )
    assert (blind.status, len(blind.lines)) == (3, 1)
    assert "no clean images" in blind.err
    assert sorted(out.rglob("*")) == before


@pytest.mark.slow
def test_a_failed_run_ends_nothing_and_is_tried_again(scored_cohort: Path, tmp_path: Path, here: InProcess) -> None:
    plan = tiny_plan(tmp_path, MODELS)

    def fail(words: list[str]) -> Ended:
        diverged = Ended(status=1, seconds=0.1, message="the loss is nan at step 3")
        return diverged if "unetpp" in words[1] else Ended(status=-9, seconds=0.1, message="")

    here.before = fail
    first = run_here(plan, scored_cohort, tmp_path / "out")
    assert [(record.status, record.attempts) for record in first] == [("failed", 1)] * 2
    assert "ended by signal 9" in first[0].reason
    assert first[1].reason == "the loss is nan at step 3"
    assert all(record.timings is None and not record.figures for record in first)

    here.before = lambda words: None
    second = run_here(plan, scored_cohort, tmp_path / "out")
    assert [(record.status, record.attempts) for record in second] == [("done", 2)] * 2
    assert len(here.commands) == 4


def test_a_start_that_was_stopped_and_left_no_record_counts_as_an_attempt(
    scored_cohort: Path, tmp_path: Path, here: InProcess
) -> None:
    plan = tiny_plan(tmp_path)

    def stop(words: list[str]) -> Ended:
        raise KeyboardInterrupt

    here.before = stop
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run_here(plan, scored_cohort, tmp_path / "out")
    assert not (tmp_path / "out" / "records").exists()
    here.before = lambda words: Ended(status=1, seconds=0.1, message="no more")
    (record,) = run_here(plan, scored_cohort, tmp_path / "out")
    assert record.attempts == 3


def test_starts_are_counted_in_a_log_that_a_kill_has_broken_off(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "run.log"
    assert count_start(log) == 1
    with log.open("a", encoding="utf-8") as stream:
        stream.write("epoch 1 of 2\nepoch 2")
    assert count_start(log) == 2
    lines = log.read_text(encoding="utf-8").splitlines()
    assert [line.partition(", ")[2][:9] for line in lines] == ["attempt 1", "", "", "attempt 2"]
    # A folder of a version that wrote no such lines has records alone.
    assert count_start(tmp_path / "old.log", earlier=3) == 4


def test_what_this_machine_cannot_do_is_skipped_with_the_reason(
    scored_cohort: Path, tmp_path: Path, here: InProcess
) -> None:
    factors = '[factors]\nsetup = ["single", "dp:2", "ddp:512"]\n'
    records = run_here(tiny_plan(tmp_path, factors), scored_cohort, tmp_path / "out")
    assert [record.status for record in records] == ["done", "skipped", "skipped"]
    assert "nn.DataParallel" in records[1].reason
    assert "512" in records[2].reason
    assert len(here.commands) == 1


def test_other_settings_other_data_and_bad_plans_are_refused_before_any_training(
    scored_cohort: Path, tmp_path: Path, here: InProcess
) -> None:
    out = tmp_path / "out"
    run_here(tiny_plan(tmp_path), scored_cohort, out)
    done = len(here.commands)
    plan = tiny_plan(tmp_path)
    changed = plan.model_copy(update={"settings": {**plan.settings, "train": {"epochs": 2, "batch_size": 8}}})
    with pytest.raises(UsageError, match="other settings than the plan now has"):
        run_here(changed, scored_cohort, out)
    with pytest.raises(UsageError, match="a benchmark on other data"):
        run_here(tiny_plan(tmp_path), make_cohort(tmp_path / "other", patients=21), out)
    huge = tiny_plan(tmp_path).model_copy(update={"settings": {"train": {"crop": 64}}})
    with pytest.raises(UsageError, match=r"train.crop = 64"):
        run_here(huge, scored_cohort, tmp_path / "third")
    assert len(here.commands) == done


@pytest.mark.slow
def test_seeds_of_a_combination_are_averaged_image_by_image(
    scored_cohort: Path, tmp_path: Path, here: InProcess
) -> None:
    plan, out = tiny_plan(tmp_path, MODELS, seeds=(1, 2)), tmp_path / "out"
    records = run_here(plan, scored_cohort, out)
    analysis = analyse(plan, records, out)
    assert [group.levels["model"] for group in analysis.groups] == ["unet", "unetpp"]
    assert (analysis.images, analysis.patients) == (8, 4)
    for group in analysis.groups:
        own = [record for record in records if record.levels == group.levels]
        scores = [
            {score.image_id: score for score in read_scores(run_folder(out, record.name)) if score.method == MODEL}
            for record in own
        ]
        names = sorted(scores[0])
        means = np.array([[seed[name].psnr for name in names] for seed in scores]).mean(axis=0)
        patients = [scores[0][name].patient_id for name in names]
        assert group.metrics["psnr"] == clustered_bootstrap(means, patients, seed=0)
        assert group.metrics["lpips"] is None
        assert group.seconds == tuple(record.timings.seconds for record in own if record.timings)
        total = sum(group.parts.values())
        assert total == pytest.approx(np.mean(group.seconds), rel=0.05) or total > np.mean(group.seconds)


def test_a_plan_without_one_finished_run_has_nothing_to_analyse(
    scored_cohort: Path, tmp_path: Path, here: InProcess
) -> None:
    plan = tiny_plan(tmp_path, '[factors]\nsetup = ["dp:2"]\n')
    with pytest.raises(DataError, match=r"no run of the plan is done: nn\.DataParallel"):
        analyse(plan, run_here(plan, scored_cohort, tmp_path / "out"), tmp_path / "out")


def test_two_benchmarks_do_not_share_a_folder(tmp_path: Path) -> None:
    notes: list[str] = []
    with (
        locked(tmp_path, wait_s=0.0, note=notes.append),
        pytest.raises(UsageError, match="another benchmark"),
        locked(tmp_path, wait_s=0.0, note=notes.append),
    ):
        pass
    with locked(tmp_path, wait_s=0.0, note=notes.append) as stream:
        assert not stream.closed
    assert notes == []


@pytest.mark.slow
def test_the_message_of_a_process_that_failed_is_its_own(tmp_path: Path) -> None:
    with (tmp_path / "lock").open("wb") as lock:
        ended = run_process(["train", "nowhere.toml", "--data", "x", "--out", "y"], log=tmp_path / "log", lock=lock)
    assert ended.status == 2
    assert ended.message.startswith("no configuration file nowhere.toml")
    assert ended.message in (tmp_path / "log").read_text(encoding="utf-8")


def _wait_until(condition: object, *, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def _is_free(folder: Path) -> bool:
    """Whether neither a benchmark nor a training it left behind is at work."""
    with (folder / ".lock").open("ab") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the training goes on to its end")
def test_a_benchmark_that_is_killed_goes_on_where_it_was(
    scored_cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as here, or sums end on other bits
    (planned,) = expand(tiny_plan(tmp_path), device=torch.device("cpu"))
    out, name = tmp_path / "out", planned.name
    run = RunFolder(run_folder(out, name))
    words = ["benchmark", tmp_path / "tiny.toml", "--data", scored_cohort, "--out", out, "--no-download"]
    words += ["--set", f"train.epochs={EPOCHS}"]
    process = start(*words, program=[sys.executable, "-c", _SLOW_TRAINING])
    _wait_until(lambda: len(run.epochs()) >= 3)
    process.kill()
    process.communicate(timeout=120)
    _wait_until(lambda: _is_free(out))  # its training has stopped too, at a checkpoint
    assert not (out / "records").exists()
    assert 3 <= len(run.epochs()) < EPOCHS

    monkeypatch.setattr(benchmark_hardware, "measured_peak", lambda device, config: PEAK)
    done(*words)
    record = read_record(out, name)
    assert record is not None
    assert record.timings is not None
    assert (record.status, record.timings.epochs, record.attempts) == ("done", EPOCHS, 2)
    assert "going on from step" in (out / "logs" / f"{name}.log").read_text(encoding="utf-8")
    assert (out / "report.html").is_file()
    done(
        "train", out / "configs" / f"{name}.toml", "--data", scored_cohort, "--out", tmp_path / "plain", "--no-evaluate"
    )
    weights, expected = (
        load_file(folder / "checkpoints/best.safetensors") for folder in (run.path, tmp_path / "plain")
    )
    assert weights.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(weights[key], value), key
