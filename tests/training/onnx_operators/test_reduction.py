from __future__ import annotations

import numpy as np
import pytest

REDUCTIONS = ["Sum", "Mean", "Max", "Min", "Prod", "L1", "L2", "SumSquare", "LogSum", "LogSumExp"]


@pytest.mark.parametrize("kind", REDUCTIONS)
@pytest.mark.parametrize(("axes", "keep"), [([1], 1), ([0, -1], 0), (None, 1)])
def test_axes_as_attribute(same_in_torch, noise, kind, axes, keep):
    given = {} if axes is None else {"axes": axes}
    same_in_torch(f"Reduce{kind}", {"x": np.abs(noise(2, 3, 4))}, opset=11, keepdims=keep, **given)


@pytest.mark.parametrize("kind", REDUCTIONS)
@pytest.mark.parametrize(("axes", "keep"), [([1], 1), ([0, -1], 0)])
def test_axes_as_input(same_in_torch, noise, kind, axes, keep):
    same_in_torch(f"Reduce{kind}", {"x": np.abs(noise(2, 3, 4))}, {"axes": np.array(axes)}, opset=18, keepdims=keep)


def test_sum_has_its_axes_as_input_since_opset_13(same_in_torch, noise):
    same_in_torch("ReduceSum", {"x": noise(2, 3, 4)}, {"axes": np.array([2])}, opset=13)


@pytest.mark.parametrize("idle", [0, 1])
def test_no_axes_are_all_or_none(same_in_torch, noise, idle):
    same_in_torch("ReduceSum", {"x": noise(2, 3)}, {"axes": np.array([], np.int64)}, noop_with_empty_axes=idle)


def test_whole_numbers_stay_whole(same_in_torch):
    same_in_torch("ReduceSum", {"x": np.arange(6).reshape(2, 3).astype(np.int32)}, {"axes": np.array([1])})
    same_in_torch("ReduceProd", {"x": np.arange(1, 7).reshape(2, 3)}, axes=[0, 1])


@pytest.mark.parametrize("op_type", ["ArgMax", "ArgMin"])
@pytest.mark.parametrize("attributes", [{}, {"axis": -1, "keepdims": 0}, {"axis": 1, "select_last_index": 1}])
def test_index_of_an_extreme(same_in_torch, op_type, attributes):
    x = np.random.default_rng(0).integers(0, 3, (4, 5, 6)).astype(np.float32)  # many ties
    same_in_torch(op_type, {"x": x}, **attributes)


@pytest.mark.parametrize("attributes", [{}, {"axis": 1}, {"axis": 0, "largest": 0}])
def test_top_k(same_in_torch, attributes):
    x = np.random.default_rng(0).integers(0, 5, (4, 5, 6)).astype(np.float32)
    same_in_torch("TopK", {"x": x}, {"k": np.array([3])}, outputs=("values", "indices"), **attributes)


@pytest.mark.parametrize("attributes", [{}, {"exclusive": 1}, {"reverse": 1}, {"exclusive": 1, "reverse": 1}])
def test_cumulative_sum(same_in_torch, noise, attributes):
    same_in_torch("CumSum", {"x": noise(2, 5)}, {"axis": np.array(1)}, **attributes)
