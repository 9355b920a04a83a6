"""Where weights come from: a run folder, an exported model, a file of weights, or the package itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from veilray.errors import RunError, UsageError
from veilray.files import sha256_file
from veilray.models.config import ModelConfig
from veilray.models.shipped.find import checked_weights, meant_name, shipped_model, what_ships
from veilray.models.weights import WEIGHTS_FILE, Weights, load_weights
from veilray.obfuscation.config import NoiseConfig
from veilray.training.run import RunFolder


@dataclass(frozen=True, kw_only=True)
class LoadedWeights:
    """Weights, read and checked."""

    weights: Weights
    noise: NoiseConfig | None
    """The noise they were trained on; None where nobody says."""
    sha256: str
    """SHA-256 of the file, in hexadecimal."""


def shipped_name(source: str | Path) -> str | None:
    """The name of the shipped network that `source` means; None where it means a path, as every `Path` does.

    Raises UsageError where it could mean either, or neither.
    """
    name = meant_name(source) if isinstance(source, str) else None
    if name is None and not Path(source).exists():
        raise UsageError(
            f"there is no model {str(source)!r}: give a run folder, an exported model, a .safetensors file or the name "
            f"of a model that ships ({what_ships()})"
        )
    return name


def open_weights(source: str | Path) -> LoadedWeights:
    """Read the weights that `source` means.

    Raises UsageError where there is no such model, RunError where its weights are missing, damaged, of another model,
    or changed while they were read.
    """
    name = shipped_name(source)
    if name is not None:
        model = shipped_model(name)
        return _read(checked_weights(model), digest=model.card.weights_sha256)
    place = Path(source)
    if (place / WEIGHTS_FILE).is_file():
        place = place / WEIGHTS_FILE
    if place.is_file():
        return _read(place)
    run = RunFolder(place)
    config = run.config()
    run.check_best_weights()
    return _read(run.best_weights, expected=config.model, noise=config.noise)


def _read(
    file: Path, *, expected: ModelConfig | None = None, noise: NoiseConfig | None = None, digest: str | None = None
) -> LoadedWeights:
    before = digest or sha256_file(file)
    weights = load_weights(file, expected=expected)
    if sha256_file(file) != before:
        raise RunError(f"{file} changed while it was read: training goes on; try again")
    return LoadedWeights(weights=weights, noise=noise or weights.noise, sha256=before)
