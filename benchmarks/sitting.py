"""Train a configuration for as many epochs as fit into the time that there is, on a machine that is not one's own.

    python benchmarks/sitting.py CONFIG --data COHORT --out RUN --minutes 8 [--set KEY=VALUE ...]

A short training tells how many steps a second the device takes, once its libraries and torch.compile have warmed up.
Then `veilray train`'s loop trains the configuration for the epochs that fit, so that the learning rate's schedule ends
with the time; `train.epochs` of the file is left out, and the run's own configuration says how many there were. The
last checkpoint is in RUN at any moment. From a source tree: PYTHONPATH=src.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from gpu_training import Clock
from veilray.parallel.devices import pick_device
from veilray.training.config import RunConfig, load_config
from veilray.training.data import TrainingImages
from veilray.training.loop import train
from veilray.training.run import RunFolder

TRIAL_EPOCHS = 4
RESERVE = 0.92
"""Share of what is left that the training is planned for: the device may do other work too."""


def main() -> None:
    """Try, plan, train."""
    options = _options()
    deadline = time.monotonic() + 60 * options.minutes
    config = load_config(options.config, options.set)
    with tempfile.TemporaryDirectory() as folder:
        trial, steps = _trained(config, options.data, Path(folder) / "trial", epochs=TRIAL_EPOCHS, every=2)
    epoch = trial.step_s() * steps + trial.validation_s() / config.train.validate_every
    epochs = max(1, int(RESERVE * (deadline - time.monotonic()) / epoch))
    print(f"{epoch:.2f} s an epoch: {epochs} epochs", flush=True)
    _trained(config, options.data, options.out, epochs=epochs, every=config.train.validate_every)


def _trained(config: RunConfig, data: Path, out: Path, *, epochs: int, every: int) -> tuple[Clock, int]:
    changed = config.train.model_copy(update={"epochs": epochs, "validate_every": every})
    images = TrainingImages.open(data, config.model_copy(update={"train": changed}))
    device = pick_device(config.launch.device)
    run = RunFolder.create(out, images.config)
    run.write_environment({"cohort_digest": images.data.digest}, device=device)
    clock = Clock()
    train(images.config, images, run, device=device, watcher=clock)
    return clock, images.steps_per_epoch()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="a preset or a file, as `veilray train` takes it")
    parser.add_argument("--data", type=Path, required=True, help="cohort or release")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run; it must not exist")
    parser.add_argument("--minutes", type=float, required=True, help="of the clock, for everything")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a change of the configuration")
    return parser.parse_args()


if __name__ == "__main__":
    main()
