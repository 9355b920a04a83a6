"""The report: one self-contained page whose figures are those of the result files."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image
from tests.report.page import Page

from veilray.errors import UsageError
from veilray.evaluation.compare import compare, panel_images
from veilray.evaluation.comparison import Comparison
from veilray.evaluation.panels import Panel
from veilray.evaluation.results import read_summary
from veilray.report.protocol import protocol
from veilray.report.render import render, to_html
from veilray.report.text import abstract

MakeRun = Callable[..., Path]


def phantom(size: int, seed: int) -> np.ndarray:
    y, x = np.mgrid[:size, :size] / size
    lungs = np.exp(-(((x - 0.3) / 0.12) ** 2 + ((y - 0.5) / 0.3) ** 2))
    lungs += np.exp(-(((x - 0.7) / 0.12) ** 2 + ((y - 0.5) / 0.3) ** 2))
    ribs = 0.05 * np.sin(40 * y + seed)
    return np.clip(0.8 - 0.6 * lungs + ribs, 0, 1).astype(np.float32)


def panels_of(comparison: Comparison, size: int = 32) -> list[Panel]:
    noise = np.random.default_rng(8)
    panels = []
    for level in comparison.levels:
        for seed, (image_id, role) in enumerate(panel_images(comparison)):
            clean = phantom(size, seed)
            noisy = np.clip(clean + noise.normal(0.1, 0.2, clean.shape), 0, 1).astype(np.float32)
            outputs = {arm.label: 0.9 * clean + np.float32(0.05) for arm in level.models}
            panels.append(
                Panel(
                    image_id=image_id,
                    role=role,
                    level=level.label,
                    noisy=noisy,
                    clean=clean,
                    outputs=outputs,
                    psnr=dict.fromkeys(outputs, 31.5),
                    noisy_psnr=13.25,
                )
            )
    return panels


@pytest.fixture(scope="module")
def comparison(make_module_run: MakeRun) -> Comparison:
    """2 models x 3 seeds x 2 noise levels."""
    models = ({"name": "unet", "width": 16}, {"name": "unetpp", "width": 16})
    return compare(
        [
            make_module_run(f"{model['name']}-{std}-{seed}", seed=seed, model=model, noise={"std": std}, gain=gain)
            for std in (0.1, 0.2)
            for model, gain in zip(models, (0.0, 0.3), strict=True)
            for seed in (1, 2, 3)
        ]
    )


@pytest.fixture(scope="module")
def page(comparison: Comparison) -> str:
    """The report with panels."""
    return to_html(comparison, panels_of(comparison))


@pytest.fixture(scope="module")
def bare_page(comparison: Comparison) -> str:
    """The report without panels."""
    return to_html(comparison, [])


def test_the_page_is_well_formed_and_refers_to_nothing_outside(page: str) -> None:
    parsed = Page(page)
    outside = [
        reference for reference in parsed.references if not reference.startswith(("data:image/png;base64,", "#"))
    ]
    assert outside == []
    assert not parsed.tags & {"script", "link", "iframe", "object", "embed", "base"}
    assert "@import" not in page
    assert not re.search(r"url\(\s*[\"']?(?!#)", page)
    assert "default-src 'none'" in page


def test_ids_are_unique_and_references_within_the_page_resolve(page: str) -> None:
    parsed = Page(page)
    assert len(parsed.ids) == len(set(parsed.ids))
    wanted = {reference[1:] for reference in parsed.references if reference.startswith("#")}
    wanted |= set(re.findall(r"url\(#([^)]*)\)", page))
    assert wanted <= set(parsed.ids)
    assert wanted


def plain(text: str) -> str:
    return re.sub(r"\s+", " ", text.replace("−", "-")).strip()


def test_every_number_of_the_score_table_is_that_of_the_result_file(make_run: MakeRun) -> None:
    runs = [make_run("a", model={"name": "unet"}), make_run("b", model={"name": "unetpp"}, gain=0.4)]
    rows = Page(to_html(compare(runs), [])).cells["scores"][1:]
    summaries = [read_summary(run) for run in runs]
    expected = [summaries[0].methods["noisy"], *(summary.methods["model"] for summary in summaries)]
    assert len(rows) == 3
    for row, metrics in zip(rows, expected, strict=True):
        for cell, (metric, digits) in zip(
            row[3:7], (("psnr", 2), ("ssim", 4), ("ssim_3x3", 4), ("lpips", 4)), strict=True
        ):
            interval = metrics[metric]
            assert interval is not None
            written = [float(number) for number in re.findall(r"-?\d+\.\d+", plain(cell))]
            shown = "".join(f"{value:.{digits}f} " for value in (interval.mean, interval.low, interval.high))
            assert written == [float(number) for number in shown.split()]


def test_every_seed_is_listed_with_its_own_figures(comparison: Comparison, bare_page: str) -> None:
    rows = Page(bare_page).cells["seeds"][1:]
    assert len(rows) == len(comparison.runs) == 12
    for row, run in zip(rows, comparison.runs, strict=True):
        psnr = run.summary.methods["model"]["psnr"]
        assert psnr is not None
        assert int(row[2]) == run.config.seed
        assert float(row[3]) == float(f"{psnr.mean:.2f}")
        assert row[-1].strip() == run.folder.name
        assert plain(row[-3]) == f"{run.best_epoch.epoch if run.best_epoch else None} of 50"


def test_the_table_of_pairs_shows_corrected_p_values_and_shares(comparison: Comparison, bare_page: str) -> None:
    rows = Page(bare_page).cells["pairs"][1:]
    pairs = [pair for level in comparison.levels for pair in level.pairs]
    assert len(rows) == len(pairs)
    for row, pair in zip(rows, pairs, strict=True):
        mean, _, p_value, p_holm, won = row[-5:]
        digits = 2 if pair.metric == "psnr" else 4
        assert float(plain(mean)) == float(f"{pair.difference.mean:.{digits}f}")
        for cell, value in ((p_value, pair.p_value), (p_holm, pair.p_holm)):
            assert plain(cell) == ("< 0.001" if value < 0.001 else f"{value:.3f}")
        assert int(re.sub(r"\D", "", won)) == round(100 * pair.share_won)


@pytest.mark.slow
def test_the_order_of_the_runs_does_not_change_the_page(comparison: Comparison, page: str) -> None:
    folders = [run.folder for run in comparison.runs]
    again = compare(folders[::-1])
    assert to_html(again, panels_of(again)) == page


def test_markup_in_names_from_outside_stays_text(make_run: MakeRun) -> None:
    evil = "<script>alert(1)</script>"
    run = make_run(
        'r"<img src=x onerror=alert(1)>',
        methods=("noisy", "model", f"{evil}$\\frac{{1}}{{2}}$"),
        environment={"device_name": evil, "cohort": evil, "git_commit": f"--><b>{evil}"},
        summary={"cohort": f"data/{evil}", "notes": [evil], "device": evil},
    )
    html = to_html(compare([run]), [])
    parsed = Page(html)
    assert not parsed.tags & {"script", "img", "b><script"}
    assert parsed.references == [reference for reference in parsed.references if reference.startswith("#")]
    assert "&lt;script&gt;alert(1)" in html
    drawn = "".join(re.findall(r"<text[^>]*>([^<]*)</text>", html))
    assert "$\\frac{1}{2}$" in drawn


def test_a_metric_not_computed_says_so_with_the_reason(make_run: MakeRun) -> None:
    html = to_html(compare([make_run("a", lpips=False)]), [])
    assert [row[6].strip() for row in Page(html).cells["scores"][1:]] == ["not computed", "not computed"]
    assert "LPIPS was not computed: no AlexNet backbone; name one with --lpips-backbone." in html


@pytest.mark.slow
def test_unclamped_psnr_is_shown_under_the_papers_protocol_only(make_run: MakeRun) -> None:
    ours = to_html(compare([make_run("ours")]), [])
    paper = to_html(compare([make_run("paper", evaluate={"unclamped_psnr": True})]), [])
    assert "unclamped" not in Page(ours).cells["scores"][0][-2]
    assert "PSNR unclamped" in Page(paper).cells["scores"][0][-2]


@pytest.mark.slow
def test_one_run_alone_has_no_table_of_pairs_and_names_the_missing_seeds(make_run: MakeRun) -> None:
    html = to_html(compare([make_run("a")]), [])
    assert "pairs" not in Page(html).cells
    assert "Chance in training is not covered" in html


@pytest.mark.slow
def test_unknown_patients_are_not_called_apart(make_run: MakeRun) -> None:
    page = to_html(compare([make_run("a", environment={"shared_patients": 0, "patients_unknown": 7})]), [])
    assert "The patients of 7 images are unknown" in page
    assert "No patient is in two sets" not in page


@pytest.mark.slow
def test_shared_patients_are_counted_and_warned_of(make_run: MakeRun) -> None:
    clean = to_html(compare([make_run("a")]), [])
    shared = to_html(
        compare([make_run("b", split={"rule": "paper"}, environment={"shared_patients": 312})]),
        [],
    )
    assert "No patient is in two sets" in clean
    assert "312 patients" not in clean
    assert "312 patients shared between the sets" in shared


@pytest.mark.slow
def test_validation_figures_are_not_called_test_figures(make_run: MakeRun) -> None:
    html = to_html(compare([make_run("a", summary={"split": "validation"})]), [])
    assert "These are not test figures" in html
    assert "These are not test figures" not in to_html(compare([make_run("b")]), [])


@pytest.mark.slow
def test_arms_that_differ_in_several_settings_are_said_to(make_run: MakeRun) -> None:
    runs = [make_run("a"), make_run("b", train={"loss": "mse", "schedule": "constant"}, gain=0.2)]
    html = to_html(compare(runs), [])
    assert "Differences with several causes" in html
    assert "2 settings differ" in html


@pytest.mark.parametrize(("images", "verdict"), [(12, "too few patients to test"), (90, "too little to tell the two")])
def test_too_few_patients_are_not_called_too_small_a_difference(images: int, verdict: str, make_run: MakeRun) -> None:
    runs = [make_run("a", images=images), make_run("b", train={"loss": "mse"}, images=images)]
    opening = " ".join(abstract(compare(runs)))
    assert [text for text in ("too few patients to test", "too little to tell the two") if text in opening] == [verdict]


@pytest.mark.slow
def test_every_setting_of_the_configuration_is_in_the_protocol(make_run: MakeRun) -> None:
    html = to_html(compare([make_run("a", train={"learning_rate": 0.00123, "batch_size": 13, "epochs": 77})]), [])
    for value in ("0.00123", '<td><span class="value">13</span>', '<td><span class="value">77</span>'):
        assert value in html


def test_without_pictures_the_page_says_why(page: str, bare_page: str) -> None:
    assert "the cohort was not at hand" in bare_page
    assert "<img" not in bare_page
    assert "the cohort was not at hand" not in page


def test_panels_hold_the_pixels_they_were_given(comparison: Comparison, page: str) -> None:
    panels = panels_of(comparison)
    sources = re.findall(r'<img src="data:image/png;base64,([^"]*)" alt="Clean', page)
    # Of each level three whole, then the worst again with the others of the lowest scores.
    shown = []
    for level in comparison.levels:
        mine = [panel for panel in panels if panel.level == level.label]
        shown += [*mine[:3], *(panel for panel in mine if panel.role in ("worst", "low"))]
    assert len(sources) == len(shown)
    for source, panel in zip(sources, shown, strict=True):
        levels = np.asarray(Image.open(io.BytesIO(base64.b64decode(source))))
        np.testing.assert_array_equal(levels, np.rint(panel.clean * 255))


def test_the_ten_worst_images_are_named_once_a_level_in_their_order(comparison: Comparison, page: str) -> None:
    ranked = [image for image, role in panel_images(comparison) if role in ("worst", "low")]
    assert 1 < len(ranked) <= 10
    named = re.findall(rf"<h4>Lowest PSNR, (\d+) of {len(ranked)} <span>([^<]*)</span></h4>", page)
    assert named == [(str(place), image) for place, image in enumerate(ranked, start=1)] * len(comparison.levels)
    assert f"The {len(ranked)} images of the test set with the lowest mean PSNR" in page


@pytest.mark.slow
def test_notes_on_the_data_are_shown_with_them_as_plain_text(comparison: Comparison) -> None:
    html = to_html(comparison, [], notes=["121 of 864 images <b>held back</b>"])
    data = html[html.index('<section id="data">') : html.index('<section id="protocol">')]
    assert "121 of 864 images &lt;b&gt;held back&lt;/b&gt;" in data


def test_a_panel_without_an_arm_is_refused(comparison: Comparison) -> None:
    panel = panels_of(comparison)[0]
    panel.outputs.popitem()
    with pytest.raises(UsageError, match="no output of U-Net"):
        to_html(comparison, [panel])


@pytest.mark.slow
def test_the_page_is_written_whole_and_leaves_matplotlib_as_it_was(comparison: Comparison, tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)
    out = tmp_path / "new" / "report.html"
    render(comparison, [], out)
    assert out.read_text(encoding="utf-8").rstrip().endswith("</html>")
    assert [path.name for path in out.parent.iterdir()] == ["report.html"]
    assert dict(matplotlib.rcParams) == before


@pytest.mark.slow
def test_the_commands_name_each_run_and_quote_odd_names(make_run: MakeRun) -> None:
    html = to_html(compare([make_run("my run", seed=1), make_run("b", seed=2)]), [])
    assert "veilray train &#39;my run/config.toml&#39;" in html
    assert "veilray evaluate b-again --data cohort --split test" in html


@pytest.mark.slow
def test_a_release_has_no_seed_of_the_test_noise(make_run: MakeRun) -> None:
    comparison = compare([make_run("released", summary={"test_noise_seed": None})])
    rows = {row.name: row.values for section in protocol(comparison).values() for row in section}
    assert rows["Seed of the validation and test noise"] == (("none: the noise is the release's", ""),)
    page = to_html(comparison, [])
    assert "noise_seed = " not in page
    assert "<p>Release <code>" in page
    assert "· cohort <" not in page
    assert "noise_seed = " in to_html(compare([make_run("drawn")]), [])


def test_what_was_left_to_the_machine_is_shown_as_what_it_became_and_what_had_no_effect_not_at_all(
    make_run: MakeRun,
) -> None:
    comparison = compare(
        [make_run("a", launch={"setup": "auto", "precision": "fp32"}, environment={"setup": "single"})]
    )
    rows = {row.name: row.values for section in protocol(comparison).values() for row in section}
    assert rows["Set-up"] == (("one device", ""),)
    assert comparison.levels[0].models[0].setup == "CPU, fp32"
    assert not {"Seed of the paper's split", "Batch that the learning rate is given for"} & set(rows)
    paper = compare([make_run("b", split={"rule": "paper"}, train={"learning_rate_scaling": "linear"})])
    rows = {row.name: row.values for section in protocol(paper).values() for row in section}
    assert {"Seed of the paper's split", "Batch that the learning rate is given for"} <= set(rows)
