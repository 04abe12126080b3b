from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from qtoolkit.numerics.affine import IntegerGrid, QuantParams, fake_quantize, params_from_range
from qtoolkit.numerics.histogram import StreamingHistogram, TensorStatistics
from qtoolkit.numerics.squared_error import mse, mse_through

GRIDS = {
    "int8": IntegerGrid(8, signed=True, symmetric=True),
    "int8-narrow": IntegerGrid(8, signed=True, symmetric=True, narrow_range=True),
    "int8-free": IntegerGrid(8, signed=True, symmetric=False),
    "uint8": IntegerGrid(8, signed=False, symmetric=False),
    "int8-shift": IntegerGrid(8, signed=True, symmetric=True, power_of_two=True),
    "uint8-from-0": IntegerGrid(8, signed=False, symmetric=True),
    "uint8-from-0-shift": IntegerGrid(8, signed=False, symmetric=True, power_of_two=True),
    "uint8-shift": IntegerGrid(8, signed=False, symmetric=False, power_of_two=True),
}
INT8, UINT8, INT8_SHIFT = GRIDS["int8"], GRIDS["uint8"], GRIDS["int8-shift"]
INT16 = IntegerGrid(16, signed=True, symmetric=True)
UINT16 = IntegerGrid(16, signed=False, symmetric=False)

rng = np.random.default_rng(5)
N = 6000
TENSORS = {
    "gauss": rng.standard_normal(N),
    "moved": rng.standard_normal(N) * 4 - 3,
    "relu": np.maximum(rng.standard_normal(N), 0),
    "laplace": rng.laplace(size=N),
    "heavy-tail": rng.standard_t(2.5, N),
    "negative": -rng.exponential(size=N),
    "far-from-zero": rng.uniform(5, 6, N),
    "outlier": np.append(rng.standard_normal(N - 1), 60.0),
}


def silu(x: Any) -> Any:
    return x / (1 + np.exp(-x))


def known(x: Any, bins: int = 2048, total: int | None = None) -> TensorStatistics:
    histogram = StreamingHistogram(bins)
    histogram.update(np.float32(x))
    # Extremes of float32, as calibration sees them.
    images = np.float32(x).reshape(6, -1)
    return TensorStatistics.of(histogram, images.min(axis=1), images.max(axis=1), total)


def error(x: Any, held: QuantParams, function: Callable[[Any], Any] = np.asarray) -> float:
    x = np.float32(x)
    return float(np.mean((function(fake_quantize(x, held).astype(np.float64)) - function(x.astype(np.float64))) ** 2))


def brute_force(x: Any, grid: IntegerGrid, function: Callable[[Any], Any] = np.asarray) -> float:
    """Least error over many scales and zero points, by quantizing the values themselves."""
    widest = float(params_from_range(min(x.min(), 0), max(x.max(), 0), grid).scale)
    scales = widest * (2.0 ** -np.arange(12) if grid.power_of_two else np.geomspace(1, 1 / 12, 32))
    zero_points = np.zeros(1) if grid.symmetric else np.unique(np.linspace(grid.qmin, grid.qmax, 18).astype(int))
    least = np.inf
    for scale in scales:
        for zero_point in {
            *zero_points,
            *(() if grid.symmetric else np.clip([grid.qmin - round(x.min() / scale)], grid.qmin, grid.qmax)),
        }:
            held = QuantParams(np.float32(scale), np.array(zero_point, grid.dtype), grid, None)
            least = min(least, error(x, held, function))
    return least


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
@pytest.mark.parametrize("x", TENSORS.values(), ids=TENSORS)
def test_mse_is_as_good_as_brute_force(x: Any, grid: IntegerGrid) -> None:
    found = error(x, params_from_range(*mse(known(x), grid), grid))
    # The search sees bins, brute force the values: in an outlier's wide bins a few percent are chance.
    assert found <= brute_force(x, grid) * 1.03
    assert found <= error(x, params_from_range(x.min(), x.max(), grid)) * 1.03


@pytest.mark.parametrize("grid", [INT8, UINT8], ids=["int8", "uint8"])
@pytest.mark.parametrize("name", ["moved", "laplace", "far-from-zero"])
def test_mse_through_silu_is_as_good_as_brute_force(name: str, grid: IntegerGrid) -> None:
    x = TENSORS[name]
    found = error(x, params_from_range(*mse_through(known(x), grid, silu), grid), silu)
    assert found <= brute_force(x, grid, silu) * 1.03


