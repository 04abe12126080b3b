from __future__ import annotations

import numpy as np
import pytest
import torch
from onnx import TensorProto, numpy_helper

from qtoolkit.training.onnx_operators.shaping import to_tensor


def ints(*values):
    return np.array(values, np.int64)


@pytest.mark.parametrize("target", [(6, 4), (-1, 2), (0, 12), (2, 0, -1), (24,), (2, 3, 2, 2)])
def test_reshape(same_in_torch, noise, target):
    same_in_torch("Reshape", {"x": noise(2, 3, 4)}, {"shape": ints(*target)})


def test_reshape_to_a_shape_that_is_computed(same_in_torch, noise):
    same_in_torch("Reshape", {"x": noise(2, 3, 4), "shape": ints(4, -1)})


def test_zeros_of_a_reshape_may_be_meant(same_in_torch):
    same_in_torch("Reshape", {"x": np.zeros((0, 3), np.float32)}, {"shape": ints(3, 0)}, opset=14, allowzero=1)


@pytest.mark.parametrize("axis", [0, 1, 2, 3, -1])
def test_flatten(same_in_torch, noise, axis):
    same_in_torch("Flatten", {"x": noise(2, 3, 4)}, axis=axis)


@pytest.mark.parametrize("attributes", [{}, {"perm": [2, 0, 1]}])
def test_transpose(same_in_torch, noise, attributes):
    same_in_torch("Transpose", {"x": noise(2, 3, 4)}, **attributes)


@pytest.mark.parametrize("axes", [[1], [-1, 1], [1, 3]])
def test_squeeze_and_unsqueeze(same_in_torch, noise, axes):
    same_in_torch("Squeeze", {"x": noise(2, 1, 3, 1)}, opset=11, axes=axes)
    same_in_torch("Squeeze", {"x": noise(2, 1, 3, 1)}, {"axes": ints(*axes)})
    same_in_torch("Unsqueeze", {"x": noise(2, 3)}, opset=11, axes=[1, 3] if -1 in axes else axes)
    same_in_torch("Unsqueeze", {"x": noise(2, 3)}, {"axes": ints(*axes)})


def test_squeeze_of_every_axis_of_one(same_in_torch, noise):
    same_in_torch("Squeeze", {"x": noise(2, 1, 3, 1)})


@pytest.mark.parametrize("axis", [1, -2])
def test_concat(same_in_torch, noise, axis):
    same_in_torch("Concat", {"a": noise(2, 3, 4), "b": noise(2, 2, 4, seed=1)}, {"c": noise(2, 1, 4)}, axis=axis)


def test_split(same_in_torch, noise):
    x = {"x": noise(2, 7, 3)}
    same_in_torch("Split", x, opset=11, axis=1, split=[2, 5], outputs=("a", "b"))
    same_in_torch("Split", x, {"sizes": ints(2, 5)}, axis=1, outputs=("a", "b"))
    same_in_torch("Split", x, opset=18, axis=1, num_outputs=3, outputs=("a", "b", "c"))
    same_in_torch("Split", {"x": noise(6, 2)}, outputs=("a", "b"))


SLICES = [
    ("plain", {"s": [1, 0], "e": [3, 2]}),
    ("beyond the end", {"s": [1], "e": [99], "a": [1]}),
    ("from the end", {"s": [-2], "e": [2**63 - 1], "a": [-1]}),
    ("steps", {"s": [0, 1], "e": [99, 99], "a": [2, 1], "t": [2, 2]}),
    ("backwards", {"s": [-1], "e": [-(2**63)], "a": [2], "t": [-1]}),
    ("backwards by two", {"s": [4], "e": [0], "a": [2], "t": [-2]}),
    ("backwards to the start", {"s": [3], "e": [-99], "a": [1], "t": [-2]}),
]


