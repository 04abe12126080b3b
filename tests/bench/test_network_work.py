"""Kernels read from small graphs, counted by hand."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from qtoolkit.artifacts.plan import Precision
from qtoolkit.bench.layer_work import CONVERSION, LayerWork
from qtoolkit.bench.network_work import network_work
from qtoolkit.errors import ModelFileError
from qtoolkit.graph.half import convert_half
from qtoolkit.graph.load import prepare_network

FP32, FP16, INT8 = Precision.FP32, Precision.FP16, Precision.INT8


class Net:
    """Nodes on a (1, 4, 8, 8) image; ``conv`` adds a 3×3 of 4 channels, quantized or not."""

    def __init__(self):
        self.nodes, self.constants = [], {"scale": np.float32(0.1), "zero": np.int8(0)}

    def node(self, op, inputs, output, **attributes):
        self.nodes.append(helper.make_node(op, inputs, [output], output, **attributes))
        return output

    def pair(self, tensor, name, zero="zero"):
        self.node("QuantizeLinear", [tensor, "scale", zero], f"{name}.q")
        return self.node("DequantizeLinear", [f"{name}.q", "scale", zero], f"{name}.dq")

    def conv(self, name, x, quantized=False):
        self.constants[f"{name}.w"] = np.ones((4, 4, 3, 3), np.int8 if quantized else np.float32)
        weight = f"{name}.w"
        if quantized:
            x = self.pair(x, f"{name}.x")
            weight = self.node("DequantizeLinear", [weight, "scale", "zero"], f"{name}.w.dq")
        return self.node("Conv", [x, weight], name, pads=[1] * 4)

    def model(self, output, shape=(1, 4, 8, 8), opset=13, batch=1):
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, (batch, 4, 8, 8))
        y = helper.make_tensor_value_info(output, TensorProto.FLOAT, (batch, *shape[1:]))
        constants = [numpy_helper.from_array(np.asarray(value), name) for name, value in self.constants.items()]
        graph = helper.make_graph(self.nodes, "net", [x], [y], constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def short(kernels):
    return [(each.name, each.precision, each.written_as) for each in kernels]


def test_a_convolution_by_hand():
    """8·8·4 elements in and out, 4·4·9 weights; 256 · 36 = 9216 MACs; 4 bytes each in fp32, 1 in int8."""
    net = Net()
    work = network_work(net.model(net.conv("a", "x")))
    assert work.kernels == (LayerWork("a", "Conv", 9216, 256, 256, 144, 4),)
    assert (work.gmacs, work.decodes, work.layers, work.batch) == (9216e-9, False, {"a"}, 1)
    assert work.kernels[0].moved_bytes == 4 * 656
    assert work.kernels[0].at(INT8).moved_bytes == 656


def test_activations_and_residual_adds_run_in_the_kernel_before_them():
    """silu(a) + relu(b(silu(a))): b reads 256 elements more; SiLU's product of one tensor with itself reads none."""
    net = Net()
    a = net.conv("a", "x")
    a = net.node("Mul", [a, net.node("Sigmoid", [a], "a.sigmoid")], "a.silu")
    b = net.node("Relu", [net.conv("b", a)], "b.relu")
    net.conv("c", net.node("Add", [a, b], "sum"))
    kernels = network_work(net.model("c")).kernels
    assert [(each.name, each.read) for each in kernels] == [("a", 256), ("b", 512), ("c", 256)]


def test_pooling_and_resizing_are_kernels_and_concat_is_none():
    net = Net()
    a = net.conv("a", "x")
    pooled = net.node("MaxPool", [a], "pool", kernel_shape=[3, 3], pads=[1] * 4)
    joined = net.node("Concat", [a, pooled], "joined", axis=1)
    net.constants["w"] = np.ones((4, 8, 1, 1), np.float32)
    net.node("Conv", [joined, "w"], "b")
    kernels = network_work(net.model("b")).kernels
    assert [(each.name, each.read, each.macs) for each in kernels] == [
        ("a", 256, 9216),
        ("pool", 256, 0),
        ("b", 512, 2048),
    ]


def test_channels_are_the_fewer_of_one_group():
    net = Net()
    net.constants["w"] = np.ones((4, 2, 1, 1), np.float32)
    net.node("Conv", ["x", "w"], "y", group=2)
    (kernel,) = network_work(net.model("y")).kernels
    assert (kernel.channels, kernel.macs) == (2, 512)


def test_a_chain_of_int8_layers_converts_nothing():
    net = Net()
    a = net.node("Relu", [net.conv("a", "x", quantized=True)], "a.relu")
    net.conv("b", a, quantized=True)
    assert short(network_work(net.model("b")).kernels) == [("a", INT8, None), ("b", INT8, FP32)]


def test_a_float_layer_in_front_of_an_int8_one_costs_a_conversion_and_the_other_way_none():
    net = Net()
    net.conv("c", net.conv("b", net.conv("a", "x"), quantized=True))
    kernels = network_work(net.model("c")).kernels
    assert short(kernels) == [("a", FP32, None), ("a to int8", FP32, INT8), ("b", INT8, FP32), ("c", FP32, None)]
    conversion, b = kernels[1], kernels[2]
    assert (conversion.op, conversion.macs, conversion.moved_bytes) == (CONVERSION, 0, 4 * 256 + 256)
    assert b.moved_bytes == 256 + 144 + 4 * 256


