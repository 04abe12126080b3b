from __future__ import annotations

import io
import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qtoolkit.errors import UsageError
from qtoolkit.numerics.histogram import StreamingHistogram, TensorStatistics

BINS = 32
batches = st.lists(
    hnp.arrays(np.float32, st.integers(0, 12), elements=st.floats(allow_nan=False, allow_infinity=False, width=32)),
    max_size=6,
)


def filled(*parts: Any, bins: int = BINS) -> StreamingHistogram:
    histogram = StreamingHistogram(bins)
    for part in parts:
        histogram.update(np.float32(part))
    return histogram


def state(histogram: StreamingHistogram) -> dict[str, Any]:
    return {name: array.tolist() for name, array in histogram.to_arrays().items()}


class TestStreamingHistogram:
    def test_by_hand(self) -> None:
        histogram = filled([0.0, 1.0, 1.5], [31.9])
        assert (histogram.lo, histogram.hi, histogram.width) == (0.0, 32.0, 1.0)
        assert np.flatnonzero(histogram.counts).tolist() == [0, 1, 31]
        assert histogram.counts[[0, 1, 31]].tolist() == [1, 2, 1]
        assert histogram.zero_count == 1

    def test_one_value_too_far_merges_pairs(self) -> None:
        histogram = filled([0.0, 1.0, 2.0, 3.0, 31.0], [32.0])
        assert (histogram.width, histogram.hi) == (2.0, 64.0)
        assert histogram.counts[[0, 1, 15, 16]].tolist() == [2, 2, 1, 1]

    def test_negative_values_do_not_share_a_bin_with_positive_ones(self) -> None:
        histogram = filled([-0.001, 0.001], [1000.0])
        assert histogram.lo == -histogram.width
        assert histogram.counts[:2].tolist() == [1, 1]

    def test_far_from_zero_keeps_a_fine_grid(self) -> None:
        histogram = filled(np.linspace(1000, 1001, 101))
        assert histogram.width <= 2.0 / BINS
        assert histogram.counts.sum() == 101

    @pytest.mark.parametrize(
        "values",
        [
            pytest.param([0.0], id="zero"),
            pytest.param([7.25], id="one-value"),
            pytest.param([1e-45, -1e-45], id="smallest"),
            pytest.param([-3.4e38, 3.4e38], id="largest"),
            pytest.param([1e-45, 3.4e38], id="smallest-and-largest"),
        ],
    )
    def test_extremes(self, values: list[float]) -> None:
        histogram = filled(values)
        assert histogram.counts.sum() == len(values)
        assert histogram.lo <= min(values) <= max(values) < histogram.hi

    def test_no_value_is_no_change(self) -> None:
        histogram = filled([1.0])
        before = state(histogram)
        histogram.update(np.zeros(0, np.float32))
        histogram.merge(StreamingHistogram(BINS))
        assert state(histogram) == before

    def test_returned_counts_are_a_copy(self) -> None:
        histogram = filled([1.0])
        histogram.counts[:] = 99
        assert histogram.counts.sum() == 1

    @given(batches)
    def test_equals_numpy(self, parts: list[Any]) -> None:
        histogram = filled(*parts)
        values = np.concatenate([np.zeros(0, np.float32), *parts]).astype(np.float64)
        assert histogram.counts.sum() == values.size
        assert histogram.zero_count == np.sum(values == 0)
        if values.size:
            edges = histogram.lo + histogram.width * np.arange(BINS + 1)
            place = np.searchsorted(edges, values, side="right") - 1
            np.testing.assert_array_equal(histogram.counts, np.bincount(place, minlength=BINS))

    @given(batches, st.randoms(use_true_random=False))
    def test_order_and_cutting_do_not_matter(self, parts: list[Any], random: Any) -> None:
        shuffled = list(parts)
        random.shuffle(shuffled)
        whole = np.concatenate([np.zeros(0, np.float32), *parts])
        assert state(filled(*parts)) == state(filled(*shuffled)) == state(filled(whole))

    @given(batches, batches)
    def test_merge_is_exact(self, left: list[Any], right: list[Any]) -> None:
        merged = filled(*left)
        merged.merge(filled(*right))
        assert state(merged) == state(filled(*left, *right))

    @given(batches)
    def test_width_is_no_more_than_needed(self, parts: list[Any]) -> None:
        histogram = filled(*parts)
        values = np.concatenate([np.zeros(0, np.float32), *parts]).astype(np.float64)
        if values.size and histogram.width > 2.0**-149:
            finer = histogram.width / 2
            spread = math.floor(values.max() / finer) - math.floor(values.min() / finer)
            assert spread >= BINS or finer <= np.abs(values).max() * 2.0**-24

    @given(batches)
    def test_saved_and_read(self, parts: list[Any]) -> None:
        histogram = filled(*parts)
        stream = io.BytesIO()
        np.savez(stream, **histogram.to_arrays())
        stream.seek(0)
        with np.load(stream) as arrays:
            again = StreamingHistogram.from_arrays(arrays)
        assert state(again) == state(histogram)
        again.update(np.float32([5.0]))
        histogram.update(np.float32([5.0]))
        assert state(again) == state(histogram)

    def test_saved_as_json(self) -> None:
        histogram = filled([1.0, -2.0])
        assert state(StreamingHistogram.from_arrays(json.loads(json.dumps(state(histogram))))) == state(histogram)

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_refuses_what_is_not_finite_and_stays_as_it_was(self, value: float) -> None:
        histogram = filled([1.0])
        before = state(histogram)
        with pytest.raises(UsageError, match="finite values only"):
            histogram.update(np.float32([1.0, value]))
        assert state(histogram) == before

    def test_refuses_other_uses(self) -> None:
        with pytest.raises(UsageError, match="too few bins"):
            StreamingHistogram(8)
        with pytest.raises(UsageError, match="cannot be merged"):
            StreamingHistogram(32).merge(StreamingHistogram(64))
        with pytest.raises(UsageError, match="no exponent, span"):
            StreamingHistogram.from_arrays({"counts": [0] * 32, "zero_count": 0, "first": 0})


