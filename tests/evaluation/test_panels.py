"""Panels: the pictures of a report are the very images that were scored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.command_line import make_cohort

from veilray.cohort.cohort import Cohort
from veilray.errors import CohortError
from veilray.evaluation.compare import compare
from veilray.evaluation.panels import restore_panels
from veilray.evaluation.results import read_scores

CPU = torch.device("cpu")


def test_pictures_show_what_was_scored(paper_run: Path, scored_cohort: Path) -> None:
    comparison = compare([paper_run])
    panels = restore_panels(comparison, data=str(scored_cohort), device=CPU)
    roles = [panel.role for panel in panels]
    assert roles[:3] == ["median", "best", "worst"]
    assert set(roles[3:]) == {"low"}
    scores = {(score.image_id, score.method): score.psnr for score in read_scores(paper_run)}
    own = sorted(value for (_, method), value in scores.items() if method == "model")
    cohort = Cohort.open(scored_cohort)
    by_role = {}
    for panel in panels:
        (label,) = panel.outputs
        by_role[panel.role] = panel.psnr[label]
        assert panel.psnr[label] == pytest.approx(scores[panel.image_id, "model"], abs=1e-4)
        assert panel.noisy_psnr == pytest.approx(scores[panel.image_id, "noisy"], abs=1e-4)
        row = list(cohort.image_ids).index(panel.image_id)
        assert row in cohort.rows("test")
        np.testing.assert_array_equal(panel.clean, cohort.gather(np.array([row]))[0])
        error = np.mean((panel.outputs[label].astype(np.float64) - panel.clean) ** 2)
        assert -10 * np.log10(error) == pytest.approx(panel.psnr[label], abs=1e-4)
        for image in (panel.noisy, panel.clean, panel.outputs[label]):
            assert (image.shape, image.dtype) == ((32, 32), np.float32)
            assert 0 <= image.min() <= image.max() <= 1
    assert by_role["best"] == pytest.approx(own[-1], abs=1e-4)
    assert by_role["worst"] == pytest.approx(own[0], abs=1e-4)
    assert by_role["median"] == pytest.approx(own[(len(own) - 1) // 2], abs=1e-4)


def test_other_data_show_nothing(paper_run: Path, tmp_path: Path) -> None:
    other = make_cohort(tmp_path, patients=16)
    with pytest.raises(CohortError, match="not the cohort of the comparison"):
        restore_panels(compare([paper_run]), data=str(other), device=CPU)
    with pytest.raises(CohortError, match="neither a cohort nor a release"):
        restore_panels(compare([paper_run]), data=str(tmp_path / "none"), device=CPU)
