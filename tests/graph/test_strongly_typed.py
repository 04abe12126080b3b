from __future__ import annotations

from collections import Counter

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, checker, helper, numpy_helper

from qtoolkit.artifacts.plan import Precision, uniform_plan
from qtoolkit.backends.onnxruntime_cpu import OnnxRuntimeCpu
from qtoolkit.backends.targets import find_target
from qtoolkit.errors import ModelFileError
from qtoolkit.graph.layers import decode_tail
from qtoolkit.graph.load import prepare_network
from qtoolkit.graph.plain_weights import with_plain_weights
from qtoolkit.graph.strongly_typed import is_strongly_typed, strongly_typed
from qtoolkit.graph.view import GraphView, attribute, node_name
from qtoolkit.numerics.similarity import sqnr_db
from qtoolkit.quantization.calibrate import calibrate, calibration_tensors
from qtoolkit.quantization.ptq import Quantizer

TARGET = find_target("tensorrt")
ORT = tuple(int(part) for part in onnxruntime.__version__.split(".")[:2])
OPSETS = (19, 23)
VARIANTS = ("float", "16bit", "int8", "mixed", "mixed with fp32")


def images(seed=0):
    return {"images": np.random.default_rng(seed).random((1, 3, 64, 64), dtype=np.float32)}


@pytest.fixture(scope="module", params=["relu", "silu"])
def networks(request, tiny_pose_model):
    """Variant → weakly typed network."""
    model = prepare_network(tiny_pose_model(request.param, seed=3))
    statistics = calibrate(model, calibration_tensors(model, TARGET), [images(seed) for seed in range(4)], threads=1)
    quantizer = Quantizer(model, TARGET, statistics)
    names = [layer.name for layer in quantizer.layers]
    eight = uniform_plan(names, Precision.INT8)
    plans = {
        "16bit": uniform_plan(names, Precision.FP16),
        "int8": eight,
        "mixed": eight.with_layers(dict.fromkeys(names[::3], Precision.FP16)),
        "mixed with fp32": eight.with_layers(
            dict.fromkeys(names[::3], Precision.FP16) | dict.fromkeys(names[1::3], Precision.FP32)
        ),
    }
    return {"float": model} | {variant: quantizer.quantize(plan).model for variant, plan in plans.items()}


def run(model, seed=9):
    with OnnxRuntimeCpu(model, threads=1, integer_kernels=False) as runner:
        return runner.infer(images(seed))["output0"]


def kinds(view, tensors):
    return {view.elem_type(tensor) for tensor in tensors}


@pytest.mark.skipif(ORT < (1, 24), reason="ONNX Runtime before 1.24 computes Q/DQ of fp16 tensors wrong, or not at all")
@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_numbers_are_those_of_the_weak_network_within_fp16_rounding(variant, opset, networks):
    weak, strong = networks[variant], strongly_typed(networks[variant], opset=opset)
    exact, expected, found = run(networks["float"]), run(weak), run(strong)
    if variant in ("float", "16bit"):
        assert sqnr_db(expected, found) > 60
    else:
        # fp16 moves a value across the border between two integers now and then: as far off as quantization itself.
        assert sqnr_db(expected, found) > sqnr_db(exact, expected)
        assert sqnr_db(exact, found) > sqnr_db(exact, expected) - 1.5


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_names_inputs_and_outputs_stay(variant, opset, networks):
    weak, strong = networks[variant], strongly_typed(networks[variant], opset=opset)
    checker.check_model(strong, full_check=True)
    without_casts = [node_name(node) for node in weak.graph.node if node.op_type != "Cast"]
    assert [node_name(node) for node in strong.graph.node if node.op_type != "Cast"] == without_casts
    for part in ("input", "output"):
        assert [(v.name, v.type) for v in getattr(strong.graph, part)] == [
            (v.name, v.type) for v in getattr(weak.graph, part)
        ]


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("variant", ["16bit", "int8", "mixed"])
def test_everything_in_front_of_the_tail_is_fp16_and_the_tail_float32(variant, opset, networks):
    strong = strongly_typed(networks[variant], opset=opset)
    view, tail = GraphView(strong), decode_tail(with_plain_weights(strong))
    for node in view.nodes:
        if node.op_type in ("Cast", "QuantizeLinear"):
            continue
        floats = kinds(view, node.output) - {TensorProto.INT64, TensorProto.INT8}
        assert floats <= {TensorProto.FLOAT if node_name(node) in tail else TensorProto.FLOAT16}, node_name(node)
    scales = kinds(view, [node.input[1] for node in view.nodes if node.op_type.endswith("tizeLinear")])
    assert scales <= {TensorProto.FLOAT16 if opset == 19 else TensorProto.FLOAT}


def test_casts_stand_only_where_types_meet(networks):
    casts = [node for node in strongly_typed(networks["mixed"]).graph.node if node.op_type == "Cast"]
    # One behind the image, one behind each of the nine last layers.
    assert Counter(attribute(node, "to") for node in casts) == {TensorProto.FLOAT16: 1, TensorProto.FLOAT: 9}
    assert len(casts) < sum(node.op_type == "Cast" for node in networks["mixed"].graph.node)


