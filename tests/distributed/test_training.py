"""Several ranks act as one: what befalls one befalls all, and the user is told once."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tests.command_line import PROCESS, SMALL, veilray, veilray_process
from tests.distributed.harness import ENVIRONMENT, finish, run_ranks, start_ranks, torchrun

from veilray.cohort.cohort import Cohort
from veilray.evaluation.results import read_scores
from veilray.training.run import RunFolder
from veilray.training.state import checkpoints

pytestmark = pytest.mark.slow
STUMBLE = "from tests.distributed.stumble import main; main()"
DIFFERENCES = """
import json, torch
from tests.training.small import small_config
from veilray.errors import ToldElsewhere, VeilrayError
from veilray.parallel.joining import joined
from veilray.training import agreement

def said(group, config, digest):
    try:
        agreement.check_agreement(group, config=config, digest=digest)
    except ToldElsewhere as error:
        return f"ToldElsewhere {error.exit_status}"
    except VeilrayError as error:
        return f"{type(error).__name__}: {error}"
    return "agreed"

with joined(torch.device("cpu"), timeout=60) as group:
    two = small_config()
    own = two if group.is_lead else small_config(train={"epochs": 3})
    seen = {"nothing": said(group, two, "cafe"), "config": said(group, own, "cafe")}
    seen["digest"] = said(group, two, "cafe" if group.is_lead else "beef")
    if not group.is_lead:
        agreement.PACKAGES["torch"] = "0.0.1"
    seen["version"] = said(group, two, "cafe")
    print(json.dumps(seen))
"""

# Rank 1 finds another kind of device than rank 0.
DEVICES = """
import os, torch
from veilray.cli import main, training

def joined(*arguments, **options):
    raise AssertionError("the ranks build their groups")

training.joined = joined
if os.environ["RANK"] == "1":
    training.pick_device = lambda name: torch.device("mps")
main.run()
"""


@pytest.fixture(scope="module")
def stumbled(small_cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two ranks saw of trainings in which rank 1 stumbles."""
    results = run_ranks(STUMBLE, arguments=[small_cohort, tmp_path_factory.mktemp("stumbled")], timeout=200)
    assert [result.status for result in results] == [0, 0], results[0].err + results[1].err
    return [json.loads(result.out.splitlines()[-1]) for result in results]


def test_a_step_that_overflows_on_one_rank_is_skipped_on_all(stumbled: list[dict[str, Any]]) -> None:
    one, other = (seen["overflow once"] for seen in stumbled)
    assert one["ended"] == other["ended"] == "done"
    assert one == other
    assert one["scale"] < 65536  # its start; nothing else made it smaller


def test_twenty_skips_in_a_row_stop_all_ranks_with_one_message(stumbled: list[dict[str, Any]]) -> None:
    one, other = (seen["overflow always"] for seen in stumbled)
    assert one["ended"].startswith("TrainingError: 20 fp16 gradients in a row were not finite, up to step 20")
    assert other["ended"].startswith("ToldElsewhere")
    assert one["weights"] == other["weights"]


def test_a_loss_that_is_not_finite_on_one_rank_stops_all_before_the_update(stumbled: list[dict[str, Any]]) -> None:
    one, other = (seen["not finite"] for seen in stumbled)
    assert re.match(r"TrainingError: the loss is nan at step 5, learning rate 0\.\d+", one["ended"])
    assert other["ended"].startswith("ToldElsewhere")
    assert one["steps"] == other["steps"] == 4
    assert one["weights"] == other["weights"]


def test_an_interruption_of_one_rank_stops_all_after_the_same_step(stumbled: list[dict[str, Any]]) -> None:
    one, other = (seen["interrupted"] for seen in stumbled)
    assert one["ended"] == other["ended"] == "interrupted"
    assert 4 <= one["steps"] <= 5
    assert one == other


def test_a_validation_that_one_rank_is_told_to_stop_is_given_up_by_all(stumbled: list[dict[str, Any]]) -> None:
    lead, other = (seen["interrupted validation"] for seen in stumbled)
    assert lead == other
    assert (lead["ended"], lead["steps"], lead["epochs"]) == ("interrupted", lead["steps an epoch"], 0)


