"""How far two rankings agree: Spearman's rank correlation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qtoolkit.errors import UsageError

__all__ = ["average_ranks", "spearman"]


def average_ranks(values: Sequence[float] | NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Rank of each of (N,) values, 1 for the lowest; equal values share the mean of their ranks. (N,) float64."""
    array = np.asarray(values, np.float64)
    _, group, sizes = np.unique(array, return_inverse=True, return_counts=True)
    last = np.cumsum(sizes)
    return np.asarray((last - (sizes - 1) / 2)[group.reshape(-1)], np.float64)


def spearman(
    left: Sequence[float] | NDArray[np.floating[Any]], right: Sequence[float] | NDArray[np.floating[Any]]
) -> float:
    """Spearman's rank correlation of (N,) values each, −1 … 1: Pearson's correlation of the average ranks.

    NaN where all values of a side are equal, which ranks nothing, or where a value is NaN. Source: C. Spearman, "The
    Proof and Measurement of Association between Two Things" (1904); with ties as Kendall & Gibbons, "Rank Correlation
    Methods", chapter 3. Raises UsageError for fewer than two values or sides of different lengths.
    """
    a, b = np.asarray(left, np.float64), np.asarray(right, np.float64)
    if a.ndim != 1 or a.shape != b.shape or len(a) < 2:
        raise UsageError(
            "two rankings cannot be compared",
            expected="two or more values, as many on both sides",
            found=f"shapes {a.shape} and {b.shape}",
        )
    if np.isnan(a).any() or np.isnan(b).any():
        return math.nan
    x, y = (ranks - ranks.mean() for ranks in (average_ranks(a), average_ranks(b)))
    scale = math.sqrt(float(np.dot(x, x)) * float(np.dot(y, y)))
    return float(np.dot(x, y)) / scale if scale > 0.0 else math.nan
