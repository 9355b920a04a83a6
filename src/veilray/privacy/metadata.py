"""What sex, view and age alone say of a pair: an attacker who sees no pixels, and the scale for all who do."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from veilray.privacy.fusion import Logistic, pair_weights
from veilray.privacy.pairs import Attributes, Codes, Pairs, all_pairs

Floats = npt.NDArray[np.float64]


def metadata_inputs(pairs: Pairs, attributes: Attributes) -> Floats:
    """(M, K): agreement of sex, agreement of view, nearness in age; of what is known of these images.

    An unknown value neither agrees nor disagrees: half, and the mean distance of ages.
    """
    columns = []
    for name in attributes.known:
        if name == "age":
            apart = _years_apart(pairs, attributes)
            columns += [-apart, -np.log1p(apart), (apart <= 1.0).astype(np.float64)]
        else:
            codes = getattr(attributes, name)
            first, second = codes[pairs.first], codes[pairs.second]
            columns.append(np.where((first < 0) | (second < 0), 0.5, first == second))
    return np.stack(columns, axis=1)


def agreement_scores(pairs: Pairs, attributes: Attributes) -> Floats:
    """How many of sex and view agree, then how near the ages are: what needs no training; (M,)."""
    scores = np.zeros(len(pairs))
    for name in attributes.known:
        if name != "age":
            codes = getattr(attributes, name)
            first, second = codes[pairs.first], codes[pairs.second]
            scores += np.where((first < 0) | (second < 0), 0.5, first == second)
    if "age" in attributes.known:
        # From 0 to 1/2, the least by which two numbers of agreements differ.
        scores += 0.5 / (1.0 + _years_apart(pairs, attributes))
    return scores


def metadata_scores(train: Codes, pairs: Pairs, patients: Codes, attributes: Attributes) -> Floats:
    """Log odds that each of `pairs` is of one patient, learned from the pairs among the rows `train`; (M,)."""
    known = all_pairs(patients, train)
    fitted = Logistic.fit(metadata_inputs(known, attributes), known.genuine, pair_weights(known, patients))
    return fitted(metadata_inputs(pairs, attributes))


def _years_apart(pairs: Pairs, attributes: Attributes) -> Floats:
    """(M,): the distance of the ages; the mean of the others where one is unknown."""
    apart = np.abs(attributes.age[pairs.first] - attributes.age[pairs.second])
    known = np.isfinite(apart)
    return np.where(known, apart, apart[known].mean() if known.any() else 0.0)
