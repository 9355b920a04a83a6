"""What the figures of a benchmark do not show."""

from __future__ import annotations

from collections.abc import Sequence

from veilray.evaluation.benchmark.groups import BUSY, Analysis
from veilray.evaluation.benchmark.record import RunRecord, done
from veilray.report.text import count, listed, number


def benchmark_limits(analysis: Analysis) -> list[tuple[str, str]]:
    """(heading, explanation) of every limit that holds, those of this benchmark before those of any."""
    return [*_of_this_one(analysis), *_of_any()]


def _of_this_one(analysis: Analysis) -> list[tuple[str, str]]:
    finished = done(analysis.records)
    found = []
    if analysis.load > BUSY:
        found.append(
            (
                "The machine was busy",
                f"Before a run up to {number(analysis.load, 1)} processes wanted each core, where the benchmark itself "
                "makes about one. Times and rates are not to be quoted: what waits for all its threads, such as one "
                "process on every core, suffers most.",
            )
        )
    tied = sorted({name for effect in analysis.effects for name in effect.also})
    if tied:
        found.append(
            (
                "Causes that changed together",
                f"In this plan {listed(tied)} changed together with a factor, as the tables say. Those effects on "
                "speed and on quality cannot be put down to the factor alone.",
            )
        )
    if len({record.seed for record in finished}) == 1:
        found.append(
            (
                "One seed",
                "Every combination was trained once. Intervals of quality cover the choice of test patients, not the "
                "chance in training, and the effects of factors have no interval.",
            )
        )
    if any(record.environment.get("device") == "cpu" for record in finished):
        found.append(_of_processors(finished))
    epochs = {record.timings.epochs for record in finished if record.timings is not None}
    shared = max((int(record.environment.get("shared_patients") or 0) for record in finished), default=0)
    if shared:
        found.append(
            (
                "Patients are shared between the sets",
                f"The sets were drawn by image, as published, and {count(shared, 'patient')} appear in more than one "
                "of them: the scores flatter the networks.",
            )
        )
    if max(epochs) < 20:
        found.append(
            (
                "Short trainings",
                f"No training went beyond {count(max(epochs), 'epoch')}. Quality is far from where it would "
                "settle, and differences in it need not last.",
            )
        )
    return found


def _of_processors(finished: Sequence[RunRecord]) -> tuple[str, str]:
    """What several processes on a CPU say, by the cores that one process left idle, where that is recorded."""
    alone = [record.environment for record in finished if record.environment.get("world_size") == 1]
    used = {(int(one["threads"]), int(one["cores"])) for one in alone if "threads" in one and "cores" in one}
    idle = next(((threads, cores) for threads, cores in sorted(used) if threads < cores), None)
    if idle:
        threads, cores = idle
        return (
            "Several processes on one processor are not several devices",
            f"One process computed with {count(threads, 'thread')} on {count(cores, 'core')}. Several find cores idle "
            "that it could have used, too: their figure is that gain less what distribution costs, not what more "
            "devices would save.",
        )
    whole = "One process already uses every core" if used else "One process uses every core where nothing limits it"
    return (
        "Several processes on one processor are no speed-up",
        f"{whole}. Several share the same cores: their figure shows what distribution costs, not what more devices "
        "would save.",
    )


def _of_any() -> list[tuple[str, str]]:
    return [
        (
            "Times belong to this machine",
            "They hold for the hardware listed, and for whatever else it was doing: runs follow one another, and a "
            "change in load between them looks like an effect.",
        ),
        (
            "The interval of an effect covers its seeds",
            "The combinations are those of the plan, not a sample of all there could be. Where the bar behind an "
            "interval is long, the effect depends on the other factors, and its mean stands for none of them.",
        ),
        (
            "The peak is a matrix product’s",
            "It is the fastest that this device multiplied large square matrices in the same arithmetic. Operations "
            "are counted for convolutions alone; normalisation, activations and the optimiser take time but count for "
            "nothing.",
        ),
        (
            "Parts of a step overlap",
            "All-reduce is the time that a rank waits for the others after its own gradients are ready; what is "
            "exchanged during the backward pass does not appear.",
        ),
        (
            "Quality is that of synthetic noise",
            "Gaussian noise was added to finished images; PSNR, SSIM and LPIPS are not diagnostic quality, and no "
            "reading by radiologists enters these figures. Not a medical device.",
        ),
    ]
