"""What the figures of a report do not show, from what its comparison is."""

from __future__ import annotations

from veilray.evaluation.comparison import Comparison
from veilray.evaluation.results import FEW_PATIENTS
from veilray.report.protocol import shared_patients
from veilray.report.text import count, difference


def limits(comparison: Comparison) -> list[tuple[str, str]]:
    """(heading, explanation) of every limit that holds, those of this comparison before those of any."""
    return [*_of_the_data(comparison), *_of_the_comparison(comparison), *_of_any_report()]


def _of_the_data(comparison: Comparison) -> list[tuple[str, str]]:
    found = []
    shared = shared_patients(comparison)
    if shared:
        found.append(
            (
                "Patients are shared between the sets",
                f"The sets were drawn by image, and {count(shared, 'patient')} appear in more than one of them. The "
                "networks have seen other radiographs of patients they are tested on, so the scores flatter them.",
            )
        )
    if comparison.split != "test":
        found.append(
            (
                f"These are not test figures: they are for the {comparison.split} set",
                "The weights were chosen, and settings may have been tuned, on images that are scored here. Expect "
                "lower scores on patients the choice has not seen.",
            )
        )
    patients = len(set(comparison.patient_ids))
    if patients < FEW_PATIENTS:
        found.append(
            (
                f"Only {count(patients, 'patient')}",
                "Bootstrap intervals from few patients tend to be too narrow, and tests on few patients seldom find a "
                "difference that is there.",
            )
        )
    found.append(
        (
            "One data set",
            "All images come from one cohort. Other hospitals, detectors, views and patients may give other scores, "
            "and the intervals say nothing about them.",
        )
    )
    return found


def _of_the_comparison(comparison: Comparison) -> list[tuple[str, str]]:
    found = []
    single = sorted({arm.label for level in comparison.levels for arm in level.models if len(arm.runs) == 1})
    if single:
        found.append(
            (
                "Chance in training is not covered",
                "Intervals and p-values are clustered by patient and describe the choice of test patients. "
                f"One seed was trained of {'; '.join(single)}: another would give other scores, by an unknown amount.",
            )
        )
    else:
        found.append(
            (
                "Chance in training is covered in part",
                "Intervals and p-values are clustered by patient and describe the choice of test patients, for the "
                "average over the seeds listed. The intervals leave out the scatter of seeds, which the list shows.",
            )
        )
    mixed = {
        difference(pair): len(pair.settings)
        for level in comparison.levels
        for pair in level.pairs
        if len(pair.settings) > 1
    }
    if mixed:
        pairs = "; ".join(f"{name} ({settings} settings)" for name, settings in mixed.items())
        found.append(
            (
                "Differences with several causes",
                f"Some arms differ in more than one setting, and no single one can be credited: {pairs}.",
            )
        )
    return found


def _of_any_report() -> list[tuple[str, str]]:
    return [
        (
            "The noise is synthetic",
            "Gaussian noise was added to finished images. Quantum noise, scatter and detector noise are other things, "
            "and a network trained on this noise is not a remedy for them.",
        ),
        (
            "PSNR is not diagnostic equivalence",
            "A restored image can score well and have lost a nodule, a thin pneumothorax line or a faint infiltrate, "
            "which cover few pixels. No reading by radiologists enters these figures.",
        ),
        (
            "SSIM and LPIPS are not validated for radiographs",
            "Both were built to match how people judge photographs; LPIPS uses a network trained on photographs. They "
            "rank smoothness and texture, not findings.",
        ),
        (
            "Training times belong to one machine",
            "They hold for the hardware listed and whatever else it was doing; no difference in time was tested.",
        ),
        (
            "Obfuscated is not anonymous",
            "Noise at these levels gives negligible formal privacy, and a denoiser that works is itself the proof that "
            "the anatomy is still there. Patients can be re-identified from chest radiographs; releases are "
            "pseudonymised, not anonymous.",
        ),
        (
            "Not a medical device",
            "Nothing here supports diagnostic use of restored images.",
        ),
    ]
