"""Arrays that results are copied into: never one that somebody can still see."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

from qtoolkit.backends.host_arrays import HostArrays


def owned():
    return np.zeros((2, 3), np.float32)


def borrowed():
    """Memory of somebody else, as CUDA gives it: a view of a view of a ctypes block."""
    block = (ctypes.c_uint8 * 24)()
    return np.asarray(np.ctypeslib.as_array(block)[:24].view(np.float32).reshape(2, 3))


@pytest.mark.parametrize("make", [owned, borrowed])
class TestHostArrays:
    def test_one_that_nobody_holds_is_used_again(self, make):
        made = []
        arrays = HostArrays(lambda: made.append(1) or make())
        for value in range(5):
            array = arrays.take()
            array[...] = value
            del array
        assert len(made) == 1

    @pytest.mark.parametrize("hold", [lambda array: array, lambda array: array[0], lambda array: array[0][1:].T])
    def test_one_that_is_held_or_seen_through_a_view_is_not_written_to(self, make, hold):
        arrays = HostArrays(make, most=2)
        kept = []
        for value in range(6):
            array = arrays.take()
            array[...] = value
            kept.append(hold(array))
            del array
        for value, seen in enumerate(kept):
            assert np.all(seen == value)

    def test_no_more_than_so_many_are_made(self, make):
        made = []
        arrays = HostArrays(lambda: made.append(1) or make(), most=2)
        kept = [arrays.take() for _ in range(5)]
        assert len(made) == 2 and all(each.shape == (2, 3) and each.dtype == np.float32 for each in kept)
        del kept
        arrays.take()
        assert len(made) == 2
