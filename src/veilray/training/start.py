"""A training that begins from given weights rather than from drawn ones."""

from __future__ import annotations

from veilray.errors import RunError, UsageError
from veilray.models.weights import Weights, describe_model
from veilray.training.config import RunConfig
from veilray.training.objectives.perceptual import with_pinned_backbone
from veilray.training.source import open_weights


def with_pinned_files(config: RunConfig) -> RunConfig:
    """The configuration with the digests of the files in it that decide what is learnt: starting weights, AlexNet.

    Raises what `with_pinned_start` and `with_pinned_backbone` raise.
    """
    return with_pinned_start(with_pinned_backbone(config))


def with_pinned_start(config: RunConfig) -> RunConfig:
    """The configuration with the digest of `train.start` in it, where there is one and it is not there yet.

    A run that goes on has the digest already, and needs the file no more. Raises UsageError where `train.start` names
    no weights, or those of another architecture; RunError where they are damaged.
    """
    if not config.train.start or config.train.start_sha256:
        return config
    digest = _opened(config)[1]
    return config.model_copy(update={"train": config.train.model_copy(update={"start_sha256": digest})})


def starting_weights(config: RunConfig) -> Weights:
    """The weights that a configuration begins from, which `train.start` must name.

    Raises as `with_pinned_start`, and RunError where they are not those that the run was begun with.
    """
    weights, digest = _opened(config)
    if digest != config.train.start_sha256:
        raise RunError(
            f"{config.train.start} has changed since this run began (its SHA-256 is not train.start_sha256 = "
            f"{config.train.start_sha256[:12]}...): bring those weights back, or begin a new run"
        )
    return weights


def _opened(config: RunConfig) -> tuple[Weights, str]:
    loaded = open_weights(config.train.start)
    held, wanted = loaded.weights.config, config.model
    if held != wanted:
        raise UsageError(
            f"train.start = '{config.train.start}' holds {describe_model(held)}, but [model] asks for "
            f"{describe_model(wanted)}: set [model] to the former, or leave train.start out"
        )
    return loaded.weights, loaded.sha256