def test_a_float32_layer_stays_a_float32_island(networks):
    strong = strongly_typed(networks["mixed with fp32"])
    view = GraphView(strong)
    types = Counter(view.elem_type(node.output[0]) for node in view.nodes if node.op_type == "Conv")
    assert types[TensorProto.FLOAT] > 3 and types[TensorProto.FLOAT16] > 3


def test_a_float_network_changes_in_its_opset_only(networks):
    strong = strongly_typed(networks["float"])
    assert not is_strongly_typed(strong)
    assert {node.op_type for node in strong.graph.node} == {node.op_type for node in networks["float"].graph.node}
    assert not any(tensor.data_type == TensorProto.FLOAT16 for tensor in strong.graph.initializer)


@pytest.mark.parametrize("opset", OPSETS)
def test_a_strong_network_comes_back_as_it_is(opset, networks):
    strong = strongly_typed(networks["int8"], opset=opset)
    assert is_strongly_typed(strong) and not is_strongly_typed(networks["int8"])
    assert strongly_typed(strong, opset=opset) is strong


def test_the_network_given_is_left_alone(networks):
    before = networks["mixed"].SerializeToString(deterministic=True)
    strongly_typed(networks["mixed"])
    assert networks["mixed"].SerializeToString(deterministic=True) == before


def test_named_nodes_stay_in_float32(networks):
    weak = networks["int8"]
    name = next(node.name for node in weak.graph.node if node.op_type == "Add")
    view = GraphView(strongly_typed(weak, keep_float=[name]))
    node = next(node for node in view.nodes if node.name == name)
    assert kinds(view, [*node.input, *node.output]) == {TensorProto.FLOAT}


def layer_between(scale, weight_scale=0.01, opset=13):
    """images → Q/DQ → Conv with a weight of 1×1×1×1 → Relu → output, all of 1×1×2×2."""
    initializers = [
        numpy_helper.from_array(np.float32(scale), "scale"), numpy_helper.from_array(np.int8(0), "zero"),
        numpy_helper.from_array(np.full((1, 1, 1, 1), 100, np.int8), "weight"),
        numpy_helper.from_array(np.array([weight_scale], np.float32), "weight_scale"),
        numpy_helper.from_array(np.zeros(1, np.int8), "weight_zero"),
    ]  # fmt: skip
    nodes = [
        helper.make_node("QuantizeLinear", ["images", "scale", "zero"], ["q"], "q"),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["dq"], "dq"),
        helper.make_node("DequantizeLinear", ["weight", "weight_scale", "weight_zero"], ["w"], "wdq", axis=0),
        helper.make_node("Conv", ["dq", "w"], ["conv"], "layer", kernel_shape=[1, 1]),
        helper.make_node("Relu", ["conv"], ["relu"], "relu"),
        helper.make_node("Conv", ["relu", "w"], ["output"], "last", kernel_shape=[1, 1]),
    ]
    values = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 1, 2, 2])] for name in ("images", "output")]
    graph = helper.make_graph(nodes, "test", *values, initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def test_a_range_near_fp16s_limit_keeps_its_layer_in_float32():
    view = GraphView(strongly_typed(layer_between(scale=200.0)))
    types = {node.name: view.elem_type(node.output[0]) for node in view.nodes}
    assert types["layer"] == types["dq"] == TensorProto.FLOAT


def test_a_scale_that_fp16_cannot_hold_is_rounded_up_and_its_weight_again():
    scale = 7.7439104e-08
    view = GraphView(strongly_typed(layer_between(scale=0.01, weight_scale=scale)))
    node = next(node for node in view.nodes if node.name == "wdq")
    lowered, integers = view.constant(node.input[1]), view.constant(node.input[0])
    assert lowered.dtype == np.float16 and float(lowered[0]) > scale
    assert abs(float(integers.item()) * float(lowered[0]) - 100 * scale) <= float(lowered[0]) / 2
    assert 0 < integers.item() < 100


def test_at_opset_23_scales_stay_as_they_are():
    scale = np.float32(7.7439104e-08)
    view = GraphView(strongly_typed(layer_between(scale=0.01, weight_scale=scale), opset=23))
    node = next(node for node in view.nodes if node.name == "wdq")
    assert view.constant(node.input[1])[0] == scale and view.constant(node.input[0]).item() == 100
    assert attribute(node, "output_dtype") == TensorProto.FLOAT16


def test_an_output_that_an_fp16_node_makes_stays_float32():
    strong = strongly_typed(layer_between(scale=0.01))
    view = GraphView(strong)
    assert view.producer("output").op_type == "Cast" and view.elem_type("output") == TensorProto.FLOAT


def test_an_operator_that_no_converter_knows_is_named():
    model = layer_between(scale=0.01, opset=13)
    model.graph.node[4].op_type = "NoSuchOperator"
    with pytest.raises(ModelFileError, match="cannot be raised from opset 13 to 19"):
        strongly_typed(model)
