"""Coordinates in which images of one patient lie together, learned from the similarities of training images.

Principal components of the training images (kernel PCA: Schölkopf, Smola and Müller, Neural Computation 10 (1998)
1299-1319), whitened; then the two-covariance model of speaker verification (Brümmer and de Villiers, Odyssey 2010):
a patient's images scatter about the patient's place with a covariance W, and patients scatter with 1 - W. Directions in
which follow-ups agree get the say. Pairs are scored by cosine, which withstands outliers that the model's likelihood
ratio does not.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy import linalg

from veilray.privacy.pairs import Codes

Floats = npt.NDArray[np.float64]

_SMALLEST_SHARE = 1e-6
_LARGEST_CORRELATION = 0.98
_MOST_WEIGHT = 4.0
"""Degrees of freedom that one patient's follow-ups may add, so that a patient with many does not decide alone."""


def principal_coordinates(similarities: Floats, train: Codes, *, components: int) -> Floats:
    """Whitened principal coordinates of all images: (N, N) and the training rows (T,) -> (N, at most `components`).

    Mean and components are those of the training images alone, whose coordinates have variance 1.
    """
    inner = similarities[np.ix_(train, train)]
    means, grand = inner.mean(axis=0), inner.mean()
    centred = inner - means - means[:, None] + grand
    size = len(train)
    kept = min(components, size - 1)
    values, vectors = (found.numpy()[..., -kept:] for found in torch.linalg.eigh(torch.from_numpy(centred)))
    sound = values > _SMALLEST_SHARE * values[-1]
    values, vectors = values[sound][::-1], vectors[:, sound][:, ::-1]
    cross = similarities[:, train]
    cross = cross - cross.mean(axis=1, keepdims=True) - means + grand
    coordinates: Floats = cross @ (vectors / values) * np.sqrt(size)
    return coordinates


@dataclass(frozen=True, kw_only=True, eq=False)
class PatientSpace:
    """A linear map of whitened coordinates in which the scatter within patients is diagonal."""

    axes: Floats
    """(D, D): one direction a column."""
    correlation: Floats
    """(D,): the part of the variance along each direction that is the patient's own, from 0 to 1."""

    @classmethod
    def fit(cls, coordinates: Floats, patients: Codes, *, shrinkage: float) -> PatientSpace:
        """From training images, (T, D), and whose they are, (T,), some of whom have two images or more.

        `shrinkage`, 0 to 1, draws the scatter towards one that is alike in all directions (Ledoit and Wolf, J.
        Multivariate Analysis 88 (2004) 365-411): there are as many directions as there are follow-ups.
        """
        within = _within(coordinates, patients)
        size = len(within)
        pooled = (1.0 - shrinkage) * within + shrinkage * np.trace(within) / size * np.eye(size)
        values, axes = linalg.eigh(pooled)
        return cls(axes=axes, correlation=np.clip(1.0 - values, 0.0, _LARGEST_CORRELATION))

    def cosines(self, coordinates: Floats) -> Floats:
        """Cosine between the images once directions count by how much of them is the patient's: (n, D) -> (n, n)."""
        # The weights are those of the products in the logarithm of the likelihood ratio.
        placed = (coordinates @ self.axes) * np.sqrt(self.correlation / (1.0 - self.correlation**2))
        placed /= np.linalg.norm(placed, axis=1, keepdims=True) + 1e-12
        cosines: Floats = placed @ placed.T
        return cosines


def ridge(coordinates: Floats, targets: Floats, *, penalty: float) -> Floats:
    """Coefficients (1 + D, K) of ridge regression with an intercept: (T, D) whitened, targets (T, K).

    `penalty` is relative to the number of images: 1 halves the coefficient of a direction of variance 1.
    """
    mean, middle = coordinates.mean(axis=0), targets.mean(axis=0)
    centred = coordinates - mean
    matrix = centred.T @ centred + penalty * len(centred) * np.eye(centred.shape[1])
    slopes = linalg.solve(matrix, centred.T @ (targets - middle), assume_a="pos")
    return np.concatenate([(middle - mean @ slopes)[None], slopes])


def predict(coefficients: Floats, coordinates: Floats) -> Floats:
    """What `ridge` says of images: (n, D) -> (n, K)."""
    said: Floats = coefficients[0] + coordinates @ coefficients[1:]
    return said


def _within(coordinates: Floats, patients: Codes) -> Floats:
    """(D, D) covariance of images about their patient's mean."""
    codes = np.unique(patients, return_inverse=True)[1]
    counts = np.bincount(codes)
    sums = np.zeros((len(counts), coordinates.shape[1]))
    np.add.at(sums, codes, coordinates)
    apart = coordinates - (sums / counts[:, None])[codes]
    freedom = counts - 1.0
    weight = np.minimum(freedom, _MOST_WEIGHT) / np.maximum(freedom, 1.0)
    scatter: Floats = (apart * weight[codes, None]).T @ apart
    return scatter / max(float((weight * freedom).sum()), 1.0)
