"""Clipping ranges that minimise the expected squared error, of a tensor or of a function of it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from qtoolkit.numerics.affine import IntegerGrid, scale_and_zero_point
from qtoolkit.numerics.distribution import Distribution, Moments, ScalarFunction
from qtoolkit.numerics.histogram import TensorStatistics
from qtoolkit.numerics.image_groups import group_weights

__all__ = ["error_distribution", "mse", "mse_through"]

FloatArray = NDArray[np.float64]

_SCALES_PER_OCTAVE = 8
_MOST_OCTAVES = 24
_OCTAVES_THROUGH = 6
_MOST_ZERO_POINTS = 257
_MOST_HALF_STEPS = 1 << 13
_PARTS_THROUGH = 4


@dataclass(frozen=True)
class _Candidate:
    """One scale with its best zero point: the whole error, and the least that clipping alone costs at this scale."""

    error: float
    scale: float
    zero_point: int
    clipping_error: float


def mse(statistics: TensorStatistics, grid: IntegerGrid, tolerance: float = 1.0) -> tuple[float, float]:
    """Clipping range ``(lo, hi)`` that minimises the expected squared error E[(fake_quantize(x) − x)²] on ``grid``.

    The error is that of the very grid ``params_from_range(lo, hi, grid)`` gives, with its power-of-two scale where it
    has one: clipping error plus rounding error, integrated exactly over each bin (only where more than 4096 steps
    span the sample is rounding taken as scale² / 12). Scales are searched from the min-max one down, until clipping
    alone costs more than the best found, then more finely around the best; for an asymmetric grid every zero point is
    tried at each scale (16 bit: in two rounds). Where the statistics have groups of images, errors on unusual images
    and on single unusual values count less (``error_distribution``). An all-zero tensor gives (0, 0).
    """
    return _search(Moments(error_distribution(statistics, tolerance=tolerance)), statistics, grid, None)


def mse_through(
    statistics: TensorStatistics,
    grid: IntegerGrid,
    function: ScalarFunction,
    output_weight: ScalarFunction | None = None,
) -> tuple[float, float]:
    """Clipping range ``(lo, hi)`` that minimises E[w(f(x)) · (f(fake_quantize(x)) − f(x))²] on ``grid``.

    For the input of an activation f: with SiLU, what lies far below 0 is flattened and deserves no step. ``function``
    is f, ``output_weight`` is w ≥ 0 as a function of f(x) (None: 1 everywhere); both map float64 ``(m,)`` to float64
    ``(m,)``, elementwise. f is taken as linear over a quarter of a bin. Scales down to 1/64 of the min-max one of a
    usual image are searched. An all-zero tensor gives (0, 0).
    """
    moments = Moments(error_distribution(statistics, _PARTS_THROUGH), function, output_weight)
    return _search(moments, statistics, grid, _OCTAVES_THROUGH + _octaves_of_outliers(statistics))


def _octaves_of_outliers(statistics: TensorStatistics) -> int:
    """How many times M of ``error_distribution`` has to be doubled to be the largest value of all images."""
    usual, furthest = _usual_magnitude(statistics), max(-statistics.minimum, statistics.maximum)
    return int(np.ceil(np.log2(furthest / usual))) if statistics.groups and 0.0 < usual < furthest else 0


def _usual_magnitude(statistics: TensorStatistics) -> float:
    """M: the median over images of their largest magnitude."""
    return float(np.median(np.maximum(-statistics.image_min, statistics.image_max)))


def error_distribution(statistics: TensorStatistics, parts: int = 1, tolerance: float = 1.0) -> Distribution:
    """What errors are weighed by: the sampled values and each image's extremes, unusual ones less.

    Where the statistics have groups of images, the errors on an image count by ``image_groups.group_weights`` with
    ``tolerance``, and an error on a value x by min(1, M / |x|)², M the median over images of their largest magnitude.
    So losing a value altogether costs at most M²: a few places of one image that are a hundred times as large as all
    others hardly show in its mean square, but would outweigh the rounding of everything else. ``parts``: as in
    ``Distribution.of``.
    """
    if not statistics.groups:
        return Distribution.of(statistics, with_extremes=True, parts=parts)
    weights = group_weights(statistics.groups, tolerance)
    found = Distribution.of(statistics, with_extremes=True, parts=parts, weights=weights)
    usual = _usual_magnitude(statistics)
    if usual <= 0.0:
        return found
    magnitude = np.abs(found.knots[:-1] + found.knots[1:]) / 2
    return replace(found, mass=found.mass * (usual / np.maximum(magnitude, usual)) ** 2)


def _search(
    moments: Moments, statistics: TensorStatistics, grid: IntegerGrid, octaves: int | None
) -> tuple[float, float]:
    """``octaves`` None: search on until clipping costs too much, which is a bound for the identity only."""
    lo, hi = min(statistics.minimum, 0.0), max(statistics.maximum, 0.0)
    if lo == hi:
        return 0.0, 0.0
    widest = float(scale_and_zero_point(lo, hi, grid)[0])
    per_octave = 1 if grid.power_of_two else _SCALES_PER_OCTAVE
    best = _best_at_scale(moments, grid, widest, lo, hi)
    for step in range(1, per_octave * (octaves or _MOST_OCTAVES) + 1):
        found = _best_at_scale(moments, grid, widest * 2.0 ** (-step / per_octave), lo, hi)
        best = min(best, found, key=lambda candidate: candidate.error)
        # Clipping only grows as the scale falls, so no smaller scale can win any more.
        if octaves is None and found.clipping_error >= best.error:
            break
    if not grid.power_of_two:
        coarse, fine = best.scale, per_octave * per_octave
        for step in range(1 - per_octave, per_octave):
            if step and coarse * 2.0 ** (step / fine) <= widest:
                found = _best_at_scale(moments, grid, coarse * 2.0 ** (step / fine), lo, hi)
                best = min(best, found, key=lambda candidate: candidate.error)
    lowest = -grid.qmax if grid.symmetric and grid.signed else grid.qmin - best.zero_point
    return best.scale * lowest, best.scale * (grid.qmax - best.zero_point)


def _best_at_scale(moments: Moments, grid: IntegerGrid, scale: float, lo: float, hi: float) -> _Candidate:
    rounding = _rounding_error(moments, scale)
    if grid.symmetric:
        zero_points = np.zeros(1)
    else:
        # From "hi just fits" to "lo just fits": any other zero point would move the window off the values.
        ends = np.sort(np.clip([grid.qmax - hi / scale, grid.qmin - lo / scale], grid.qmin, grid.qmax))
        spacing = max(float(ends[1] - ends[0]) / (_MOST_ZERO_POINTS - 1), 1.0)
        zero_points = np.rint(np.arange(ends[0], ends[1] + spacing, spacing)).clip(grid.qmin, grid.qmax)
    candidate = _least_error(moments, grid, scale, zero_points, rounding)
    if not grid.symmetric and spacing > 1.0:
        around = candidate.zero_point + np.rint(np.linspace(-spacing, spacing, _MOST_ZERO_POINTS))
        finer = _least_error(moments, grid, scale, around.clip(grid.qmin, grid.qmax), rounding)
        candidate = min(candidate, finer, key=lambda one: one.error)
    return candidate


def _least_error(
    moments: Moments, grid: IntegerGrid, scale: float, zero_points: FloatArray, rounding: tuple[FloatArray, FloatArray]
) -> _Candidate:
    """The best of ``zero_points`` ``(z,)``; error = clipped below + clipped above + rounding between the end levels."""
    bounds = scale * np.concatenate([grid.qmin - zero_points, grid.qmax - zero_points])
    f = moments.value(bounds)
    m0, m1, m2, _ = moments.at(bounds)
    below, above = slice(0, zero_points.size), slice(zero_points.size, None)
    t0, t1, t2, _ = moments.total
    clipped = np.maximum(m2[below] - 2 * f[below] * m1[below] + f[below] ** 2 * m0[below], 0.0)
    clipped += np.maximum((t2 - m2[above]) - 2 * f[above] * (t1 - m1[above]) + f[above] ** 2 * (t0 - m0[above]), 0.0)
    rounded = np.interp(bounds, *rounding)
    error = clipped + rounded[above] - rounded[below]
    winner = int(np.argmin(error))
    return _Candidate(float(error[winner]), scale, int(zero_points[winner]), float(clipped.min()))


def _rounding_error(moments: Moments, scale: float) -> tuple[FloatArray, FloatArray]:
    """Places ``(m,)`` and the rounding error of all sampled values up to each, for an endless grid of this scale.

    Places are the multiples of scale / 2: on either side of a level k·scale, up to the middle between two, x goes to k.
    """
    first, last = 2 * int(np.floor(moments.body[0] / scale)), 2 * int(np.ceil(moments.body[1] / scale))
    if last - first > _MOST_HALF_STEPS:
        # Two steps or more in a bin of 2048: within a step both the density and the slope of f are nearly constant.
        return moments.knots, moments.at(moments.knots)[3] * (scale * scale / 12)
    half = np.arange(first, last + 1)
    places = np.asarray(half * (scale / 2), np.float64)
    m0, m1, m2, _ = moments.at(places)
    f = moments.value(np.asarray(scale * ((half[:-1] + 1) // 2), np.float64))
    error = np.diff(m2) - 2 * f * np.diff(m1) + f * f * np.diff(m0)
    return places, np.concatenate([[0.0], np.cumsum(np.maximum(error, 0.0))])
