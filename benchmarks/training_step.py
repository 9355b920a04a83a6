"""The training step against the released style, side by side: same U-Net, same images, two threads.

    python benchmarks/training_step.py [--rounds 5] [--threads 2] [--processor-time] [--save]

Released style: eager fp32, NCHW, Adam as it comes, clean and noisy float32 arrays in memory behind a DataLoader. Ours:
the training loop of `veilray train` with its shipped settings (bf16, channels-last, fused Adam, fresh noise, moving
average, gradient clipping), on a memory-mapped cohort, with huge pages and freed memory kept; fp32 where the processor
has no bf16 units. The same is measured in the memory layout that `launch.layout = "auto"` did not take. Each side runs
in its own process; the sides take turns; the first steps, in which memory settles, do not count; figures are medians
over the rounds. `--processor-time`, for a machine that does other work too, counts the seconds that a process of one
thread is given in place of those that pass.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from common import alternate, medians, save, table
from veilray.cohort.build import import_radiographs
from veilray.images.phantom import write_phantoms
from veilray.models.build import build_model
from veilray.models.config import ModelConfig
from veilray.parallel.devices import keep_freed_memory
from veilray.training.config import RunConfig, load_config
from veilray.training.data import TrainingImages
from veilray.training.launch import resolved
from veilray.training.loop import train
from veilray.training.run import EpochRecord, RunFolder

CASES = {"width 16, 256 px, batch 4": (16, 256, 4), "width 32, 128 px, batch 8": (32, 128, 8)}
WARM_UP, TIMED = 8, 19

Clock = Callable[[], float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--processor-time", action="store_true", help="of one thread")
    parser.add_argument("--save", action="store_true", help="write results/training_step.json")
    parser.add_argument("--side", choices=["released", "veilray", "other"], help=argparse.SUPPRESS)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--cohort", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.threads = 1 if options.processor_time else options.threads
    if options.side:
        torch.set_num_threads(options.threads)
        clock = time.process_time if options.processor_time else time.perf_counter
        seconds = SIDES[options.side](clock, options.cohort, *CASES[options.case])
        print(json.dumps({"milliseconds": 1000 * statistics.median(seconds[WARM_UP:])}))
        return
    rows, record = [], {}
    with tempfile.TemporaryDirectory() as folder:
        for case, (_, size, batch) in CASES.items():
            cohort = _cohort(Path(folder) / f"{size}", size)
            arguments = ["--case", case, "--cohort", str(cohort), "--threads", str(options.threads)]
            arguments += ["--processor-time"] if options.processor_time else []
            sides = {
                "released": (["--side", "released", *arguments], {}),
                "veilray": (["--side", "veilray", *arguments], {"THP_MEM_ALLOC_ENABLE": "1"}),
                "other": (["--side", "other", *arguments], {"THP_MEM_ALLOC_ENABLE": "1"}),
            }
            measured = alternate(__file__, sides, rounds=options.rounds)
            released, ours, other = (medians(measured[side])["milliseconds"] for side in sides)
            rows.append(
                [
                    *(case, f"{released:.0f}", f"{ours:.0f}", f"{1000 * batch / ours:.1f}"),
                    *(f"{released / ours:.2f}x", f"{other / ours:.2f}x"),
                ]
            )
            record[case] = {
                "rounds": measured,
                "released_ms": released,
                "veilray_ms": ours,
                "ratio": released / ours,
                "other_layout_ms": other,
                "ratio_to_other_layout": other / ours,
            }
    header = ["U-Net", "released ms/step", "Veilray ms/step", "Veilray images/s", "ratio", "ratio to other layout"]
    print(table(header, rows))
    print("The aim is 2.3 times as fast, at both widths.")
    if options.save:
        launch = resolved(load_config("default"), torch.device("cpu")).launch
        chosen = {"precision": launch.precision, "layout": launch.layout}
        measured_as = {"threads": options.threads, "clock": "processor" if options.processor_time else "wall"}
        save("training_step", {**measured_as, "timed_steps": TIMED, **chosen, "cases": record})


def _cohort(folder: Path, size: int) -> Path:
    write_phantoms(folder / "png", patients=160, follow_ups=3, seed=1, size=size)
    import_radiographs([folder / "png"], folder / "cohort", size=size, workers=2)
    return folder / "cohort"


def _released(clock: Clock, cohort: str, width: int, size: int, batch: int) -> list[float]:
    """Seconds of each step in the style of the released notebooks."""
    images = TrainingImages.open(cohort, RunConfig())
    rows = images.sets["train"]
    clean = torch.from_numpy(images.data.gather(rows)).unsqueeze(1)
    noisy = (clean + torch.randn_like(clean) * 0.2 + 0.1).clamp(0.0, 1.0)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(noisy, clean), batch_size=batch, shuffle=True)
    torch.manual_seed(0)
    model = build_model(ModelConfig(name="unet", width=width))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    model.train()
    seconds: list[float] = []
    began = clock()
    while len(seconds) < WARM_UP + TIMED:
        for noisy_batch, clean_batch in loader:
            optimizer.zero_grad()
            loss = torch.nn.functional.l1_loss(model(noisy_batch), clean_batch)
            loss.backward()
            optimizer.step()
            loss.item()
            seconds.append(clock() - began)
            began = clock()
    return seconds[: WARM_UP + TIMED]


class _Stepwatch:
    """Times every step of the training loop."""

    def __init__(self, clock: Clock) -> None:
        self.seconds: list[float] = []
        self._clock = clock
        self._began = clock()

    def begin(self, *, images: int) -> None:
        """Nothing was done before."""

    def step(self, *, step: int, images: int, loss: float) -> None:
        self.seconds.append(self._clock() - self._began)
        self._began = self._clock()

    def epoch(self, record: EpochRecord) -> None:
        self._began = self._clock()

    def note(self, message: str) -> None:
        print(message)


def _veilray(clock: Clock, cohort: str, width: int, size: int, batch: int, *settings: str) -> list[float]:
    """Seconds of each step of `veilray train default`."""
    keep_freed_memory()  # as `veilray train` does
    overrides = [f"model.width={width}", f"train.batch_size={batch}", *settings]
    images = TrainingImages.open(cohort, load_config("default", overrides))
    epochs = int(np.ceil((WARM_UP + TIMED + 1) / images.steps_per_epoch()))
    config = load_config("default", [*overrides, f"train.epochs={epochs}"])
    watch = _Stepwatch(clock)
    with tempfile.TemporaryDirectory() as folder:
        run = RunFolder.create(Path(folder) / "run", config)
        train(config, TrainingImages.open(cohort, config), run, device=torch.device("cpu"), watcher=watch)
    return watch.seconds[: WARM_UP + TIMED]


def _other(clock: Clock, cohort: str, width: int, size: int, batch: int) -> list[float]:
    """The same in the layout that is not taken."""
    taken = resolved(load_config("default"), torch.device("cpu")).launch.layout
    other = "contiguous" if taken == "channels_last" else "channels_last"
    return _veilray(clock, cohort, width, size, batch, f"launch.layout={other}")


SIDES = {"released": _released, "veilray": _veilray, "other": _other}

if __name__ == "__main__":
    main()
