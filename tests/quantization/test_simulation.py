"""Targets without a runtime here: their Q/DQ networks run in ONNX Runtime, pair by pair as written."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import helper, version_converter
from onnx.reference import ReferenceEvaluator

from qtoolkit.artifacts.plan import Precision, PrecisionPlan, uniform_plan
from qtoolkit.backends.onnxruntime_cpu import OnnxRuntimeCpu
from qtoolkit.backends.targets import find_target
from qtoolkit.graph.layers import decode_tail
from qtoolkit.graph.view import GraphView, node_name
from qtoolkit.quantization.ptq import Quantizer

TIDL = find_target("tidl")
INT8, INT16, INT16W16 = Precision.INT8, Precision.INT16, Precision.INT16W16
SHIFT_WEIGHTS = {
    field: getattr(TIDL, field).model_copy(update={"power_of_two": True}) for field in ("weight_8bit", "weight_16bit")
}


@pytest.fixture(scope="module")
def tidl(pose, relu_pose, calibrated):
    return {
        "relu": Quantizer(relu_pose, TIDL, calibrated(relu_pose, "tidl")),
        "silu": Quantizer(pose, TIDL, calibrated(pose, "tidl")),
    }


def quantized(quantizer, precision, **changes):
    plan = uniform_plan((layer.name for layer in quantizer.layers), precision)
    return quantizer.quantize(plan.with_layers({name.replace("_", "."): p for name, p in changes.items()})).model


def with_integers(model):
    """``model`` with every integer tensor that a QuantizeLinear makes as an output."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    constants = {each.name: each.data_type for each in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear":
            copy.graph.output.append(helper.make_tensor_value_info(node.output[0], constants[node.input[2]], None))
    return copy


def integers(model, feed, **options):
    with OnnxRuntimeCpu(with_integers(model), threads=1, **options) as runner:
        return {name: value for name, value in runner.infer(feed).items() if value.dtype.kind in "iu"}


def reference_integers(model, feed):
    # Below opset 19 the evaluator has no DequantizeLinear; the operators of the network mean the same in both.
    model = with_integers(version_converter.convert_version(model, 21))
    names = [output.name for output in model.graph.output]
    values = ReferenceEvaluator(model).run(names, feed)
    return {name: value for name, value in zip(names, values, strict=True) if value.dtype.kind in "iu"}


@pytest.mark.parametrize("kind", ["relu", "silu"])
def test_8_bit_networks_are_those_of_the_reference_bit_for_bit(kind, tidl, photos):
    # With weight scales that are powers of two as well, every sum is exact in float32, whatever its order.
    original = tidl[kind]
    exact = Quantizer(original.model, TIDL.model_copy(update=SHIFT_WEIGHTS), original.statistics)
    model, feed = quantized(exact, INT8), photos(1, seed=5)[0]
    found, expected = integers(model, feed, integer_kernels=False), reference_integers(model, feed)
    assert len(found) == len(expected) > 20
    for name, value in expected.items():
        if kind == "silu" and name.rsplit("/", 1)[0].endswith(".act"):
            # Sigmoid itself is not exact anywhere; one step more or less is all that it may cost.
            assert np.abs(found[name].astype(int) - value.astype(int)).max() <= 1
        elif kind == "relu":
            np.testing.assert_array_equal(found[name], value)


@pytest.mark.parametrize("precision", [INT8, INT16, INT16W16])
def test_networks_of_the_target_are_those_of_the_reference_but_for_ties(precision, tidl, photos):
    model, feed = quantized(tidl["relu"], precision), photos(1, seed=6)[0]
    found, expected = integers(model, feed, integer_kernels=False), reference_integers(model, feed)
    differing = np.concatenate([(found[name] != value).ravel() for name, value in expected.items()])
    largest = max(np.abs(found[name].astype(int) - value.astype(int)).max() for name, value in expected.items())
    # A sum in float32 depends on its order in the last digits: a value between two steps may go either way.
    assert differing.mean() < (1e-3 if precision is INT8 else 0.1)
    assert largest <= (1 if precision is INT8 else 4)


def operators_run(model, feed, path, **options):
    """Types of the operators that the runtime really ran."""
    with OnnxRuntimeCpu(model, threads=1, profile=path, **options) as runner:
        runner.infer(feed)
    events = json.loads(path.read_text())
    return [event["args"]["op_name"] for event in events if "op_name" in event.get("args", {})]