def test_a_lead_that_cannot_write_stops_all(stumbled: list[dict[str, Any]]) -> None:
    one, other = (seen["no disk"] for seen in stumbled)
    assert "No space left" in one["ended"]
    assert other["ended"].startswith("ToldElsewhere")


def test_torchrun_trains_as_one_process_does_and_any_number_of_ranks_goes_on(
    small_cohort: Path, tmp_path: Path
) -> None:
    words = ["--data", small_cohort, *SMALL, "--set", "model.norm=group", "--no-evaluate"]
    finished = torchrun("train", "default", "--out", tmp_path / "two", *words)
    assert finished.status == 0, finished.err
    assert finished.out.count("ddp: 2 ranks over gloo, 4 images a rank and step") == 1
    assert finished.err.count("epoch 2/2") == 1
    alone = veilray_process("train", "default", "--out", tmp_path / "one", *words)
    assert alone.status == 0, alone.err
    two, one = RunFolder(tmp_path / "two"), RunFolder(tmp_path / "one")
    for ours, theirs in zip(two.epochs(), one.epochs(), strict=True):
        assert ours.validation_loss == pytest.approx(theirs.validation_loss, rel=1e-3)
        assert ours.parts["all_reduce"] > 0
        assert theirs.parts["all_reduce"] == 0
        assert ours.peak_memory_bytes > 1e7
    recorded = {name: two.environment()[name] for name in ("setup", "world_size", "backend")}
    assert recorded == {"setup": "ddp", "world_size": 2, "backend": "gloo"}
    assert one.environment()["setup"] == "single"

    checkpoints(two.checkpoints)[-1].unlink()
    options = ["--set", "launch.precision=bf16", "--no-evaluate"]
    resumed = veilray("train", "--resume", "--data", small_cohort, "--out", two.path, *options)
    assert resumed.status == 0, resumed.err
    assert "so far ddp on 2 ranks, going on with single on 1 rank" in resumed.err
    assert "launch.precision was 'fp32', is 'bf16'" in resumed.err
    assert len(two.epochs()) == 2
    environment = two.environment()
    assert (environment["setup"], environment["world_size"]) == ("single", 1)
    lives = [(one["from_step"], one["world_size"], one["launch"]["precision"]) for one in environment["lives"]]
    assert lives == [(0, 2, "fp32"), (two.epochs()[0].step, 1, "bf16")]


def test_devices_starts_the_ranks_itself(small_cohort: Path, tmp_path: Path) -> None:
    words = [
        "train",
        "default",
        "--data",
        small_cohort,
        *SMALL,
        "--devices",
        2,
        "--set",
        "train.epochs=1",
    ]
    finished = veilray_process(*words, "--out", tmp_path / "run")
    assert finished.status == 0, finished.err
    images = len(Cohort.open(small_cohort).rows("validation"))
    assert len({score.image_id for score in read_scores(tmp_path / "run")}) == images
    assert RunFolder(tmp_path / "run").environment()["world_size"] == 2
    again = veilray(*words, "--out", tmp_path / "run")
    assert (again.status, len(again.lines)) == (2, 1)
    assert "already holds a run" in again.err
    uneven = veilray(*words, "--out", tmp_path / "other", "--set", "train.batch_size=7")
    assert (uneven.status, len(uneven.lines)) == (2, 1)
    assert "train.batch_size = 7 cannot be shared out evenly over 2 devices; take 6 or 8" in uneven.err


def test_a_wrong_setting_is_told_once(small_cohort: Path, tmp_path: Path) -> None:
    words = [*_words(small_cohort, tmp_path), "--set", "train.batch_size=7"]
    results = finish(start_ranks([[*PROCESS, *words]] * 2))
    assert [result.status for result in results] == [2, 2]
    (line,) = [line for result in results for line in result.lines]
    assert "train.batch_size = 7 cannot be shared out evenly over 2 devices" in line
    assert not (tmp_path / "run").exists()


def test_a_mistyped_option_is_told_once_over_all_restarts(small_cohort: Path, tmp_path: Path) -> None:
    words = ["train", "default", "--data", small_cohort, "--out", tmp_path / "run", "--nonsense"]
    end = torchrun(*words, options=["--max-restarts=2"])
    (line,) = [line for line in end.err.splitlines() if line.startswith("veilray:")]
    assert "No such option: --nonsense" in line
    assert "train --help" in line
    assert end.err.count("--nonsense") == 1
    assert set(re.findall(r"exitcode\s*: (\d+)", end.err)) == {"2"}


