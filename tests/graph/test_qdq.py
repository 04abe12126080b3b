from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

from qtoolkit.artifacts.plan import Precision
from qtoolkit.backends.targets import find_target
from qtoolkit.errors import ModelFileError
from qtoolkit.graph.layers import find_layers
from qtoolkit.graph.load import prepare_network
from qtoolkit.graph.placement import Placement, place_qdq
from qtoolkit.graph.qdq import LayerWeights, insert_qdq, read_names
from qtoolkit.graph.view import GraphView, node_name
from qtoolkit.numerics.affine import IntegerGrid, dequantize, params_from_range, quantize, weight_params

# With the input of every layer on a grid, the last one's too.
ORT_CPU = find_target("ort-cpu").model_copy(update={"float_last_inputs": False})
UINT8 = IntegerGrid(8, signed=False, symmetric=False)
UINT16 = IntegerGrid(16, signed=False, symmetric=False)
WEIGHT8 = IntegerGrid(8, signed=True, symmetric=True, narrow_range=True)
WEIGHT16 = IntegerGrid(16, signed=True, symmetric=True, narrow_range=True)
INT8, INT16, INT16W16 = Precision.INT8, Precision.INT16, Precision.INT16W16


@pytest.fixture(scope="module")
def two_convolutions(network_builder):
    """``images`` (1, 3, 6, 6) → conv a, Relu → conv b → ``y``."""
    net = network_builder(seed=3, activation="relu")
    x = net.act("a", net.plain_conv("a", "images", 3, 4, kernel=3))
    net.node("Identity", [net.plain_conv("b", x, 4, 2, kernel=1)], "y")
    return prepare_network(net.model({"images": (1, 3, 6, 6)}, {"y": (1, 2, 6, 6)}))


def parameters(model, placement, ranges):
    """Quantization parameters as PTQ makes them, from ranges given by hand."""
    view = GraphView(model)
    activations = {
        (tensor, bits): params_from_range(*ranges[tensor], UINT8 if bits == 8 else UINT16)
        for tensor, bits in placement.tensors
    }
    weights = {}
    for layer in find_layers(model):
        if layer.name in placement.layers:
            precision = placement.layers[layer.name]
            weight, bias = view.constant(layer.weight), view.constant(layer.bias)
            params = weight_params(weight, WEIGHT16 if precision.weight_bits == 16 else WEIGHT8, 0)
            scale = float(activations[layer.input, 8].scale) if precision is INT8 else None
            weights[layer.name] = LayerWeights.quantized(weight, params, bias, scale)
    return activations, weights


RANGES = {"images": (0.0, 1.0), "a.act": (0.0, 2.5)}


def quantized(model, precisions):
    placement = place_qdq(model, precisions, ORT_CPU)
    activations, weights = parameters(model, placement, RANGES)
    return insert_qdq(model, placement, activations, weights), activations, weights


def convolve(x, weight, pad):
    """Convolution of stride 1, x (C, H, W), weight (Cout, C, k, k), in float64 or exact integers."""
    k, (h, w) = weight.shape[-1], x.shape[1:]
    x = np.pad(x, ((0, 0), (pad, pad), (pad, pad)))
    out = np.zeros((weight.shape[0], h, w), x.dtype)
    for dy in range(k):
        for dx in range(k):
            out += np.einsum("oc,chw->ohw", weight[..., dy, dx], x[:, dy : dy + h, dx : dx + w])
    return out