def test_the_runtime_fuses_nothing_where_it_simulates(tidl, photos, tmp_path):
    model, feed = quantized(tidl["relu"], INT8), photos(1)[0]
    pairs = sum(node.op_type == "QuantizeLinear" for node in model.graph.node)
    fused = operators_run(model, feed, tmp_path / "fused.json")
    kept = operators_run(model, feed, tmp_path / "kept.json", integer_kernels=False)
    assert "QLinearConv" in fused
    assert not [name for name in kept if name.startswith("QLinear")]
    assert kept.count("QuantizeLinear") == pairs


def float_tensors(model):
    """Float tensors in front of the decode tail that a node reads without a pair, by reading node."""
    view, tail = GraphView(model), decode_tail(model)
    return {
        (node_name(node), tensor)
        for node in view.nodes
        if node_name(node) not in tail and node.op_type not in ("QuantizeLinear", "DequantizeLinear")
        for tensor in node.input
        if tensor and not view.is_constant(tensor) and view.elem_type(tensor) in (0, onnx.TensorProto.FLOAT)
        and (view.producer(tensor) is None or view.producer(tensor).op_type != "DequantizeLinear")
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["relu", "silu"])
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_under_any_plan_only_fused_pairs_of_operators_pass_floats(kind, tidl, data):
    quantizer = tidl[kind]
    names = [layer.name for layer in quantizer.layers]
    precisions = data.draw(st.lists(st.sampled_from([INT8, INT16, INT16W16]), min_size=len(names), max_size=len(names)))
    plan = PrecisionPlan(layers=dict(zip(names, precisions, strict=True)))
    model = quantizer.quantize(plan).model
    onnx.checker.check_model(model)
    view = GraphView(model)
    last = "Relu" if kind == "relu" else "Mul"
    for reader, tensor in float_tensors(model):
        by_name = {node_name(node): node for node in view.nodes}
        inside = "Conv" if kind == "relu" else "Sigmoid"
        assert by_name[reader].op_type == last and view.producer(tensor).op_type == inside


@pytest.mark.parametrize("kind", ["relu", "silu"])
def test_scales_of_activations_are_powers_of_two_and_tensors_above_0_unsigned(kind, tidl):
    for precision in (INT8, INT16W16):
        model = quantized(tidl[kind], precision)
        view = GraphView(model)
        bits = 8 if precision is INT8 else 16
        kinds = set()
        for node in view.nodes:
            if node.op_type == "QuantizeLinear":
                scale, zero_point = (view.constant(name) for name in node.input[1:])
                assert np.frexp(scale)[0] == 0.5 and scale.shape == ()
                assert zero_point == 0
                kinds.add(zero_point.dtype.name)
                if node.input[0] == "images" or (node.input[0].endswith(".act") and kind == "relu"):
                    assert zero_point.dtype == f"uint{bits}"
        assert kinds == ({f"uint{bits}"} if kind == "relu" else {f"int{bits}", f"uint{bits}"})


def test_weights_have_one_scale_and_biases_are_integers(tidl):
    for precision, dtype in ((INT8, np.int8), (INT16, np.int8), (INT16W16, np.int16)):
        quantizer = tidl["relu"]
        view = GraphView(quantized(quantizer, precision))
        nodes = {node_name(node): node for node in view.nodes}
        for layer in quantizer.layers:
            source, weight, bias = (view.producer(tensor) for tensor in nodes[layer.name].input)
            assert view.constant(weight.input[0]).dtype == dtype and view.constant(weight.input[1]).shape == ()
            assert view.constant(bias.input[0]).dtype == np.int32
            product = np.float32(view.constant(source.input[1]) * view.constant(weight.input[1]))
            assert view.constant(bias.input[1]) == product


def test_16_bit_is_nearer_to_float_than_8_bit(tidl, photos, infer):
    quantizer, feed = tidl["relu"], photos(1, seed=9)[0]
    expected = infer(quantizer.model, feed)["output0"]
    loss = [
        float(np.abs(infer(quantized(quantizer, p), feed, integer_kernels=False)["output0"] - expected).mean())
        for p in (INT8, INT16, INT16W16)
    ]
    assert loss[0] > loss[1] > 10 * loss[2]
