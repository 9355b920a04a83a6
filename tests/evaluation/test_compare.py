"""Comparing runs: what may be compared, how seeds join, and what the paired differences are."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from veilray.errors import RunError, UsageError
from veilray.evaluation.compare import compare, panel_images
from veilray.evaluation.comparison import Comparison
from veilray.evaluation.results import BASELINES, METRICS, PER_IMAGE, read_scores, read_summary, write_results
from veilray.files import write_json, write_text
from veilray.metrics.statistics import clustered_bootstrap, holm

MakeRun = Callable[..., Path]
UNETPP = {"name": "unetpp", "width": 16}
UNET = {"name": "unet", "width": 16}


@pytest.fixture
def grid(make_run: MakeRun) -> list[Path]:
    """2 models x 3 seeds x 2 noise levels; U-Net++ is 0.3 dB better at 20 %, and no better at 10 %."""
    return [
        make_run(f"{model['name']}-{std}-{seed}", seed=seed, model=model, noise={"std": std}, gain=gain, images=36)
        for std, better in ((0.1, 0.001), (0.2, 0.3))
        for model, gain in ((UNET, 0.0), (UNETPP, better))
        for seed in (1, 2, 3)
    ]


def digest(comparison: Comparison) -> list[object]:
    """Everything a report shows of a comparison, to compare two of them."""
    return [
        (
            level.label,
            [(arm.label, arm.setup, arm.metrics, arm.best, [run.folder for run in arm.runs]) for arm in level.arms],
            [
                (pair.first, pair.second, pair.metric, pair.difference, pair.p_holm, pair.share_won)
                for pair in level.pairs
            ],
        )
        for level in comparison.levels
    ]


def test_runs_that_differ_in_the_seed_are_one_arm(grid: list[Path]) -> None:
    comparison = compare(grid)
    assert [level.label for level in comparison.levels] == ["10\N{NO-BREAK SPACE}%", "20\N{NO-BREAK SPACE}%"]
    for level in comparison.levels:
        assert [arm.label for arm in level.arms] == ["Noisy input", "U-Net, width 16", "U-Net++, width 16"]
        assert [[run.config.seed for run in arm.runs] for arm in level.models] == [[1, 2, 3], [1, 2, 3]]


def test_the_order_of_the_runs_does_not_matter(grid: list[Path]) -> None:
    expected = digest(compare(grid))
    for order in ([*grid[::-1]], [grid[index] for index in np.random.default_rng(1).permutation(len(grid))]):
        assert digest(compare(order)) == expected


def test_one_run_alone_keeps_the_figures_of_its_result_file(make_run: MakeRun) -> None:
    run = make_run("alone", seed=4)
    comparison = compare([run])
    (level,) = comparison.levels
    summary = read_summary(run)
    assert {metric: level.models[0].metrics[metric] for metric in METRICS} == summary.methods["model"]
    assert level.arms[0].metrics == summary.methods["noisy"]
    assert level.pairs == ()
    assert level.models[0].best == frozenset()
    assert level.models[0].training_seconds == pytest.approx(50.25 * 12 + 4)


def test_seeds_are_averaged_image_by_image(grid: list[Path]) -> None:
    comparison = compare(grid)
    arm = comparison.levels[0].models[0]
    by_seed = [{score.image_id: score.psnr for score in run.scores if score.method == "model"} for run in arm.runs]
    expected = [sum(scores[image] for scores in by_seed) / 3 for image in comparison.image_ids]
    np.testing.assert_allclose(arm.scores["psnr"], expected, rtol=1e-14)
    interval = clustered_bootstrap(np.array(expected), comparison.patient_ids, resamples=200, seed=3, confidence=0.95)
    assert arm.metrics["psnr"] is not None
    assert arm.metrics["psnr"].mean == pytest.approx(interval.mean)
    assert arm.metrics["psnr"].low == pytest.approx(interval.low)


def test_a_paired_difference_is_the_bootstrap_of_the_seed_averaged_difference(grid: list[Path]) -> None:
    comparison = compare(grid)
    pair = next(pair for pair in comparison.levels[1].pairs if pair.metric == "psnr")
    first, second = (arm.scores["psnr"] for arm in comparison.levels[1].models)
    assert first is not None
    assert second is not None
    expected = clustered_bootstrap(first - second, comparison.patient_ids, resamples=200, seed=3, confidence=0.95)
    assert pair.difference.mean == pytest.approx(expected.mean)
    assert pair.difference.low == pytest.approx(expected.low)
    assert pair.share_won == pytest.approx(float(np.mean(first > second)))
    assert pair.settings == ("model.name",)


def test_a_lower_lpips_wins(grid: list[Path]) -> None:
    comparison = compare(grid)
    pair = next(pair for pair in comparison.levels[1].pairs if pair.metric == "lpips")
    first, second = (arm.scores["lpips"] for arm in comparison.levels[1].models)
    assert first is not None
    assert second is not None
    assert pair.share_won == pytest.approx(float(np.mean(first < second)))


def test_holms_correction_spans_every_level_and_metric(grid: list[Path]) -> None:
    pairs = [pair for level in compare(grid).levels for pair in level.pairs]
    assert len(pairs) == 2 * 4
    assert [pair.p_holm for pair in pairs] == pytest.approx(list(holm([pair.p_value for pair in pairs])))
    smallest = min(pairs, key=lambda pair: pair.p_value)
    assert smallest.p_holm == pytest.approx(len(pairs) * smallest.p_value)


def test_only_a_significant_lead_is_marked_best(grid: list[Path]) -> None:
    low, high = compare(grid).levels
    assert all(not arm.best for arm in low.arms)
    assert not high.models[0].best
    assert high.models[1].best == {"psnr", "ssim", "ssim_3x3", "lpips"}


def test_classical_methods_are_rows_and_are_compared_with_the_models(make_run: MakeRun) -> None:
    level = compare([make_run("a", methods=("noisy", "model", "bm3d"))]).levels[0]
    assert [(arm.label, arm.kind) for arm in level.arms][:2] == [("Noisy input", "noisy"), ("BM3D", "classical")]
    assert {(pair.first, pair.second) for pair in level.pairs} == {("U-Net, width 64", "BM3D")}


def test_a_metric_that_one_arm_lacks_is_not_compared(make_run: MakeRun) -> None:
    comparison = compare([make_run("a", model=UNET), make_run("b", model=UNETPP, gain=0.1, lpips=False)])
    assert "lpips" not in {pair.metric for pair in comparison.levels[0].pairs}
    assert comparison.levels[0].models[1].metrics["lpips"] is None
    assert any("LPIPS" in note for note in comparison.notes)


def test_the_noise_of_the_training_is_a_setting_where_it_is_not_the_tests(make_run: MakeRun) -> None:
    test_noise = {"noise": {"mean": 0.1, "std": 0.2, "clip": True}}
    matched = make_run("matched", noise={"std": 0.2})
    ranged = make_run("ranged", gain=0.1, noise={"std": (0.05, 0.4)}, summary=test_noise)
    labels = [arm.label for arm in compare([matched, ranged]).levels[0].models]
    assert labels[0] == "U-Net, width 64"
    assert "5–40" in labels[1]


@pytest.mark.parametrize(
    ("summary", "word"),
    [
        ({"split": "validation"}, "split"),
        ({"cohort_digest": "d" * 64}, "cohort"),
        ({"test_noise_seed": 9}, "noise seed"),
        ({"confidence": 0.9}, "confidence"),
        ({"resamples": 100}, "resamples"),
        ({"bootstrap_seed": 8}, "bootstrap seed"),
    ],
)
def test_runs_that_were_evaluated_differently_are_refused(
    make_run: MakeRun, summary: dict[str, object], word: str
) -> None:
    runs = [make_run("a", seed=1), make_run("b", seed=2, summary=summary)]
    with pytest.raises(UsageError, match=word):
        compare(runs)


def test_another_noise_seed_at_another_level_is_no_fault(make_run: MakeRun) -> None:
    runs = [
        make_run("a", noise={"std": 0.1}, evaluate={"noise_seed": 1}),
        make_run("b", noise={"std": 0.2}, evaluate={"noise_seed": 2}),
    ]
    assert [level.test_noise_seed for level in compare(runs).levels] == [1, 2]


def test_runs_on_other_images_are_refused(make_run: MakeRun) -> None:
    with pytest.raises(UsageError, match="24 and 21 images"):
        compare([make_run("a", seed=1), make_run("b", seed=2, images=21)])


def test_a_run_given_twice_is_refused(make_run: MakeRun) -> None:
    run, copy = make_run("a"), make_run("copy")
    for twice in ([run, run], [run, copy]):
        with pytest.raises(UsageError, match="same configuration and seed"):
            compare(twice)


def test_nothing_to_compare_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="nothing to compare"):
        compare([])


def test_a_run_without_evaluation_says_what_to_run(make_run: MakeRun) -> None:
    run = make_run("a")
    (run / PER_IMAGE).unlink()
    with pytest.raises(RunError, match="veilray evaluate"):
        compare([run])


def test_result_files_of_two_evaluations_are_refused(make_run: MakeRun) -> None:
    first, second = make_run("a", seed=1), make_run("b", seed=2)
    write_text(first / PER_IMAGE, (second / PER_IMAGE).read_text(encoding="utf-8"))
    with pytest.raises(RunError, match="disagree"):
        compare([first])


def test_panels_are_the_median_the_best_and_the_worst_image(grid: list[Path]) -> None:
    comparison = compare(grid)
    totals = dict.fromkeys(comparison.image_ids, 0.0)
    for run in grid:
        for score in read_scores(run):
            totals[score.image_id] += score.psnr * (score.method == "model")
    ranked = sorted(totals, key=lambda image: totals[image])
    shown = panel_images(comparison)
    assert shown[:3] == [
        (ranked[(len(ranked) - 1) // 2], "median"),
        (ranked[-1], "best"),
        (ranked[0], "worst"),
    ]
    first = {image for image, _ in shown[:3]}
    assert shown[3:] == [(image, "low") for image in ranked[:10] if image not in first]
    assert len(shown) > 3


def test_no_image_is_shown_twice(make_run: MakeRun) -> None:
    comparison = compare([make_run("two", images=2, images_per_patient=1)])
    assert [role for _, role in panel_images(comparison)] == ["median", "best"]


def test_pairs_name_all_settings_in_which_they_differ(make_run: MakeRun) -> None:
    ours = make_run("ours", train={"loss": "l1"})
    theirs = make_run("theirs", train={"loss": "mse", "schedule": "constant"}, launch={"precision": "fp32"}, gain=0.1)
    pairs = compare([ours, theirs]).levels[0].pairs
    assert {pair.settings for pair in pairs} == {("train.loss", "train.schedule", "launch.precision")}


def test_every_pair_within_a_level_is_compared_once(make_run: MakeRun) -> None:
    runs = [make_run(f"w{width}", model={"width": width}, gain=width / 100) for width in (8, 16, 32)]
    level = compare(runs).levels[0]
    labels = [arm.label for arm in level.models]
    psnr = [{pair.first, pair.second} for pair in level.pairs if pair.metric == "psnr"]
    assert sorted(map(sorted, psnr)) == sorted(map(sorted, itertools.combinations(labels, 2)))


def test_classical_methods_are_judged_against_models_alone(make_run: MakeRun) -> None:
    methods = ("noisy", "model", "bm3d", "tv")
    seconds = {"model": 0.5, "bm3d": 3.0, "tv": 0.1}
    runs = [
        make_run(f"{seed}", seed=seed, images=60, methods=methods, summary={"core_seconds_per_image": seconds})
        for seed in (1, 2)
    ]
    level = compare(runs).levels[0]
    assert {(pair.first, pair.second) for pair in level.pairs} == {
        ("U-Net, width 64", "BM3D"),
        ("U-Net, width 64", "Total variation"),
    }
    assert {arm.label: arm.core_seconds for arm in level.arms} == {
        "Noisy input": None,
        "BM3D": 3.0,
        "Total variation": 0.1,
        "U-Net, width 64": 0.5,
    }
    # The maker of runs lifts the model by 5 dB over classical methods, which are alike but for their noise.
    assert {arm.kind: "psnr" in arm.best for arm in level.arms} == {"noisy": False, "classical": False, "model": True}


def _tune(run: Path, factor: float, images: list[str]) -> Path:
    """Writes how the run's evaluation tuned total variation, as `evaluate` does."""
    methods = {"tv": {"strength": {"factor": factor}}}
    write_json(run / BASELINES, {"schema_version": 1, "tuning_images": images, "methods": methods})
    return run


