from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qtoolkit.errors import UsageError
from qtoolkit.numerics.rank_correlation import average_ranks, spearman

_VALUES = st.lists(st.integers(-5, 5), min_size=2, max_size=12)


def test_equal_values_share_the_mean_of_their_ranks():
    assert average_ranks([30.0, 10.0, 20.0, 20.0, 20.0, 40.0]).tolist() == [5.0, 1.0, 3.0, 3.0, 3.0, 6.0]


def test_without_ties_by_hand():
    # Ranks 1 2 3 4 5 and 2 1 4 3 5: d = ±1 four times, 1 − 6 · 4 / (5 · 24) = 0.8.
    assert spearman([1, 2, 3, 4, 5], [20, 10, 400, 300, 5000]) == pytest.approx(0.8)


def test_with_ties_by_hand():
    # Ranks 1, 2.5, 2.5, 4 and 1, 2, 3, 4. Deviations −1.5 0 0 1.5 and −1.5 −0.5 0.5 1.5: 4.5 / √(4.5 · 5).
    assert spearman([0.0, 7.0, 7.0, 9.0], [1.0, 2.0, 3.0, 4.0]) == pytest.approx(4.5 / math.sqrt(4.5 * 5))


@pytest.mark.parametrize("other", [[3.0, 3.0, 3.0], [1.0, math.nan, 2.0]], ids=["all equal", "NaN"])
def test_what_ranks_nothing_has_no_correlation(other):
    assert math.isnan(spearman([1.0, 2.0, 3.0], other))


@pytest.mark.parametrize(("left", "right"), [([1.0], [1.0]), ([1.0, 2.0], [1.0, 2.0, 3.0])], ids=["one", "lengths"])
def test_what_cannot_be_compared(left, right):
    with pytest.raises(UsageError, match="two rankings cannot be compared"):
        spearman(left, right)


@given(_VALUES, st.randoms(use_true_random=False))
def test_only_the_order_counts(values, random):
    a = np.array(values, np.float64)
    b = np.array(random.sample(values, len(values)), np.float64)
    found = spearman(a, b)
    if math.isnan(found):
        assert len(set(values)) == 1
        return
    assert -1.0 - 1e-12 <= found <= 1.0 + 1e-12
    assert spearman(b, a) == pytest.approx(found)
    assert spearman(np.exp(a), b) == pytest.approx(found)
    assert spearman(-a, b) == pytest.approx(-found)