class TestTensorStatistics:
    def test_of_a_histogram(self) -> None:
        histogram = filled([-1.0, 0.0, 3.0])
        statistics = TensorStatistics.of(histogram, np.float32([-1.5, 0.0]), np.float32([3.0, 4.0]), 300)
        assert (statistics.minimum, statistics.maximum) == (-1.5, 4.0)
        assert (statistics.lo, statistics.hi) == (histogram.lo, histogram.hi)
        assert (statistics.zero_count, statistics.total_count) == (1, 300)

    @pytest.mark.parametrize("total_count", [None, 300])
    def test_saved_and_read(self, total_count: int | None) -> None:
        histogram = filled([-1.0, 0.0, 3.0])
        statistics = TensorStatistics.of(histogram, np.array([-1.5, 0.0]), np.array([3.0, 4.0]), total_count)
        saved = json.loads(json.dumps({name: array.tolist() for name, array in statistics.to_arrays().items()}))
        again = TensorStatistics.from_arrays(saved)
        for name, array in statistics.to_arrays().items():
            np.testing.assert_array_equal(again.to_arrays()[name], array)
        assert again.total_count == total_count

    @pytest.mark.parametrize(
        ("changed", "message"),
        [
            pytest.param({"image_min": [-1.0, 0.0]}, "one shape", id="images"),
            pytest.param({"image_min": [], "image_max": []}, "one shape", id="no-image"),
            pytest.param({"image_min": [math.nan]}, "finite image_min", id="nan"),
            pytest.param({"image_min": [5.0]}, "image_min <= image_max", id="crossed"),
            pytest.param({"counts": [0, 0]}, "one above 0", id="nothing-counted"),
            pytest.param({"counts": [3, -1]}, "none negative", id="negative"),
            pytest.param({"counts": [[1, 1]]}, "shape", id="rank"),
            pytest.param({"lo": 2.0}, "finite lo < hi", id="empty-span"),
            pytest.param({"hi": math.inf}, "finite lo < hi", id="infinite-span"),
            pytest.param({"zero_count": 3}, "zero_count", id="zeros"),
            pytest.param({"total_count": 1}, "total_count", id="fewer-in-all"),
        ],
    )
    def test_refuses(self, changed: dict[str, Any], message: str) -> None:
        parts: dict[str, Any] = {"image_min": [-1.0], "image_max": [1.0], "counts": [1, 1], "lo": -1.0, "hi": 1.0}
        with pytest.raises(UsageError, match=message):
            TensorStatistics(**(parts | changed))

    def test_refuses_a_record_that_is_not_complete(self) -> None:
        with pytest.raises(UsageError, match="no image_max"):
            TensorStatistics.from_arrays({"image_min": [0.0]})
