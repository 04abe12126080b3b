"""The two clipping ranges of a SiLU that runs on integers, found together.

::

    x̂ = (q − z_x) · s_x             q the integers of the tensor before the SiLU
    σ̂ = round(255 · σ(x̂)) / 255     the Sigmoid's own 8-bit grid, 0 … 1
    ŷ = fake_quantize(x̂ · σ̂)        on the grid of the tensor behind it: (s_y, z_y)

ŷ is a function of q, a table of 256 numbers. So the expected error E[(ŷ(x) − SiLU(x))²] of both grids together is
Σ_q (M₂ − 2·ŷ·M₁ + ŷ²·M₀) with Mᵢ the integral of SiLU(x)ⁱ over the values that become q. Searched one by one, each grid
is blind to the other: where s_y = s_x, large values pass the second rounding without an error.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qtoolkit.errors import UsageError
from qtoolkit.numerics.activations import ACTIVATIONS
from qtoolkit.numerics.affine import IntegerGrid
from qtoolkit.numerics.distribution import Distribution, Moments

__all__ = ["silu_ranges"]

FloatArray = NDArray[np.float64]
Range = tuple[float, float]
_Found = tuple[float, Range, Range]

_LOWEST_SILU = -0.2784645427610738
_SCALES, _OCTAVES = 24, 3.0
_LOWER_ENDS = np.array([1.3, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 8.0, 10.0])
_RATIOS = np.concatenate([[1.0], 2.0 ** np.linspace(-1.25, 0.5, 29)])
_LEVELS = 255
_FINER = 7


def silu_ranges(distribution: Distribution, grid: IntegerGrid) -> tuple[Range, Range]:
    """Ranges ``(lo, hi)`` before and behind SiLU with the least squared error behind it, for ``params_from_range``.

    ``distribution`` is that of the tensor before the SiLU, its mass the weight of an error on the value *behind* it.
    Raises UsageError for a grid that is not 8-bit with a free zero point and free scales.
    """
    if grid.bit_width != 8 or grid.symmetric or grid.power_of_two:
        raise UsageError(
            "the two ranges of a SiLU are found together on one kind of grid only",
            expected="8 bit, a free zero point, free scales",
            found=str(grid),
        )
    moments = Moments(distribution, ACTIVATIONS["silu"])
    highest = max(float(distribution.knots[-1]), 1.0)
    best: _Found = (np.inf, (0.0, 0.0), (0.0, 0.0))
    for step in range(_SCALES + 1):
        scale = (highest + _LOWER_ENDS[-1]) / _LEVELS * 2.0 ** (-_OCTAVES * step / _SCALES)
        for zero_point in np.unique(np.rint(_LOWER_ENDS / scale).clip(0, _LEVELS)):
            best = min(best, _best_behind(moments, scale, float(zero_point), best[0]), key=_error)
    (lo, hi), spread = best[1], _OCTAVES / _SCALES
    for scale in (hi - lo) / _LEVELS * 2.0 ** np.linspace(-spread, spread, _FINER):
        zero_points = np.rint(-lo / scale) + np.arange(-_FINER, _FINER + 1)
        for zero_point in np.unique(zero_points.clip(0, _LEVELS)):
            best = min(best, _best_behind(moments, float(scale), float(zero_point), best[0]), key=_error)
    return best[1], best[2]


def _best_behind(moments: Moments, scale: float, zero_point: float, least: float) -> _Found:
    """The best grid behind the SiLU for one before it; its first number is the error, ``least`` one already found."""
    integers = np.arange(_LEVELS + 1) - zero_point
    bounds: FloatArray = ((integers[:-1] + 0.5) * scale).astype(np.float64)
    total = np.array(moments.total[:3])[:, None]
    running = np.stack(moments.at(bounds)[:3])
    m0, m1, m2 = np.diff(running, axis=1, prepend=0.0, append=total)
    values = integers * scale
    products = values * np.rint(_LEVELS / (1.0 + np.exp(-values))) / _LEVELS
    # What is lost before the second rounding cannot be won back, but for chance.
    if float((m2 - 2 * products * m1 + products * products * m0).sum()) >= least:
        return np.inf, (0.0, 0.0), (0.0, 0.0)
    scales = (scale * _RATIOS)[:, None]
    offsets = np.rint(-_LOWEST_SILU / scales)
    steps = np.rint(products / scales).clip(-offsets, _LEVELS - offsets)
    rounded = steps * scales
    errors = (m2 - 2 * rounded * m1 + rounded * rounded * m0).sum(axis=1)
    winner = int(np.argmin(errors))
    behind, offset = float(scales[winner, 0]), float(offsets[winner, 0])
    before: Range = (-zero_point * scale, (_LEVELS - zero_point) * scale)
    return float(errors[winner]), before, (-offset * behind, (_LEVELS - offset) * behind)


def _error(found: _Found) -> float:
    return found[0]
