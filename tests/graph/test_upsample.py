from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from qtoolkit.graph.upsample import expand_upsampling

ASYMMETRIC = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}


def network(scales=(1, 1, 2, 3), sizes=None, zero=None, known=True, quantized=True, **attributes):
    """A Resize of 2 × 5 × 4 × 3 between pairs of Q/DQ, ``known``: with the shapes of tensors on record."""
    factors = scales if sizes is None else [after / before for after, before in zip(sizes, (2, 5, 4, 3), strict=True)]
    shape = [int(size * factor) for size, factor in zip((2, 5, 4, 3), factors, strict=True)]
    given = {"s": np.float32(0.05), "z": np.uint8(7) if zero is None else zero}
    given |= {"scales": np.float32(scales)} if sizes is None else {"sizes": np.int64(sizes)}
    inputs = ["x/dq", "", "scales"] if sizes is None else ["x/dq", "", "", "sizes"]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["x/q"]),
        helper.make_node("DequantizeLinear", ["x/q", "s", "z"], ["x/dq"]),
        helper.make_node("Resize", inputs, ["up"], "up", **{"mode": "nearest", **ASYMMETRIC, **attributes}),
    ]
    if quantized:
        nodes += [
            helper.make_node("QuantizeLinear", ["up", "s", "z"], ["up/q"]),
            helper.make_node("DequantizeLinear", ["up/q", "s", "z"], ["y"]),
        ]
    else:
        nodes.append(helper.make_node("Neg", ["up"], ["y"]))
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, size)
              for name, size in (("x", [2, 5, 4, 3]), ("y", shape), ("up", shape))]  # fmt: skip
    constants = [numpy_helper.from_array(np.asarray(value), name) for name, value in given.items()]
    inner = values[2:] if known else []
    graph = helper.make_graph(nodes, "net", values[:1], values[1:2], constants, value_info=inner)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


def operators(model):
    return [node.op_type for node in model.graph.node]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"scales": (1, 1, 2, 2)},
        {"scales": (1, 1, 4, 1)},
        {"sizes": (2, 5, 8, 9)},
        {"zero": np.int8(-3)},
        {"coordinate_transformation_mode": "half_pixel", "nearest_mode": "round_prefer_floor"},
        {"coordinate_transformation_mode": "half_pixel", "nearest_mode": "round_prefer_ceil", "scales": (1, 1, 3, 4)},
    ],
    ids=["2 and 3", "twice", "one way", "by sizes", "signed", "half pixels", "half pixels upwards"],
)
def test_places_are_repeated_to_the_bit(run_network, options):
    model = network(**options)
    changed = expand_upsampling(model)
    onnx.checker.check_model(changed, full_check=True)
    assert "Resize" not in operators(changed) and operators(changed).count("Expand") == 1
    assert "Resize" in operators(model)
    x = np.random.default_rng(0).normal(0, 3, (2, 5, 4, 3)).astype(np.float32)
    np.testing.assert_array_equal(run_network(changed, {"x": x})["y"], run_network(model, {"x": x})["y"])
    assert expand_upsampling(changed) is changed
    # What only the Resize read is gone.
    assert not {"scales", "sizes"} & {tensor.name for tensor in changed.graph.initializer}


@pytest.mark.parametrize(
    "options",
    [
        {"scales": (1, 1, 1.5, 2)},
        {"scales": (1, 2, 2, 2)},
        {"mode": "linear"},
        {"nearest_mode": "ceil"},
        {"coordinate_transformation_mode": "align_corners"},
        {"quantized": False},
        {"known": False},
    ],
    ids=["by a half", "channels too", "linear", "the next value", "corners", "read in float", "of unknown shape"],
)
def test_any_other_stays(options):
    model = network(**options)
    assert expand_upsampling(model) is model


def test_one_of_16_bits_stays():
    model = network()
    for tensor in model.graph.initializer:
        if tensor.name == "z":
            tensor.CopyFrom(numpy_helper.from_array(np.asarray(np.uint16(7)), "z"))
    assert expand_upsampling(model) is model
