"""Range estimators: from the one-pass statistics of a tensor to the range that its integer grid covers.

Each takes ``(statistics, grid)`` and returns ``(lo, hi)``, floats in the tensor's own unit, for
``params_from_range``, which widens them to contain 0 and, on a symmetric grid, uses the larger side for both.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

import numpy as np

from qtoolkit.errors import UsageError
from qtoolkit.numerics.affine import IntegerGrid
from qtoolkit.numerics.distribution import Distribution
from qtoolkit.numerics.entropy import entropy
from qtoolkit.numerics.histogram import StreamingHistogram, TensorStatistics
from qtoolkit.numerics.squared_error import mse, mse_through

__all__ = [
    "RangeEstimator",
    "StreamingHistogram",
    "TensorStatistics",
    "entropy",
    "min_max",
    "moving_average",
    "mse",
    "mse_through",
    "percentile",
]


def min_max(statistics: TensorStatistics, grid: IntegerGrid) -> tuple[float, float]:
    """The exact lowest and highest value of all images; nothing is clipped. ``grid`` plays no part."""
    return statistics.minimum, statistics.maximum


def moving_average(statistics: TensorStatistics, grid: IntegerGrid, momentum: float = 0.9) -> tuple[float, float]:
    """Exponential moving average of each image's lowest and highest value, in the order the images were seen.

    ::

        r₀ = x₀        rᵢ = momentum · rᵢ₋₁ + (1 − momentum) · xᵢ

    as TensorFlow's moving-average quantizers do (Jacob et al. 2018, section 3.1; they start from 0.99 or more over
    thousands of training steps, a calibration set is short). ``grid`` plays no part. Raises UsageError for a momentum
    outside 0 … 1 (1 excluded).
    """
    if not 0.0 <= momentum < 1.0:
        raise UsageError("a momentum cannot be used", expected="0 <= momentum < 1", found=str(momentum))
    weights = (1.0 - momentum) * momentum ** np.arange(statistics.image_min.size - 1, -1, -1, dtype=np.float64)
    weights[0] /= 1.0 - momentum
    return float(weights @ statistics.image_min), float(weights @ statistics.image_max)


def percentile(statistics: TensorStatistics, grid: IntegerGrid, p: float = 99.99) -> tuple[float, float]:
    """The (100 − p)-th and the p-th percentile of the sampled values: each tail loses 100 − p percent of them.

    Values are taken as spread evenly inside a bin, exact zeros as a point, the ends of the end bins as the exact
    extremes; in a gap the bound farther out is taken, so p = 100 clips no sampled value. ``grid`` plays no part.
    Raises UsageError for p outside 50 … 100.
    """
    if not 50.0 <= p <= 100.0:
        raise UsageError("a percentile cannot be used", expected="50 <= p <= 100", found=str(p))
    tail = (100.0 - p) / 100.0
    return Distribution.of(statistics).quantiles(tail, tail)


class RangeEstimator(str, Enum):
    """The estimators by the name they have on the command line; ``estimate`` runs one at its defaults."""

    MIN_MAX = "min-max"
    MOVING_AVERAGE = "moving-average"
    PERCENTILE = "percentile"
    MSE = "mse"
    ENTROPY = "entropy"

    @classmethod
    def from_name(cls, name: str) -> RangeEstimator:
        """The estimator of that name. Raises UsageError naming all of them for another."""
        for estimator in cls:
            if estimator.value == name:
                return estimator
        names = ", ".join(estimator.value for estimator in cls)
        raise UsageError("there is no such range estimator", expected=f"one of {names}", found=name)

    def estimate(self, statistics: TensorStatistics, grid: IntegerGrid) -> tuple[float, float]:
        """Clipping range ``(lo, hi)`` of a tensor for a grid."""
        return _FUNCTIONS[self](statistics, grid)


_FUNCTIONS: dict[RangeEstimator, Callable[[TensorStatistics, IntegerGrid], tuple[float, float]]] = {
    RangeEstimator.MIN_MAX: min_max,
    RangeEstimator.MOVING_AVERAGE: moving_average,
    RangeEstimator.PERCENTILE: percentile,
    RangeEstimator.MSE: mse,
    RangeEstimator.ENTROPY: entropy,
}
