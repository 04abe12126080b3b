from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from qtoolkit.artifacts.plan import Precision, uniform_plan
from qtoolkit.backends.targets import find_target
from qtoolkit.graph.load import prepare_network
from qtoolkit.graph.qdq_lint import lint_qdq
from qtoolkit.graph.strongly_typed import strongly_typed
from qtoolkit.quantization.calibrate import calibrate, calibration_tensors
from qtoolkit.quantization.ptq import Quantizer

TARGETS = ("tensorrt", "tensorrt-strong", "tensorrt-rtx")


class Graph:
    """A network written node by node, all of its tensors 1×4×4×4."""

    def __init__(self):
        self.nodes, self.constants = [], {}

    def constant(self, value):
        name = f"constant{len(self.constants)}"
        self.constants[name] = numpy_helper.from_array(np.asarray(value), name)
        return name

    def node(self, op_type, inputs, output, **attributes):
        self.nodes.append(helper.make_node(op_type, inputs, [output], f"{output}.node", **attributes))
        return output

    def pair(self, tensor, scale=0.1, zero=0, dtype=np.int8):
        grid = [self.constant(np.float32(scale)), self.constant(np.asarray(zero, dtype))]
        quantized = self.node("QuantizeLinear", [tensor, *grid], f"{tensor}.q")
        return self.node("DequantizeLinear", [quantized, *grid], f"{tensor}.dq")

    def weight(self, name, axis=0, dtype=np.int8, zero=0):
        scale = self.constant(np.full(4, 0.1, np.float32))
        zeros = self.constant(np.full(4, zero, dtype))
        value = self.constant(np.ones((4, 4, 1, 1), dtype))
        return self.node("DequantizeLinear", [value, scale, zeros], f"{name}.w", axis=axis)

    def conv(self, tensor, name, weight=None, op_type="Conv"):
        return self.node(op_type, [tensor, weight or self.weight(name)], name, kernel_shape=[1, 1])

    def model(self, output, opset=17):
        values = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4, 4, 4])] for name in ("images", output)]
        graph = helper.make_graph(self.nodes, "test", *values, list(self.constants.values()))
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
        return onnx.shape_inference.infer_shapes(model)


def findings(model, target="tensorrt"):
    return [(finding.rule, finding.node) for finding in lint_qdq(model, find_target(target))]


def test_a_well_placed_network_has_no_finding():
    graph = Graph()
    first = graph.node("Relu", [graph.conv(graph.pair("images"), "first")], "relu")
    assert findings(graph.model(graph.conv(graph.pair(first), "last"))) == []


@pytest.mark.parametrize("activation", ["relu", "silu"])
@pytest.mark.parametrize("precision", [Precision.INT8, Precision.FP16, "mixed"], ids=str)
@pytest.mark.parametrize("target", TARGETS)
def test_our_own_networks_have_none(activation, precision, target, tiny_pose_model):
    row = find_target(target)
    model = prepare_network(tiny_pose_model(activation))
    feeds = [{"images": np.random.default_rng(i).random((1, 3, 64, 64), dtype=np.float32)} for i in range(2)]
    quantizer = Quantizer(model, row, calibrate(model, calibration_tensors(model, row), feeds, threads=1))
    names = [layer.name for layer in quantizer.layers]
    if precision == "mixed":
        plan = uniform_plan(names, Precision.INT8).with_layers(dict.fromkeys(names[::3], Precision.FP16))
    else:
        plan = uniform_plan(names, precision)
    network = quantizer.quantize(plan).model
    if row.strongly_typed:
        network = strongly_typed(network, opset=row.opsets[0])
    assert lint_qdq(network, row) == ()


def test_a_zero_point_other_than_0():
    graph = Graph()
    model = graph.model(graph.conv(graph.pair("images", zero=3), "last"))
    assert findings(model) == [("zero-point", "images.q.node"), ("zero-point", "images.dq.node")]
    text = str(lint_qdq(model, find_target("tensorrt"))[0])
    assert text.startswith("error zero-point: images.q.node: a zero point other than 0 (3); quantize")


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16])
def test_integers_of_another_type(dtype):
    graph = Graph()
    model = graph.model(graph.conv(graph.pair("images", dtype=dtype), "last"), opset=21)
    assert ("integer-type", "images.q.node") in findings(model)


@pytest.mark.parametrize("scale", [0.0, -0.1, np.inf, np.nan])
def test_a_scale_that_is_none(scale):
    graph = Graph()
    assert ("scale", "images.q.node") in findings(graph.model(graph.conv(graph.pair("images", scale), "last")))


def test_a_weight_along_the_wrong_axis():
    graph = Graph()
    weight = graph.weight("last", axis=1)
    assert findings(graph.model(graph.conv(graph.pair("images"), "last", weight))) == [("weight-axis", "last.w.node")]


