from __future__ import annotations

import numpy as np
import pytest
import torch

from qtoolkit.numerics.affine import IntegerGrid, QuantParams, fake_quantize
from qtoolkit.training.onnx_module import OnnxModule

TYPES = [(np.int8, 13), (np.uint8, 13), (np.int16, 21), (np.uint16, 21)]


def pair(kind, axis, zero):
    """A quantizer and its inverse, as text."""
    scale = "float s = {0.25}" if axis is None else "float[3] s = {0.25, 0.5, 0.125}"
    point = f"{kind} z = {{{zero}}}" if axis is None else f"{kind}[3] z = {{{zero}, {zero}, {zero}}}"
    given = "" if axis is None else f"<axis = {axis}>"
    return f"""net (float[B,3,4] x) => (float[B,3,4] y) <{scale}, {point}>
    {{ q = QuantizeLinear {given} (x, s, z)
       y = DequantizeLinear {given} (q, s, z) }}"""


@pytest.mark.parametrize(("dtype", "opset"), TYPES, ids=["int8", "uint8", "int16", "uint16"])
@pytest.mark.parametrize("axis", [None, 1])
def test_a_pair_equals_the_formula_bit_for_bit(parse_network, noise, dtype, opset, axis):
    zero = 3
    model = parse_network(pair(np.dtype(dtype).name, axis, zero), opset=opset, ir_version=10)
    x = noise(2, 3, 4) * np.float32(30)
    found = OnnxModule(model)(torch.from_numpy(x))["y"].numpy()
    grid = IntegerGrid(np.dtype(dtype).itemsize * 8, np.dtype(dtype).kind == "i", symmetric=False)
    scale = np.float32(0.25) if axis is None else np.float32([0.25, 0.5, 0.125])
    params = QuantParams(scale, np.full(np.shape(scale), zero, dtype), grid, axis)
    np.testing.assert_array_equal(found, fake_quantize(x, params))


@pytest.mark.parametrize(("dtype", "opset"), TYPES[:3], ids=["int8", "uint8", "int16"])
def test_quantized_outputs_have_their_integer_type(same_in_torch, noise, dtype, opset):
    constants = {"s": np.float32(0.05), "z": dtype(1)}
    same_in_torch("QuantizeLinear", {"x": noise(2, 3, 4)}, constants, opset=opset)


@pytest.mark.parametrize(("opset", "attributes"), [(10, {}), (21, {"output_dtype": 5})], ids=["uint8", "int16"])
def test_the_type_without_a_zero_point(same_in_torch, noise, opset, attributes):
    same_in_torch("QuantizeLinear", {"x": noise(2, 3)}, {"s": np.float32(0.5)}, opset=opset, **attributes)


def test_integers_of_32_bit_are_exact(same_in_torch):
    x = np.array([2**24 + 1, -(2**30) - 1], np.int32)
    same_in_torch("DequantizeLinear", {"x": x}, {"s": np.float32(0.5), "z": np.int32(0)})


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_integers_along_an_axis(same_in_torch, dtype):
    x = np.arange(24).reshape(2, 3, 4).astype(dtype)
    constants = {"s": np.float32([0.5, 1.0, 2.0]), "z": np.array([1, 2, 3], dtype)}
    same_in_torch("DequantizeLinear", {"x": x}, constants, axis=1)


def test_the_gradient_is_one_inside_the_range_and_zero_outside(parse_network):
    model = parse_network(pair("int8", None, 0))
    x = torch.tensor([[[-100.0, -10.1, 0.3, 7.7], [31.0, 31.74, 32.5, 99.0], [0.0, 1.0, 2.0, 3.0]]], requires_grad=True)
    OnnxModule(model)(x)["y"].sum().backward()
    assert x.grad.tolist() == [[[0, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 1]]]
