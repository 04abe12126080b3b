from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from qtoolkit.errors import ModelFileError
from qtoolkit.graph.load import load_network, network_input, prepare_network
from qtoolkit.graph.read import default_opset
from qtoolkit.graph.view import GraphView

OPSET_11 = """
net (float[1,3,16,16] images, float[4] bias) => (float[1,4,16] out, float[1,4,1] total)
<float[4,3,1,1] w = {-0.5,-0.4,-0.3,-0.2,-0.1,0.0,0.1,0.2,0.3,0.4,0.5,0.6}, float[4] bias = {0.1,0.2,0.3,0.4},
 float[0] roi = {}, float[4] scales = {1.0,1.0,0.5,0.5}, float lo = {0.0}, float hi = {6.0},
 int64[8] pads = {0,0,1,1,0,0,1,1}>
{
  c = Conv(images, w, bias)
  d = Dropout(c)
  r = Clip(d, lo, hi)
  p = Pad(r, pads)
  u = Resize<mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor">(p, roi, scales)
  m = MaxPool<kernel_shape=[3,3], strides=[2,2]>(u)
  a, b = Split<axis=1, split=[2,2]>(m)
  j = Concat<axis=1>(a, b)
  q = Unsqueeze<axes=[0]>(j)
  s = Squeeze<axes=[0]>(q)
  shape = Shape(s)
  zero = Constant<value=int64[1]{0}>()
  two = Constant<value=int64[1]{2}>()
  head = Slice(shape, zero, two, zero)
  rest = Constant<value=int64[1]{-1}>()
  target = Concat<axis=0>(head, rest)
  f = Reshape(s, target)
  out = Softmax<axis=1>(f)
  total = ReduceSum<axes=[2], keepdims=1>(f)
}
"""


def _assert_same_outputs(run_network, before, after, feeds):
    expected, found = run_network(before, feeds), run_network(after, feeds)
    assert expected.keys() == found.keys()
    for name, values in expected.items():
        tolerance = 1e-5 * float(np.abs(values).max())
        np.testing.assert_allclose(found[name], values, rtol=0, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("opset", [13, 17, 21, 23])
@pytest.mark.parametrize("activation", ["silu", "relu"])
@pytest.mark.parametrize("kind", ["tiny_pose_model", "dynamic_pose_model"])
def test_pose_network_computes_the_same_after(request, run_network, image, kind, activation, opset):
    model = request.getfixturevalue(kind)(activation, opset=opset)
    prepared = prepare_network(model, input_size_wh=(64, 64))
    _assert_same_outputs(run_network, model, prepared, {"images": image(64)})
    assert default_opset(prepared) == opset


def test_every_kind_of_layer_computes_the_same_after(mixed_layers_model, run_network, image):
    model = mixed_layers_model()
    prepared = prepare_network(model)
    _assert_same_outputs(run_network, model, prepared, {"images": image(16)})
    assert "BatchNormalization" not in {node.op_type for node in prepared.graph.node}


def test_static_and_dynamic_pose_network_become_the_same_graph(tiny_pose_model, dynamic_pose_model):
    graphs = [
        prepare_network(model, input_size_wh=(64, 64)).graph for model in (tiny_pose_model(), dynamic_pose_model())
    ]
    counts = [Counter(node.op_type for node in graph.node) for graph in graphs]
    assert counts[0] == counts[1]
    assert not {"Shape", "Range", "Constant", "BatchNormalization"} & set(counts[0])


@pytest.mark.parametrize(("opset", "ir_version"), [(11, 3), (11, 6), (12, 7)])
def test_old_opsets_are_raised_to_13_and_compute_the_same(parse_network, run_network, image, opset, ir_version):
    model = parse_network(OPSET_11, opset, ir_version)
    if ir_version == 3:
        known = {value.name for value in model.graph.input}
        for tensor in model.graph.initializer:
            if tensor.name not in known:
                model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    prepared = prepare_network(model)
    assert default_opset(prepared) == 13
    assert prepared.ir_version >= 7
    assert [value.name for value in prepared.graph.input] == ["images"]
    _assert_same_outputs(run_network, model, prepared, {"images": image(16)})


@pytest.fixture(scope="module")
def prepared(dynamic_pose_model):
    return prepare_network(dynamic_pose_model(), input_size_wh=(64, 64))


def test_what_is_prepared_is_clean(prepared):
    view = GraphView(prepared)
    onnx.checker.check_model(prepared, full_check=True)
    names = [node.name for node in view.nodes]
    assert all(names) and len(set(names)) == len(names)
    assert [value.name for value in prepared.graph.input] == ["images"]
    read = {name for node in view.nodes for name in node.input}
    assert {tensor.name for tensor in prepared.graph.initializer} <= read
    assert all(view.shape(name) is not None for node in view.nodes for name in node.output)
    assert network_input(prepared).input_size_wh == (64, 64)


def test_given_names_are_kept(prepared):
    assert {"stem", "down8", "head.score.2.1"} <= {node.name for node in prepared.graph.node}


def test_preparing_twice_changes_nothing(prepared):
    again = prepare_network(prepared)
    assert again.SerializeToString(deterministic=True) == prepared.SerializeToString(deterministic=True)


def test_the_model_and_the_file_are_left_as_they_are(tmp_path, tiny_pose_model):
    model = tiny_pose_model()
    content = model.SerializeToString(deterministic=True)
    path = tmp_path / "net.onnx"
    path.write_bytes(content)
    load_network(path)
    prepare_network(model)
    assert path.read_bytes() == content
    assert model.SerializeToString(deterministic=True) == content


def test_a_size_it_cannot_run_at(tmp_path, tiny_pose_model, dynamic_pose_model):
    path = tmp_path / "static.onnx"
    path.write_bytes(tiny_pose_model().SerializeToString())
    with pytest.raises(ModelFileError, match=r"static.onnx cannot run at batch 1 and 96x96(.|\n)*\(1, 3, 64, 64\)"):
        load_network(path, input_size_wh=(96, 96))
    path = tmp_path / "dynamic.onnx"
    path.write_bytes(dynamic_pose_model().SerializeToString())
    with pytest.raises(ModelFileError, match=r"dynamic.onnx cannot run at batch 1 and 100x100(.|\n)*multiple of 32"):
        load_network(path, input_size_wh=(100, 100))
    with pytest.raises(ModelFileError, match=r"leaves the size(.|\n)*--input-size"):
        load_network(path)


def test_a_convolutional_network_can_be_given_another_size(network_builder, run_network, image):
    net = network_builder()
    last = net.plain_conv("last", net.conv("first", "images", 3, 8, kernel=3, stride=2), 8, 17, kernel=1)
    model = net.model({"images": (1, 3, 64, 64)}, {last: (1, 17, 32, 32)})
    prepared = prepare_network(model, input_size_wh=(32, 32))
    assert run_network(prepared, {"images": image(32)})[last].shape == (1, 17, 16, 16)


def test_an_invalid_graph(parse_network):
    model = parse_network("net (float[1,3,4,4] images) => (float[1,3,4,4] y) { y = Relu(images) }")
    model.graph.node[0].op_type = "Rellu"
    with pytest.raises(ModelFileError, match=r"is not valid ONNX(.|\n)*Rellu"):
        prepare_network(model)


def test_a_model_with_nodes_out_of_order_is_sorted(tiny_pose_model, run_network, image):
    model = tiny_pose_model()
    turned = onnx.ModelProto.FromString(model.SerializeToString())
    del turned.graph.node[:]
    turned.graph.node.extend(reversed(model.graph.node))
    _assert_same_outputs(run_network, model, prepare_network(turned), {"images": image(64)})


def test_local_functions_are_inlined(run_network, image):
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17, "local" : 1]>
        net (float[1,3,8,8] images) => (float[1,2,8,8] y) <float[2,3,1,1] w = {1,2,3,4,5,6}>
        { y = local.block(images, w) }
        <opset_import: ["" : 17], domain: "local">
        block (x, w) => (y) { c = Conv(x, w)  y = Relu(c) }"""
    )
    prepared = prepare_network(model)
    assert [node.op_type for node in prepared.graph.node] == ["Conv", "Relu"]
    _assert_same_outputs(run_network, model, prepared, {"images": image(8)})


QUANTIZED = """
net (float[1,3,4,4] images) => (float[1,2,4,4] y)
<int8[2,3,1,1] w = {1,2,3,4,5,6}, float s = {0.1}, int8 z = {0}>
{ d = DequantizeLinear(w, s, z)  [conv] c = Conv(images, d)
  q = QuantizeLinear(c, s, z)  y = DequantizeLinear(q, s, z) }
