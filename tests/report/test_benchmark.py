"""The report of a benchmark: one self-contained page whose figures are those of the records."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from tests.evaluation.records import make_record
from tests.report.page import Page

from veilray.evaluation.benchmark.effects import factor_effects, savings
from veilray.evaluation.benchmark.groups import Analysis, RunGroup
from veilray.evaluation.benchmark.plan import SETTING_OF, BenchmarkPlan
from veilray.evaluation.benchmark.record import RunRecord
from veilray.metrics.interval import Interval
from veilray.report.benchmark import benchmark_html, render_benchmark
from veilray.report.benchmark_limits import benchmark_limits

INTERVAL = Interval(mean=30.123, low=29.5, high=30.75)
NOISY = Interval(mean=17.5, low=17.0, high=18.0)


def _records(*, tied: bool = False) -> list[RunRecord]:
    batch = {"train": {"batch_size": 64}} if tied else None
    done = [
        make_record(
            model=model,
            noise=noise,
            setup=setup,
            seed=seed,
            seconds=(100.0 if setup == "single" else 40.0) + seed + (7 if model == "unetpp" else 0),
            speed=(10.0 if setup == "single" else 25.0) + seed,
            psnr=30.0 + 0.1 * seed,
            config=batch if setup != "single" else None,
        )
        for seed in (1, 2)
        for model in ("unet", "unetpp")
        for noise in ("0.1", "0.3")
        for setup in ("single", "ddp:2")
    ]
    skipped = [make_record(setup="dp:2", noise=noise, seed=1, status="skipped") for noise in ("0.1", "0.3")]
    return [*done, *skipped]


def _analysis(records: list[RunRecord], *, plan: BenchmarkPlan | None = None, load: float = 1.0) -> Analysis:
    groups = []
    finished = [record for record in records if record.timings is not None]
    for combination in dict.fromkeys(record.combination for record in finished):
        own = [record for record in finished if record.combination == combination]
        timings = [record.timings for record in own if record.timings is not None]
        groups.append(
            RunGroup(
                levels=dict(combination),
                records=tuple(own),
                metrics={"psnr": INTERVAL, "ssim": INTERVAL, "ssim_3x3": INTERVAL, "lpips": None},
                seconds=tuple(timing.seconds for timing in timings),
                images_per_second=tuple(timing.images_per_second for timing in timings),
                share_of_peak=0.1234,
                operations_per_image=1.234e9,
                peak_per_second=2e12,
                peak_memory_bytes=3 * 2**30,
                parts={"data": 1.0, "forward": 30.0, "backward": 60.0, "all_reduce": 5.0, "metrics": 2.0, "other": 2.0},
                metric_share=0.02,
            )
        )
    return Analysis(
        plan=plan or BenchmarkPlan(name="test <plan>", seeds=(1, 2)),
        records=tuple(records),
        groups=tuple(groups),
        noisy={level: {"psnr": NOISY} for level in dict.fromkeys(record.levels["noise"] for record in finished)},
        effects=tuple(factor_effects(records)),
        savings=tuple(savings(records)),
        load=load,
        varied=tuple(name for name in SETTING_OF if len({record.levels[name] for record in records}) > 1),
        images=87,
        patients=60,
    )


@pytest.fixture(scope="module")
def html() -> str:
    return benchmark_html(_analysis(_records()))


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


def test_the_page_is_whole_and_refers_to_nothing_outside(html: str, page: Page) -> None:
    assert [reference for reference in page.references if not reference.startswith("#")] == []
    assert len(page.ids) == len(set(page.ids))
    assert "script" not in page.tags
    assert not re.search(r"https?://(?!www\.w3\.org/)", html)
    assert "{{" not in html
    assert "test &lt;plan&gt;" in html


def test_the_papers_table_has_quality_time_and_time_saved(page: Page) -> None:
    head, *rows = page.cells["scores"]
    assert [" ".join(cell.split()) for cell in head] == [
        *("Noise", "Model", "Set-up", "PSNR , dB ↑", "SSIM ↑", "SSIM 3×3 ↑", "LPIPS ↓", "Training , s", "Time saved")
    ]
    assert len(rows) == 2 * (1 + 4)
    noisy, single, several = rows[:3]
    assert noisy[1].strip() == "Noisy input"
    assert noisy[3].strip() == "17.50"
    assert " ".join(single[3].split()) == "30.12 29.50 to 30.75"
    assert single[6].strip() == "not computed"
    assert " ".join(single[7].split()) == f"{np.mean([101, 102]):.1f} 101.0 to 102.0"
    assert single[8].strip() == "–"
    saved = 100 * (1 - np.mean([41, 42]) / np.mean([101, 102]))
    assert several[8].strip().startswith(f"{saved:.1f}")


def test_speed_share_memory_and_metric_time(page: Page) -> None:
    row = [" ".join(cell.split()) for cell in page.cells["speeds"][1]]
    assert row[3] == "11.5 11.0 to 12.0"
    assert row[4:] == ["1.23", "246.8 GFLOP/s", "2.0 TFLOP/s", "12.3 %", "3.00 GiB", "2.0 %"]


def test_effects_on_speed_and_quality_stand_side_by_side(page: Page) -> None:
    rows = {row[0].strip(): [" ".join(cell.split()) for cell in row] for row in page.cells["effects-table"][1:]}
    setup = rows["DDP, 2 devices / one device"]
    ratio = np.sqrt((26 / 11) * (27 / 12))
    assert setup[1].startswith(f"{ratio:.3f}×")
    assert setup[3].startswith("0.00")
    assert setup[6] == "8 4 comb., 2 seeds"
    assert set(rows) == {
        "U-Net++ / U-Net",
        "30\N{NO-BREAK SPACE}% / 10\N{NO-BREAK SPACE}%",
        "DDP, 2 devices / one device",
    }


def test_what_was_skipped_is_listed_with_its_reason(html: str, page: Page) -> None:
    (row,) = page.cells["missing-runs"][1:]
    assert row[0].strip() == "skipped"
    assert row[1].strip() == "this machine has one GPU"
    assert "2:" in row[2]
    assert "2 runs that this machine cannot do" in html


@pytest.mark.slow
def test_causes_that_changed_together_are_told(html: str) -> None:
    tied = benchmark_html(_analysis(_records(tied=True)))
    assert "Causes that changed together" in tied
    assert "train.batch_size" in tied
    assert "Causes that changed together" not in html


@pytest.mark.slow
def test_adjustments_of_the_plan_are_shown_with_their_levels() -> None:
    adjust = {"when": {"setup": "ddp:2"}, "settings": {"train": {"batch_size": 64}}}
    plan = BenchmarkPlan.model_validate({"name": "adjusted", "adjust": [adjust]})
    parsed = Page(benchmark_html(_analysis(_records(tied=True), plan=plan)))
    assert "batch 64" in parsed.cells["scores"][3][2]
    assert "batch" not in parsed.cells["scores"][2][2]


def test_the_figures_are_there(html: str) -> None:
    assert html.count("<svg ") == 3
    for words in ("Training time, s", "Share of the training time, %", "Images a second, ratio to the reference"):
        assert words in html


def test_one_run_alone_makes_a_report_without_effects(tmp_path: Path) -> None:
    render_benchmark(_analysis([make_record()]), tmp_path / "report.html")
    parsed = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "effects-table" not in parsed.cells
    assert "savings" not in parsed.cells
    assert "missing-runs" not in parsed.cells
    assert len(parsed.cells["scores"]) == 3


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"threads": 2, "cores": 2, "world_size": 1}, "One process already uses every core."),
        ({"threads": 1, "cores": 8, "world_size": 1}, "One process computed with 1 thread on 8 cores."),
        ({"threads": 4, "cores": 8, "world_size": 2}, "One process uses every core where nothing limits it."),
        ({"threads": 2, "world_size": 1}, "One process uses every core where nothing limits it."),
        ({}, "One process uses every core where nothing limits it."),
    ],
)
def test_what_one_process_leaves_idle_is_not_said_to_be_used(environment: dict[str, int], said: str) -> None:
    record = make_record()
    record = record.model_copy(update={"environment": record.environment | environment})
    told = dict(benchmark_limits(_analysis([record])))
    (explanation,) = [told[heading] for heading in told if "on one processor" in heading]
    assert explanation.startswith(said)


@pytest.mark.slow
def test_a_busy_machine_is_told_first(html: str) -> None:
    busy = benchmark_html(_analysis(_records(), load=3.25))
    assert "The machine was busy" in busy
    assert "up to 3.2 processes wanted each core" in busy
    assert "busy" not in html
