from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qtoolkit.numerics.distribution import Distribution, Moments
from qtoolkit.numerics.histogram import StreamingHistogram, TensorStatistics


def statistics(counts: list[int], lo: float, hi: float, **more: Any) -> TensorStatistics:
    extremes: dict[str, Any] = {"image_min": [lo], "image_max": [hi]}
    return TensorStatistics(counts=np.array(counts), lo=lo, hi=hi, **(extremes | more))


class TestPieces:
    @pytest.mark.parametrize(
        ("given_statistics", "options", "knots", "mass"),
        [
            pytest.param(statistics([1, 3], 0, 2), {}, [0, 1, 2], [1, 3], id="as-counted"),
            pytest.param(
                statistics([0, 2, 0, 1, 0], 0, 5, image_min=[1.5], image_max=[3.25]),
                {},
                [1.5, 2, 3, 3.25],
                [2, 0, 1],
                id="cut-at-the-exact-extremes",
            ),
            pytest.param(
                statistics([1, 4], -1, 1, zero_count=3), {}, [-1, 0, 0, 0, 1], [1, 3, 0, 1], id="zeros-are-a-point"
            ),
            pytest.param(
                statistics([4], -1, 3, zero_count=3), {}, [-1, 0, 0, 3], [0.25, 3, 0.75], id="zeros-inside-a-bin"
            ),
            pytest.param(
                statistics([5], 0, 1, zero_count=5, image_max=[0]), {}, [0, 0, 0, 0], [5, 0, 0], id="only-zeros"
            ),
            pytest.param(
                statistics([0, 5], 0, 2, image_min=[1.25], image_max=[1.25]),
                {},
                [1.25] * 4,
                [5, 0, 0],
                id="one-value",
            ),
            pytest.param(statistics([2, 4], 0, 2), {"parts": 2}, [0, 0.5, 1, 1.5, 2], [1, 1, 2, 2], id="bins-cut"),
            pytest.param(
                statistics([2, 2], 0, 2, total_count=8),
                {"with_extremes": True},
                [0, 0, 0, 1, 2, 2, 2],
                [0.5, 0, 2, 2, 0.5, 0],
                id="extremes-weigh-one-value",
            ),
            pytest.param(
                statistics([2, 2], 0, 2, total_count=4),
                {"with_extremes": True},
                [0, 1, 2],
                [2, 2],
                id="extremes-of-a-whole-sample-are-counted-already",
            ),
        ],
    )
    def test_by_hand(self, given_statistics: Any, options: Any, knots: list[float], mass: list[float]) -> None:
        found = Distribution.of(given_statistics, **options)
        assert found.knots.tolist() == knots
        assert found.mass.tolist() == mass

    @given(
        st.lists(st.floats(-100, 100, width=16), min_size=1, max_size=40),
        st.booleans(),
        st.sampled_from([None, 1000]),
        st.sampled_from([1, 3]),
    )
    def test_no_mass_is_lost(self, values: list[float], extremes: bool, total: int | None, parts: int) -> None:
        x = np.float32(values)
        histogram = StreamingHistogram(16)
        histogram.update(x)
        known = TensorStatistics.of(histogram, np.array([x.min()]), np.array([x.max()]), total)
        found = Distribution.of(known, with_extremes=extremes, parts=parts)
        extra = 2 * x.size / total if extremes and total else 0.0
        assert found.mass.sum() == pytest.approx(x.size + extra)
        assert np.all(np.diff(found.knots) >= 0)
        assert (found.knots[0], found.knots[-1]) == found.body == (x.min(), x.max())

    def test_body_leaves_out_what_the_sample_missed(self) -> None:
        far = statistics([2, 2], 0, 2, image_min=[-9], image_max=[9], total_count=8)
        found = Distribution.of(far, with_extremes=True)
        assert found.body == (0.0, 2.0)
        assert (found.knots[0], found.knots[-1]) == (-9.0, 9.0)


class TestQuantiles:
    @pytest.mark.parametrize(
        ("counts", "lower", "upper", "expected"),
        [
            pytest.param([4, 4], 0.0, 0.0, (0.0, 2.0), id="everything"),
            pytest.param([4, 4], 0.25, 0.25, (0.5, 1.5), id="inside-a-bin"),
            pytest.param([1, 3], 0.0, 0.5, (0.0, 4 / 3), id="linear-inside-a-bin"),
            pytest.param([2, 0, 2], 0.5, 0.5, (2.0, 1.0), id="a-gap-gives-the-bound-farther-out-per-tail"),
            pytest.param([1, 0, 0, 3], 0.1, 0.0, (0.4, 4.0), id="one-tail"),
        ],
    )
    def test_by_hand(self, counts: list[int], lower: float, upper: float, expected: tuple[float, float]) -> None:
        found = Distribution.of(statistics(counts, 0, len(counts))).quantiles(lower, upper)
        assert found == pytest.approx(expected)


class TestMoments:
    PIECES = Distribution(np.array([-1.0, 0.0, 0.0, 2.0]), np.array([1.0, 5.0, 4.0]), (-1.0, 2.0))

    def test_identity_by_hand(self) -> None:
        m0, m1, m2, slope = Moments(self.PIECES).at(np.array([-2.0, -1.0, -0.5, 0.0, 1.0, 2.0, 3.0]))
        np.testing.assert_allclose(m0, [0, 0, 0.5, 6, 8, 10, 10])
        np.testing.assert_allclose(m1, [0, 0, -0.375, -0.5, 0.5, 3.5, 3.5])
        np.testing.assert_allclose(m2, [0, 0, 7 / 24, 1 / 3, 1, 17 / 3, 17 / 3])
        np.testing.assert_allclose(slope, [0, 0, 0.5, 1, 3, 5, 5])

    def test_function_and_weight_by_hand(self) -> None:
        moments = Moments(self.PIECES, lambda x: 3 * x + 1, lambda y: y * 0 + 2)
        assert moments.total == pytest.approx((20, 2 * (3 * 3.5 + 10), 2 * (9 * 17 / 3 + 6 * 3.5 + 10), 2 * 9 * 5))

    def test_value_is_linear_inside_and_exact_outside(self) -> None:
        moments = Moments(self.PIECES, np.square)
        assert moments.value(np.array([-3.0, -0.5, 1.0, 4.0])).tolist() == [9.0, 0.5, 2.0, 16.0]
