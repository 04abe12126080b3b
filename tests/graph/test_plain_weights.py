from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from qtoolkit.graph.plain_weights import dequantized_constant, with_plain_weights
from qtoolkit.graph.view import GraphView


def network(weight, scale, zero, axis):
    constants = {"w8": np.asarray(weight, np.int8), "s": np.asarray(scale, np.float32), "z": np.asarray(zero, np.int8)}
    nodes = [
        helper.make_node("DequantizeLinear", ["w8", "s", "z"], ["w"], "wdq", axis=axis),
        helper.make_node("MatMul", ["x", "w"], ["y"], "layer"),
    ]
    values = [
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2])],
    ]
    initializers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    return helper.make_model(helper.make_graph(nodes, "test", *values, initializers))


@pytest.mark.parametrize(
    ("scale", "zero", "axis", "expected"),
    [
        (0.5, 0, 1, [[0.5, 1.0], [1.5, 2.0]]),
        ([0.5, 0.25], [0, 0], 1, [[0.5, 0.5], [1.5, 1.0]]),
        ([0.5, 0.25], [0, 1], 0, [[0.5, 1.0], [0.5, 0.75]]),
    ],
    ids=["per tensor", "per column", "per row with a zero point"],
)
def test_weights_are_dequantized(scale, zero, axis, expected):
    plain = with_plain_weights(network([[1, 2], [3, 4]], scale, zero, axis))
    assert [node.op_type for node in plain.graph.node] == ["MatMul"]
    np.testing.assert_array_equal(GraphView(plain).constant("w"), np.float32(expected))


def test_an_activation_is_no_constant():
    view = GraphView(network([[1, 2], [3, 4]], 0.5, 0, 1))
    assert dequantized_constant(view, "x") is None and dequantized_constant(view, "w8") is None
