"""The distribution that a tensor's statistics stand for: uniform inside each bin, points where values are exact.

Taking each bin as its centre would be wrong as soon as a step of the grid is not much wider than a bin (an outlier
widens all bins); integrals over uniform bins stay exact whatever the two widths are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qtoolkit.numerics.histogram import TensorStatistics
from qtoolkit.numerics.image_group import ImageGroup

__all__ = ["Distribution", "Moments", "ScalarFunction"]

FloatArray = NDArray[np.float64]
ScalarFunction = Callable[[FloatArray], FloatArray]


@dataclass(frozen=True, eq=False)
class Distribution:
    """Mass ``mass`` float64 ``(n,)`` (in sampled values), spread evenly from ``knots[i]`` to ``knots[i + 1]``.

    ``knots`` float64 ``(n + 1,)`` never falls; a piece of zero width is a point mass. ``body`` is the part from the
    first to the last sampled bin; outside it lie only extremes that the sample missed.
    """

    knots: FloatArray
    mass: FloatArray
    body: tuple[float, float]

    @classmethod
    def of(
        cls,
        statistics: TensorStatistics,
        *,
        with_extremes: bool = False,
        parts: int = 1,
        weights: NDArray[np.float64] | None = None,
    ) -> Distribution:
        """The distribution of a tensor.

        Its ends are cut at the exact minimum and maximum, its exact zeros are a point mass. ``with_extremes`` adds the
        lowest and highest value of every image with the weight one value has in the sample, n sampled / n values:
        what a small sample missed must not look free to clip. ``parts`` cuts each bin into that many equal pieces.
        ``weights`` float64 ``(n_groups,)`` multiplies the mass of each of the statistics' groups of images (None: 1).
        """
        groups = statistics.groups or (_everything(statistics),)
        factors = np.ones(len(groups)) if weights is None or not statistics.groups else weights
        sampled, total = float(statistics.counts.sum()), statistics.total_count
        share = sampled / total if with_extremes and total is not None and total > sampled else 0.0
        pieces, points, point_masses = [], [np.zeros(0)], [np.zeros(0)]
        for group, factor in zip(groups, factors, strict=True):
            lows, highs = statistics.image_min[group.images], statistics.image_max[group.images]
            edges, mass = _occupied_bins(group, parts, (float(lows.min()), float(highs.max())))
            # Cutting may leave an end bin without width: all its values are the extreme itself.
            flat = np.diff(edges) == 0.0
            pieces.append((edges, np.where(flat, 0.0, mass) * factor))
            found = [(edges[:-1][flat], mass[flat])]
            if group.zero_count:
                found.append((np.zeros(1), np.full(1, float(group.zero_count))))
            if share:
                found += [(lows, np.full(lows.size, share)), (highs, np.full(highs.size, share))]
            points += [places for places, _ in found]
            point_masses += [masses * factor for _, masses in found]
        return _with_points(pieces, np.concatenate(points), np.concatenate(point_masses))

    def quantiles(self, lower_share: float, upper_share: float) -> tuple[float, float]:
        """Bounds that leave at most ``lower_share`` of the mass below and ``upper_share`` above (0 … 1).

        Linear inside a piece; in an empty gap the bound farther out.
        """
        total = float(self.mass.sum())
        below = _distance_to_mass(self.knots, self.mass, lower_share * total)
        above = _distance_to_mass(-self.knots[::-1], self.mass[::-1], upper_share * total)
        # Subtracting, not negating: -0.0 would print as a sign.
        return below, 0.0 - above


class Moments:
    """Running integrals of f⁰, f¹, f² and f′² over a distribution, f being taken as linear within a piece.

    ``at(x)`` gives, for x of shape ``(m,)``, the integrals over all values up to x: float64 ``(m,)`` each.
    """

    def __init__(
        self, distribution: Distribution, function: ScalarFunction | None = None, weight: ScalarFunction | None = None
    ) -> None:
        """``function`` None is the identity; ``weight`` multiplies the mass of a piece, as a function of f there."""
        self.knots, self.body = distribution.knots, distribution.body
        self._function = function
        f = self.knots if function is None else np.asarray(function(self.knots), np.float64)
        self._left, self._rise = f[:-1], np.diff(f)
        self._mass = distribution.mass
        if weight is not None:
            self._mass = self._mass * np.asarray(weight(self._left + self._rise / 2), np.float64)
        self._f = f
        width = np.diff(self.knots)
        self._per_width = np.divide(1.0, width, out=np.zeros_like(width), where=width > 0)
        whole = self._partial(slice(None), np.ones_like(width))
        self._before = [np.concatenate([[0.0], np.cumsum(part)]) for part in whole]

    @property
    def total(self) -> tuple[float, ...]:
        """The integrals over all values."""
        return tuple(float(before[-1]) for before in self._before)

    def value(self, x: FloatArray) -> FloatArray:
        """f(x): by the same linear pieces that the integrals use, outside the distribution by f itself."""
        if self._function is None:
            return x
        values = np.interp(x, self.knots, self._f)
        outside = (x < self.knots[0]) | (x > self.knots[-1])
        values[outside] = self._function(x[outside])
        return values

    def at(self, x: FloatArray) -> list[FloatArray]:
        """Integrals of f⁰, f¹, f², f′² over all values up to each x."""
        piece = np.searchsorted(self.knots, x, side="right") - 1
        np.clip(piece, 0, self._mass.size - 1, out=piece)
        part = np.clip((x - self.knots[piece]) * self._per_width[piece], 0.0, 1.0)
        part[x >= self.knots[-1]] = 1.0
        return [before[piece] + inside for before, inside in zip(self._before, self._partial(piece, part), strict=True)]

    def _partial(self, piece: NDArray[np.intp] | slice, part: FloatArray) -> tuple[FloatArray, ...]:
        """The integrals over the first ``part`` (0 … 1) of each of the pieces."""
        left, rise = self._left[piece], self._rise[piece]
        right = left + rise * part
        mass = self._mass[piece] * part
        slope = rise * self._per_width[piece]
        return mass, mass * (left + right) / 2, mass * (left * (left + right) + right * right) / 3, mass * slope * slope


def _everything(statistics: TensorStatistics) -> ImageGroup:
    images = np.arange(statistics.image_min.size)
    return ImageGroup(images, 1.0, statistics.counts, statistics.lo, statistics.hi, statistics.zero_count)


def _occupied_bins(group: ImageGroup, parts: int, extremes: tuple[float, float]) -> tuple[FloatArray, FloatArray]:
    """Edges ``(n + 1,)`` and mass ``(n,)`` from the first to the last occupied bin, without the exact zeros."""
    counts = group.counts
    occupied = np.flatnonzero(counts)
    first, last = int(occupied[0]), int(occupied[-1]) + 1
    width = (group.hi - group.lo) / counts.size
    edges = group.lo + width * np.arange(first, last + 1)
    mass = counts[first:last].astype(np.float64)
    if group.zero_count:
        zero_bin = int(np.clip(np.searchsorted(edges, 0.0, side="right") - 1, 0, mass.size - 1))
        mass[zero_bin] = max(mass[zero_bin] - group.zero_count, 0.0)
    if parts > 1:
        edges = np.interp(np.arange(mass.size * parts + 1) / parts, np.arange(edges.size), edges)
        mass = np.repeat(mass / parts, parts)
    # A sampled value lies within the exact extremes, so cutting the end bins there loses none.
    return np.clip(edges, *extremes), mass


def _with_points(pieces: list[tuple[FloatArray, FloatArray]], points: FloatArray, weights: FloatArray) -> Distribution:
    """Lay the pieces ``(edges, mass)`` over each other and put point masses among them, cutting what they fall into."""
    body = min(float(edges[0]) for edges, _ in pieces), max(float(edges[-1]) for edges, _ in pieces)
    if points.size == 0 and len(pieces) == 1:
        return Distribution(*pieces[0], body)
    places, owner = np.unique(points, return_inverse=True)
    edges = pieces[0][0] if len(pieces) == 1 else np.unique(np.concatenate([edges for edges, _ in pieces]))
    knots = np.sort(np.concatenate([edges, places, places]))
    running = np.zeros_like(knots)
    for edges, mass in pieces:
        # np.interp needs each edge once; pieces without width carry no mass by now.
        steps = np.concatenate([[True], np.diff(edges) > 0])
        running += np.interp(knots, edges[steps], np.concatenate([[0.0], np.cumsum(mass)])[steps])
    spread = np.diff(running)
    if points.size:
        np.add.at(spread, np.searchsorted(knots, places), np.bincount(owner, weights, places.size))
    return Distribution(knots, spread, body)


def _distance_to_mass(knots: FloatArray, mass: FloatArray, target: float) -> float:
    """The largest x with at most ``target`` mass below it."""
    before = np.concatenate([[0.0], np.cumsum(mass)])
    piece = min(int(np.searchsorted(before, target, side="right")) - 1, mass.size)
    if piece == mass.size:
        return float(knots[-1])
    return float(knots[piece] + (knots[piece + 1] - knots[piece]) * (target - before[piece]) / mass[piece])