"""


def test_a_quantized_network_is_refused_unless_allowed(parse_network, run_network, image):
    model = parse_network(QUANTIZED)
    with pytest.raises(ModelFileError, match=r"is quantized already(.|\n)*DequantizeLinear 'd'"):
        prepare_network(model)
    prepared = prepare_network(model, allow_quantized=True)
    assert Counter(node.op_type for node in prepared.graph.node) == {
        "DequantizeLinear": 2,
        "Conv": 1,
        "QuantizeLinear": 1,
    }
    _assert_same_outputs(run_network, model, prepared, {"images": image(4)})


def test_a_network_with_fp16_weights_is_refused_unless_allowed(parse_network):
    model = parse_network(
        """net (float[1,3,4,4] images) => (float[1,2,4,4] y)
        { h = Cast<to=10>(images)  c = Conv(h, w)  y = Cast<to=1>(c) }"""
    )
    model.graph.initializer.append(numpy_helper.from_array(np.ones((2, 3, 1, 1), np.float16), "w"))
    with pytest.raises(ModelFileError, match=r"does not compute in float32(.|\n)*Conv 'c' with a float16 weight"):
        prepare_network(model)
    prepared = prepare_network(model, allow_quantized=True)
    assert GraphView(prepared).elem_type("w") == TensorProto.FLOAT16


def test_identity_shared_weights_are_not_stored_twice(parse_network):
    model = parse_network(
        """net (float[1,3,4,4] images) => (float[1,3,4,4] y) <float[3,3,1,1] w = {1,2,3,4,5,6,7,8,9}>
        { w2 = Identity(w)  a = Conv(images, w)  y = Conv(a, w2) }"""
    )
    assert [tensor.name for tensor in prepare_network(model).graph.initializer] == ["w"]


@pytest.mark.real
def test_the_real_network_computes_the_same_after(real_data, run_network, image):
    path = real_data / "models" / "yolov8n-pose.onnx"
    prepared = load_network(path)
    assert network_input(prepared).input_size_wh == (640, 640)
    _assert_same_outputs(run_network, onnx.load(str(path)), prepared, {"images": image(640)})
