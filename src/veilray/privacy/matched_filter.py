"""The matched filter: who holds a gallery of originals finds the one that a noisy image was made from.

Let y = clip(x_i + n), n ~ N(mean, std^2), g the mean of y given x (`mean_map`) and v its variance. The filter takes the
image j of the gallery with the least |y - g(x_j)|^2. It prefers j to the true i exactly where, with e = y - g(x_i) and
d = g(x_j) - g(x_i),
    2 <e, d> > |d|^2.
Without the clamp e is white Gaussian, so the error of a pair is Q(|d| / (2 std)), Q = 1 - Phi, and the filter is the
best there is (Van Trees, Detection, Estimation and Modulation Theory I, 1968, section 4.2). With the clamp <e, d> is a
sum over independent pixels of variance sum(v d^2), which is normal as far as the central limit theorem reaches: the
error is Q(|d|^2 / (2 sqrt(sum(v d^2)))). Over a gallery all of these must fail at once: the success is an orthant
probability of the normal vector (<e, d_j>)_j, with covariance sum(v d_j d_k), which is integrated numerically (Genz,
J. Computational and Graphical Statistics 1 (1992) 141-149).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.special import log_ndtr, ndtr, ndtri

from veilray.images.radiograph import FloatImage

Array = npt.NDArray[np.float64]

# 65,535 steps hold every level of 8 and of 16 bits.
_KNOTS = 1 << 16
_POINTS = 4096
# Pixels that differ by no more than so many roundings are the same.
_SAME = 16.0


def clamped_moments(x: Array, *, mean: float, std: float, clip: bool) -> tuple[Array, Array]:
    """Mean and variance of y given x: any shape, float64, x in [0, 1]; exact, in closed form."""
    if not clip:
        return x + mean, np.full_like(x, std**2)
    m = x + mean
    a, b = -m / std, (1.0 - m) / std
    at_a, at_b = (np.exp(-0.5 * side**2) / np.sqrt(2.0 * np.pi) for side in (a, b))
    above, inside = ndtr(-b), ndtr(b) - ndtr(a)
    first = above + m * inside + std * (at_a - at_b)
    second = above + (m**2 + std**2) * inside + 2.0 * m * std * (at_a - at_b) + std**2 * (a * at_a - b * at_b)
    return first, np.maximum(second - first**2, 0.0)


def mean_images(x: FloatImage, *, mean: float, std: float, clip: bool) -> FloatImage:
    """g(x) of images, any shape, float32, [0, 1]: from a table, within 1e-5."""
    if not clip:
        shifted: FloatImage = x + np.float32(mean)
        return shifted
    knots = np.linspace(0.0, 1.0, _KNOTS)
    return _looked_up(x, clamped_moments(knots, mean=mean, std=std, clip=True)[0])


def inverse_mean_images(y: npt.NDArray[np.floating], *, mean: float, std: float, clip: bool) -> FloatImage:
    """The x in [0, 1] whose noisy values average y, any shape, float32: from a table, within 1e-4 where std <= 0.5.

    Values beyond g(0) and g(1) give 0 and 1.
    """
    if not clip:
        shifted: FloatImage = np.clip(y - mean, 0.0, 1.0).astype(np.float32)
        return shifted
    knots = np.linspace(0.0, 1.0, _KNOTS)
    table = clamped_moments(knots, mean=mean, std=std, clip=True)[0]
    # Far beyond the clamp the table is flat to the last bit, where any of its x will do.
    return _looked_up(y, np.interp(knots, np.maximum.accumulate(table), knots))


def _looked_up(values: npt.NDArray[np.floating], table: Array) -> FloatImage:
    """The entries of a table over [0, 1] that lie nearest to the values."""
    places = np.rint(np.clip(values, 0.0, 1.0) * np.float32(_KNOTS - 1)).astype(np.int32)
    found: FloatImage = table.astype(np.float32).take(places)
    return found


def squared_distances(probes: FloatImage, gallery: FloatImage) -> Array:
    """|y_k - g_j|^2 of flat images: (n, P) and (G, P) -> (n, G), float64 from products of float32."""
    cross = (probes @ gallery.T).astype(np.float64)
    own = np.einsum("kp,kp->k", probes, probes, dtype=np.float64)
    theirs = np.einsum("jp,jp->j", gallery, gallery, dtype=np.float64)
    distances: Array = own[:, None] - 2.0 * cross + theirs[None, :]
    return distances


def log_pair_error(others: npt.NDArray[np.floating], true: npt.NDArray[np.floating], variances: Array) -> Array:
    """Logarithm of the predicted chance that the filter prefers each of the others to the true image: (G,).

    `others` (G, P) and `true` (P,): g of the images, flat; `variances` (P,): of y given the true image.
    """
    squares = (others - true) ** 2
    distance = squares.sum(axis=1, dtype=np.float64)
    spread = np.sqrt((squares @ variances.astype(squares.dtype)).astype(np.float64))
    # Without any spread an image equal to the true one is preferred half of the time, another one never.
    certain = squares.max(axis=1) > np.finfo(squares.dtype).eps ** 2 * _SAME**2
    without = np.where(certain, np.inf, 0.0)
    ratio = np.divide(distance, 2.0 * spread, out=without, where=spread > 0.0)
    errors: Array = log_ndtr(-ratio)
    return errors


def gallery_success(gallery: Array, variances: Array, target: int) -> float:
    """The predicted chance that the filter finds the true image in the whole gallery, to about 1e-3.

    `gallery` (G, P) and `variances` (P,) as for `log_pair_error`; for galleries of up to some dozens of images that
    all differ. Where the pixels in which two images differ do not vary at all, they are told apart with certainty.
    """
    differences = np.delete(gallery - gallery[target], target, axis=0)
    differ = np.abs(differences).max(axis=1, initial=0.0) > _SAME * np.finfo(np.float64).eps
    if not differ.all():  # a guess among images that are the same
        among = len(differences) - int(differ.sum()) + 1
        rest = np.concatenate([gallery[target : target + 1], gallery[target] + differences[differ]])
        return (gallery_success(rest, variances, 0) if differ.any() else 1.0) / among
    spreads = differences * np.sqrt(variances)
    scale = np.linalg.norm(spreads, axis=1)
    uncertain = scale > 0.0
    if not uncertain.any():
        return 1.0
    differences, spreads, scale = differences[uncertain], spreads[uncertain], scale[uncertain]
    limits = np.einsum("jp,jp->j", differences, differences) / 2.0 / scale
    # The hardest first, as Genz advises, and a ridge for galleries of more images than pixels.
    order = np.argsort(limits)
    directions = (spreads / scale[:, None])[order]
    return orthant_probability(limits[order], directions @ directions.T + 1e-9 * np.eye(len(limits)))


def orthant_probability(limits: Array, covariance: Array) -> float:
    """P(z_1 < b_1, ..., z_m < b_m) of a normal vector of mean 0: Genz's separation of variables on a lattice.

    `limits` (m,), `covariance` (m, m), positive definite. The lattice is Richtmyer's, of the square roots of primes,
    folded (Genz and Bretz, Computation of Multivariate Normal and t Probabilities, 2009, section 4.2.2).
    """
    root = np.linalg.cholesky(covariance)
    steps = np.arange(1, _POINTS + 1, dtype=np.float64)
    chance = np.ones(_POINTS)
    drawn = np.zeros((_POINTS, len(limits)))
    for k, prime in enumerate(_primes(len(limits))):
        inside = ndtr((limits[k] - drawn[:, :k] @ root[k, :k]) / root[k, k])
        chance *= inside
        place = np.abs(2.0 * np.mod(steps * np.sqrt(prime), 1.0) - 1.0)
        drawn[:, k] = ndtri(np.clip(place * inside, 1e-300, 1.0 - 1e-16))
    return float(chance.mean())


def _primes(count: int) -> list[int]:
    found: list[int] = []
    candidate = 2
    while len(found) < count:
        if all(candidate % prime for prime in found):
            found.append(candidate)
        candidate += 1
    return found
