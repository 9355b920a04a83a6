"""veilray models: the networks that ship in the package, and their cards."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from veilray.metrics.interval import Interval
    from veilray.models.shipped.card import CardScore
    from veilray.models.shipped.find import ShippedModel


def models_command(
    name: Annotated[str | None, typer.Argument(help="A model, to see its whole card.", show_default=False)] = None,
) -> None:
    """List the networks that ship with Veilray, or show the card of one: its use, data, scores and limits."""
    from veilray.models.shipped.find import shipped_model, shipped_names

    if name is not None:
        typer.echo("\n".join(_card(shipped_model(name))))
        return
    names = shipped_names()
    if not names:
        typer.echo("No network ships with this version of Veilray; train one with: veilray train")
    for each in names:
        typer.echo("\n".join(_entry(shipped_model(each))))


def _entry(model: ShippedModel) -> list[str]:
    card = model.card
    return [
        f"{card.name}: {card.summary}",
        f"  size: {card.weights_bytes / 1e6:.1f} MB, {card.parameters:,} parameters",
        *_speeds(model),
        f"  trained on: {card.data.name} ({card.data.licence})",
        f"  licence of the weights: {card.licence}",
        *(f"  scores on {_score(score)}" for score in card.scores),
    ]


def _card(model: ShippedModel) -> list[str]:
    from veilray.models.shipped.card import STATEMENT

    card, data = model.card, model.card.data
    return [
        *_entry(model)[:1],
        "",
        STATEMENT,
        "",
        f"Intended use: {card.intended_use}",
        "Limits:",
        *(f"  - {limit}" for limit in card.limits),
        "",
        *_entry(model)[1:],
        f"  training: {data.train_images:,} images of {data.train_patients:,} patients, from {data.source}",
        f"  chosen by: {data.validation_images:,} images of {data.validation_patients:,} patients",
        f"  cohort digest: {data.cohort_digest}",
        f"  digest of the last sitting's configuration: {card.config_digest}",
        f"  SHA-256 of the weights: {card.weights_sha256}",
        f"  trained by Veilray {card.trained_by}",
        f"  file: {model.weights}",
    ]


def _speeds(model: ShippedModel) -> list[str]:
    return [
        f"  speed: {speed.images_per_second:.3g} images/s of {speed.height} x {speed.width} pixels on {speed.device}"
        for speed in model.card.speed
    ]


def _score(score: CardScore) -> str:
    noise = f"noise {score.noise.std_text}, mean {score.noise.mean_text}"
    figures = ", ".join(f"{metric} {_interval(value)}" for metric, value in score.metrics.items())
    where = f"{score.data} ({score.n_images} images of {score.n_patients} patients)"
    return f"{where}, {noise}: {figures} ({score.confidence:.0%} intervals by patient)"


def _interval(value: Interval) -> str:
    return f"{value.mean:.4g} [{value.low:.4g}, {value.high:.4g}]"
