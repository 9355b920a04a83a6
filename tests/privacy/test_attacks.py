"""Which attacks an audit has, and on what."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.privacy.phantoms import phantom_data
from tests.privacy.records import result

from veilray.cohort.build import import_radiographs
from veilray.cohort.cohort import Cohort
from veilray.errors import DataError, RunError
from veilray.images.phantom.write import write_phantoms
from veilray.privacy import released_model
from veilray.privacy.attacks import attacks, membership_attack
from veilray.privacy.extent import Effort, extent_of
from veilray.privacy.variants import clean_variant
from veilray.training.config import RunConfig
from veilray.training.run import RunFolder


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    write_phantoms(tmp_path / "png", patients=4, follow_ups=1, seed=1, size=32)
    import_radiographs([tmp_path / "png"], tmp_path / "cohort", size=32, workers=1)
    return tmp_path / "cohort"


def _run_on(digest: str, folder: Path) -> Path:
    run = RunFolder.create(folder, RunConfig())
    (folder / "environment.json").write_text(f'{{"cohort_digest": "{digest}"}}')
    run.best_weights.parent.mkdir(parents=True, exist_ok=True)
    run.best_weights.write_bytes(b"weights")
    return folder


def test_quick_audits_do_not_train_on_the_few_denoised_images() -> None:
    quick, usual = (
        {one.name: one.kinds for one in attacks(extent=extent_of(effort), backbone=None, perceptual=None)}
        for effort in ("quick", "default")
    )
    assert list(quick) == ["linkage", "reconstruction", "re-identification", "attribute inference"]
    assert all("denoised" in kinds for kinds in usual.values())
    assert {name for name, kinds in quick.items() if "denoised" in kinds} == {"linkage", "reconstruction"}


@pytest.mark.parametrize(("effort", "shadows", "most"), [("quick", 0, 30), ("default", 0, 150), ("full", 16, None)])
def test_a_run_is_asked_whom_it_was_trained_on(
    cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, effort: Effort, shadows: int, most: int | None
) -> None:
    asked: list[tuple[object, ...]] = []

    def answer(run: object, data: object, *, seeds: object, progress: object, **options: object) -> list[object]:
        asked.append((run, data, seeds, options))
        return [result(attack="membership inference")]

    monkeypatch.setattr(released_model, "attack_run", answer)
    run = _run_on(Cohort.open(cohort).digest, tmp_path / "run")
    attack = membership_attack(run, cohort, folder=tmp_path)
    assert attack.kinds == {"clean"}
    data = phantom_data(2)
    (found,) = attack.run(data, clean_variant(data), extent=extent_of(effort), seeds=(4, 5), progress=lambda _: None)
    assert found.attack == "membership inference"
    assert asked == [(run, cohort, (4, 5), {"release": None, "shadows": shadows, "most": most, "folder": tmp_path})]


def test_a_run_of_another_cohort_is_not_asked(cohort: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="not trained on"):
        membership_attack(_run_on("0" * 64, tmp_path / "run"), cohort, folder=tmp_path)
    with pytest.raises(DataError):
        membership_attack(tmp_path / "nothing", cohort, folder=tmp_path)
