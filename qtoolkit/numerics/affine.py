"""Affine quantization: an integer grid, its scale and zero point, and the two maps between floats and integers.

::

    q = clip(round(x / scale) + zero_point, qmin, qmax)      quantize     (ONNX QuantizeLinear)
    y = (q - zero_point) * scale                             dequantize   (ONNX DequantizeLinear)

``round`` is half to even, the division and the product are float32. For 8 and 16 bit without narrow range both maps
equal ONNX Runtime's CPU operators bit for bit (tested); ONNX has no narrow range, so with it a value clipped below is
one step lower there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qtoolkit.errors import UsageError

__all__ = [
    "IntegerGrid",
    "QuantParams",
    "dequantize",
    "fake_quantize",
    "params_from_range",
    "quantize",
    "scale_and_zero_point",
    "weight_params",
]

_BIT_WIDTHS = (8, 16, 32)
# Below the smallest normal number a processor that flushes subnormals to zero would divide by zero.
_SMALLEST_SCALE = float(np.finfo(np.float32).tiny)
_LARGEST_FLOAT32 = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class IntegerGrid:
    """The integers a tensor may take, and how its scale may be chosen.

    ========= ====== ====================== ============ ==========
    bit width signed qmin … qmax            narrow range dtype
    ========= ====== ====================== ============ ==========
    8         yes    −128 … 127             −127 … 127   int8
    8         no     0 … 255                refused      uint8
    16        yes    −32768 … 32767         −32767 … …   int16
    16        no     0 … 65535              refused      uint16
    32        yes    −2³¹ … 2³¹−1           −2³¹+1 … …   int32
    ========= ====== ====================== ============ ==========

    ``symmetric`` fixes the zero point at 0; on an unsigned grid nothing below 0 remains, which costs a tensor behind a
    ReLU nothing and gives it one bit more. 32 bit (biases, accumulators) is signed and symmetric only.
    ``power_of_two`` allows only scales 2ᵏ (the hardware shifts instead of multiplying).
    Raises UsageError for any other combination.
    """

    bit_width: int
    signed: bool
    symmetric: bool
    narrow_range: bool = False
    power_of_two: bool = False

    def __post_init__(self) -> None:
        if self.bit_width not in _BIT_WIDTHS:
            raise UsageError(
                "the bit width of an integer grid is not supported",
                expected=f"one of {', '.join(map(str, _BIT_WIDTHS))}",
                found=str(self.bit_width),
            )
        for name, chosen, forbidden in (
            ("narrow_range", self.narrow_range, not self.signed),
            ("bit_width 32", self.bit_width == 32, not (self.signed and self.symmetric)),
        ):
            if chosen and forbidden:
                needed = "signed and symmetric" if name == "bit_width 32" else "signed"
                raise UsageError(
                    f"{name} does not go with this integer grid",
                    expected=f"a {needed} grid with {name}",
                    found=f"signed={self.signed}, symmetric={self.symmetric}",
                    do=f"choose a {needed} grid, or leave {name}",
                )

    @property
    def qmin(self) -> int:
        """Lowest integer of the grid."""
        return -(1 << (self.bit_width - 1)) + int(self.narrow_range) if self.signed else 0

    @property
    def qmax(self) -> int:
        """Highest integer of the grid."""
        return (1 << (self.bit_width - int(self.signed))) - 1

    @property
    def dtype(self) -> np.dtype[Any]:
        """Storage type: int8, uint8, int16, uint16 or int32."""
        return np.dtype(f"{'' if self.signed else 'u'}int{self.bit_width}")


@dataclass(frozen=True, eq=False)
class QuantParams:
    """Quantization parameters of one tensor; both arrays are private read-only copies.

    ``scale`` float32 > 0 and ``zero_point`` (of ``grid.dtype``, inside the grid, 0 where the grid is symmetric) have
    the shape that ``axis`` asks for:

    ============ ================== =============
    granularity  axis               shape
    ============ ================== =============
    per tensor   None               ``()``
    per channel  the channel axis   ``(C,)``
    ============ ================== =============

    A negative axis counts from the end, as in ONNX. Raises UsageError where the parts do not fit each other.
    """

    scale: NDArray[np.float32]
    zero_point: NDArray[np.integer[Any]]
    grid: IntegerGrid
    axis: int | None

    def __post_init__(self) -> None:
        scale, zero_point = np.array(self.scale), np.array(self.zero_point)
        dimensions = 0 if self.axis is None else 1
        if scale.ndim != dimensions or zero_point.shape != scale.shape:
            raise UsageError(
                "scale and zero point do not have the shape of their granularity",
                expected="() and () without an axis, (C,) and (C,) with one",
                found=f"scale {scale.shape}, zero point {zero_point.shape}, axis {self.axis}",
            )
        if scale.dtype != np.float32 or not bool(np.all(np.isfinite(scale) & (scale > 0))):
            raise UsageError(
                "a scale cannot be used", expected="finite float32 numbers above 0", found=f"{scale.dtype} {scale}"
            )
        self._check_zero_point(zero_point)
        for name, array in (("scale", scale), ("zero_point", zero_point)):
            array.flags.writeable = False
            object.__setattr__(self, name, array)

    def _check_zero_point(self, zero_point: NDArray[Any]) -> None:
        grid = self.grid
        lowest, highest = (0, 0) if grid.symmetric else (grid.qmin, grid.qmax)
        if zero_point.dtype != grid.dtype or not bool(np.all((zero_point >= lowest) & (zero_point <= highest))):
            raise UsageError(
                "a zero point does not lie on its grid",
                expected=f"{grid.dtype} in {lowest} … {highest}",
                found=f"{zero_point.dtype} {zero_point}",
            )


def scale_and_zero_point(
    lo: ArrayLike, hi: ArrayLike, grid: IntegerGrid
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Scale (float32) and zero point (int64) of clipping ranges of any shape, elementwise; both have the ranges' shape.

    The range is first widened to contain 0, so that 0.0 (padding, ReLU) is exactly an integer. With n = qmax − qmin::

        symmetric     scale = max(|lo|, |hi|) / qmax           zero_point = 0    (unsigned: scale = hi / qmax)
        asymmetric    scale = (hi − lo) / n                    zero_point = clip(round(qmin − lo / scale), qmin, qmax)
        power of two  scale = 2 ** ceil(log2(scale))           rounded up, so that the range is never clipped

    An empty range (lo = hi = 0) gives scale 1. A scale below the smallest normal float32 (2⁻¹²⁶) becomes that number.
    Inside the range the error of ``fake_quantize`` is at most scale / 2, up to float32 rounding. Formulas: Jacob et
    al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference" (2018),
    section 3.

    Raises UsageError for a bound that is not finite, for lo > hi, and for a range too wide for float32.
    """
    lowest, highest = _range_with_zero(lo, hi)
    levels = grid.qmax - grid.qmin
    if grid.symmetric:
        exact = (np.maximum(-lowest, highest) if grid.signed else highest) / grid.qmax
    else:
        exact = (highest - lowest) / levels
    scale = np.maximum(np.where(exact > 0, exact, 1.0), _SMALLEST_SCALE)
    if grid.power_of_two:
        mantissa, exponent = np.frexp(scale)
        scale = np.ldexp(1.0, exponent - (mantissa == 0.5))
    if bool(np.any(scale * levels > _LARGEST_FLOAT32)):
        raise UsageError(
            "a clipping range is too wide for float32",
            expected=f"scale * {levels} of at most {_LARGEST_FLOAT32:.3g}",
            found=f"lo {lowest}, hi {highest}",
            do="look for the layer whose output overflows",
        )
    stored = np.asarray(scale, np.float32)
    if grid.symmetric:
        return stored, np.zeros(stored.shape, np.int64)
    zero_point = np.clip(np.rint(grid.qmin - lowest / stored.astype(np.float64)), grid.qmin, grid.qmax)
    return stored, np.asarray(zero_point, np.int64)


