"""Validation: every image of the set exactly once, at any world size."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from veilray.metrics.psnr import psnr
from veilray.parallel.group import ALONE, Group
from veilray.training.config import RunConfig
from veilray.training.data import TrainingImages
from veilray.training.launch import run_network
from veilray.training.objectives import image_losses
from veilray.training.objectives.build import noisy_only
from veilray.training.timing import PartClock


@torch.no_grad()
def validate(
    model: nn.Module,
    images: TrainingImages,
    config: RunConfig,
    device: torch.device,
    group: Group = ALONE,
    clock: PartClock | None = None,
    stops: Callable[[], bool] = lambda: False,
) -> tuple[float, float | None] | None:
    """Mean loss and mean PSNR in dB over every validation image, the same on every rank to the last bit.

    PSNR is None where the data hold no clean images. The loss of an objective that sees none is its own estimate, with
    one probe an image that never changes, so that epochs can be compared. Before each batch `stops` is asked whether to
    give up; where it says so on one rank, None is the answer on all.

    Each rank takes its share of the images; only the sums cross ranks, once at the end, so that shares need not be of
    one size.
    """
    model.eval()
    objective = noisy_only(model, config)
    clock = clock or PartClock(device)
    loss = decibels = stopped = 0.0
    batch_size = max(1, config.train.batch_size // group.world_size)
    ahead = config.launch.prefetch
    for batch in images.held_out_batches("validation", device, batch_size=batch_size, group=group, ahead=ahead):
        if stops():
            stopped = 1.0
            break
        output: Tensor | None
        if objective is None:
            output = run_network(model, batch.network_input(config.model), config.launch)
            clock.lap("validation")
            loss += image_losses(config.train.loss, output, batch.clean).double().sum().item()
        else:
            assert batch.drawn is not None
            given = (batch.noisy, batch.known, batch.drawn)
            loss += objective.criterion(*given).double().sum().item()
            output = objective.estimates(*given) if images.holds_clean else None
            clock.lap("validation")
        if output is not None:
            decibels += psnr(output.clamp(0.0, 1.0), batch.clean, data_range=1.0).double().sum().item()
        clock.lap("metrics")
    count = len(images.sets["validation"])
    if group.joined:
        # The lead's, because nothing promises that all ranks add up in one order, and all must choose the same epoch.
        sums = torch.tensor([loss, decibels, stopped], dtype=torch.float64)
        loss, decibels, stopped = group.broadcast(group.sum_(sums).tolist())
    clock.lap("metrics")
    if stopped:
        return None
    return loss / count, decibels / count if images.holds_clean else None
