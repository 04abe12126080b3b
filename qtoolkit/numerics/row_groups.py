"""Groups of a weight's rows that share a scale, where one scale for all of them is too coarse for most."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["row_groups"]

_MOST_GROUPS = 3
# Another group must at least halve the noise: each one is a convolution more.
_WORTH = 0.5


def row_groups(largest: NDArray[np.floating]) -> tuple[NDArray[np.intp], ...]:
    """Rows (C,) in at most three groups by the largest magnitude ``largest`` (C,) in each; one group where that does.

    Rounding a row costs scale² / 12 a weight, so groups g minimise Σ_g (rows of g) · (largest of g)². Rows of like
    magnitude belong together, so groups are stretches of the sorted rows; the best two cuts of C are tried. A group
    more is taken where it halves that sum. Inside a group rows keep their order.
    """
    order = np.argsort(largest, kind="stable")
    values = np.asarray(largest, np.float64)[order] ** 2
    cuts: tuple[int, ...] = ()
    cost = float(len(values) * values[-1]) if len(values) else 0.0
    for count in range(2, min(_MOST_GROUPS, len(values)) + 1):
        tried, found = _best_cuts(values, count)
        if found > _WORTH * cost:
            break
        cuts, cost = tried, found
    return tuple(np.sort(group) for group in np.split(order, cuts))


def _best_cuts(values: NDArray[np.float64], count: int) -> tuple[tuple[int, ...], float]:
    """Places to cut ascending ``values`` into ``count`` stretches with the least Σ length · last value."""
    ends = np.arange(1, len(values) + 1)
    # best[e]: least cost of the first e values in the groups so far.
    best = np.concatenate([[0.0], ends * values])
    choices = []
    for _ in range(1, count):
        costs = np.full((len(values) + 1, len(values) + 1), np.inf)
        for end in ends:
            costs[end, :end] = best[:end] + (end - np.arange(end)) * values[end - 1]
        choices.append(costs.argmin(axis=1))
        best = costs.min(axis=1)
        best[0] = 0.0
    cuts: list[int] = []
    start = len(values)
    for choice in reversed(choices):
        start = int(choice[start])
        cuts.insert(0, start)
    return tuple(cuts), float(best[-1])
