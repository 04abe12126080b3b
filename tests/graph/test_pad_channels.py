from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from qtoolkit.graph.pad_channels import pad_channels
from qtoolkit.graph.view import GraphView


class Build:
    """A small network of Q/DQ, written node by node; tensors of 8 × 8 places."""

    def __init__(self, channels=4):
        self.nodes, self.constants, self.random = [], [], np.random.default_rng(0)
        self.values = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, channels, 8, 8])]

    def constant(self, name, value):
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def node(self, op_type, inputs, output, channels=None, **attributes):
        self.nodes.append(helper.make_node(op_type, inputs, [output], output, **attributes))
        if channels:
            self.values.append(helper.make_tensor_value_info(output, TensorProto.FLOAT, [1, channels, 8, 8]))
        return output

    def pair(self, tensor):
        scale, zero = self.constant(f"{tensor}/s", np.float32(0.05)), self.constant(f"{tensor}/z", np.uint8(100))
        self.node("QuantizeLinear", [tensor, scale, zero], f"{tensor}/q")
        return self.node("DequantizeLinear", [f"{tensor}/q", scale, zero], f"{tensor}/dq")

    def weight(self, name, shape, kind):
        value = self.random.normal(0, 0.3, shape).astype(np.float32)
        if kind == "float":
            return self.constant(name, value)
        if kind == "half":
            return self.node("Cast", [self.constant(f"{name}/h", value.astype(np.float16))], name, to=TensorProto.FLOAT)
        scale = np.full(shape[0], 0.01, np.float32) * np.arange(1, shape[0] + 1, dtype=np.float32)
        stored = np.clip(np.round(value / scale.reshape(-1, 1, 1, 1)), -127, 127).astype(np.int8)
        zero = np.full(shape[0], 3 if kind == "zero point" else 0, np.int8)
        scales = [self.constant(f"{name}/s", scale), self.constant(f"{name}/z", zero)]
        return self.node("DequantizeLinear", [self.constant(f"{name}/q", stored), *scales], name, axis=0)

    def conv(self, source, name, shape, kind="int8", **attributes):
        weight = self.weight(f"{name}/w", shape, kind)
        if kind == "int8":
            step = 0.05 * 0.01 * np.arange(1, shape[0] + 1, dtype=np.float32)
            stored = self.random.integers(-90, 90, shape[0]).astype(np.int32)
            parts = [self.constant(f"{name}/b{part}", value) for part, value in
                     (("q", stored), ("s", step), ("z", np.zeros(shape[0], np.int32)))]  # fmt: skip
            bias = self.node("DequantizeLinear", parts, f"{name}/b", axis=0)
        else:
            bias = self.constant(f"{name}/b", self.random.normal(0, 1, shape[0]).astype(np.float32))
        pads = [shape[2] // 2] * 4
        return self.node("Conv", [source, weight, bias], name, shape[0], pads=pads, **attributes)

    def silu(self, source, channels):
        gate = self.pair(self.node("Sigmoid", [source], f"{source}/sigmoid", channels))
        return self.node("Mul", [source, gate], f"{source}/silu", channels)

    def model(self, *outputs):
        given = {value.name: value for value in self.values}
        ends = [given[name] for name in outputs]
        inner = [value for value in self.values[1:] if value.name not in outputs]
        graph = helper.make_graph(self.nodes, "net", self.values[:1], ends, self.constants, value_info=inner)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.checker.check_model(model, full_check=True)
        return model


def pose_branch(channels=5, **last):
    """Two 3 × 3 convolutions of a keypoint branch, with SiLU, and the last one of 1 × 1."""
    net = Build()
    for index, before in enumerate((4, channels)):
        source = net.pair("x" if index == 0 else "conv0/dq/silu")
        net.conv(source, f"conv{index}", (channels, before, 3, 3))
        net.silu(net.pair(f"conv{index}"), channels)
    return net.model(net.conv("conv1/dq/silu", "last", (3, channels, 1, 1), **{"kind": "float", **last}))


def sessions(tmp_path, model):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    kernels = [node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node]
    return session, kernels


def compare(tmp_path: Path, model, padded):
    x = np.random.default_rng(1).normal(0, 2, (1, 4, 8, 8)).astype(np.float32)
    onnx.checker.check_model(padded, full_check=True)
    (one, kernels), (other, found) = sessions(tmp_path, model), sessions(tmp_path, padded)
    np.testing.assert_allclose(other.run(None, {"x": x})[0], one.run(None, {"x": x})[0], rtol=0, atol=2e-6)
    return kernels, found


def weight_shapes(model):
    view = GraphView(model)
    return {
        name: view.constant(f"{name}/w/q" if view.is_constant(f"{name}/w/q") else f"{name}/w").shape[:2]
        for name in ("conv0", "conv1", "last")
    }


@pytest.mark.parametrize("multiple", [2, 4, 16])
def test_channels_are_filled_up_and_nothing_else_changes(tmp_path, multiple):
    model = pose_branch()
    wide = -(-5 // multiple) * multiple
    padded = pad_channels(model, multiple)
    assert weight_shapes(padded) == {"conv0": (wide, 4), "conv1": (wide, wide), "last": (3, wide)}
    kernels, found = compare(tmp_path, model, padded)
    assert found.count("QLinearConv") == kernels.count("QLinearConv") == 2
    assert weight_shapes(model)["conv0"] == (5, 4)
    assert GraphView(padded).shape("conv0/dq/sigmoid") == (1, wide, 8, 8)
    assert pad_channels(padded, multiple) is padded


@pytest.mark.parametrize(("channels", "multiple"), [(8, 4), (5, 1)])
def test_what_fits_stays(channels, multiple):
    model = pose_branch(channels)
    assert pad_channels(model, multiple) is model


@pytest.mark.parametrize("kind", ["half", "int8"])
def test_weights_of_every_form_are_filled_up(tmp_path, kind):
    model = pose_branch(kind=kind)
    compare(tmp_path, model, pad_channels(model, 4))


def test_channels_that_an_add_joins_are_filled_up_together(tmp_path):
    net = Build()
    source = net.pair("x")
    for name in ("a", "b"):
        net.conv(source, name, (5, 4, 1, 1))
    net.node("Add", [net.pair("a"), net.pair("b")], "sum", 5)
    model = net.model(net.conv(net.pair("sum"), "end", (4, 5, 3, 3)))
    padded = pad_channels(model, 4)
    view = GraphView(padded)
    assert view.constant("a/w/q").shape[0] == view.constant("b/w/q").shape[0] == view.constant("end/w/q").shape[1] == 8
    compare(tmp_path, model, padded)


def refused(kind):
    net = Build()
    made = net.conv(net.pair("x"), "made", (5, 4, 1, 1), kind=kind if kind in ("float", "zero point") else "int8")
    source = made if kind == "float" else net.pair(made)
    if kind == "an output":
        net.conv(source, "end", (4, 5, 1, 1))
        return net.model("end", "made")
    if kind == "in groups":
        net.conv(source, "grouped", (5, 1, 3, 3), group=5)
        return net.model(net.conv(net.pair("grouped"), "end", (4, 5, 1, 1)))
    if kind == "by channel":
        slope = net.constant("slope", np.full((5, 1, 1), 0.1, np.float32))
        net.node("PRelu", [source, slope], "bent", 5)
        return net.model(net.conv(net.pair("bent"), "end", (4, 5, 1, 1)))
    if kind == "one for all":
        net.conv("x/dq", "one", (1, 4, 1, 1))
        net.node("Mul", [source, net.pair("one")], "gated", 5)
        return net.model(net.conv(net.pair("gated"), "end", (4, 5, 1, 1)))
    if kind == "a shared weight":
        net.conv(source, "end", (4, 5, 1, 1))
        weight, bias = "made/w", "made/b"
        net.node("Conv", ["x/dq", weight, bias], "again", 5)
        return net.model("end", "again")
    return net.model(net.conv(source, "end", (4, 5, 1, 1), kind="float" if kind == "float" else "int8"))


@pytest.mark.parametrize(
    "kind", ["float", "zero point", "an output", "in groups", "by channel", "one for all", "a shared weight"]
)
def test_what_cannot_or_need_not_take_more_channels_stays(kind):
    model = refused(kind)
    assert pad_channels(model, 4) is model
