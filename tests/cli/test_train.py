"""veilray train: from configuration to report, and every way it can be stopped, refused and gone on with."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tests.command_line import SLOW_EPOCHS, SMALL, done, split_file, start, veilray

from veilray.cli import reporting, training
from veilray.cli.watcher import TerminalWatcher
from veilray.cohort.cohort import Cohort
from veilray.cohort.split import Shares, assign, image_split
from veilray.errors import DiskFullError
from veilray.evaluation.results import read_scores, read_summary
from veilray.parallel.group import ALONE, Group
from veilray.training.data import TrainingImages
from veilray.training.run import RunFolder
from veilray.training.state import checkpoints


def test_leaves_a_whole_run_behind(flow_run: Path, flow_cohort: Path) -> None:
    run, cohort = RunFolder(flow_run), Cohort.open(flow_cohort)
    config = run.config()
    assert (config.model.width, config.train.epochs, config.launch.precision) == (4, 2, "fp32")
    assert [record.epoch for record in run.epochs()] == [1, 2]
    assert run.best_weights.is_file()
    assert list((flow_run / "tensorboard").iterdir())
    environment = run.environment()
    assert environment["cohort_digest"] == cohort.digest
    counts = {name: len(cohort.rows(name)) for name in ("train", "validation", "test")}  # type: ignore[arg-type]
    assert {name: environment[f"n_{name}"] for name in counts} == counts
    assert environment["shared_patients"] == 0
    assert environment["parameters"] == sum(
        value.numel()
        for name, value in load_file(run.best_weights).items()
        if "running" not in name and "num_" not in name
    )
    summary = read_summary(flow_run)
    assert (summary.split, summary.n_images) == ("validation", counts["validation"])
    assert "<html" in (flow_run / "report.html").read_text(encoding="utf-8")[:400]
    assert not list(flow_run.rglob("*.part"))


@pytest.mark.slow
def test_says_what_it_does(flow_cohort: Path, tmp_path: Path) -> None:
    result = done("train", "default", "--data", flow_cohort, "--out", tmp_path / "run", *SMALL)
    assert "unet with" in result.out
    assert "lowest validation loss" in result.out
    assert str(tmp_path / "run" / "report.html") in result.out
    assert "epoch 2/2" in result.err
    assert "images/s" in result.err
    assert "warning" not in result.err


@pytest.mark.slow
def test_a_psnr_under_added_noise_is_said_to_be_of_one_draw(flow_cohort: Path, tmp_path: Path) -> None:
    own = ["--set", "noise.clip=false", "--set", "train.objective=r2r", "--set", "train.epochs=1"]
    words = ["train", "default", "--data", flow_cohort, "--out", tmp_path / "run", *SMALL]
    assert "validation PSNR of one draw" in done(*words, *own).err


def test_a_folder_that_holds_a_run_is_left_as_it_is(own_run: Path, flow_cohort: Path) -> None:
    before = _contents(own_run)
    result = veilray("train", "default", "--data", flow_cohort, "--out", own_run, *SMALL)
    assert result.status == 2
    assert result.lines == [
        f"veilray: {own_run} already holds a run; add --resume to go on with it, or name another folder"
    ]
    assert _contents(own_run) == before


def test_a_folder_with_something_else_is_left_as_it_is(flow_cohort: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("mine")
    result = veilray("train", "default", "--data", flow_cohort, "--out", tmp_path / "run", *SMALL)
    assert result.status == 2
    assert "not empty" in result.err
    assert _contents(tmp_path / "run").keys() == {"thesis.tex"}


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("train.epoch=5", "train.epoch: unknown key"),
        ("trian.epochs=5", "trian: unknown key"),
        ("train.epochs=0", "train.epochs"),
        ("train.epochs=many", "train.epochs"),
        ("train.loss=l3", "train.loss"),
        ("model.name=resnet", "model.name"),
        ("model.width=-4", "model.width"),
        ("noise.std=0", "noise.std"),
        ("noise.std=-0.2", "noise.std"),
        ("noise.std=nan", "noise.std"),
        ("noise.std=[0.4, 0.1]", "must not exceed"),
        ("launch.setup=ddp", "launch.setup"),
        ("epochs", "section.key=value"),
        ("seed.of=3", "seed"),
        ("train.crop=64", "train.crop"),
    ],
)
def test_a_wrong_setting_is_named_and_nothing_is_made(
    flow_cohort: Path, tmp_path: Path, setting: str, said: str
) -> None:
    words = ["train", "default", "--data", flow_cohort, "--out", tmp_path / "run", *SMALL, "--set", setting]
    result = veilray(*words)
    assert result.status == 2
    assert len(result.lines) == 1
    assert said in result.err
    assert not (tmp_path / "run").exists()


def test_a_mistyped_key_in_a_file_is_named_with_the_file(flow_cohort: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("[train]\nlearning-rate = 1e-3\n")
    result = veilray("train", file, "--data", flow_cohort, "--out", tmp_path / "run")
    assert (result.status, len(result.lines)) == (2, 1)
    assert f"{file}: train.learning-rate: unknown key" in result.err
    file.write_text("[train\n")
    assert "not valid TOML" in veilray("train", file, "--data", flow_cohort, "--out", tmp_path / "run").err


def test_a_configuration_is_needed_unless_a_run_goes_on(flow_cohort: Path, tmp_path: Path) -> None:
    result = veilray("train", "--data", flow_cohort, "--out", tmp_path / "run")
    assert result.status == 2
    assert "default, dncnn, dncnn3, paper, tnrd" in result.err
    result = veilray("train", "--resume", "--data", flow_cohort, "--out", tmp_path / "run")
    assert result.status in (2, 3)
    assert str(tmp_path / "run") in result.err
    assert len(result.lines) == 1


def test_resuming_what_is_no_run_names_the_option(flow_cohort: Path, tmp_path: Path) -> None:
    result = veilray("train", "--resume", "--data", flow_cohort, "--out", tmp_path / "rnu")
    assert (result.status, len(result.lines)) == (3, 1)
    assert f"--resume: {tmp_path / 'rnu'} holds no run" in result.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("devices", [0, -3])
def test_a_number_of_devices_is_at_least_one(flow_cohort: Path, tmp_path: Path, devices: int) -> None:
    for setup in ("dp", "auto"):
        words = ["train", "default", "--data", flow_cohort, "--out", tmp_path / "run", "--set", f"launch.setup={setup}"]
        result = veilray(*words, "--devices", devices)
        assert result.status == 2
        assert "--devices" in result.err


def test_ranks_are_started_with_all_that_the_command_was_given(
    flow_cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr("veilray.parallel.spawn.run_ranks", lambda words, **options: started.append(words))
    words = ["--debug", "train", "default", "--data", flow_cohort, "--out", tmp_path / "run", *SMALL, "--no-evaluate"]
    expected = [str(word) for word in words]
    done(*words, "--devices", 2)
    done(*words[:3], "--devices=2", *words[3:])
    assert started == [expected, expected]


@pytest.mark.parametrize(
    "error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")]
)
def test_too_little_memory_is_told_with_what_needs_less(
    flow_cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr("veilray.cli.training.train", fail)
    result = veilray("train", "default", "--data", flow_cohort, "--out", tmp_path / "run", *SMALL)
    (line,) = [line for line in result.lines if line.startswith("veilray:")]
    assert result.status == 1
    assert "train.batch_size" in line
    assert "train.accumulate" in line


def test_settings_without_effect_are_named(flow_cohort: Path, tmp_path: Path) -> None:
    words = ["train", "default", "--data", flow_cohort, "--out", tmp_path / "run", *SMALL, "--no-evaluate"]
    result = done(*words, "--set", "train.epochs=1", "--set", "launch.bucket_mb=4", "--set", "launch.share_device=true")
    assert "launch.bucket_mb, launch.share_device: without effect in one process" in result.out


@pytest.mark.parametrize("lead", [True, False])
def test_scores_are_the_lead_s_alone_where_the_others_do_not_see_the_run(
    flow_run: Path, flow_cohort: Path, monkeypatch: pytest.MonkeyPatch, lead: bool
) -> None:
    scored: list[Group] = []
    monkeypatch.setattr(reporting, "evaluate_and_report", lambda *_, group, **options: scored.append(group))
    group = mock.Mock(is_lead=lead, gather=lambda own: [own, ["", ""]] if lead else [["a", "b"], own])
    run, images = RunFolder(flow_run), TrainingImages.open(flow_cohort, RunFolder(flow_run).config())
    device = torch.device("cpu")
    training._score(run, images, group, device=device, backbone=None, beat=lambda: None)
    assert scored == ([ALONE] if lead else [])


@pytest.mark.parametrize("name", ["index.csv", "pixels-32x32-uint8.npy"])
def test_a_damaged_cohort_is_refused(flow_cohort: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "cohort"
    folder.mkdir()
    for file in flow_cohort.iterdir():
        if file.is_file():
            (folder / file.name).write_bytes(file.read_bytes())
    content = bytearray((folder / name).read_bytes())
    content[-3] ^= 1
    (folder / name).write_bytes(content)
    result = veilray("train", "default", "--data", folder, "--out", tmp_path / "run", *SMALL)
    assert (result.status, len(result.lines)) == (3, 1)
    assert name in result.err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("options", "objective"), [((), "censored_sure"), (("--no-clip",), "sure")])
def test_a_release_without_clean_images_is_trained_on_by_the_default_preset(
    flow_cohort: Path, tmp_path: Path, options: tuple[str, ...], objective: str
) -> None:
    png = flow_cohort.parent / "png"
    sets = split_file(tmp_path / "split.csv", png, ("train", "validation", "test"))
    done("import", png, "--size", 32, "--split", sets, "--workers", 1, "--out", tmp_path / "cohort")
    done("obfuscate", tmp_path / "cohort", "--out", tmp_path / "release", "--std", "0.3", *options)
    words = ["train", "default", "--data", tmp_path / "release", "--out", tmp_path / "run", *SMALL]
    result = veilray(*words)
    assert result.status == 0, result.err
    clamp = "clamped" if objective == "censored_sure" else "not clamped"
    why = f"{tmp_path / 'release'} holds noisy images alone, and the noise is {clamp}"
    assert f"objective: {objective}, because {why}" in result.out
    assert "no scores: the data hold no clean images" in result.out
    assert "PSNR" not in result.out
    assert "criterion on noisy validation images" in result.out
    assert "validation loss" not in result.out
    run = RunFolder(tmp_path / "run")
    assert run.config().train.objective == objective
    assert run.config().noise.std == 0.3
    assert [record.validation_psnr for record in run.epochs()] == [None] * len(run.epochs())
    refused = veilray(*words[:5], tmp_path / "other", *SMALL, "--set", "train.objective=supervised")
    assert (refused.status, len(refused.lines)) == (2, 1)
    assert "--pairs" in refused.err


@pytest.mark.slow
def test_noise_other_than_the_release_s_is_refused(flow_cohort: Path, tmp_path: Path) -> None:
    done("obfuscate", flow_cohort, "--out", tmp_path / "release", "--std", "0.3", "--pairs", "--consent-clean-images")
    words = ["train", "default", "--data", tmp_path / "release", "--out", tmp_path / "run", *SMALL]
    result = veilray(*words, "--set", "noise.std=0.2")
    assert (result.status, len(result.lines)) == (2, 1)
    assert "std 0.2" in result.err
    assert "std 0.3" in result.err
    done(*words)
    assert RunFolder(tmp_path / "run").config().noise.std == 0.3


@pytest.mark.slow
def test_images_of_several_sizes_need_a_crop(tmp_path: Path) -> None:
    for patient in range(30):
        size = (32, 40) if patient % 2 else (48, 32)
        levels = np.random.default_rng(patient).integers(0, 256, size, dtype=np.uint8)
        (tmp_path / "in").mkdir(exist_ok=True)
        Image.fromarray(levels).save(tmp_path / "in" / f"{patient:08}_000.png")
    done(
        "import",
        tmp_path / "in",
        "--out",
        tmp_path / "cohort",
        "--size",
        "native",
        "--shares",
        "60/20/20",
        "--workers",
        1,
    )
    words = ["train", "default", "--data", tmp_path / "cohort", "--out", tmp_path / "run", *SMALL]
    result = veilray(*words)
    assert (result.status, len(result.lines)) == (3, 1)
    assert "2 sizes" in result.err
    assert "--size" in result.err
    done(*words, "--set", "train.crop=32", "--set", "train.epochs=1")
    done("evaluate", tmp_path / "run", "--data", tmp_path / "cohort", "--no-download")
    assert read_summary(tmp_path / "run").n_images == len(Cohort.open(tmp_path / "cohort").rows("test"))


def test_images_of_one_patient_cannot_be_split(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for follow_up in range(6):
        levels = np.random.default_rng(follow_up).integers(0, 256, (32, 32), dtype=np.uint8)
        Image.fromarray(levels).save(tmp_path / "in" / f"00000001_{follow_up:03}.png")
    done("import", tmp_path / "in", "--out", tmp_path / "cohort", "--size", "32", "--workers", 1)
    result = veilray("train", "default", "--data", tmp_path / "cohort", "--out", tmp_path / "run", *SMALL)
    assert (result.status, len(result.lines)) == (3, 1)
    assert "no images in its" in result.err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_validation_images_of_one_patient_do_not_lose_the_training(tmp_path: Path) -> None:
    # Intervals need two patients; the training itself is done by then.
    (tmp_path / "in").mkdir()
    wanted = {"train": 3, "validation": 1, "test": 2}
    for number in range(1000):
        split = assign(f"{number:08}", seed=0, shares=Shares())
        if wanted[split]:
            wanted[split] -= 1
            for follow_up in range(2):
                levels = np.random.default_rng([number, follow_up]).integers(0, 256, (32, 32), dtype=np.uint8)
                Image.fromarray(levels).save(tmp_path / "in" / f"{number:08}_{follow_up:03}.png")
    done("import", tmp_path / "in", "--out", tmp_path / "cohort", "--size", "32", "--workers", 1)
    result = done("train", "default", "--data", tmp_path / "cohort", "--out", tmp_path / "run", *SMALL)
    assert "lowest validation loss" in result.out
    assert len(read_scores(tmp_path / "run")) == 4
    assert "no report" in result.err
    assert "one patient" in result.err
    assert not (tmp_path / "run" / "report.html").exists()
    compared = veilray("compare", tmp_path / "run", "--out", tmp_path / "report.html")
    assert (compared.status, len(compared.lines)) == (3, 1)
    assert "one patient" in compared.err
    assert any("one patient" in note for note in read_summary(tmp_path / "run").notes)
    done("evaluate", tmp_path / "run", "--data", tmp_path / "cohort", "--no-download")
    assert read_summary(tmp_path / "run").n_patients == 2


@pytest.mark.slow
def test_the_paper_s_split_warns_with_the_number_of_shared_patients(flow_cohort: Path, tmp_path: Path) -> None:
    result = done("train", "paper", "--data", flow_cohort, "--out", tmp_path / "run", *SMALL)
    cohort = Cohort.open(flow_cohort)
    codes = image_split(cohort.image_ids, seed=0)
    sets: dict[str, set[int]] = {}
    for patient, code in zip(cohort.patient_ids, codes.tolist(), strict=True):
        sets.setdefault(patient, set()).add(code)
    shared = sum(len(found) > 1 for found in sets.values())
    assert shared > 0
    assert f"warning: {shared} patients have images in more than one set" in result.err
    environment = RunFolder(tmp_path / "run").environment()
    assert environment["shared_patients"] == shared
    assert [environment[f"n_{name}"] for name in ("train", "validation", "test")] == np.bincount(codes).tolist()
    done("evaluate", tmp_path / "run", "--data", flow_cohort, "--no-download")
    psnr = read_summary(tmp_path / "run").methods["model"]
    assert psnr["psnr_unclamped"] is not None
    assert psnr["psnr"] is not None
    assert psnr["psnr_unclamped"].mean <= psnr["psnr"].mean


def test_what_a_life_wrote_after_its_last_checkpoint_is_purged_from_tensorboard(
    own_run: Path, flow_cohort: Path
) -> None:
    run = RunFolder(own_run)
    images, device = TrainingImages.open(flow_cohort, run.config()), torch.device("cpu")
    for first in (1, 3):
        with TerminalWatcher(run, run.config(), images, life={}, device=device) as watcher:
            watcher.step(step=first, images=1, loss=0.5)
    newest = max((own_run / "tensorboard").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    starts = [event.step for event in EventFileLoader(str(newest)).Load() if event.session_log.status == 1]
    assert starts == [3]


def test_a_full_disk_says_how_to_go_on(flow_cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise DiskFullError("cannot write state: no space left on device, and no part of it was left")

    monkeypatch.setattr("veilray.cli.training.train", full)
    result = veilray("train", "default", "--data", flow_cohort, "--out", tmp_path / "run", *SMALL)
    assert result.status == 1
    assert result.lines[-1].endswith(
        f"free some space, then go on with: veilray train --resume --data {flow_cohort} --out {tmp_path / 'run'}"
    )


def test_resuming_with_other_data_is_refused(own_run: Path, flow_cohort: Path, tmp_path: Path) -> None:
    other = _cohort_of_other_shares(flow_cohort, tmp_path)
    before = _contents(own_run)
    result = veilray("train", "--resume", "--data", other, "--out", own_run)
    assert (result.status, len(result.lines)) == (3, 1)
    assert "digest" in result.err
    assert _contents(own_run) == before


def test_resuming_with_another_configuration_is_refused(own_run: Path, flow_cohort: Path) -> None:
    before = _contents(own_run)
    result = veilray("train", "--resume", "--data", flow_cohort, "--out", own_run, "--set", "train.epochs=9")
    assert (result.status, len(result.lines)) == (2, 1)
    assert "[train]" in result.err
    assert _contents(own_run) == before


@pytest.mark.slow
def test_interrupted_or_killed_it_ends_with_the_same_weights(flow_cohort: Path, tmp_path: Path) -> None:
    settings = [*SMALL, "--set", "train.epochs=20", "--set", "launch.checkpoint_minutes=0.0005", "--no-evaluate"]
    done("train", "default", "--data", flow_cohort, "--out", tmp_path / "whole", *settings)

    stopped = _begin(flow_cohort, tmp_path / "stopped", settings)
    _wait_for(tmp_path / "stopped", lambda run: len(run.epochs()) >= 2)
    stopped.send_signal(signal.SIGINT)
    _, err = stopped.communicate(timeout=120)
    assert stopped.returncode == 1, err
    last = err.splitlines()[-1]
    assert last.startswith("veilray: stopped after a checkpoint; go on with: veilray train --resume")
    assert "Traceback" not in err
    assert 2 <= len(RunFolder(tmp_path / "stopped").epochs()) < 20

    killed = _begin(flow_cohort, tmp_path / "killed", settings)
    _wait_for(tmp_path / "killed", lambda run: len(run.epochs()) >= 3)
    killed.kill()
    killed.communicate(timeout=120)
    assert len(RunFolder(tmp_path / "killed").epochs()) < 20

    for name in ("stopped", "killed"):
        result = done("train", "--resume", "--data", flow_cohort, "--out", tmp_path / name, "--no-evaluate")
        assert "going on from step" in result.err
        _assert_same(tmp_path / name, tmp_path / "whole")


def _begin(cohort: Path, out: Path, settings: list[str]) -> subprocess.Popen[str]:
    program = [sys.executable, "-c", SLOW_EPOCHS]
    return start("train", "default", "--data", cohort, "--out", out, *settings, program=program)


def _wait_for(run: Path, ready: Callable[[RunFolder], bool]) -> None:
    deadline = time.monotonic() + 120
    while not ready(RunFolder(run)):
        assert time.monotonic() < deadline, f"{run} never got there"
        time.sleep(0.02)


def _assert_same(one: Path, other: Path) -> None:
    last = checkpoints(one / "checkpoints")[-1]
    _assert_equal(load_file(last), load_file(other / "checkpoints" / last.name))
    _assert_equal(load_file(RunFolder(one).best_weights), load_file(RunFolder(other).best_weights))
    curves = [
        [(r.epoch, r.step, r.train_loss, r.validation_loss) for r in RunFolder(folder).epochs()]
        for folder in (one, other)
    ]
    assert curves[0] == curves[1]


def _assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def _cohort_of_other_shares(cohort: Path, folder: Path) -> Path:
    options = ["--size", 32, "--shares", "40/30/30", "--workers", 1]
    done("import", cohort.parent / "png", "--out", folder / "other-cohort", *options)
    return folder / "other-cohort"


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_metrics_are_lines_of_json(flow_run: Path) -> None:
    lines = (flow_run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["event"] for line in lines] == ["epoch", "epoch"]
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2]


@pytest.mark.slow
def test_a_training_without_scores_leaves_them_out_and_can_be_evaluated_later(
    flow_cohort: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    done("train", "default", "--data", flow_cohort, "--out", run, *SMALL, "--set", "train.epochs=1", "--no-evaluate")
    assert (run / "checkpoints" / "best.safetensors").is_file()
    assert not (run / "evaluation").exists()
    assert not (run / "report.html").exists()
    (epoch,) = RunFolder(run).epochs()
    assert 0 < epoch.parts["metrics"] < epoch.parts["validation"] + epoch.parts["metrics"] <= epoch.seconds
    done("evaluate", run, "--data", flow_cohort, "--no-download")
    assert read_summary(run).split == "test"