def test_one_conversion_serves_all_int8_readers():
    net = Net()
    a = net.conv("a", "x")
    shared = net.pair(a, "a")
    for name in ("b", "c"):
        net.constants[f"{name}.w"] = np.ones((4, 4, 1, 1), np.int8)
        weight = net.node("DequantizeLinear", [f"{name}.w", "scale", "zero"], f"{name}.w.dq")
        net.node("Conv", [shared, weight], name)
    net.node("Concat", ["b", "c"], "y", axis=1)
    kernels = network_work(net.model("y", (1, 8, 8, 8))).kernels
    assert [each.name for each in kernels if each.op == CONVERSION] == ["a to int8"]


@pytest.mark.parametrize("last", [True, False])
def test_pooling_is_int8_where_its_readers_want_that(last):
    net = Net()
    a = net.conv("a", "x", quantized=True)
    pool = net.node("MaxPool", [net.pair(a, "p")], "pool", kernel_shape=[3, 3], pads=[1] * 4)
    net.conv("b", pool, quantized=last)
    found = {each.name: each.precision for each in network_work(net.model("b")).kernels}
    assert found["pool"] is (INT8 if last else FP32)


def test_a_conversion_stands_in_front_of_the_pooling_not_behind_it():
    net = Net()
    pool = net.node("MaxPool", [net.conv("a", "x")], "pool", kernel_shape=[3, 3], pads=[1] * 4)
    joined = net.node("Concat", ["a", pool], "joined", axis=1)
    net.constants["b.w"] = np.ones((4, 8, 1, 1), np.int8)
    weight = net.node("DequantizeLinear", ["b.w", "scale", "zero"], "b.w.dq")
    net.node("Conv", [net.pair(joined, "joined"), weight], "b")
    kernels = network_work(net.model("b")).kernels
    assert short(kernels) == [("a", FP32, None), ("a to int8", FP32, INT8), ("pool", INT8, None), ("b", INT8, FP32)]


def test_fp16_layers_are_read_as_such(tiny_pose_model):
    model = prepare_network(tiny_pose_model("relu"))
    layers = network_work(model).layers
    half = network_work(convert_half(model, layers))
    assert half.layers == layers
    assert {each.precision for each in half.kernels if each.name in layers} == {FP16}
    assert not any(each.op == CONVERSION for each in half.kernels)


def test_decode_arithmetic_is_told_and_not_counted(tiny_pose_model):
    work = network_work(prepare_network(tiny_pose_model("silu")))
    assert work.decodes
    assert not {"Softmax", "Sub"} & {each.op for each in work.kernels}


def test_a_sigmoid_behind_the_last_layer_is_no_decoding():
    net = Net()
    net.node("Sigmoid", [net.conv("a", "x")], "y")
    assert not network_work(net.model("y")).decodes


def test_every_kind_of_layer(mixed_layers_model):
    work = network_work(prepare_network(mixed_layers_model()))
    assert len(work.layers) == 6
    assert [each.op for each in work.kernels if each.name not in work.layers] == ["MatMul", "MatMul"]


def test_the_batch_of_the_graph_counts_and_gmacs_are_of_one_image():
    net = Net()
    work = network_work(net.model(net.conv("a", "x"), batch=3))
    assert (work.batch, work.kernels[0].macs, work.kernels[0].read) == (3, 3 * 9216, 768)
    assert work.gmacs == pytest.approx(9216e-9)


def test_in_place_of_fp32_another_precision_drops_conversions_between_the_two():
    net = Net()
    net.conv("b", net.conv("a", "x"), quantized=True)
    work = network_work(net.model("b"))
    assert [each.name for each in work.kernels] == ["a", "a to int8", "b"]
    half = work.without(FP32, FP16)
    assert [each.precision for each in half.kernels] == [FP16, FP16, INT8]
    assert [each.name for each in work.without(INT8, FP32).kernels] == ["a", "b"]
    assert [(each.name, each.precision) for each in work.at(INT8).kernels] == [("a", INT8), ("b", INT8)]


def test_16_bit_integers_are_refused():
    net = Net()
    net.constants["zero16"] = np.int16(0)
    net.constants["a.w"] = np.ones((4, 4, 3, 3), np.int8)
    weight = net.node("DequantizeLinear", ["a.w", "scale", "zero"], "a.w.dq")
    net.node("Conv", [net.pair("x", "x", "zero16"), weight], "a", pads=[1] * 4)
    with pytest.raises(ModelFileError, match="layer 'a' is in 16-bit integers, which TensorRT has not"):
        network_work(net.model("a", opset=21))


def test_integer_operators_are_refused():
    net = Net()
    net.constants |= {"w": np.ones((4, 4, 1, 1), np.int8), "s": np.float32(0.1)}
    net.node("QuantizeLinear", ["x", "scale", "zero"], "xq")
    net.node("QLinearConv", ["xq", "scale", "zero", "w", "s", "zero", "s", "zero"], "yq")
    net.node("DequantizeLinear", ["yq", "scale", "zero"], "y")
    with pytest.raises(ModelFileError, match="QLinearConv 'yq' does not exist in TensorRT"):
        network_work(net.model("y"))


def test_an_open_size_is_refused():
    net = Net()
    model = net.model(net.conv("a", "x"))
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"
    del model.graph.output[0].type.tensor_type.shape.dim[2:]
    model.graph.output[0].type.tensor_type.shape.dim.add().dim_param = "h"
    model.graph.output[0].type.tensor_type.shape.dim.add().dim_param = "w"
    with pytest.raises(ModelFileError, match="--input-size"):
        network_work(onnx.ModelProto.FromString(model.SerializeToString()))
