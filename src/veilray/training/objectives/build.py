"""From a configuration to a network with its objective."""

from __future__ import annotations

from torch import nn

from veilray.training.config import RunConfig
from veilray.training.objectives.adversarial import PatchDiscriminator
from veilray.training.objectives.noisy_only import NoisyOnlyObjective
from veilray.training.objectives.supervised import SupervisedObjective, criterion_of


def noisy_only(model: nn.Module, config: RunConfig) -> NoisyOnlyObjective | None:
    """The network with an objective that makes do without clean images; None where the configuration has another."""
    if config.train.objective in ("auto", "supervised"):
        return None
    return NoisyOnlyObjective(
        model,
        objective=config.train.objective,
        config=config.model,
        clip=config.noise.clip,
        recorruption=config.train.recorruption,
        launch=config.launch,
    )


def build_objective(
    model: nn.Module, config: RunConfig, *, discriminator: PatchDiscriminator | None = None
) -> SupervisedObjective | NoisyOnlyObjective:
    """The network with the objective that `train.objective` names; `auto`, where nobody has chosen, is supervised.

    Its arguments are those of `Batch.arguments`. `discriminator`: of an adversarial loss. Raises DataError where the
    perceptual backbone is missing or altered.
    """
    objective = noisy_only(model, config)
    if objective is not None:
        return objective
    criterion = criterion_of(config, discriminator=discriminator)
    return SupervisedObjective(
        model,
        loss=config.train.loss,
        deep_supervision=config.model.deep_supervision,
        launch=config.launch,
        criterion=criterion if criterion is None else criterion.to(next(model.parameters()).device),
    )