@pytest.mark.parametrize(
    ("factor", "images", "said"),
    [
        (1.0, ["a", "b"], ""),
        (2.0, ["a", "b"], "at different strengths"),
        (1.0, ["a", "c"], "after tuning on different images"),
        (2.0, ["a"], "at different strengths and after tuning on different images"),
    ],
)
def test_classical_methods_that_were_tuned_apart_are_named(
    make_run: MakeRun, factor: float, images: list[str], said: str
) -> None:
    methods = ("noisy", "model", "tv")
    first, second = (make_run(f"{seed}", seed=seed, methods=methods) for seed in (1, 2))
    without, weaker = make_run("3", seed=3), make_run("4", seed=4, methods=methods, noise={"std": 0.1})
    _tune(first, 1.0, ["a", "b"])
    _tune(second, factor, images)
    _tune(weaker, 5.0, ["d"])  # at another level, where nothing is to be compared
    expected = (
        f"Total variation was scored {said} in these evaluations at 20\N{NO-BREAK SPACE}%; "
        f"the scores of {first} are shown."
    )
    comparison = compare([weaker, without, second, first])
    assert comparison.notes == ((expected,) if said else ())
    shown = next(arm for arm in comparison.levels[1].arms if arm.kind == "classical")
    assert shown.metrics["psnr"] == read_summary(first).methods["tv"]["psnr"]


def test_a_damaged_record_of_tuning_is_refused(make_run: MakeRun) -> None:
    run = make_run("a", methods=("noisy", "model", "tv"))
    write_json(run / BASELINES, {"methods": {"tv": {}}})
    with pytest.raises(RunError, match=r"baselines\.json is damaged"):
        compare([run])


def test_results_that_lie_apart_from_their_run_are_read_with_its_configuration(
    make_run: MakeRun, tmp_path: Path
) -> None:
    run, level = make_run("a", seed=3), tmp_path / "a" / "levels" / "std-0.2-mean-0.1"
    summary = read_summary(run)
    for folder, named in ((level, "../.."), (tmp_path / "elsewhere", str(run.resolve()))):
        write_results(folder, summary.model_copy(update={"model": named}), read_scores(run))
        (found,) = compare([folder]).runs
        assert found.folder == folder
        assert found.config.seed == 3
        assert Path(found.source).resolve() == run.resolve()
        assert len(found.curve) == 12
