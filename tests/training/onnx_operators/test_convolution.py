from __future__ import annotations

import numpy as np
import pytest

from qtoolkit.training.onnx_operators.convolution import same_pads, torch_pads

CONV = [
    ("2d", (2, 4, 9, 8), (6, 4, 3, 3), {"pads": [1, 1, 1, 1]}),
    ("no attributes", (1, 4, 6, 5), (6, 4, 1, 1), {}),
    ("uneven pads", (1, 4, 9, 8), (6, 4, 3, 3), {"pads": [0, 1, 2, 0], "strides": [2, 1]}),
    ("groups and dilation", (2, 4, 11, 9), (8, 2, 3, 2), {"group": 2, "dilations": [2, 3], "pads": [2, 3, 2, 3]}),
    ("depthwise", (1, 4, 7, 7), (4, 1, 3, 3), {"group": 4, "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    ("same upper", (1, 4, 8, 7), (6, 4, 3, 4), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    ("same lower", (1, 4, 8, 7), (6, 4, 3, 4), {"auto_pad": "SAME_LOWER", "strides": [2, 3]}),
    ("valid", (1, 4, 8, 7), (6, 4, 3, 3), {"auto_pad": "VALID"}),
    ("1d", (2, 4, 9), (6, 4, 3), {"pads": [1, 1], "strides": [2]}),
    ("1d, uneven", (2, 4, 9), (6, 4, 3), {"pads": [2, 0]}),
    ("3d", (1, 2, 5, 6, 5), (3, 2, 3, 3, 3), {"pads": [1, 1, 1, 1, 1, 1]}),
]


@pytest.mark.parametrize(("x", "weight", "attributes"), [c[1:] for c in CONV], ids=[c[0] for c in CONV])
@pytest.mark.parametrize("biased", [True, False], ids=["bias", "no bias"])
def test_conv(same_in_torch, noise, x, weight, attributes, biased):
    constants = {"w": noise(*weight, seed=1)} | ({"b": noise(weight[0], seed=2)} if biased else {})
    same_in_torch("Conv", {"x": noise(*x)}, constants, **attributes)


TRANSPOSED = [
    ("plain", (1, 4, 5, 6), (4, 3, 2, 2), {"strides": [2, 2]}),
    ("no attributes", (1, 4, 5, 6), (4, 3, 3, 2), {}),
    ("deconv head", (2, 4, 5, 6), (4, 3, 4, 4), {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
    ("output padding", (1, 4, 5, 6), (4, 3, 3, 3), {"strides": [2, 2], "pads": [1] * 4, "output_padding": [1, 1]}),
    ("uneven pads", (1, 4, 5, 6), (4, 3, 3, 3), {"strides": [2, 2], "pads": [0, 1, 1, 0]}),
    (
        "uneven and widened",
        (1, 4, 5, 6),
        (4, 3, 2, 3),
        {"strides": [2, 2], "pads": [0, 1, 0, 0], "output_padding": [1, 1]},
    ),
    ("groups", (1, 4, 5, 6), (4, 3, 3, 3), {"group": 2, "strides": [2, 1], "pads": [1, 1, 1, 1]}),
    ("dilation", (1, 4, 5, 6), (4, 3, 3, 2), {"dilations": [2, 3]}),
    ("output shape", (1, 4, 5, 6), (4, 3, 3, 3), {"strides": [2, 2], "output_shape": [10, 12]}),
    (
        "output shape, upper",
        (1, 4, 5, 6),
        (4, 3, 4, 3),
        {"strides": [2, 2], "output_shape": [11, 12], "auto_pad": "SAME_UPPER"},
    ),
    ("same upper", (1, 4, 5, 6), (4, 3, 3, 3), {"strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    ("same lower", (1, 4, 5, 6), (4, 3, 3, 3), {"strides": [2, 2], "auto_pad": "SAME_LOWER"}),
    ("valid", (1, 4, 5, 6), (4, 3, 3, 3), {"strides": [2, 2], "auto_pad": "VALID"}),
    ("1d", (2, 4, 5), (4, 3, 4), {"strides": [2], "pads": [1, 1]}),
]


@pytest.mark.parametrize(("x", "weight", "attributes"), [c[1:] for c in TRANSPOSED], ids=[c[0] for c in TRANSPOSED])
@pytest.mark.parametrize("biased", [True, False], ids=["bias", "no bias"])
def test_conv_transpose(same_in_torch, noise, x, weight, attributes, biased):
    channels = weight[1] * attributes.get("group", 1)
    constants = {"w": noise(*weight, seed=1)} | ({"b": noise(channels, seed=2)} if biased else {})
    same_in_torch("ConvTranspose", {"x": noise(*x)}, constants, **attributes)


GEMM = [
    ("plain", (3, 4), (4, 5), (5,), {}),
    ("transposed weight", (3, 4), (5, 4), (5,), {"transB": 1}),
    ("transposed data", (4, 3), (4, 5), (5,), {"transA": 1}),
    ("both, with factors", (4, 3), (5, 4), (5,), {"transA": 1, "transB": 1, "alpha": 0.5, "beta": 2.0}),
    ("no addend", (3, 4), (5, 4), None, {"transB": 1}),
    ("one number added", (3, 4), (5, 4), (1,), {"transB": 1}),
    ("a row a line", (3, 4), (5, 4), (3, 1), {"transB": 1, "beta": 0.25}),
]


@pytest.mark.parametrize(("a", "b", "c", "attributes"), [c[1:] for c in GEMM], ids=[c[0] for c in GEMM])
def test_gemm(same_in_torch, noise, a, b, c, attributes):
    constants = {"b": noise(*b, seed=1)} | ({} if c is None else {"c": noise(*c, seed=2)})
    same_in_torch("Gemm", {"a": noise(*a)}, constants, **attributes)


@pytest.mark.parametrize(
    ("a", "b"), [((3, 4), (4, 5)), ((2, 3, 4), (4, 5)), ((5, 4), (2, 4, 3)), ((2, 1, 3, 4), (6, 4, 2)), ((4,), (4, 3))]
)
def test_matmul(same_in_torch, noise, a, b):
    same_in_torch("MatMul", {"a": noise(*a), "b": noise(*b, seed=1)})


@pytest.mark.parametrize("equation", ["bij,bjk->bik", "bij,bkj->bk", "bij, bkj -> ikb"])
def test_einsum(same_in_torch, noise, equation):
    same_in_torch("Einsum", {"a": noise(2, 3, 3), "b": noise(2, 3, 3, seed=1)}, equation=equation)


def test_pads_are_given_to_torch_from_the_last_axis_on():
    assert torch_pads([1, 2], [3, 4]) == [2, 4, 1, 3]


@pytest.mark.parametrize(
    ("size", "extent", "stride", "upper", "expected"),
    [(5, 3, 2, True, (1, 1)), (6, 3, 2, True, (0, 1)), (6, 3, 2, False, (1, 0)), (4, 1, 2, True, (0, 0))],
)
def test_pads_that_keep_the_size(size, extent, stride, upper, expected):
    begins, ends = same_pads([size], [extent], [stride], upper)
    assert (begins[0], ends[0]) == expected
    assert (size + sum(expected) - extent) // stride + 1 == int(np.ceil(size / stride)) or extent < stride
