"""Counted cost of a network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from qtoolkit.bench.cost import network_cost, parameter_names, plan_bops
from qtoolkit.errors import UsageError
from qtoolkit.graph.layers import find_layers


def conv_model(weight: np.ndarray, *, quantized: bool = False) -> onnx.ModelProto:  # type: ignore[type-arg]
    """x (1, 3, 8, 8) → Conv 3×3, 4 outputs, padding 1, bias → Mul by a constant → y."""
    constants = {"bias": np.zeros(4, np.float32), "factor": np.full((1, 4, 1, 1), 2.0, np.float32), "weight": weight}
    nodes = []
    if quantized:
        constants["scale"] = np.ones(4, np.float32)
        constants["zero"] = np.zeros(4, weight.dtype)
        nodes.append(helper.make_node("DequantizeLinear", ["weight", "scale", "zero"], ["w"], "dq", axis=0))
    nodes.append(helper.make_node("Conv", ["x", "w" if quantized else "weight", "bias"], ["t"], "conv", pads=[1] * 4))
    nodes.append(helper.make_node("Mul", ["t", "factor"], ["y"], "mul"))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 3, 8, 8))
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, 4, 8, 8))
    initializers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "conv", [x], [y], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def test_a_convolution_by_hand() -> None:
    """8·8 pixels · 4 outputs · 3 inputs · 9 = 6912 MACs; 4·3·9 weights and 4 biases; the factor is no parameter."""
    model = conv_model(np.ones((4, 3, 3, 3), np.float32))
    cost = network_cost(model)
    assert cost.gmacs == pytest.approx(6912e-9)
    assert cost.params_m == pytest.approx(112e-6)
    assert cost.weights_bytes == 448
    assert cost.size_mb == len(model.SerializeToString()) / 1e6
    assert cost.input_shapes == {"x": (1, 3, 8, 8)}


@pytest.mark.parametrize(("dtype", "weights_bytes"), [(np.int8, 108 + 16), (np.int16, 216 + 16)])
def test_a_quantized_network_costs_the_same_macs_and_fewer_bytes(dtype: type[np.integer], weights_bytes: int) -> None:
    model = conv_model(np.ones((4, 3, 3, 3), dtype), quantized=True)
    cost = network_cost(model)
    assert cost.gmacs == pytest.approx(6912e-9)
    assert cost.params_m == pytest.approx(112e-6)
    assert cost.weights_bytes == weights_bytes
    assert parameter_names(model) == {"weight", "bias"}


def test_a_shared_weight_is_stored_once() -> None:
    constants = [numpy_helper.from_array(np.ones((4, 4), np.float32), "w")]
    nodes = [helper.make_node("MatMul", ["x", "w"], ["t"], "a"), helper.make_node("MatMul", ["t", "w"], ["y"], "b")]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, (2, 4)) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "twice", values[:1], values[1:], constants)
    cost = network_cost(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8))
    assert cost.weights_bytes == 64
    assert cost.gmacs == pytest.approx(2 * 32e-9)


def test_anchors_and_shapes_are_no_parameters(tiny_pose_model: Callable[..., onnx.ModelProto]) -> None:
    names = parameter_names(tiny_pose_model())
    assert {"stem.weight", "stem.bias", "stem.bn.mean", "head.box.0.1.weight"} <= names
    assert not names & {"anchors", "strides", "up.scales", "dfl.shape", "half"}


def test_a_network_of_free_size_has_no_cost_yet(dynamic_pose_model: Callable[..., onnx.ModelProto]) -> None:
    with pytest.raises(UsageError, match=r"input 'images'.*\n.*\n  found: batch, 3, height, width\n.*--input-size"):
        network_cost(dynamic_pose_model())


def test_bit_operations_of_a_plan_by_hand(mixed_layers_model: Callable[..., onnx.ModelProto]) -> None:
    layers = find_layers(onnx.shape_inference.infer_shapes(mixed_layers_model()))
    macs = {layer.name: layer.macs for layer in layers}
    total = sum(macs.values())
    first = layers[0].name
    assert plan_bops(layers, {}) == pytest.approx(total * 32 * 32 / 1e9)
    assert plan_bops(layers, dict.fromkeys(macs, (8, 8))) == pytest.approx(total * 64 / 1e9)
    mixed = {**dict.fromkeys(macs, (8, 8)), first: (8, 16)}
    assert plan_bops(layers, mixed) == pytest.approx((total * 64 + macs[first] * 64) / 1e9)
    assert plan_bops(layers, {first: (8, 8)}, default_bits=(16, 16)) == pytest.approx(
        ((total - macs[first]) * 256 + macs[first] * 64) / 1e9
    )


def test_a_plan_of_another_network_is_refused(mixed_layers_model: Callable[..., onnx.ModelProto]) -> None:
    layers = find_layers(onnx.shape_inference.infer_shapes(mixed_layers_model()))
    with pytest.raises(UsageError, match=r"found: l0, l1, l2, l3, l4 and 2 more"):
        plan_bops(layers, {f"l{index}": (8, 8) for index in range(7)})


@pytest.mark.real
def test_yolov8n_pose_has_its_published_cost(real_data: Path) -> None:
    """Published: 9.2 GFLOPs at 640, 3.3 M parameters (docs.ultralytics.com/tasks/pose)."""
    cost = network_cost(onnx.load(real_data / "models" / "yolov8n-pose.onnx"))
    assert cost.gmacs == pytest.approx(9.2 / 2, rel=0.02)
    assert cost.params_m == pytest.approx(3.3, rel=0.01)
