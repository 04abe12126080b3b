"""How far an approximation is from its reference: SQNR, NMSE, cosine. All sums in float64.

NaN or infinity in the reference, and NaN in the approximation, give NaN.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qtoolkit.errors import UsageError

__all__ = ["cosine", "nmse", "sqnr_db"]


def nmse(reference: NDArray[np.floating[Any]], approximation: NDArray[np.floating[Any]]) -> float:
    """Normalised mean squared error ‖x − y‖² / ‖x‖², x the reference, y the approximation; both of any one shape.

    0 where the two are equal (zeros included), infinity where only the reference is all zeros.
    Raises UsageError for tensors of different shapes or without an element.
    """
    x, y = _flat_pair(reference, approximation)
    signal = float(np.dot(x, x))
    with np.errstate(invalid="ignore"):
        difference = x - y
    noise = float(np.dot(difference, difference))
    if signal == 0.0 and noise > 0.0:
        return math.inf
    return 0.0 if noise == 0.0 else noise / (signal or math.nan)


def sqnr_db(reference: NDArray[np.floating[Any]], approximation: NDArray[np.floating[Any]]) -> float:
    """Signal to quantization noise ratio 20·log10(‖x‖₂ / ‖x − y‖₂) = −10·log10(NMSE), in dB; higher is better.

    +infinity where the two are equal, −infinity where only the reference is all zeros. Shapes and errors as ``nmse``.
    """
    ratio = nmse(reference, approximation)
    if ratio == 0.0:
        return math.inf
    return -10.0 * math.log10(ratio)


def cosine(reference: NDArray[np.floating[Any]], approximation: NDArray[np.floating[Any]]) -> float:
    """Cosine similarity x·y / (‖x‖₂ ‖y‖₂), −1 … 1. Shapes and errors as ``nmse``.

    1 where both are all zeros (they are equal), 0 where only one is.
    """
    x, y = _flat_pair(reference, approximation)
    x_norm, y_norm = math.sqrt(float(np.dot(x, x))), math.sqrt(float(np.dot(y, y)))
    if not math.isfinite(x_norm + y_norm):
        return math.nan
    if x_norm == 0.0 or y_norm == 0.0:
        return float(x_norm == y_norm)
    # Normalised before the product: for tiny values the product of the squares would underflow.
    return max(-1.0, min(1.0, float(np.dot(x / x_norm, y / y_norm))))


def _flat_pair(
    reference: NDArray[np.floating[Any]], approximation: NDArray[np.floating[Any]]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if reference.shape != approximation.shape or reference.size == 0:
        raise UsageError(
            "two tensors cannot be compared",
            expected="one shape with at least one element",
            found=f"{reference.shape} and {approximation.shape}",
        )
    return reference.astype(np.float64).ravel(), approximation.astype(np.float64).ravel()