def test_bins_wider_than_steps_are_integrated() -> None:
    # All mass in two bins of width 64; levels of min-max lie 0.5 apart.
    statistics = TensorStatistics(np.array([0.0]), np.array([128.0]), np.array([7, 7]), 0.0, 128.0)
    assert mse(statistics, UINT8)[1] == pytest.approx(128.0, rel=0.01)


def test_two_levels_by_hand() -> None:
    # Values are 0 and 3 only: with an exact 3 nothing is lost, so the range must reproduce it.
    lo, hi = mse(known(np.repeat([0.0, 3.0], 3000)), UINT8)
    assert fake_quantize(np.float32([0, 3]), params_from_range(lo, hi, UINT8)).tolist() == [0, 3]


def test_outlier_is_clipped_when_rare_and_kept_when_not() -> None:
    body = rng.standard_normal(60_000 - 1)
    assert mse(known(np.append(body, 12.0)), INT8)[1] < 10.0
    assert mse(known(np.append(body[: 6000 - 60], np.full(60, 12.0))), INT8)[1] > 11.9


def test_extremes_that_a_small_sample_missed_are_not_free_to_clip() -> None:
    x = np.clip(rng.standard_normal(6000), -3, 3)
    histogram = StreamingHistogram()
    histogram.update(np.float32(x))
    missed = {"image_min": np.array([-3.0]), "image_max": np.array([30.0])}
    without = TensorStatistics.of(histogram, **missed)
    with_total = TensorStatistics.of(histogram, **missed, total_count=12_000)
    assert mse(without, INT16)[1] < 4.0
    assert mse(with_total, INT16)[1] == pytest.approx(30.0, rel=0.01)


def test_one_value_far_inside_an_extreme_is_still_rounded() -> None:
    histogram = StreamingHistogram()
    histogram.update(np.full(5000, 0.01, np.float32))
    statistics = TensorStatistics.of(histogram, np.array([0.0]), np.array([500.0]), total_count=10**12)
    lo, hi = mse(statistics, UINT8)
    assert fake_quantize(np.float32([0.01]), params_from_range(lo, hi, UINT8)) == pytest.approx(0.01, rel=0.05)


def test_power_of_two_scale_is_the_one_used() -> None:
    lo, hi = mse(known(TENSORS["gauss"]), INT8_SHIFT)
    scale = float(params_from_range(lo, hi, INT8_SHIFT).scale)
    assert hi == scale * 127 == -lo
    assert np.frexp(scale)[0] == 0.5


@pytest.mark.parametrize("grid", [UINT8, GRIDS["int8-free"], UINT16], ids=["uint8", "int8-free", "uint16"])
def test_range_gives_back_the_grid_that_was_searched(grid: IntegerGrid) -> None:
    lo, hi = mse(known(TENSORS["moved"]), grid)
    held = params_from_range(lo, hi, grid)
    zero_point = int(held.zero_point)
    assert lo == pytest.approx(float(held.scale) * (grid.qmin - zero_point), rel=1e-6)
    assert hi == pytest.approx(float(held.scale) * (grid.qmax - zero_point), rel=1e-6)


@pytest.mark.parametrize("grid", [INT16, UINT16], ids=["int16", "uint16"])
def test_16_bit_keeps_nearly_everything(grid: IntegerGrid) -> None:
    x = TENSORS["laplace"]
    lo, hi = mse(known(x), grid)
    held = params_from_range(lo, hi, grid)
    assert error(x, held) <= error(x, params_from_range(x.min(), x.max(), grid)) * 1.01


@pytest.mark.parametrize("grid", [*GRIDS.values(), UINT16])
def test_all_zero(grid: IntegerGrid) -> None:
    statistics = known(np.zeros(6))
    assert mse(statistics, grid) == (0.0, 0.0)
    assert mse_through(statistics, grid, silu) == (0.0, 0.0)


def test_through_the_identity_is_mse() -> None:
    statistics = known(TENSORS["laplace"])
    assert mse_through(statistics, UINT8, lambda x: x) == pytest.approx(mse(statistics, UINT8), rel=1e-3)


def test_through_relu_spends_nothing_below_zero() -> None:
    lo, hi = mse_through(known(TENSORS["gauss"]), UINT8, lambda x: np.maximum(x, 0))
    assert lo == 0.0
    assert hi == pytest.approx(mse(known(np.maximum(TENSORS["gauss"], 0)), UINT8)[1], rel=0.03)


def test_output_weight_moves_the_range() -> None:
    statistics = known(TENSORS["laplace"])
    plain = mse_through(statistics, INT8, lambda x: x)
    small_outputs_matter = mse_through(statistics, INT8, lambda x: x, lambda y: (np.abs(y) < 2.0) * 1.0)
    assert small_outputs_matter[1] < 2.1 < plain[1]
