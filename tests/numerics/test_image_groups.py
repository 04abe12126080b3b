from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qtoolkit.errors import UsageError
from qtoolkit.numerics.affine import IntegerGrid
from qtoolkit.numerics.histogram import StreamingHistogram, TensorStatistics
from qtoolkit.numerics.image_group import ImageGroup
from qtoolkit.numerics.image_groups import GroupedHistogram, group_weights
from qtoolkit.numerics.ranges import mse, mse_through, percentile

INT8 = IntegerGrid(8, signed=True, symmetric=True)
UINT8 = IntegerGrid(8, signed=False, symmetric=False)


def grouped(images: list[Any]) -> TensorStatistics:
    histogram = GroupedHistogram()
    for image in images:
        histogram.update(np.float32(image))
    return histogram.statistics(np.array([min(i) for i in images]), np.array([max(i) for i in images]))


def group(images: list[int], energy: float) -> ImageGroup:
    return ImageGroup(np.array(images), energy, np.array([len(images)]), 0.0, 1.0)


def test_images_of_one_power_of_four_share_a_group() -> None:
    found = grouped([[1.0, 1.0], [8.0, 8.0], [1.9, 1.9], [0.0, 0.0], [8.0, 9.0]])
    assert [g.images.tolist() for g in found.groups] == [[3], [0, 2], [1, 4]]
    assert [g.energy for g in found.groups] == pytest.approx([0.0, (1 + 1.9**2) / 2, (64 + 72.5) / 2])
    assert [g.zero_count for g in found.groups] == [2, 0, 0]
    assert [int(g.counts.sum()) for g in found.groups] == [2, 4, 4]


@pytest.mark.parametrize(
    ("groups", "weights"),
    [
        pytest.param([group([0, 1, 2], 4.0)], [1.0], id="one-group"),
        pytest.param([group([0, 2, 3], 4.0), group([1], 400.0)], [1.0, 0.0001], id="an-outlier-counts-less"),
        pytest.param([group([0], 0.04), group([1, 2], 4.0)], [1.0, 1.0], id="a-faint-image-counts-no-more"),
        pytest.param([group([0, 1], 0.0), group([2], 4.0)], [1.0, 1.0], id="mostly-silent"),
        pytest.param([group([0], 1.0), group([1], 3.0)], [1.0, 4 / 9], id="median-between-two"),
    ],
)
def test_weights_by_hand(groups: list[ImageGroup], weights: list[float]) -> None:
    assert group_weights(tuple(groups)).tolist() == pytest.approx(weights)


@given(st.lists(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=6), min_size=1, max_size=8))
def test_groups_hold_every_value_once(images: list[list[float]]) -> None:
    found = grouped(images)
    whole = StreamingHistogram()
    whole.update(np.float32([value for image in images for value in image]))
    np.testing.assert_array_equal(found.counts, whole.counts)
    assert (found.lo, found.hi, found.zero_count) == (whole.lo, whole.hi, whole.zero_count)
    assert sorted(i for g in found.groups for i in g.images.tolist()) == list(range(len(images)))
    assert sum(int(g.counts.sum()) for g in found.groups) == whole.counts.sum()
    again = TensorStatistics.from_arrays(
        json.loads(json.dumps({name: array.tolist() for name, array in found.to_arrays().items()}))
    )
    for name, array in found.to_arrays().items():
        np.testing.assert_array_equal(again.to_arrays()[name], array)


def test_statistics_refuse_groups_that_miss_an_image() -> None:
    with pytest.raises(UsageError, match="each image and each counted value once"):
        TensorStatistics(np.zeros(2), np.ones(2), np.array([1]), 0.0, 1.0, groups=(group([0], 1.0),))


def silu(x: Any) -> Any:
    return x / (1 + np.exp(-np.clip(x, -60, 60)))


class TestOneImageCannotSpoilARange:
    ordinary = tuple(np.random.default_rng(0).standard_normal((20, 2000)))
    spoiled = (*ordinary, 500 * np.random.default_rng(1).standard_normal(2000))

    @pytest.mark.parametrize("grid", [INT8, UINT8], ids=["int8", "uint8"])
    def test_least_squares(self, grid: IntegerGrid) -> None:
        expected, found = (mse(grouped(list(images)), grid) for images in (self.ordinary, self.spoiled))
        assert found == pytest.approx(expected, rel=0.15)
        # Without groups the one image decides.
        plain = grouped(list(self.spoiled))
        alone = TensorStatistics(plain.image_min, plain.image_max, plain.counts, plain.lo, plain.hi)
        assert mse(alone, grid)[1] > 100 * found[1]

    def test_least_squares_behind_an_activation(self) -> None:
        expected, found = (mse_through(grouped(list(i)), UINT8, silu) for i in (self.ordinary, self.spoiled))
        assert found[1] == pytest.approx(expected[1], rel=0.15)

    def test_percentiles_count_every_image_alike_and_stay_fine(self) -> None:
        lo, hi = percentile(grouped(list(self.spoiled)), UINT8, 95.0)
        expected = np.quantile(np.concatenate(self.spoiled), [0.05, 0.95])
        assert (lo, hi) == pytest.approx(tuple(expected), rel=0.02)

    def test_a_tolerance_lets_common_differences_count(self) -> None:
        twice = grouped([*self.ordinary, *(3 * image for image in self.ordinary[:5])])
        strict, tolerant = (group_weights(twice.groups, tolerance) for tolerance in (1.0, 16.0))
        assert strict.min() < 0.1
        assert tolerant.tolist() == [1.0] * len(twice.groups)
        found = mse(grouped(list(self.spoiled)), UINT8, 16.0)
        assert found == pytest.approx(mse(grouped(list(self.ordinary)), UINT8), rel=0.15)

    @pytest.mark.parametrize("grid", [INT8, UINT8], ids=["int8", "uint8"])
    def test_few_huge_values_that_hardly_raise_an_images_energy(self, grid: IntegerGrid) -> None:
        few = np.array(self.ordinary[0])
        few[[3, 700, 701]] = 45.0, -50.0, 48.0
        spoiled, expected = grouped([few, *self.ordinary]), mse(grouped(list(self.ordinary)), grid)
        # Within the tolerated energy, and yet its squared errors would widen the range several times.
        assert group_weights(spoiled.groups, 4.0).min() > 0.5
        assert mse(spoiled, grid, 4.0) == pytest.approx(expected, rel=0.3)
        plain = TensorStatistics(spoiled.image_min, spoiled.image_max, spoiled.counts, spoiled.lo, spoiled.hi)
        assert mse(plain, grid)[1] > 3 * expected[1]

    def test_one_huge_value_that_does_not_raise_an_images_energy_behind_an_activation(self) -> None:
        images = [1.3 * np.random.default_rng(seed).standard_normal(1_000_000) for seed in range(4)]
        expected = mse_through(grouped(images), UINT8, silu)
        images[0][5] = 1000.0
        spoiled = grouped(images)
        # 160 times the usual; one image among others of its energy, so that groups do not tell it apart.
        assert len(spoiled.groups) == 1
        assert mse_through(spoiled, UINT8, silu) == pytest.approx(expected, rel=0.1)