@pytest.mark.parametrize("a_precision", [INT8, INT16, INT16W16], ids=lambda p: p.value)
def test_the_runtime_computes_what_numerics_affine_says(two_convolutions, run_network, image, a_precision):
    model, activations, weights = quantized(two_convolutions, {"a": a_precision, "b": INT8})
    bits = a_precision.activation_bits
    wanted = {f"images/quantized{bits}": onnx.TensorProto.UINT8 if bits == 8 else onnx.TensorProto.UINT16}
    wanted["a.act/quantized8"] = onnx.TensorProto.UINT8
    for name, elem_type in wanted.items():
        model.graph.output.append(helper.make_tensor_value_info(name, elem_type, None))
    feeds = {"images": image(6)}
    found = run_network(model, feeds)

    x, hidden, a, b = activations["images", bits], activations["a.act", 8], weights["a"], weights["b"]
    integers = quantize(feeds["images"], x)
    np.testing.assert_array_equal(found[f"images/quantized{bits}"], integers)
    # Sums in exact integers; their one rounding is that of the quantization behind.
    sums = convolve(integers[0].astype(np.int64) - int(x.zero_point), a.weight.astype(np.int64), 1)
    real = sums * (np.float64(x.scale) * a.params.scale.astype(np.float64))[:, None, None]
    view = GraphView(two_convolutions)
    bias = view.constant("a.bias") if a.bias is None else dequantize(a.bias, a.bias_params)
    activated = np.maximum(real + bias[:, None, None], 0.0).astype(np.float32)[None]
    integers = quantize(activated, hidden)
    np.testing.assert_array_equal(found["a.act/quantized8"], integers)

    sums = convolve(integers[0].astype(np.int64) - int(hidden.zero_point), b.weight.astype(np.int64), 0)
    y = (sums + b.bias[:, None, None]) * b.bias_params.scale.astype(np.float64)[:, None, None]
    np.testing.assert_allclose(found["y"][0], y, rtol=1e-5, atol=1e-6)


def test_weights_and_biases_are_stored_as_integers_with_their_scales(two_convolutions):
    model, activations, weights = quantized(two_convolutions, {"a": INT8, "b": INT8})
    view, original = GraphView(model), GraphView(two_convolutions)
    for layer in ("a", "b"):
        stored = view.constant(f"{layer}/{layer}.weight/quantized")
        scale = np.abs(original.constant(f"{layer}.weight")).max(axis=(1, 2, 3)) / np.float64(127)
        np.testing.assert_array_equal(
            view.constant(f"{layer}/{layer}.weight/quantized/scale"), scale.astype(np.float32)
        )
        np.testing.assert_array_equal(stored, quantize(original.constant(f"{layer}.weight"), weights[layer].params))
        assert stored.dtype == np.int8 and np.abs(stored.astype(int)).max(axis=(1, 2, 3)).tolist() == [127] * len(
            stored
        )
    tensor = {"a": "images", "b": "a.act"}
    for layer, source in tensor.items():
        sx, sw = activations[source, 8].scale, weights[layer].params.scale
        bias_scale = view.constant(f"{layer}/{layer}.bias/quantized/scale")
        np.testing.assert_array_equal(bias_scale, sx * sw)
        integers = view.constant(f"{layer}/{layer}.bias/quantized")
        expected = np.rint(original.constant(f"{layer}.bias").astype(np.float64) / bias_scale.astype(np.float64))
        assert integers.dtype == np.int32
        np.testing.assert_array_equal(integers, expected)
    assert view.initializer("a.weight") is None and view.initializer("a.bias") is None


def test_16_bit_layers_keep_a_float_bias(two_convolutions):
    model, _, _ = quantized(two_convolutions, {"a": INT16, "b": INT16W16})
    view = GraphView(model)
    for name in ("a", "b"):
        assert next(n for n in view.nodes if node_name(n) == name).input[2] == f"{name}.bias"
    assert view.constant("a/a.weight/quantized").dtype == np.int8
    assert view.constant("b/b.weight/quantized").dtype == np.int16


@pytest.mark.parametrize(
    ("precisions", "opset"),
    [
        ({"a": INT8, "b": INT8}, 13),
        # b reads what leaves 8-bit arithmetic, so there is no 16-bit integer in the graph.
        ({"a": INT8, "b": INT16}, 13),
        ({"a": INT16, "b": INT8}, 21),
        ({"a": INT8, "b": INT16W16}, 21),
        ({"a": INT16W16, "b": INT16W16}, 21),
    ],
    ids=["A8W8", "A16W8 behind A8W8", "A16W8 before A8W8", "16-bit weights alone", "A16W16"],
)
def test_the_opset_rises_only_for_16_bit_integers_and_the_network_runs(
    two_convolutions, run_network, image, precisions, opset
):
    model, _, _ = quantized(two_convolutions, precisions)
    onnx.checker.check_model(model, full_check=True)
    assert [entry.version for entry in model.opset_import] == [opset]
    feeds = {"images": image(6)}
    expected, found = run_network(two_convolutions, feeds)["y"], run_network(model, feeds)["y"]
    assert 0 < np.abs(found - expected).max() < 0.05


