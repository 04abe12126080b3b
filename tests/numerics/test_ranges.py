from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qtoolkit.errors import UsageError
from qtoolkit.numerics.affine import IntegerGrid, params_from_range
from qtoolkit.numerics.ranges import (
    RangeEstimator,
    StreamingHistogram,
    TensorStatistics,
    entropy,
    min_max,
    moving_average,
    mse,
    percentile,
)

UINT8 = IntegerGrid(8, signed=False, symmetric=False)
GRIDS = {
    "int8": IntegerGrid(8, signed=True, symmetric=True),
    "uint8": UINT8,
    "int8-shift": IntegerGrid(8, signed=True, symmetric=True, power_of_two=True),
    "int16": IntegerGrid(16, signed=True, symmetric=True),
}


def known(x: Any, images: int = 1) -> TensorStatistics:
    histogram = StreamingHistogram()
    histogram.update(np.float32(x))
    parts = np.float32(x).reshape(images, -1)
    return TensorStatistics.of(histogram, parts.min(axis=1), parts.max(axis=1))


class TestMinMax:
    def test_takes_the_exact_extremes_of_all_images(self) -> None:
        statistics = TensorStatistics(np.array([-1.0, -3.0]), np.array([9.0, 2.0]), np.array([4]), -1.0, 1.0)
        assert min_max(statistics, UINT8) == (-3.0, 9.0)


class TestMovingAverage:
    def test_by_hand(self) -> None:
        statistics = TensorStatistics(np.array([0.0, -1.0, -1.0]), np.array([1.0, 2.0, 4.0]), np.array([4]), -1.0, 1.0)
        # 0, −0.1, −0.19 and 1, 1.1, 1.39
        assert moving_average(statistics, UINT8) == pytest.approx((-0.19, 1.39))
        assert moving_average(statistics, UINT8, momentum=0.0) == (-1.0, 4.0)

    @given(st.lists(st.floats(0, 100), min_size=1, max_size=30), st.floats(0, 0.99))
    def test_equals_the_recursion(self, highest: list[float], momentum: float) -> None:
        expected = highest[0]
        for value in highest[1:]:
            expected = momentum * expected + (1 - momentum) * value
        statistics = TensorStatistics(-np.array(highest), np.array(highest), np.array([1]), -1.0, 1.0)
        assert moving_average(statistics, UINT8, momentum) == pytest.approx((-expected, expected), abs=1e-9)

    @pytest.mark.parametrize("momentum", [-0.1, 1.0])
    def test_refuses(self, momentum: float) -> None:
        with pytest.raises(UsageError, match="momentum"):
            moving_average(known([1.0]), UINT8, momentum)


class TestPercentile:
    @pytest.mark.parametrize("p", [90.0, 99.0, 99.9, 99.99])
    def test_equals_numpy_to_a_bin(self, p: float) -> None:
        x = np.random.default_rng(1).standard_normal(200_000).astype(np.float32)
        statistics = known(x)
        width = (statistics.hi - statistics.lo) / statistics.counts.size
        found = percentile(statistics, UINT8, p)
        assert found == pytest.approx(tuple(np.percentile(x, [100 - p, p])), abs=2 * width)

    def test_linear_inside_a_bin(self) -> None:
        statistics = TensorStatistics(np.array([0.0]), np.array([10.0]), np.array([100]), 0.0, 10.0)
        assert percentile(statistics, UINT8, 75.0) == pytest.approx((2.5, 7.5))

    def test_100_clips_nothing(self) -> None:
        assert percentile(known([-3.25, 0.0, 1.0, 7.5]), UINT8, 100.0) == (-3.25, 7.5)

    def test_relu_starts_at_zero(self) -> None:
        x = np.maximum(np.random.default_rng(2).standard_normal(10_000), 0)
        lo, hi = percentile(known(x), UINT8)
        assert (lo, 3.0 < hi < x.max()) == (0.0, True)

    @pytest.mark.parametrize("p", [49.9, 100.1])
    def test_refuses(self, p: float) -> None:
        with pytest.raises(UsageError, match="percentile"):
            percentile(known([1.0]), UINT8, p)


class TestRangeEstimator:
    def test_names_and_functions(self) -> None:
        x = np.random.default_rng(4).laplace(size=6000)
        statistics = known(x, images=6)
        expected = {
            "min-max": min_max,
            "moving-average": moving_average,
            "percentile": percentile,
            "mse": mse,
            "entropy": entropy,
        }
        assert [estimator.value for estimator in RangeEstimator] == list(expected)
        for name, function in expected.items():
            assert RangeEstimator.from_name(name).estimate(statistics, UINT8) == function(statistics, UINT8)

    def test_another_name_lists_all(self) -> None:
        with pytest.raises(UsageError, match="min-max, moving-average, percentile, mse, entropy"):
            RangeEstimator.from_name("best")

    @pytest.mark.parametrize("estimator", RangeEstimator)
    @pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
    @settings(max_examples=30)
    @given(
        values=st.lists(st.floats(-(2.0**60), 2.0**60, width=32), min_size=1, max_size=20),
    )
    def test_any_tensor_gives_usable_parameters(
        self, estimator: RangeEstimator, grid: IntegerGrid, values: list[float]
    ) -> None:
        statistics = known(values)
        lo, hi = estimator.estimate(statistics, grid)
        held = params_from_range(lo, hi, grid)
        reach = max(abs(value) for value in values)
        assert lo <= hi
        # No scale is below 2⁻¹²⁶, so neither is the reach of 32767 steps.
        # A power-of-two grid may reach up to twice as far, an asymmetric one half a step farther.
        assert max(-lo, hi) <= max(reach, 2.0**-110) * 2.1
        assert np.isfinite(held.scale)
