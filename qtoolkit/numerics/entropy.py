"""Clipping ranges by relative entropy (KL divergence), the estimator made popular by TensorRT."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qtoolkit.numerics.affine import IntegerGrid, scale_and_zero_point
from qtoolkit.numerics.histogram import TensorStatistics

__all__ = ["entropy"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

_CANDIDATES_PER_SIDE = 24
_MOST_SWEEPS = 3
_BATCH = 256


def entropy(statistics: TensorStatistics, grid: IntegerGrid) -> tuple[float, float]:
    """Clipping range ``(lo, hi)`` whose quantized histogram tells least from the original: minimal KL(P ‖ Q).

    After S. Migacz, "8-bit Inference with TensorRT" (GTC 2017). For a candidate range, P is the histogram inside it
    with all clipped values added to its end bins; Q is the histogram inside it without them, each level's mass spread
    evenly over the bins of that level where P is not 0; both are divided by their sums. A range where P is and Q is
    not has an infinite divergence. Unlike many copies of it, the levels are those of the grid itself (256 of an
    asymmetric one, its zero point and its power-of-two scale included), so bins per level need not be a whole number.

    Exact zeros are left out: a grid keeps them, and the peak of a ReLU would hide the rest. Candidates are bin edges
    with at least one bin per level. With values on one side of 0, or a symmetric grid, all are tried; else pairs (lo,
    hi), first coarsely, then all bounds of one side and of the other in turn. Where the histogram has no more bins
    than the grid has levels (16 bit) the divergence says nothing, and the range is min-max. The range contains 0.
    """
    histogram = _Histogram(statistics)
    lo, hi = min(statistics.minimum, 0.0), max(statistics.maximum, 0.0)
    levels = grid.qmax - grid.qmin
    if histogram.total == 0.0 or levels >= histogram.counts.size:
        return lo, hi
    two_sided = grid.symmetric and grid.signed
    if grid.symmetric and not grid.signed:
        lo = 0.0
    if not grid.symmetric and lo < 0.0 < hi:
        return _search_pairs(histogram, grid, lo, hi)
    reach = np.unique(np.abs(np.concatenate([histogram.side(lo), histogram.side(hi)])))[::-1]
    # The exact extreme stays a candidate even where fewer bins than levels lie inside it.
    enough = reach * (2 if two_sided else 1) > levels * histogram.width
    reach = np.append(reach[0], reach[1:][enough[1:]])
    none = np.zeros_like(reach)
    return _least(
        histogram,
        grid,
        -reach if two_sided or lo < 0.0 else none,
        reach if two_sided or hi > 0.0 else none,
    )


class _Histogram:
    """Running sums over the bins, so that one candidate costs as many look-ups as the grid has levels."""

    def __init__(self, statistics: TensorStatistics) -> None:
        counts = statistics.counts.astype(np.float64)
        self.lo = statistics.lo
        self.width = (statistics.hi - statistics.lo) / counts.size
        if statistics.zero_count:
            zero_bin = int(np.clip(np.floor(-self.lo / self.width), 0, counts.size - 1))
            counts[zero_bin] = max(counts[zero_bin] - statistics.zero_count, 0.0)
        self.counts = counts
        self.total = float(counts.sum())
        self.mass = _running(counts)
        self.occupied = _running(counts > 0)
        self.c_log_c = _running(_x_log_x(counts))

    def side(self, farthest: float) -> FloatArray:
        """Candidate bounds from an exact extreme to 0: it, the bin edges between, and 0; float64 ``(m,)``."""
        edges = self.lo + self.width * np.arange(self.counts.size + 1)
        between = edges[(edges * np.sign(farthest) > 0.0) & (np.abs(edges) < abs(farthest))]
        nearer = between[np.argsort(-np.abs(between))]
        return np.concatenate([[farthest], nearer, [0.0]])

    def edge(self, x: FloatArray) -> IntArray:
        """Number of the bin edge nearest to x, from 0 to the number of bins."""
        return np.clip(np.rint((x - self.lo) / self.width), 0, self.counts.size).astype(np.int64)


def _search_pairs(histogram: _Histogram, grid: IntegerGrid, lo: float, hi: float) -> tuple[float, float]:
    """Best of a coarse grid of pairs; then, in turn, of all upper bounds for its lower one and the reverse.

    The divergence is jagged (bins per level), so halving an interval would stop at the first notch.
    """
    los, his = histogram.side(lo), histogram.side(hi)
    coarse = (side[:: -(-side.size // _CANDIDATES_PER_SIDE)] for side in (los, his))
    best = _least_of_pairs(histogram, grid, (lo, hi), *coarse)
    for _ in range(_MOST_SWEEPS):
        before = best
        best = _least_of_pairs(histogram, grid, best, np.array([best[0]]), his)
        best = _least_of_pairs(histogram, grid, best, los, np.array([best[1]]))
        if best == before:
            break
    return best


def _least_of_pairs(
    histogram: _Histogram, grid: IntegerGrid, best: tuple[float, float], los: FloatArray, his: FloatArray
) -> tuple[float, float]:
    """The least of ``best`` and of all pairs of ``los`` and ``his`` that are wide enough, ``best`` first."""
    pair_lo, pair_hi = (side.ravel() for side in np.meshgrid(los, his, indexing="ij"))
    enough = pair_hi - pair_lo >= (grid.qmax - grid.qmin) * histogram.width
    return _least(histogram, grid, np.append(best[0], pair_lo[enough]), np.append(best[1], pair_hi[enough]))


def _least(histogram: _Histogram, grid: IntegerGrid, los: FloatArray, his: FloatArray) -> tuple[float, float]:
    """The candidate of least divergence, the first of several; candidates are ``(m,)`` lower and upper bounds."""
    parts = [
        _divergence(histogram, grid, los[start : start + _BATCH], his[start : start + _BATCH])
        for start in range(0, los.size, _BATCH)
    ]
    winner = int(np.argmin(np.concatenate(parts)))
    return float(los[winner]), float(his[winner])


def _divergence(histogram: _Histogram, grid: IntegerGrid, los: FloatArray, his: FloatArray) -> FloatArray:
    """KL(P ‖ Q) of each of ``(m,)`` candidate ranges, float64 ``(m,)``.

    With N all mass, M the mass inside, and for each level its mass m, its bins n where P is not 0, its share of P p::

        KL = Σ_bins P log P − Σ_levels p log(m / (n M))
    """
    scale, zero_point = scale_and_zero_point(los, his, grid)
    steps = np.arange(grid.qmin, grid.qmax)[None, :] + 0.5 - zero_point[:, None]
    step = scale.astype(np.float64)[:, None]
    first = histogram.edge(step * (grid.qmin - zero_point[:, None]))
    last = np.maximum(histogram.edge(step * (grid.qmax - zero_point[:, None])), first + 1)
    last = np.minimum(last, histogram.counts.size)
    first = np.minimum(first, last - 1)
    edges = np.concatenate([first, np.clip(histogram.edge(step * steps), first, last), last], axis=1)
    mass, bins = np.diff(histogram.mass[edges], axis=1), np.diff(histogram.occupied[edges], axis=1)
    share = mass.copy()
    logs = histogram.c_log_c[last[:, 0]] - histogram.c_log_c[first[:, 0]]
    rows = np.arange(los.size)
    clipped = (histogram.mass[first[:, 0]], histogram.total - histogram.mass[last[:, 0]])
    end_bins = (first[:, 0], last[:, 0] - 1)
    # An end level narrower than half a bin has no bin of its own; the end bin then belongs to its neighbour.
    levels = (
        np.argmax(edges[:, 1:] > first, axis=1),
        mass.shape[1] - 1 - np.argmax((edges[:, :-1] < last)[:, ::-1], axis=1),
    )
    for outside, end_bin, level in zip(clipped, end_bins, levels, strict=True):
        share[rows, level] += outside
        bins[rows, level] += (histogram.counts[end_bin] == 0) & (outside > 0)
        logs += _x_log_x(histogram.counts[end_bin] + outside) - _x_log_x(histogram.counts[end_bin])
    inside = mass.sum(axis=1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        cost = np.where(share > 0, share * np.log(mass / (bins * inside)), 0.0)
    divergence = (logs - cost.sum(axis=1)) / histogram.total - np.log(histogram.total)
    return np.where(inside[:, 0] > 0, divergence, np.inf)


def _running(values: NDArray[Any]) -> FloatArray:
    return np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])


def _x_log_x(x: FloatArray) -> FloatArray:
    return np.asarray(x * np.log(np.where(x > 0, x, 1.0)))
