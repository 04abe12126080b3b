from __future__ import annotations

import numpy as np
import onnx
import pytest

from qtoolkit.graph.layers import find_layers
from qtoolkit.graph.load import prepare_network
from qtoolkit.graph.softmax import expand_softmax
from qtoolkit.graph.view import node_name


@pytest.fixture
def parsed(parse_network):
    """A network from its text form, with the shapes of its tensors."""
    return lambda text, opset=13: onnx.shape_inference.infer_shapes(parse_network(text, opset))


def everything(model):
    return [node_name(node) for node in model.graph.node]


def operators(model):
    return [node.op_type for node in model.graph.node]


def compare(model, changed, run_network, x):
    onnx.checker.check_model(changed, full_check=True)
    expected, found = run_network(model, {"images": x})["y"], run_network(changed, {"images": x})["y"]
    assert expected.shape == found.shape
    np.testing.assert_allclose(found, expected, rtol=2e-6, atol=1e-6)


# Far from 0 as logits are that saturate, and all alike.
VALUES = [np.random.default_rng(1).normal(0, 8, (1, 4, 3, 5)), np.full((1, 4, 3, 5), 500.0), np.zeros((1, 4, 3, 5))]


@pytest.mark.parametrize("x", VALUES, ids=["drawn", "huge", "zero"])
@pytest.mark.parametrize("opset", [13, 17, 18, 21])
@pytest.mark.parametrize("axis", [1, 2, -3, -2])
def test_a_softmax_over_an_inner_axis_is_computed_without_one(parsed, run_network, x, opset, axis):
    model = parsed(
        f"net (float[1,4,3,5] images) => (float[1,4,3,5] y) {{ y = Softmax <axis = {axis}> (images) }}", opset
    )
    changed = expand_softmax(model, everything(model))
    assert operators(changed) == ["ReduceMax", "Sub", "Exp", "ReduceSum", "Div"]
    compare(model, changed, run_network, x.astype(np.float32))
    assert operators(model) == ["Softmax"]


@pytest.mark.parametrize("x", VALUES, ids=["drawn", "huge", "zero"])
def test_the_mean_of_bins_is_divided_behind_the_convolution(parsed, run_network, x):
    model = parsed(
        """net (float[1,4,3,5] images) => (float[1,1,3,5] y) <float[1,4,1,1] bins = {0.0, 1.0, 2.0, 3.0}> {
            p = Softmax <axis = 1> (images)
            y = Conv(p, bins)
        }"""
    )
    changed = expand_softmax(model, everything(model))
    assert operators(changed) == ["ReduceMax", "Sub", "Exp", "Reshape", "ReduceSum", "MatMul", "Div", "Reshape"]
    compare(model, changed, run_network, x.astype(np.float32))
    # It is arithmetic still, and no layer.
    assert find_layers(model) == find_layers(onnx.shape_inference.infer_shapes(changed)) == ()


@pytest.mark.parametrize(
    "readers",
    [
        "y = Conv <pads = [1, 1, 1, 1]> (p, bins)",
        "y = Conv <strides = [2, 2]> (p, bins)",
        "y = Conv <group = 2> (p, halves)",
        "y = Conv(p, bins, bias)",
        "y = Conv(p, wide)",
        "q = Conv(p, bins)  y = Add(p, q)",
    ],
    ids=["padded", "with strides", "in groups", "with a bias", "of 3 x 3", "and another reader"],
)
def test_behind_any_other_reader_every_bin_is_divided(parsed, run_network, readers):
    shape = {"pads": "1,1,5,7", "strides": "1,1,2,3", "group": "1,2,3,5", "wide": "1,1,1,3", "Add": "1,4,3,5"}
    found = next((each for name, each in shape.items() if name in readers), "1,1,3,5")
    model = parsed(
        f"""net (float[1,4,3,5] images) => (float[{found}] y)
        <float[1,4,1,1] bins = {{0.0, 1.0, 2.0, 3.0}}, float[2,2,1,1] halves = {{1.0, 2.0, 3.0, 4.0}},
         float[1] bias = {{0.5}}, float[1,4,3,3] wide = {{{", ".join(str(i / 10) for i in range(36))}}}> {{
            p = Softmax <axis = 1> (images)
            {readers}
        }}"""
    )
    changed = expand_softmax(model, everything(model))
    assert "Softmax" not in operators(changed) and "Conv" in operators(changed) and "MatMul" not in operators(changed)
    compare(model, changed, run_network, VALUES[0].astype(np.float32))


def test_a_softmax_over_the_last_axis_and_one_that_is_not_named_stay(parsed):
    last = parsed("net (float[1,4,3,5] images) => (float[1,4,3,5] y) { y = Softmax <axis = -1> (images) }")
    assert expand_softmax(last, everything(last)) is last
    inner = parsed("net (float[1,4,3,5] images) => (float[1,4,3,5] y) { y = Softmax <axis = 1> (images) }")
    assert expand_softmax(inner, ()) is inner
    assert expand_softmax(inner, everything(inner)) is not inner


def test_the_tiny_pose_network_gives_the_same_poses(tiny_pose_model, run_network, image):
    model = prepare_network(tiny_pose_model("silu"))
    changed = expand_softmax(model, everything(model))
    assert "Softmax" in operators(model) and "Softmax" not in operators(changed)
    onnx.checker.check_model(changed, full_check=True)
    assert {layer.name for layer in find_layers(model)} == {
        layer.name for layer in find_layers(onnx.shape_inference.infer_shapes(changed))
    }
    size = model.graph.input[0].type.tensor_type.shape.dim[2].dim_value
    feeds = {model.graph.input[0].name: image(size)}
    expected, found = (run_network(each, feeds)["output0"] for each in (model, changed))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)
