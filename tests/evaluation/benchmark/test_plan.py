"""Benchmark plans: what they expand to, and what they refuse."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from veilray.errors import UsageError
from veilray.evaluation.benchmark.plan import (
    BenchmarkPlan,
    PlannedRun,
    base_config,
    expand,
    load_plan,
    plan_names,
    write_plan,
)

CPU = torch.device("cpu")


def _plan(folder: Path, text: str) -> BenchmarkPlan:
    path = folder / "plan.toml"
    path.write_text(f'name = "test"\n{text}', encoding="utf-8")
    return load_plan(path)


def _facts(run: PlannedRun) -> tuple[object, ...]:
    launch = run.config.launch
    setup = launch.setup if run.devices == 1 else f"{launch.setup}:{run.devices}"
    return run.seed, run.config.model.name, run.config.noise.std, setup, launch.precision, launch.prefetch


def test_every_combination_once_for_each_seed_seeds_outermost(tmp_path: Path) -> None:
    plan = _plan(
        tmp_path,
        """
        seeds = [3, 1]
        [factors]
        model = ["unetpp", "unet"]
        noise = [0.1, [0.05, 0.4]]
        setup = ["single", "dp:2", "ddp:4"]
        precision = ["fp32", "bf16"]
        prefetch = [0, 2]
        """,
    )
    expected = list(
        itertools.product(
            [3, 1], ["unetpp", "unet"], [0.1, (0.05, 0.4)], ["single", "dp:2", "ddp:4"], ["fp32", "bf16"], [0, 2]
        )
    )
    runs = expand(plan, device=CPU)
    assert [_facts(run) for run in runs] == expected
    assert all(run.config.seed == run.seed for run in runs)
    assert len({run.name for run in runs}) == len(runs)
    assert {run.devices for run in runs} == {1, 2, 4}


def test_a_factor_that_is_left_out_stays_as_in_the_base(tmp_path: Path) -> None:
    (run,) = expand(_plan(tmp_path, 'base = "paper"\n[settings.train]\nepochs = 3\n'), device=CPU)
    base = base_config(load_plan(tmp_path / "plan.toml"))
    assert run.config.train == base.train
    assert run.config.train.epochs == 3
    assert run.config.noise == base.noise
    assert run.config.split.rule == "paper"
    assert run.levels["noise"] == "0.2"
    assert run.levels["setup"] == "single"
    assert run.levels["precision"] == "fp32"
    assert "auto" not in run.levels.values()


def test_names_stay_when_other_levels_join(tmp_path: Path) -> None:
    few = expand(_plan(tmp_path, "[factors]\nnoise = [0.2]\n"), device=CPU)
    more = expand(
        _plan(tmp_path, 'seeds = [17, 18]\n[factors]\nnoise = [0.1, 0.2]\nsetup = ["single", "ddp:2"]\n'), device=CPU
    )
    assert {run.name for run in few} < {run.name for run in more}


def test_adjustments_go_with_their_levels_alone(tmp_path: Path) -> None:
    plan = _plan(
        tmp_path,
        """
        [factors]
        model = ["unet", "unetpp"]
        setup = ["single", "ddp:2"]
        [[adjust]]
        when = { setup = "ddp:2" }
        settings = { train = { batch_size = 64 }, launch = { precision = "fp16" } }
        [[adjust]]
        when = { setup = "ddp:2", model = "unetpp" }
        settings = { train = { batch_size = 8 } }
        """,
    )
    found = {(run.levels["model"], run.levels["setup"]): run.config for run in expand(plan, device=CPU)}
    sizes = {key: config.train.batch_size for key, config in found.items()}
    usual = sizes["unet", "single"]
    assert sizes == {
        ("unet", "single"): usual,
        ("unetpp", "single"): usual,
        ("unet", "ddp:2"): 64,
        ("unetpp", "ddp:2"): 8,
    }
    assert usual not in (8, 64)
    assert found["unet", "ddp:2"].launch.precision == "fp16"
    assert found["unet", "single"].launch.precision != "fp16"


def test_a_base_beside_the_plan_is_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "plans").mkdir()
    (tmp_path / "plans" / "mine.toml").write_text("[train]\nepochs = 7\n", encoding="utf-8")
    plan = _plan(tmp_path / "plans", 'base = "mine.toml"\n')
    monkeypatch.chdir("/")
    assert base_config(plan).train.epochs == 7
    write_plan(plan, tmp_path / "out")
    (tmp_path / "plans" / "mine.toml").unlink()
    assert base_config(load_plan(tmp_path / "out" / "plan.toml")).train.epochs == 7


def test_overrides_reach_every_run_and_the_written_plan_says_the_same(tmp_path: Path) -> None:
    _plan(tmp_path, 'seeds = [1, 2]\n[settings.model]\nwidth = 8\n[factors]\nmodel = ["unet", "unetpp"]\n')
    plan = load_plan(tmp_path / "plan.toml", ["train.epochs=1", "model.width=4"])
    runs = expand(plan, device=CPU)
    assert {(run.config.train.epochs, run.config.model.width) for run in runs} == {(1, 4)}
    write_plan(plan, tmp_path / "out")
    assert expand(load_plan(tmp_path / "out" / "plan.toml"), device=CPU) == runs


def test_the_plans_that_ship(tmp_path: Path) -> None:
    assert plan_names() == ["controlled", "paper", "quick"]
    paper = expand(load_plan("paper"), device=CPU)
    published = itertools.product(["unet", "unetpp"], [0.1, 0.2, 0.3], ["single", "dp:2", "ddp:2"])
    assert [(run.config.model.name, run.config.noise.std, run.levels["setup"]) for run in paper] == list(published)
    assert {run.config.train.epochs for run in paper} == {50}
    assert {(run.levels["setup"], run.config.train.batch_size, run.config.launch.precision) for run in paper} == {
        ("single", 16, "fp32"),
        ("dp:2", 32, "fp32"),
        ("ddp:2", 64, "fp16"),
    }
    controlled = expand(load_plan("controlled"), device=CPU)
    assert len(controlled) == 2 * 3 * 3 * 2 * 3
    assert {run.config.train.batch_size for run in controlled} == {32}
    assert {run.config.split.rule for run in controlled} == {"cohort"}
    assert {run.levels["setup"] for run in expand(load_plan("quick"), device=CPU)} == {"single", "ddp:2"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("factor = 1", "factor: unknown key"),
        ('[factors]\nsetup = ["ddp"]', "write a set-up as 'single', 'dp:DEVICES' or 'ddp:DEVICES'"),
        ('[factors]\nsetup = ["ddp:0"]', "write a set-up as"),
        ('[factors]\nmodel = ["resnet"]', "factors.model"),
        ("[factors]\nnoise = [0.2, 0.2]", "a level is given twice"),
        ("[factors]\nnoise = [-1.0]", "factors.noise"),
        ("[factors]\nbatch = [1]", "factors.batch: unknown key"),
        ("seeds = []", "seeds"),
        ("seeds = [1, 1]", "a seed is given twice"),
        ('adjust = [{ when = { size = "2" }, settings = { train = { epochs = 1 } } }]', "no factor 'size'"),
        ("schema_version = 9", "schema version 9"),
        ("= 3", "is not valid TOML"),
    ],
)
def test_a_wrong_plan_is_refused_with_the_place(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError) as refused:
        _plan(tmp_path, text)
    assert message in str(refused.value)
    assert "plan.toml" in str(refused.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[settings.train]\nepoch = 1", "train.epoch: unknown key"),
        ('base = "nowhere"', "no configuration file nowhere"),
        ('adjust = [{ when = { setup = "ddp:2" }, settings = { train = { epochs = 1 } } }]', "is no level of the plan"),
        (
            '[factors]\nprecision = ["fp32", "fp16"]\n[[adjust]]\nwhen = { precision = "fp16" }\n'
            'settings = { launch = { precision = "fp32" } }',
            "two combinations the same",
        ),
    ],
)
def test_a_plan_without_runs_is_refused(tmp_path: Path, text: str, message: str) -> None:
    plan = _plan(tmp_path, text)
    with pytest.raises(UsageError) as refused:
        expand(plan, device=CPU)
    assert message in str(refused.value)


def test_a_folder_of_the_same_name_does_not_hide_a_plan_that_ships(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "quick").mkdir()  # as where an earlier call was given --out quick
    monkeypatch.chdir(tmp_path)
    assert load_plan("quick").name == "quick"


def test_an_unknown_plan_names_those_that_ship() -> None:
    with pytest.raises(UsageError, match="plans that ship: controlled, paper, quick"):
        load_plan("slow")
