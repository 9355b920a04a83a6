"""The networks that ship in this folder: NAME.safetensors, and NAME.json, its card."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from veilray.errors import DataError, RunError, UsageError
from veilray.files import read_json, sha256_file
from veilray.models.shipped.card import Card

FOLDER = Path(__file__).parent
DEFAULT_MODEL = "default"
"""The network that is used where none is named."""
SHIPPED = "shipped:"
"""Before a name: the network of that name in the package, whatever files there are."""


@dataclass(frozen=True, kw_only=True)
class ShippedModel:
    """A network of the package, its weights not read yet."""

    card: Card
    weights: Path


def shipped_names() -> list[str]:
    """Names of the networks in the package, `default` first."""
    return sorted((path.stem for path in FOLDER.glob("*.json")), key=lambda name: (name != DEFAULT_MODEL, name))


def meant_name(text: str, *, folder: Path = Path()) -> str | None:
    """The name of the shipped network that `text` means; None where it means a path, which is relative to `folder`.

    UsageError where it could mean either.
    """
    if text.startswith(SHIPPED):
        return text.removeprefix(SHIPPED)
    if text not in shipped_names():
        return None
    if (folder / text).exists():
        raise UsageError(f"{text!r} is a model that ships and a path here: write ./{text} or {SHIPPED}{text}")
    return text


def shipped_model(name: str) -> ShippedModel:
    """A network of the package by its name.

    Raises UsageError, listing those that ship, where there is none of that name; RunError where its card is damaged or
    of another network, or its weights are missing.
    """
    if name not in shipped_names():
        raise UsageError(f"no model named {name!r} ships with Veilray: {what_ships()}; see veilray models")
    path, weights = FOLDER / f"{name}.json", FOLDER / f"{name}.safetensors"
    try:
        card = Card.model_validate(read_json(path))
    except (ValidationError, DataError):
        raise RunError(f"{path} is no model card of this version; install Veilray again") from None
    if card.name != name or not weights.is_file():
        raise RunError(f"{path} is not the card of a {weights.name} beside it; install Veilray again")
    return ShippedModel(card=card, weights=weights)


def checked_weights(model: ShippedModel) -> Path:
    """The file of weights, whose bytes are those that the card describes; RunError where they are not."""
    if sha256_file(model.weights) != model.card.weights_sha256:
        raise RunError(f"{model.weights} is not the file its card describes (SHA-256); install Veilray again")
    return model.weights


def what_ships() -> str:
    """The names of the shipped networks in words."""
    names = shipped_names()
    return f"what ships is {', '.join(names)}" if names else "none ships with this version"
