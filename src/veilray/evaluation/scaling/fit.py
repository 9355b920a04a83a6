"""The scaling model fitted to measured steps and exchanges, with its uncertainty and its errors on unseen points."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy import optimize

from veilray.errors import DataError
from veilray.evaluation.benchmark.workload import Workload
from veilray.evaluation.scaling.model import Device, Link, Network, Plan, all_reduce_s, step_time

Vector = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class MeasuredStep:
    """A training step that was timed on one host."""

    workload: Workload
    plan: Plan
    ranks: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class MeasuredExchange:
    """An all-reduce that was timed by itself on one host."""

    message_bytes: float
    ranks: int
    seconds: float


Measured = MeasuredStep | MeasuredExchange


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A fitted parameter with its 90 % interval."""

    value: float
    low: float
    high: float
    unit: str


@dataclass(frozen=True, kw_only=True)
class Fit:
    """The model's parameters on the machine that was measured."""

    device: Device
    network: Network
    estimates: dict[str, Estimate]
    """By the name of the parameter."""
    errors: tuple[float, ...]
    """Predicted over measured time, minus 1, at each point of the fit."""

    def predict(self, point: Measured) -> float:
        """Seconds that the model gives a step or an exchange."""
        return _predict(point, self.device, self.network)


@dataclass(frozen=True)
class _Parameter:
    name: str
    unit: str
    start: float
    low: float
    high: float

    @property
    def positive(self) -> bool:
        """Whether it is fitted by its logarithm, as what may span orders of magnitude is."""
        return self.low > 0


_PARAMETERS = (
    _Parameter("overhead_s", "s", 1e-2, 1e-7, 1e2),
    _Parameter("flop_per_s", "FLOP/s", 1e10, 1e6, 1e17),
    _Parameter("traffic_bytes_per_s", "B/s", 1e9, 1e5, 1e15),
    _Parameter("contention", "share", 0.05, 0.0, 5.0),
    _Parameter("latency_s", "s", 1e-4, 1e-8, 1.0),
    _Parameter("bytes_per_s", "B/s", 1e9, 1e5, 1e13),
    _Parameter("overlap", "share", 0.5, 0.0, 1.0),
)


def fit_scaling(points: Sequence[Measured], *, straggling: float, resamples: int, seed: int) -> Fit:
    """Fit the model to points of one host: least squares of the logarithms of predicted over measured seconds.

    `straggling` is measured, not fitted: on few ranks nothing tells it from contention. Intervals are percentiles of
    `resamples` refits to the fit's own predictions, disturbed by its residuals drawn anew (a residual bootstrap: Efron
    and Tibshirani, An Introduction to the Bootstrap, 1993, section 9.4), each begun elsewhere, so that a parameter on
    which the points do not hang shows by a wide interval. Raises DataError where the points are too few,
    or never leave one rank.
    """
    if len(points) <= len(_PARAMETERS) or not any(point.ranks > 1 for point in points):
        raise DataError(
            f"a fit of {len(_PARAMETERS)} parameters needs more points than that, some of them on several ranks; "
            f"there are {len(points)}"
        )
    measured = np.log([point.seconds for point in points])
    best = _solve(points, measured, straggling, start=None)
    fitted = _predictions(points, best, straggling)
    # Residuals of a fit are smaller than errors are, by the parameters that it spent.
    residuals = (measured - fitted) * math.sqrt(len(points) / (len(points) - len(_PARAMETERS)))
    generator = np.random.default_rng(seed)
    refits = [
        _solve(points, fitted + generator.choice(residuals, len(points)), straggling, start=_elsewhere(best, generator))
        for _ in range(resamples)
    ]
    device, network = _machine(best, straggling)
    return Fit(
        device=device, network=network, estimates=_estimates(best, refits), errors=tuple(np.expm1(fitted - measured))
    )


def leave_out_errors(
    points: Sequence[Measured], *, straggling: float, group: Callable[[Measured], str | None]
) -> dict[str, list[float]]:
    """Relative errors (predicted over measured, minus 1) at points that a fit has not seen.

    All points of which `group` gives one name are left out together, the model is fitted to the others, and predicts
    them; points without a name stay in every fit.
    """
    names = sorted({name for name in map(group, points) if name is not None})
    errors = {}
    for name in names:
        kept = [point for point in points if group(point) != name]
        best = _solve(kept, np.log([point.seconds for point in kept]), straggling, start=None)
        device, network = _machine(best, straggling)
        errors[name] = [
            _predict(point, device, network) / point.seconds - 1.0 for point in points if group(point) == name
        ]
    return errors


def _solve(points: Sequence[Measured], measured: Vector, straggling: float, *, start: Vector | None) -> Vector:
    first = np.array([_inward(parameter, parameter.start) for parameter in _PARAMETERS]) if start is None else start
    bounds = (
        [_inward(parameter, parameter.low) for parameter in _PARAMETERS],
        [_inward(parameter, parameter.high) for parameter in _PARAMETERS],
    )

    def residuals(vector: Vector) -> Vector:
        return _predictions(points, vector, straggling) - measured

    solution = optimize.least_squares(
        residuals,
        np.clip(first, *(np.array(bound) for bound in bounds)),
        bounds=bounds,
        x_scale="jac",
        xtol=1e-6,
        ftol=1e-8,
        max_nfev=100,
    )
    found: Vector = solution.x
    return found


def _elsewhere(best: Vector, generator: np.random.Generator) -> Vector:
    """A start for another fit: rates within a factor of about two of the best ones, shares anywhere."""
    starts = [
        x + 0.7 * generator.standard_normal()
        if parameter.positive
        else generator.uniform(0.0, min(1.0, parameter.high))
        for parameter, x in zip(_PARAMETERS, best, strict=True)
    ]
    return np.array(starts)


def _predictions(points: Sequence[Measured], vector: Vector, straggling: float) -> Vector:
    device, network = _machine(vector, straggling)
    return np.log([_predict(point, device, network) for point in points])


def _predict(point: Measured, device: Device, network: Network) -> float:
    network = replace(network, ranks_per_host=point.ranks)
    match point:
        case MeasuredStep():
            return step_time(point.workload, device, network, point.plan, ranks=point.ranks).total_s
        case MeasuredExchange():
            return all_reduce_s(point.message_bytes, network, ranks=point.ranks)


def _machine(vector: Vector, straggling: float) -> tuple[Device, Network]:
    values = {parameter.name: _outward(parameter, x) for parameter, x in zip(_PARAMETERS, vector, strict=True)}
    link = Link(latency_s=values.pop("latency_s"), bytes_per_s=values.pop("bytes_per_s"))
    network = Network(ranks_per_host=1, local=link, overlap=values.pop("overlap"))
    return Device(straggling=straggling, **values), network


def _estimates(best: Vector, refits: Sequence[Vector]) -> dict[str, Estimate]:
    estimates = {}
    for index, parameter in enumerate(_PARAMETERS):
        low, high = np.quantile([refit[index] for refit in refits], [0.05, 0.95])
        value, low, high = (_outward(parameter, x) for x in (best[index], low, high))
        estimates[parameter.name] = Estimate(value=value, low=low, high=high, unit=parameter.unit)
    return estimates


def _inward(parameter: _Parameter, value: float) -> float:
    return math.log(value) if parameter.positive else value


def _outward(parameter: _Parameter, x: float) -> float:
    return math.exp(x) if parameter.positive else float(x)