@pytest.mark.parametrize("wrong", [0, 1])
def test_what_one_rank_alone_was_told_wrongly_is_told_once(small_cohort: Path, tmp_path: Path, wrong: int) -> None:
    for words in (["train", "default"], ["denoise", small_cohort.parent]):
        right = [*words, "--data", small_cohort, "--out", tmp_path / "out"]
        right = right if words[0] == "train" else [*words, "--model", "default", "--out", tmp_path / "out"]
        commands = [[*PROCESS, *map(str, right), *(["--nonsense"] if rank == wrong else [])] for rank in (0, 1)]
        ends = finish(start_ranks(commands))
        assert [end.status for end in ends] == [2, 2]
        (line,) = [line for end in ends for line in end.err.splitlines()]
        assert line.startswith("veilray: ")
        assert "No such option: --nonsense" in line
        assert ("rank 1 on" in line) == (wrong == 1)
        assert not (tmp_path / "out").exists()


def test_what_fails_before_the_ranks_join_is_told_once_over_all_restarts(small_cohort: Path, tmp_path: Path) -> None:
    words = _words(small_cohort, tmp_path)
    finished = torchrun(*words, "--set", "train.epoch=5", options=["--max-restarts=1"], timeout=280)
    assert finished.status != 0
    assert finished.err.count("--set train.epoch=5: train.epoch: unknown key") == finished.err.count("veilray: ") == 1
    assert "failed (exitcode: 2)" in finished.err
    assert "veilray: stopped" not in finished.err


def test_ranks_that_differ_are_refused() -> None:
    results = run_ranks(DIFFERENCES)
    assert [result.status for result in results] == [0, 0], results[0].err + results[1].err
    lead, other = (json.loads(result.out.splitlines()[-1]) for result in results)
    expected = {
        "nothing": None,
        "config": "UsageError: rank 1 on .* has train.epochs = 3, rank 0 on .* has 2: give every rank the same",
        "digest": "UsageError: rank 1 on .* has data with digest beef, rank 0 on .* cafe: give every rank the same",
        "version": r"UsageError: rank 1 on .* runs torch 0\.0\.1, rank 0 on .* runs .*: install the same",
    }
    for case, said in expected.items():
        if said is None:
            assert lead[case] == other[case] == "agreed"
        else:
            assert re.match(said, lead[case]), lead[case]
            assert other[case] == "ToldElsewhere 2"


def test_ranks_with_other_devices_are_refused_before_they_join(small_cohort: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", DEVICES, *_words(small_cohort, tmp_path)]
    results = finish(start_ranks([command] * 2))
    assert [result.status for result in results] == [2, 2], results[0].err + results[1].err
    (line,) = [line for result in results for line in result.lines]
    assert re.search("rank 1 on .* has launch.device = 'mps', rank 0 on .* has 'cpu'", line)


def test_whether_scores_are_made_is_for_rank_0_to_say(small_cohort: Path, tmp_path: Path) -> None:
    words = [*_words(small_cohort, tmp_path), "--set", "train.epochs=1"]
    results = finish(start_ranks([[*PROCESS, *words], [*PROCESS, *words, "--no-evaluate"]]))
    assert [result.status for result in results] == [0, 0], results[0].err + results[1].err
    assert read_scores(tmp_path / "run")


def test_ctrl_c_at_the_launcher_leaves_a_checkpoint_and_one_message(small_cohort: Path, tmp_path: Path) -> None:
    words = [*_words(small_cohort, tmp_path), "--set", "train.epochs=500", "--devices", "2"]
    process = subprocess.Popen(
        [*PROCESS, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **ENVIRONMENT},
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 120
        while not RunFolder(tmp_path / "run").epochs():
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    assert process.returncode == 1
    assert err.count("veilray: ") == 1
    assert "veilray: stopped after a checkpoint; go on with: veilray train --resume" in err
    assert "Traceback" not in err
    assert checkpoints(RunFolder(tmp_path / "run").checkpoints)


def _words(cohort: Path, folder: Path) -> list[str]:
    return [str(word) for word in ("train", "default", "--data", cohort, "--out", folder / "run", *SMALL)]