def test_names_inputs_and_outputs_stay_and_the_float_network_too(tiny_pose_model):
    model = prepare_network(tiny_pose_model())
    before = model.SerializeToString(deterministic=True)
    for precision in (INT8, INT16):
        placement = place_qdq(model, {layer.name: precision for layer in find_layers(model)}, ORT_CPU)
        ranges = dict.fromkeys((tensor for tensor, _ in placement.tensors), (-3.0, 5.0))
        changed = insert_qdq(model, placement, *parameters(model, placement, ranges))
        onnx.checker.check_model(changed, full_check=True)
        names = {node_name(node) for node in changed.graph.node}
        assert {node_name(node) for node in model.graph.node} <= names
        assert len(names) == len(changed.graph.node)
        assert list(changed.graph.input) == list(model.graph.input)
        assert [value.name for value in changed.graph.output] == ["output0"]
    assert model.SerializeToString(deterministic=True) == before


def test_an_empty_placement_changes_nothing(two_convolutions):
    placement = place_qdq(two_convolutions, {}, ORT_CPU)
    assert insert_qdq(two_convolutions, placement, {}, {}) == two_convolutions


def test_a_weight_that_two_layers_share_is_stored_for_each(parse_network, run_network):
    model = prepare_network(
        parse_network(
            """net (float[1,1,2,2] images) => (float[1,1,2,2] y) <float[1,1,1,1] w = {1.0}> {
                [a] a = Conv(images, w)
                [b] y = Conv(a, w)
            }"""
        )
    )
    placement = place_qdq(model, {"a": INT8}, ORT_CPU)
    assert set(placement.tensors) == {("images", 8), ("a", 8)}
    activations = {key: params_from_range(0.0, 255.0, UINT8) for key in placement.tensors}
    weight = GraphView(model).constant("w")
    halved = params_from_range([-63.5], [63.5], WEIGHT8, 0)
    changed = insert_qdq(model, placement, activations, {"a": LayerWeights.quantized(weight, halved)})
    # 1.0 lies on a grid of steps of 0.5; layer b still multiplies by the float weight.
    x = np.array([[[[0.0, 1.0], [2.0, 255.0]]]], np.float32)
    np.testing.assert_array_equal(run_network(changed, {"images": x})["y"], x)
    assert GraphView(changed).constant("a/w/quantized").item() == 2
    assert GraphView(changed).initializer("w") is not None


def test_a_constant_that_only_the_body_of_an_if_reads_stays(parse_network, run_network):
    model = parse_network(
        """net (float[1,1,2,2] images, bool more) => (float[1,1,2,2] y)
        <float[1,1,1,1] w = {1.0}, float[1] k = {10.0}> {
            [a] a = Conv(images, w)
            [if] y = If(more) <
                then_branch = larger () => (float[1,1,2,2] t) { t = Add(a, k) },
                else_branch = same () => (float[1,1,2,2] e) { e = Identity(a) }
            >
        }"""
    )
    model = onnx.shape_inference.infer_shapes(model)
    placement = place_qdq(model, {"a": INT8}, ORT_CPU)
    activations = {key: params_from_range(0.0, 255.0, UINT8) for key in placement.tensors}
    weights = {
        "a": LayerWeights.quantized(GraphView(model).constant("w"), params_from_range([-127], [127], WEIGHT8, 0))
    }
    changed = insert_qdq(model, placement, activations, weights)
    onnx.checker.check_model(changed, full_check=True)
    x = np.full((1, 1, 2, 2), 7.0, np.float32)
    np.testing.assert_array_equal(run_network(changed, {"images": x, "more": np.array(True)})["y"], x + 10)


def test_a_graph_that_cannot_be_raised_is_an_error_with_a_way_out(two_convolutions):
    model = onnx.ModelProto()
    model.CopyFrom(two_convolutions)
    model.graph.node.append(helper.make_node("NoSuchOperator", ["y"], ["z"], name="unknown"))
    placement = place_qdq(two_convolutions, {"a": INT16}, ORT_CPU)
    activations, weights = parameters(two_convolutions, placement, RANGES)
    with pytest.raises(ModelFileError, match=r"cannot be raised from opset 13 to 21") as caught:
        insert_qdq(model, placement, activations, weights)
    assert "--wide fp16" in caught.value.do