def test_the_axis_of_a_transposed_convolution_is_1():
    graph = Graph()
    right = graph.conv(graph.pair("images"), "last", graph.weight("last", axis=1), "ConvTranspose")
    assert findings(graph.model(right)) == []
    graph = Graph()
    wrong = graph.conv(graph.pair("images"), "last", graph.weight("last", axis=0), "ConvTranspose")
    assert findings(graph.model(wrong)) == [("weight-axis", "last.w.node")]


def test_several_scales_on_an_activation():
    graph = Graph()
    grid = [graph.constant(np.full(4, 0.1, np.float32)), graph.constant(np.zeros(4, np.int8))]
    graph.node("QuantizeLinear", ["images", *grid], "q")
    graph.node("DequantizeLinear", ["q", *grid], "dq")
    found = findings(graph.model(graph.conv("dq", "last")))
    assert [rule for rule, _ in found] == ["activation-axis", "activation-axis"]


@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_a_pair_between_a_layer_and_its_activation(activation):
    graph = Graph()
    tensor = graph.pair(graph.conv(graph.pair("images"), "first"))
    if activation == "relu":
        tensor = graph.node("Relu", [tensor], "act")
    else:
        tensor = graph.node("Mul", [tensor, graph.node("Sigmoid", [tensor], "sigmoid")], "act")
    model = graph.model(graph.conv(graph.pair(tensor), "last"))
    assert findings(model) == [("split-fusion", "first.q.node")]


def test_a_layer_with_one_half_quantized():
    graph = Graph()
    float_weight = graph.constant(np.ones((4, 4, 1, 1), np.float32))
    first = graph.conv(graph.pair("images"), "first", float_weight)
    assert findings(graph.model(graph.conv(first, "last"))) == [
        ("half-quantized", "first.node"), ("half-quantized", "last.node")
    ]  # fmt: skip


def test_a_residual_with_one_input_quantized():
    graph = Graph()
    tensor = graph.pair("images")
    first = graph.conv(tensor, "first")
    added = graph.node("Add", [tensor, first], "add")
    assert findings(graph.model(graph.conv(graph.pair(added), "last"))) == [("residual", "add.node")]


@pytest.mark.parametrize(("scales", "wrong"), [((0.1, 0.1), False), ((0.1, 0.2), True)], ids=["equal", "different"])
def test_scales_around_a_concat(scales, wrong):
    graph = Graph()
    parts = []
    for name, scale in zip("ab", scales, strict=True):
        conv = graph.conv(graph.pair("images") if name == "a" else "images.dq", name)
        parts.append(graph.pair(graph.node("Relu", [conv], f"{name}.relu"), scale))
    joined = graph.node("Concat", parts, "concat", axis=2)
    model = graph.model(graph.node("Slice", [joined, *(graph.constant(np.array([i])) for i in (0, 4, 2))], "out"))
    assert findings(model) == ([("shared-scale", "concat.node")] if wrong else [])


@pytest.mark.parametrize(("scale", "wrong"), [(0.1, False), (0.3, True)], ids=["equal", "different"])
def test_scales_around_a_pooling(scale, wrong):
    graph = Graph()
    pooled = graph.node("MaxPool", [graph.pair("images")], "pool", kernel_shape=[1, 1])
    model = graph.model(graph.conv(graph.pair(pooled, scale), "last"))
    assert findings(model) == ([("shared-scale", "pool.node")] if wrong else [])


def test_a_quantizer_without_its_other_half():
    graph = Graph()
    dequantized = graph.pair("images")
    graph.node("Cast", ["images.q"], "integers", to=TensorProto.FLOAT)
    model = graph.model(graph.node("Add", [graph.conv(dequantized, "last"), "integers"], "sum"))
    assert ("unpaired", "images.q.node") in findings(model)


@pytest.mark.parametrize(
    ("opset", "target", "wrong"),
    [(17, "tensorrt", False), (18, "tensorrt", True), (17, "tensorrt-strong", True), (17, "tensorrt-rtx", True)],
)
def test_opsets(opset, target, wrong):
    graph = Graph()
    model = graph.model(graph.conv(graph.pair("images"), "last"), opset)
    assert (("opset", "the network") in findings(model, target)) is wrong


def test_too_low_an_opset_is_an_error_and_too_high_a_one_a_warning():
    graph = Graph()
    model = graph.model(graph.conv(graph.pair("images"), "last"), 18)
    assert [each.severity for each in lint_qdq(model, find_target("tensorrt"))] == ["warning"]
    assert [each.severity for each in lint_qdq(model, find_target("tensorrt-strong"))] == ["error"]


def test_fp16_scales_are_for_one_dialect_only():
    graph = Graph()
    strong = strongly_typed(graph.model(graph.conv(graph.pair("images"), "last")))
    assert findings(strong, "tensorrt-strong") == []
    rules = {(finding.rule, finding.severity) for finding in lint_qdq(strong, find_target("tensorrt"))}
    assert rules == {("opset", "warning"), ("scale-type", "error")}
    rules = {(finding.rule, finding.severity) for finding in lint_qdq(strong, find_target("tensorrt-rtx"))}
    assert ("scale-type", "warning") in rules