@pytest.mark.parametrize("parts", [c[1] for c in SLICES], ids=[c[0] for c in SLICES])
def test_slice(same_in_torch, noise, parts):
    same_in_torch("Slice", {"x": noise(3, 4, 5)}, {name: ints(*values) for name, values in parts.items()})


def test_slice_by_attributes(same_in_torch, noise):
    same_in_torch("Slice", {"x": noise(3, 4, 5)}, opset=9, starts=[1, 0], ends=[3, -1], axes=[2, 0])


@pytest.mark.parametrize("target", [(2, 3, 4), (1, 1, 1), (4,), (5, 2, 3, 4), (3, 1)])
def test_expand(same_in_torch, noise, target):
    same_in_torch("Expand", {"x": noise(3, 1)[:, :] if len(target) > 1 else noise(3, 4)}, {"shape": ints(*target)})


def test_tile(same_in_torch, noise):
    same_in_torch("Tile", {"x": noise(2, 3)}, {"repeats": ints(2, 3)})


PADS = [
    ("constant", {"pads": ints(0, 0, 1, 2, 0, 0, 3, 0)}, {}),
    ("a value", {"pads": ints(0, 1, 1, 2, 0, 0, 3, 0), "value": np.float32(2.5)}, {}),
    ("crop", {"pads": ints(0, 0, -1, 2, 0, 0, 0, -2)}, {}),
    ("reflect", {"pads": ints(0, 0, 1, 2, 0, 0, 3, 0)}, {"mode": "reflect"}),
    ("edge", {"pads": ints(0, 1, 1, 2, 0, 2, 3, 0)}, {"mode": "edge"}),
]


@pytest.mark.parametrize(("constants", "attributes"), [c[1:] for c in PADS], ids=[c[0] for c in PADS])
@pytest.mark.parametrize("opset", [11, 18])
def test_pad(same_in_torch, noise, constants, attributes, opset):
    same_in_torch("Pad", {"x": noise(2, 3, 5, 6)}, constants, opset=opset, **attributes)


def test_pad_by_attributes_and_along_axes(same_in_torch, noise):
    same_in_torch("Pad", {"x": noise(2, 3, 5)}, opset=7, pads=[0, 1, 0, 0, 0, 2], value=1.5)
    constants = {"pads": ints(1, 2, 3, 0), "value": np.float32(0.5), "axes": ints(2, 1)}
    same_in_torch("Pad", {"x": noise(2, 3, 5)}, constants, opset=18)


def test_pad_around(same_in_torch, noise):
    same_in_torch("Pad", {"x": noise(2, 3, 5)}, {"pads": ints(0, 0, 1, 0, 0, 2)}, opset=19, mode="wrap")


def test_shape_and_size(same_in_torch, noise):
    same_in_torch("Shape", {"x": noise(2, 3, 4)})
    same_in_torch("Shape", {"x": noise(2, 3, 4)}, opset=15, start=1, end=-1)
    same_in_torch("Size", {"x": noise(2, 3, 4)})


@pytest.mark.parametrize("value", [None, np.array([2.5], np.float32), np.array([3], np.int64), np.array([True])])
def test_constant_of_shape(same_in_torch, value):
    given = {} if value is None else {"value": numpy_helper.from_array(value)}
    same_in_torch("ConstantOfShape", {"shape": ints(2, 3)}, **given)


@pytest.mark.parametrize("dtype", [np.int64, np.float32])
def test_range(same_in_torch, dtype):
    same_in_torch("Range", {"start": np.array(1, dtype), "limit": np.array(9, dtype), "delta": np.array(3, dtype)})


def test_constants_become_tensors_of_the_nearest_type():
    assert to_tensor(np.array([1, 2], np.uint16)).dtype == torch.int32
    assert to_tensor(np.array(1.5, np.float32)).shape == ()
    half = numpy_helper.to_array(numpy_helper.from_array(np.array([1.5], np.float32)))
    assert to_tensor(half.astype(np.float16)).dtype == torch.float16
    assert TensorProto.FLOAT == 1