def test_a_bias_beyond_int32_raises_the_scale_of_its_channel_alone():
    weight = np.array([[1e-9, 0.0], [0.5, -1.0]], np.float32).reshape(2, 2, 1, 1)
    bias, input_scale = np.array([100.0, 100.0], np.float32), 1e-4
    params = weight_params(weight, WEIGHT8, 0)
    layer = LayerWeights.quantized(weight, params, bias, input_scale)
    # 100 / (1e-4 · s) <= 2³¹ − 1 needs s of at least 4.66e-4, where the weights asked for 1e-9 / 127.
    assert layer.params.scale[0] == pytest.approx(100 / (1e-4 * (2**31 - 1)), rel=1e-6)
    assert layer.params.scale[1] == params.scale[1]
    np.testing.assert_allclose(dequantize(layer.bias, layer.bias_params), bias, rtol=1e-6)
    np.testing.assert_array_equal(layer.weight.ravel(), [0, 0, 64, -127])


def test_a_bias_beyond_int32_raises_the_one_scale_of_a_weight_quantized_per_tensor():
    weight, bias = np.full((2, 1, 1, 1), 1e-9, np.float32), np.array([1.0, 100.0], np.float32)
    layer = LayerWeights.quantized(weight, weight_params(weight, WEIGHT8, None), bias, 1e-4)
    assert layer.params.scale.shape == layer.bias_params.scale.shape == ()
    np.testing.assert_allclose(dequantize(layer.bias, layer.bias_params), bias, rtol=1e-6)


@given(
    weight=st.lists(st.floats(-10, 10, width=32), min_size=3, max_size=3),
    bias=st.lists(st.floats(-1e4, 1e4, width=32), min_size=3, max_size=3),
    input_scale=st.floats(1e-6, 1e2),
    axis=st.sampled_from([0, None]),
)
def test_a_bias_loses_at_most_half_a_step(weight, bias, input_scale, axis):
    weight, bias = np.array(weight, np.float32).reshape(3, 1, 1, 1), np.array(bias, np.float32)
    layer = LayerWeights.quantized(weight, weight_params(weight, WEIGHT8, axis), bias, input_scale)
    np.testing.assert_array_equal(layer.bias_params.scale, np.float32(input_scale) * layer.params.scale)
    error = np.abs(dequantize(layer.bias, layer.bias_params).astype(np.float64) - bias)
    # Half a step, or what float32 leaves of an integer of 31 bits.
    assert (error <= layer.bias_params.scale * 0.5001 + np.abs(bias) * 2.0**-22).all()


def test_without_an_input_scale_the_bias_stays_float():
    weight = np.ones((1, 1, 1, 1), np.float32)
    layer = LayerWeights.quantized(weight, weight_params(weight, WEIGHT16, 0), np.ones(1, np.float32))
    assert layer.bias is None and layer.bias_params is None
    assert layer.weight.item() == 32767


def test_a_channel_without_weights_keeps_its_bias():
    weight = np.array([[0.0, 0.0], [0.5, -1.0], [0.0, 0.0]], np.float32).reshape(3, 2, 1, 1)
    bias, input_scale = np.array([0.7, 0.25, -1e-3], np.float32), 0.02
    params = weight_params(weight, WEIGHT8, 0)
    # A weight of zeros would have the scale 1, and its bias steps of 0.02: 0.7 would stay, 0.001 be lost.
    assert params.scale.tolist() == [1.0, np.float32(1 / 127), 1.0]
    layer = LayerWeights.quantized(weight, params, bias, input_scale)
    np.testing.assert_allclose(
        layer.params.scale[[0, 2]], np.abs(bias[[0, 2]]) / (input_scale * (2**31 - 1)), rtol=1e-6
    )
    assert layer.params.scale[1] == params.scale[1]
    np.testing.assert_allclose(dequantize(layer.bias, layer.bias_params)[[0, 2]], bias[[0, 2]], rtol=1e-6)
    assert abs(dequantize(layer.bias, layer.bias_params)[1] - 0.25) <= layer.bias_params.scale[1] / 2
    np.testing.assert_array_equal(layer.weight.ravel(), [0, 0, 64, -127, 0, 0])


