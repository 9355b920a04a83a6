"""The learned attacker on one fold: says of two images whether they are of one patient.

It learns from the training patients alone: coordinates in which their follow-ups agree, for each kind of features; sex,
view and age as they can be read from an image; and how to weigh all of that, from pairs of training patients that the
parts had not seen either.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from veilray.privacy.catalogue import NETWORK, network_knowing
from veilray.privacy.embedding import PatientSpace, predict, principal_coordinates, ridge
from veilray.privacy.features import Similarities
from veilray.privacy.folds import patient_folds, splits
from veilray.privacy.fusion import Logistic, pair_weights
from veilray.privacy.metadata import metadata_inputs
from veilray.privacy.pairs import Attributes, Codes, Pairs, all_pairs

Floats = npt.NDArray[np.float64]

ALL = "all features"
COMPONENTS = 200
SHRINKAGE = 0.5
PENALTY = 0.3
_INNER_FOLDS = 4


@dataclass(frozen=True, kw_only=True, eq=False)
class Looks:
    """All that the attackers take from the N images of a variant."""

    learned: Mapping[str, Similarities]
    """By kind of features, what the learned attackers start from."""
    floors: Mapping[str, Similarities]
    """By attacker, similarities that need no training."""


def network_scores(
    looks: Looks, patients: Codes, attributes: Attributes, *, train: Codes, test: Codes, seed: int
) -> tuple[Pairs, dict[str, Floats]]:
    """All pairs of the test rows with the log odds of the whole attacker, and the scores of its parts by name.

    `seed` deals the training patients into those that the parts learn from and those that the weights come from.
    """
    kernels = {**looks.learned, ALL: sum_of(list(looks.learned.values()))}
    known = []
    for learn, weigh in splits(patient_folds(patients[train], folds=_INNER_FOLDS, seed=seed)):
        pairs, parts = _parts(kernels, looks.floors, patients, attributes, learn=train[learn], rows=train[weigh])
        known.append((pairs, _columns(parts, pairs, attributes)))
    pairs, parts = _parts(kernels, looks.floors, patients, attributes, learn=train, rows=test)
    told = _columns(parts, pairs, attributes)
    truth = np.concatenate([one.genuine for one, _ in known])
    weights = np.concatenate([pair_weights(one, patients) for one, _ in known])
    learned = np.concatenate([columns for _, columns in known])
    seen = len(parts)
    scores = {NETWORK: Logistic.fit(learned[:, :seen], truth, weights)(told[:, :seen])}
    if attributes.known:
        scores[network_knowing(attributes.known)] = Logistic.fit(learned, truth, weights)(told)
    return pairs, {**scores, **parts}


def _columns(parts: Mapping[str, Floats], pairs: Pairs, attributes: Attributes) -> Floats:
    """(M, K): the scores of the parts, then what metadata say where they are known."""
    columns = np.stack(list(parts.values()), axis=1)
    return np.concatenate([columns, metadata_inputs(pairs, attributes)], axis=1) if attributes.known else columns


def sum_of(kernels: list[Similarities]) -> Similarities:
    """The similarities of all features laid side by side."""
    total: Similarities = np.sum(kernels, axis=0)
    return total


def _parts(
    kernels: Mapping[str, Similarities],
    floors: Mapping[str, Similarities],
    patients: Codes,
    attributes: Attributes,
    *,
    learn: Codes,
    rows: Codes,
) -> tuple[Pairs, dict[str, Floats]]:
    """Scores of the pairs of `rows` by parts that learned from the rows `learn`."""
    pairs = all_pairs(patients, rows)
    upper = np.triu_indices(len(rows), k=1)
    parts = {name: floor[np.ix_(rows, rows)][upper] for name, floor in floors.items()}
    components = min(COMPONENTS, len(learn) // 3)
    for name, kernel in kernels.items():
        places = principal_coordinates(kernel, learn, components=components)
        space = PatientSpace.fit(places[learn], patients[learn], shrinkage=SHRINKAGE)
        parts[name] = space.cosines(places[rows])[upper]
    # The last kernel is that of all features.
    read = read_attributes(places, attributes, learn=learn, rows=rows)
    parts |= {f"{name} as read": -np.abs(said[:, None] - said[None])[upper] for name, said in read.items()}
    return pairs, parts


def read_attributes(coordinates: Floats, attributes: Attributes, *, learn: Codes, rows: Codes) -> dict[str, Floats]:
    """Sex, view and age of `rows` as a regression on the rows `learn` reads them from the images; by name, (n,)."""
    told = {}
    for name in attributes.known:
        values = getattr(attributes, name).astype(np.float64)
        usable = learn[np.isfinite(values[learn]) & ((values[learn] >= 0) | (name == "age"))]
        if len(np.unique(values[usable])) > 1:
            told[name] = predict(ridge(coordinates[usable], values[usable, None], penalty=PENALTY), coordinates[rows])[
                :, 0
            ]
    return told