def params_from_range(lo: ArrayLike, hi: ArrayLike, grid: IntegerGrid, axis: int | None = None) -> QuantParams:
    """Quantization parameters of a clipping range: formulas and special cases in ``scale_and_zero_point``.

    ``lo`` and ``hi`` are scalars where ``axis`` is None, else ``(C,)`` arrays. Raises UsageError.
    """
    scale, zero_point = scale_and_zero_point(lo, hi, grid)
    return QuantParams(scale, zero_point.astype(grid.dtype), grid, axis)


def weight_params(weight: NDArray[np.floating[Any]], grid: IntegerGrid, axis: int | None) -> QuantParams:
    """Symmetric min-max parameters of a weight of any shape: scale = max|w| / qmax.

    Per channel along ``axis``, per tensor where it is None. A channel of zeros gets scale 1 (see
    ``scale_and_zero_point``). Raises UsageError for another grid, an axis that the weight does not have, an empty
    weight, NaN or infinity.
    """
    if not (grid.symmetric and grid.signed):
        raise UsageError("weights need a signed symmetric grid", expected="symmetric=True", found=str(grid))
    if weight.size == 0:
        raise UsageError("a weight has no element", expected="at least one", found=f"shape {weight.shape}")
    if axis is None:
        largest = np.abs(weight).max()
    else:
        channel = _checked_axis(weight.shape, axis)
        largest = np.abs(weight).max(axis=tuple(i for i in range(weight.ndim) if i != channel))
    return params_from_range(-largest, largest, grid, axis)