def test_a_channel_without_weights_or_bias_keeps_its_scale():
    weight, bias = np.zeros((2, 1, 1, 1), np.float32), np.zeros(2, np.float32)
    layer = LayerWeights.quantized(weight, weight_params(weight, WEIGHT8, 0), bias, 0.02)
    assert layer.params.scale.tolist() == [1.0, 1.0]
    assert layer.bias.tolist() == [0, 0]
    assert not layer.weight.any()


def test_channels_of_a_transposed_weight_lie_on_its_second_axis():
    # MatMul: (inputs, outputs). Output 0 is dead, output 1 reads the second input.
    weight, bias = np.array([[0.0, 0.0], [0.0, 2.0]], np.float32), np.array([0.3, 0.0], np.float32)
    for axis in (1, -1):
        layer = LayerWeights.quantized(weight, weight_params(weight, WEIGHT8, axis), bias, 0.1)
        assert dequantize(layer.bias, layer.bias_params)[0] == pytest.approx(0.3, rel=1e-6)
        assert layer.params.scale[1] == np.float32(2 / 127)
        assert layer.weight.tolist() == [[0, 0], [0, 127]]


@given(
    bias=st.floats(-1e4, 1e4, width=32).filter(lambda value: value != 0),
    input_scale=st.floats(float(np.finfo(np.float32).tiny), 1e2),
)
def test_no_bias_of_a_dead_channel_is_lost_however_small(bias, input_scale):
    weight, bias = np.zeros((1, 1, 1, 1), np.float32), np.array([bias], np.float32)
    layer = LayerWeights.quantized(weight, weight_params(weight, WEIGHT8, 0), bias, input_scale)
    # One scale below float32's smallest normal number would be none at all.
    assert layer.bias_params.scale[0] >= np.finfo(np.float32).tiny * 0.999
    error = abs(float(dequantize(layer.bias, layer.bias_params)[0]) - float(bias[0]))
    assert error <= max(abs(float(bias[0])) * 1e-6, 1.2e-38)
    assert not layer.weight.any()


def test_a_dead_channel_adds_its_bias_in_the_runtime(parse_network, run_network):
    model = prepare_network(
        parse_network(
            """net (float[1,1,2,2] images) => (float[1,2,2,2] y)
            <float[2,1,1,1] w = {0.0, 1.0}, float[2] bias = {0.7, 0.0}> {
                [a] y = Conv(images, w, bias)
            }"""
        )
    )
    placement = place_qdq(model, {"a": INT8}, ORT_CPU)
    activations = {key: params_from_range(0.0, 255.0, UINT8) for key in placement.tensors}
    view = GraphView(model)
    params = weight_params(view.constant("w"), WEIGHT8, 0)
    # With the scale 1 of a weight of zeros and inputs in whole steps, 0.7 would have become 1.
    weights = {"a": LayerWeights.quantized(view.constant("w"), params, view.constant("bias"), 1.0)}
    x = np.array([[[[0.0, 1.0], [2.0, 255.0]]]], np.float32)
    y = run_network(insert_qdq(model, placement, activations, weights), {"images": x})["y"]
    np.testing.assert_allclose(y[0, 0], 0.7, rtol=1e-6)
    np.testing.assert_allclose(y[0, 1], x[0, 0], rtol=1e-6)


@pytest.mark.parametrize("target", ["ort-cpu", "tensorrt", "tidl"])
def test_the_names_under_which_tensors_are_read_are_those_that_are_written(tiny_pose_model, target):
    model = prepare_network(tiny_pose_model("silu"))
    names = [layer.name for layer in find_layers(model)]
    precisions = {name: Precision.INT8 if index % 3 else Precision.INT16 for index, name in enumerate(names)}
    placement = place_qdq(model, precisions, find_target(target))
    activations = {
        key: params_from_range(-1.0, 1.0, IntegerGrid(bits, signed=True, symmetric=True))
        for key in placement.tensors for bits in key[1:]
    }  # fmt: skip
    written = insert_qdq(model, Placement(placement.tensors, {}), activations, {})
    nodes, view = {node_name(node): node for node in written.graph.node}, GraphView(model)
    for node in view.nodes:
        for place, tensor in enumerate(node.input):
            if tensor and not view.is_constant(tensor):
                assert read_names(placement, {tensor: [node_name(node)]}) == {
                    tensor: (nodes[node_name(node)].input[place],)
                }
