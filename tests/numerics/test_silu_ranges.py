from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qtoolkit.errors import UsageError
from qtoolkit.numerics.affine import IntegerGrid, fake_quantize, params_from_range
from qtoolkit.numerics.histogram import StreamingHistogram, TensorStatistics
from qtoolkit.numerics.silu_ranges import silu_ranges
from qtoolkit.numerics.squared_error import error_distribution, mse, mse_through

UINT8 = IntegerGrid(8, signed=False, symmetric=False)
rng = np.random.default_rng(3)
TENSORS = {
    "gauss": rng.standard_normal(8000) * 3 - 1,
    "heavy-tail": rng.standard_t(3, 8000) * 4,
    "large": rng.standard_normal(8000) * 30,
}


def silu(x: Any) -> Any:
    return x / (1 + np.exp(-x))


def statistics(x: Any) -> TensorStatistics:
    histogram = StreamingHistogram(2048)
    histogram.update(np.float32(x))
    images = np.float32(x).reshape(8, -1)
    return TensorStatistics.of(histogram, images.min(axis=1), images.max(axis=1))


def chain_error(x: Any, before: tuple[float, float], behind: tuple[float, float]) -> float:
    """The error of the three roundings, applied to the values themselves."""
    rounded = fake_quantize(np.float32(x), params_from_range(*before, UINT8))
    gate = fake_quantize(1 / (1 + np.exp(-rounded.astype(np.float64))), params_from_range(0.0, 1.0, UINT8))
    found = fake_quantize(rounded * gate, params_from_range(*behind, UINT8))
    return float(np.mean((found - silu(x)) ** 2))


@pytest.mark.parametrize("name", TENSORS)
def test_the_pair_is_better_than_two_ranges_found_alone(name: str) -> None:
    x = TENSORS[name]
    before, behind = silu_ranges(error_distribution(statistics(x), 4), UINT8)
    alone = mse_through(statistics(x), UINT8, silu), mse(statistics(silu(x)), UINT8)
    # The search is coarse: where both grids are fine already there is little to win.
    assert chain_error(x, before, behind) <= 1.03 * chain_error(x, *alone)


def test_large_values_pass_the_second_rounding_unchanged() -> None:
    x = TENSORS["large"]
    before, behind = silu_ranges(error_distribution(statistics(x), 4), UINT8)
    scales = [params_from_range(*found, UINT8).scale for found in (before, behind)]
    assert scales[1] == pytest.approx(scales[0])
    alone = mse_through(statistics(x), UINT8, silu), mse(statistics(silu(x)), UINT8)
    assert chain_error(x, before, behind) < 0.8 * chain_error(x, *alone)


def test_the_range_contains_zero_and_keeps_the_dip() -> None:
    before, behind = silu_ranges(error_distribution(statistics(TENSORS["gauss"]), 4), UINT8)
    assert before[0] < -1 < 0 < before[1]
    assert behind[0] == pytest.approx(-0.278, abs=0.05)


@pytest.mark.parametrize("grid", [IntegerGrid(8, signed=True, symmetric=True), IntegerGrid(16, False, False)])
def test_other_grids_are_refused(grid: IntegerGrid) -> None:
    with pytest.raises(UsageError, match="one kind of grid only"):
        silu_ranges(error_distribution(statistics(TENSORS["gauss"])), grid)