def quantize(x: NDArray[np.floating[Any]], params: QuantParams) -> NDArray[np.integer[Any]]:
    """Integers of ``params.grid.dtype``, shape of ``x``: clip(round_half_even(x / scale) + zero_point, qmin, qmax).

    8 and 16 bit divide in float32 as ONNX QuantizeLinear does (``x`` is cast to float32). 32 bit, which QuantizeLinear
    does not have, divides in float64, because float32 cannot hold such integers.
    ±infinity saturates. NaN becomes qmin, which is what ONNX Runtime gives on x86-64 (ONNX leaves it open).
    Raises UsageError where ``x`` has not the channels of ``params``.
    """
    grid = params.grid
    real = np.float64 if grid.bit_width == 32 else np.float32
    scale, zero_point = _broadcast(params, np.shape(x))
    lowest, highest = (grid.qmin - zero_point).astype(real), (grid.qmax - zero_point).astype(real)
    # A division may overflow to infinity; it saturates on the next line, so numpy need not warn.
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        steps = np.asarray(np.divide(x, scale, dtype=real, casting="same_kind"))
    # fmax, not maximum: of NaN and a number it takes the number.
    np.fmax(steps, lowest, out=steps)
    np.minimum(steps, highest, out=steps)
    np.rint(steps, out=steps)
    integers = steps.astype(np.int32)
    integers += zero_point.astype(np.int32)
    return integers.astype(grid.dtype)


def dequantize(q: NDArray[np.integer[Any]], params: QuantParams) -> NDArray[np.float32]:
    """Float32 of the shape of ``q``: (q − zero_point) * scale, the difference in integers, the product in float32.

    Raises UsageError where ``q`` has not the channels of ``params``.
    """
    scale, zero_point = _broadcast(params, np.shape(q))
    # int32 holds every difference: the zero point of a 32-bit grid is 0.
    steps = np.asarray(np.subtract(q, zero_point.astype(np.int32), dtype=np.int32)).astype(np.float32)
    return np.asarray(steps * scale, np.float32)


def fake_quantize(x: NDArray[np.floating[Any]], params: QuantParams) -> NDArray[np.float32]:
    """``dequantize(quantize(x))``: what remains of ``x`` on its grid; float32, shape of ``x``. Raises UsageError."""
    return dequantize(quantize(x, params), params)


def _range_with_zero(lo: ArrayLike, hi: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    lowest, highest = np.asarray(lo, np.float64), np.asarray(hi, np.float64)
    if not bool(np.all(np.isfinite(lowest) & np.isfinite(highest) & (lowest <= highest))):
        raise UsageError(
            "a clipping range cannot be used", expected="finite lo <= hi", found=f"lo {lowest}, hi {highest}"
        )
    return np.minimum(lowest, 0.0), np.maximum(highest, 0.0)


def _checked_axis(shape: tuple[int, ...], axis: int) -> int:
    if not -len(shape) <= axis < len(shape):
        raise UsageError(
            "the channel axis is not an axis of the tensor",
            expected=f"{-len(shape)} … {len(shape) - 1} for shape {shape}" if shape else "no axis for a scalar",
            found=str(axis),
        )
    return axis % len(shape)


def _broadcast(params: QuantParams, shape: tuple[int, ...]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Scale and zero point in a shape that broadcasts against ``shape``."""
    zero_point = params.zero_point.astype(np.int64)
    if params.axis is None:
        return params.scale, zero_point
    axis = _checked_axis(shape, params.axis)
    if shape[axis] != params.scale.size:
        raise UsageError(
            "the tensor has not the channels of its quantization parameters",
            expected=f"{params.scale.size} along axis {params.axis}",
            found=f"shape {shape}",
        )
    along = tuple(-1 if i == axis else 1 for i in range(len(shape)))
    return params.scale.reshape(along), zero_point.reshape(along)
