"""Training: it learns, it can be interrupted anywhere, and it stops when it must."""

from __future__ import annotations

import functools
import math
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.training.small import Recorder, small_config, train_here
from torch import Tensor

from veilray.errors import RunError, TrainingError, UsageError, VeilrayError
from veilray.training import loop
from veilray.training.batch import Batch
from veilray.training.data import TrainingImages
from veilray.training.objectives import SupervisedObjective
from veilray.training.run import RunFolder
from veilray.training.sets import Rows
from veilray.training.state import checkpoints


def _final_state(run: Path) -> dict[str, Tensor]:
    return load_file(checkpoints(run / "checkpoints")[-1])


def _die(*arguments: object, **options: object) -> None:
    raise KeyboardInterrupt


def _equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["l1", "mse"])
def test_training_learns(cohort: Path, tmp_path: Path, loss: str) -> None:
    config = small_config(train={"epochs": 12, "loss": loss})
    recorder = Recorder()
    outcome = train_here(config, cohort, tmp_path / "run", recorder)
    first, last = recorder.records[0], recorder.records[-1]
    assert last.validation_loss < 0.7 * first.validation_loss
    assert last.validation_psnr > first.validation_psnr + 1
    assert outcome.best_loss == min(record.validation_loss for record in recorder.records)
    assert not outcome.interrupted
    assert RunFolder(tmp_path / "run").epochs() == recorder.records


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_same_seed_same_weights_other_seed_other_weights(cohort: Path, tmp_path: Path, precision: str) -> None:
    config = small_config(launch={"precision": precision})
    train_here(config, cohort, tmp_path / "a")
    train_here(config, cohort, tmp_path / "b")
    train_here(config.model_copy(update={"seed": 18}), cohort, tmp_path / "c")
    assert _equal(_final_state(tmp_path / "a"), _final_state(tmp_path / "b"))
    assert not _equal(_final_state(tmp_path / "a"), _final_state(tmp_path / "c"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stop_at", "variant"),  # each in its first epoch or in its second
    [
        (3, {"launch": {"layout": "channels_last"}}),
        (7, {"launch": {"precision": "bf16"}}),
        (3, {"launch": {"precision": "fp16"}}),
        (7, {"train": {"ema_decay": 0.0, "optimizer": "adamw", "weight_decay": 0.1}}),
        (3, {"model": {"name": "unetpp", "deep_supervision": True}, "noise": {"std": [0.05, 0.3]}}),
        (7, {"train": {"flips": True, "schedule": "constant"}, "model": {"norm": "group", "residual": True}}),
        (3, {"train": {"loss": "adversarial", "discriminator_width": 4, "discriminator_rate": 0.5}}),
        (7, {"train": {"degradation": "three-tasks"}, "model": {"name": "dncnn", "width": 4, "layers": 4, "depth": 5}}),
    ],
)
def test_interrupted_and_resumed_ends_with_the_same_bits(
    cohort: Path, tmp_path: Path, stop_at: int, variant: dict[str, dict[str, object]]
) -> None:
    config = small_config(**variant)
    whole = Recorder()
    train_here(config, cohort, tmp_path / "whole", whole)

    def interrupt(step: int) -> None:
        if step == stop_at:
            os.kill(os.getpid(), signal.SIGINT)

    first, second = Recorder(interrupt), Recorder()
    assert train_here(config, cohort, tmp_path / "parts", first).interrupted
    assert len(first.losses) == stop_at
    assert not train_here(config, cohort, tmp_path / "parts", second).interrupted
    assert first.losses + second.losses == whole.losses
    assert _equal(_final_state(tmp_path / "whole"), _final_state(tmp_path / "parts"))
    a, b = (RunFolder(tmp_path / name) for name in ("whole", "parts"))
    assert load_file(a.best_weights).keys() == load_file(b.best_weights).keys()
    assert _equal(load_file(a.best_weights), load_file(b.best_weights))
    assert [(r.train_loss, r.validation_loss) for r in a.epochs()] == [
        (r.train_loss, r.validation_loss) for r in b.epochs()
    ]


@pytest.mark.slow
def test_a_validation_that_is_interrupted_is_done_when_the_training_goes_on(
    cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config()
    whole, first, second = Recorder(), Recorder(), Recorder()
    train_here(config, cohort, tmp_path / "whole", whole)
    held_out_batch, told = TrainingImages.held_out_batch, []

    def interrupted(self: TrainingImages, rows: Rows, device: torch.device) -> Batch:
        if not told:
            told.append(os.kill(os.getpid(), signal.SIGINT))
        return held_out_batch(self, rows, device)

    with monkeypatch.context() as patched:
        patched.setattr(TrainingImages, "held_out_batch", interrupted)
        assert train_here(config, cohort, tmp_path / "parts", first).interrupted
    assert first.records == []
    assert not train_here(config, cohort, tmp_path / "parts", second).interrupted
    assert first.losses + second.losses == whole.losses
    a, b = (RunFolder(tmp_path / name) for name in ("whole", "parts"))
    assert _equal(_final_state(a.path), _final_state(b.path))
    assert [(r.epoch, r.step, r.train_loss, r.validation_loss, r.learning_rate) for r in a.epochs()] == [
        (r.epoch, r.step, r.train_loss, r.validation_loss, r.learning_rate) for r in b.epochs()
    ]


@pytest.mark.slow
def test_a_record_of_a_validation_that_no_checkpoint_knows_is_forgotten(
    cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config()
    with monkeypatch.context() as patched:
        patched.setattr(loop, "validate", lambda *arguments: None)  # as where it is interrupted
        assert train_here(config, cohort, tmp_path / "run").interrupted
    run = RunFolder(tmp_path / "run")
    (due,) = checkpoints(run.checkpoints)
    content = due.read_bytes()
    with monkeypatch.context() as patched:  # killed between the record and the checkpoint
        patched.setattr(loop.CheckpointWriter, "save", _die)
        with pytest.raises(KeyboardInterrupt):
            train_here(config, cohort, run.path)
    assert [record.epoch for record in run.epochs()] == [1]
    assert due.read_bytes() == content
    train_here(config, cohort, run.path)
    assert [record.epoch for record in run.epochs()] == [1, 2]


@pytest.mark.slow
def test_a_checkpoint_cut_short_gives_way_to_the_one_before(cohort: Path, tmp_path: Path) -> None:
    config = small_config()
    train_here(config, cohort, tmp_path / "whole")
    train_here(config, cohort, tmp_path / "cut")
    newest = checkpoints(tmp_path / "cut" / "checkpoints")[-1]
    newest.write_bytes(newest.read_bytes()[:-100])
    recorder = Recorder()
    train_here(config, cohort, tmp_path / "cut", recorder)
    assert any("not complete" in note for note in recorder.notes)
    assert len(recorder.losses) > 0
    assert _equal(_final_state(tmp_path / "whole"), _final_state(tmp_path / "cut"))
    assert len(RunFolder(tmp_path / "cut").epochs()) == 2


@pytest.mark.slow
def test_only_the_last_two_checkpoints_are_kept(cohort: Path, tmp_path: Path) -> None:
    train_here(small_config(train={"epochs": 4}), cohort, tmp_path / "run")
    assert len(checkpoints(tmp_path / "run" / "checkpoints")) == 2


@pytest.mark.slow
def test_weights_of_another_network_are_refused(cohort: Path, tmp_path: Path) -> None:
    train_here(small_config(), cohort, tmp_path / "run")
    other = small_config(model={"width": 8})
    (tmp_path / "other" / "checkpoints").mkdir(parents=True)
    for path in checkpoints(tmp_path / "run" / "checkpoints"):
        (tmp_path / "other" / "checkpoints" / path.name).write_bytes(path.read_bytes())
    images = TrainingImages.open(cohort, other)
    with pytest.raises(RunError, match=r"another network \(size mismatch for .*shape"):
        loop.train(other, images, RunFolder(tmp_path / "other"), device=torch.device("cpu"), watcher=Recorder())


def test_a_compiled_objective_trains_the_same(cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = []

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> object:
        graphs.append(graph)
        return graph.forward

    plain, compiled = Recorder(), Recorder()
    train_here(small_config(), cohort, tmp_path / "plain", plain)
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    train_here(small_config(launch={"compile": True}), cohort, tmp_path / "compiled", compiled)
    assert graphs
    assert compiled.losses == plain.losses


@pytest.mark.parametrize(("precision", "wider"), [("fp32", set()), ("bf16", {"fp32"}), ("fp16", {"bf16", "fp32"})])
def test_a_loss_that_is_not_finite_stops_with_step_and_rate_and_names_wider_arithmetic(
    precision: str, wider: set[str], cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    def sour(name: str, output: Tensor, target: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        error = (output.float() - target).abs().mean(dim=(1, 2, 3))
        return error * math.nan if calls == 3 else error

    monkeypatch.setattr("veilray.training.objectives.supervised.image_losses", sour)
    with pytest.raises(TrainingError, match=r"loss is nan at step 3, learning rate 0\.00.*in a new --out$") as told:
        train_here(small_config(launch={"precision": precision}), cohort, tmp_path / "run")
    advice = str(told.value).partition("launch.precision")[2]
    assert {name for name in ("fp32", "bf16", "fp16") if name in advice} == wider


@pytest.mark.slow
def test_fp16_gradients_that_overflow_are_skipped_and_counted(
    cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Overflow(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: object, gradient: Tensor) -> Tensor:
            return gradient * math.inf

    always = {"on": True, "calls": 0}
    original = SupervisedObjective.forward

    def forward(self: SupervisedObjective, noisy: Tensor, clean: Tensor) -> Tensor:
        losses = original(self, noisy, clean)
        always["calls"] += 1
        return Overflow.apply(losses) if always["on"] or always["calls"] <= 3 else losses

    monkeypatch.setattr(SupervisedObjective, "forward", forward)
    config = small_config(launch={"precision": "fp16"}, train={"epochs": 30})
    with pytest.raises(TrainingError, match=r"20 fp16 gradients in a row .* step 20"):
        train_here(config, cohort, tmp_path / "never")
    always.update(on=False, calls=0)
    outcome = train_here(small_config(launch={"precision": "fp16"}), cohort, tmp_path / "some")
    assert math.isfinite(outcome.best_loss)


@pytest.mark.slow
def test_early_stopping(cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = iter([0.5, 0.4, 0.45, 0.41, 0.3])
    monkeypatch.setattr(loop, "validate", lambda *arguments: (next(losses), 20.0))
    outcome = train_here(small_config(train={"epochs": 5, "patience": 2}), cohort, tmp_path / "run")
    assert outcome.stopped_early
    assert outcome.best_epoch == 2
    assert len(RunFolder(tmp_path / "run").epochs()) == 4


@pytest.mark.slow
def test_validations_may_lie_epochs_apart(cohort: Path, tmp_path: Path) -> None:
    train_here(small_config(train={"epochs": 5}), cohort, tmp_path / "each")
    train_here(small_config(train={"epochs": 5, "validate_every": 2}), cohort, tmp_path / "some")
    each, some = RunFolder(tmp_path / "each").epochs(), RunFolder(tmp_path / "some").epochs()
    assert [record.epoch for record in some] == [2, 4, 5]
    assert [record.validation_loss for record in some] == [each[index].validation_loss for index in (1, 3, 4)]
    assert some[0].train_loss == pytest.approx((each[0].train_loss + each[1].train_loss) / 2)


def test_validation_is_exact_whatever_the_batch_size(cohort: Path, tmp_path: Path) -> None:
    config = small_config(train={"epochs": 1})
    images = TrainingImages.open(cohort, config)
    model = loop.build_model(config.model)
    results = []
    for size in (1, 3, 64):
        changed = config.model_copy(update={"train": config.train.model_copy(update={"batch_size": size})})
        results.append(loop.validate(model, images, changed, torch.device("cpu")))
    for loss, decibels in results[1:]:
        assert loss == pytest.approx(results[0][0], rel=1e-6)
        assert decibels == pytest.approx(results[0][1], rel=1e-6)


@pytest.mark.slow
def test_a_folder_that_holds_a_run_is_left_alone(cohort: Path, tmp_path: Path) -> None:
    config = small_config()
    train_here(config, cohort, tmp_path / "run")
    with pytest.raises(UsageError, match="already holds a run"):
        RunFolder.create(tmp_path / "run", config)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("mine")
    with pytest.raises(UsageError, match="not empty"):
        RunFolder.create(tmp_path / "other", config)


@pytest.mark.slow
def test_resuming_with_another_configuration_is_refused(cohort: Path, tmp_path: Path) -> None:
    train_here(small_config(), cohort, tmp_path / "run")
    with pytest.raises(UsageError, match=r"another configuration \(\[train\] differ"):
        RunFolder.resume(tmp_path / "run", small_config(train={"epochs": 9}))


@pytest.mark.slow
def test_a_full_disk_keeps_the_checkpoints_there_are(
    cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config(train={"epochs": 3})
    train_here(config, cohort, tmp_path / "whole")
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # Python would cut short what it keeps of a module
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill_the_disk(step: int) -> None:
        if step == 5:  # after the first epoch's checkpoint, which is written in the background
            while not checkpoints(tmp_path / "full" / "checkpoints"):
                time.sleep(0.01)
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, unlimited[1]))

    try:
        with pytest.raises(VeilrayError, match="file too large, and no part of it was left; free some space"):
            train_here(config, cohort, tmp_path / "full", Recorder(fill_the_disk))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    folder = tmp_path / "full" / "checkpoints"
    assert len(checkpoints(folder)) == 1
    assert not list(folder.glob(".*"))
    train_here(config, cohort, tmp_path / "full")
    assert _equal(_final_state(tmp_path / "whole"), _final_state(tmp_path / "full"))


def test_without_a_complete_checkpoint_nothing_is_forgotten(cohort: Path, tmp_path: Path) -> None:
    config = small_config()
    train_here(config, cohort, tmp_path / "run")
    for path in checkpoints(tmp_path / "run" / "checkpoints"):
        path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(RunError, match=r"no checkpoint .* is complete"):
        train_here(config, cohort, tmp_path / "run")
    assert len(RunFolder(tmp_path / "run").epochs()) == 2


def test_a_history_with_an_unreadable_line_is_not_cut_down(make_run: Callable[..., Path]) -> None:
    run = RunFolder(make_run("run"))
    path = run.path / "metrics.jsonl"
    whole = path.read_text(encoding="utf-8")
    path.write_text(whole + '{"event": "ep', encoding="utf-8")
    assert len(run.epochs()) == len(whole.splitlines())
    first, *others = whole.splitlines()
    foreign = first.replace('"step"', '"steps"')
    path.write_text("\n".join([foreign, *others]) + "\n", encoding="utf-8")
    with pytest.raises(RunError, match="line 1, is no record of an epoch"):
        run.forget_after(10)
    assert foreign in path.read_text(encoding="utf-8")
