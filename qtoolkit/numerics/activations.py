"""Activation functions, elementwise on float64 arrays of any shape.

::

    silu(x)       = x · σ(x)                      σ(x) = 1 / (1 + e⁻ˣ)
    mish(x)       = x · tanh(ln(1 + eˣ))
    hard_swish(x) = x · clip(x + 3, 0, 6) / 6
    gelu(x)       = x · Φ(x)                      Φ the normal distribution, by its tanh form (Hendrycks & Gimpel 2016)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

__all__ = ["ACTIVATIONS"]

_Array = NDArray[np.float64]


def _sigmoid(x: _Array) -> _Array:
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * x)))


def _softplus(x: _Array) -> _Array:
    return np.asarray(np.logaddexp(0.0, x))


ACTIVATIONS: Mapping[str, Callable[[_Array], _Array]] = MappingProxyType(
    {
        "silu": lambda x: x * _sigmoid(x),
        "mish": lambda x: x * np.tanh(_softplus(x)),
        "hard_swish": lambda x: x * np.clip(x + 3.0, 0.0, 6.0) / 6.0,
        "gelu": lambda x: 0.5 * x * (1.0 + np.tanh(np.sqrt(2.0 / np.pi) * (x + 0.044715 * x**3))),
        "relu": lambda x: np.maximum(x, 0.0),
        "sigmoid": _sigmoid,
        "tanh": np.tanh,
        "softplus": _softplus,
    }
)
"""Name → function; those that flatten a part of their input, so that a range before them may ignore it."""
