from __future__ import annotations

import itertools

import numpy as np
import pytest

from qtoolkit.numerics.row_groups import row_groups


def _cost(largest, groups):
    return sum(len(rows) * float(largest[rows].max()) ** 2 for rows in groups)


def test_rows_of_one_magnitude_stay_together():
    (rows,) = row_groups(np.full(8, 3.0))
    assert rows.tolist() == list(range(8))


def test_unlike_rows_are_told_apart_and_keep_their_order():
    groups = row_groups(np.array([1.0, 100.0, 2.0, 90.0, 1.5, 1.0]))
    assert [rows.tolist() for rows in groups] == [[0, 2, 4, 5], [1, 3]]


def test_a_third_group_where_it_halves_the_noise_again():
    groups = row_groups(np.repeat([1.0, 10.0, 100.0], [1000, 20, 1]))
    assert [len(rows) for rows in groups] == [1000, 20, 1]


@pytest.mark.parametrize("seed", range(5))
def test_no_other_cut_of_the_sorted_rows_is_better(seed):
    largest = np.random.default_rng(seed).lognormal(0, 1.5, 9)
    groups = row_groups(largest)
    order = np.argsort(largest)
    for cuts in itertools.combinations(range(1, 9), len(groups) - 1):
        assert _cost(largest, groups) <= _cost(largest, np.split(order, cuts)) * (1 + 1e-9)


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_few_rows(rows):
    groups = row_groups(np.arange(1.0, rows + 1) ** 4)
    assert sorted(np.concatenate(groups).tolist()) == list(range(rows))
