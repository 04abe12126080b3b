from __future__ import annotations

import onnx
import pytest
from onnx import TensorProto, helper

from qtoolkit.errors import ModelFileError, UsageError
from qtoolkit.graph.shapes import NetworkInput, fix_input_shape_, network_input, settle_shapes_
from qtoolkit.graph.view import GraphView


def _relu(shape, elem_type=TensorProto.FLOAT):
    value = helper.make_tensor_value_info("images", elem_type, shape)
    output = helper.make_tensor_value_info("y", elem_type, None)
    graph = helper.make_graph([helper.make_node("Relu", ["images"], ["y"])], "net", [value], [output])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])


def test_network_input_of_a_fixed_network():
    found = network_input(_relu([1, 3, 48, 64]))
    assert found == NetworkInput("images", (1, 3, 48, 64))
    assert found.input_size_wh == (64, 48)


def test_network_input_of_an_open_network_is_an_error():
    with pytest.raises(ModelFileError, match="leaves the size"):
        network_input(_relu([1, 3, "h", "w"]))


# Input shape, type, message.
BAD_INPUTS = {
    "two dimensions": ([1, 10], TensorProto.FLOAT, r"is not an image(.|\n)*found: 2 dimensions"),
    "five dimensions": ([1, 3, 4, 8, 8], TensorProto.FLOAT, r"found: 5 dimensions"),
    "no shape": (None, TensorProto.FLOAT, "an unknown number of dimensions"),
    "channels last": ([1, 64, 64, 3], TensorProto.FLOAT, r"no image channels(.|\n)*\(1, 64, 64, 3\): channels last"),
    "open channels": ([1, "c", 64, 64], TensorProto.FLOAT, r"no image channels(.|\n)*\(1, \?, 64, 64\)"),
    "four channels": ([1, 4, 64, 64], TensorProto.FLOAT, r"no image channels(.|\n)*\(1, 4, 64, 64\)"),
    "float16": ([1, 3, 64, 64], TensorProto.FLOAT16, r"is not float32(.|\n)*found: float16"),
    "uint8": ([1, 3, 64, 64], TensorProto.UINT8, r"is not float32(.|\n)*found: uint8"),
    "open size": (["n", 3, "h", "w"], TensorProto.FLOAT, r"leaves the size(.|\n)*\(\?, 3, \?, \?\)(.|\n)*--input-size"),
    "open width": ([1, 3, 64, 0], TensorProto.FLOAT, r"leaves the size(.|\n)*\(1, 3, 64, \?\)"),
}


@pytest.mark.parametrize("case", BAD_INPUTS.values(), ids=BAD_INPUTS)
def test_inputs_that_are_no_fixed_float_image(case):
    shape, elem_type, message = case
    with pytest.raises(ModelFileError, match=message):
        fix_input_shape_(_relu(shape, elem_type), "net.onnx")


def test_two_images_and_none(parse_network):
    two = parse_network("net (float[1,3,4,4] a, float[1,3,4,4] b) => (float[1,3,4,4] y) { y = Add(a, b) }")
    with pytest.raises(ModelFileError, match=r"exactly one image(.|\n)*2 inputs: 'a', 'b'"):
        fix_input_shape_(two, "net.onnx")
    none = parse_network("net () => (float[1] y) { y = Constant<value_floats = [1.0]>() }")
    with pytest.raises(ModelFileError, match=r"exactly one image(.|\n)*no input"):
        fix_input_shape_(none, "net.onnx")


def test_a_size_below_one_is_wrong_use():
    with pytest.raises(UsageError, match=r"found: 0x64"):
        fix_input_shape_(_relu([1, 3, "h", "w"]), "net.onnx", (0, 64))


def test_open_dimensions_are_filled_and_stale_records_dropped():
    model = _relu(["n", 3, "h", "w"])
    model.graph.value_info.append(helper.make_tensor_value_info("y", 1, ["n", 3, "h", "w"]))
    change = fix_input_shape_(model, "net.onnx", (64, 48))
    assert change.before == (None, 3, None, None)
    assert change.after == (1, 3, 48, 64)
    assert change.changed and change.strict
    assert not model.graph.value_info
    settle_shapes_(model, "net.onnx", change)
    assert GraphView(model).shape("y") == (1, 3, 48, 64)


def test_a_fixed_batch_becomes_one():
    model = _relu([8, 3, 48, 64])
    change = fix_input_shape_(model, "net.onnx")
    settle_shapes_(model, "net.onnx", change)
    assert GraphView(model).shape("y") == (1, 3, 48, 64)


def test_the_size_it_has_changes_nothing():
    model = _relu([1, 3, 48, 64])
    before = model.SerializeToString(deterministic=True)
    assert not fix_input_shape_(model, "net.onnx", (64, 48)).changed
    assert model.SerializeToString(deterministic=True) == before


def test_a_reshape_that_loses_elements_is_caught(parse_network):
    model = parse_network(
        """net (float[1,3,8,8] images) => (float[1,3,64] y) <int64[3] flat = {1, 3, 64}>
        { y = Reshape(images, flat) }"""
    )
    change = fix_input_shape_(model, "net.onnx", (4, 4))
    with pytest.raises(
        ModelFileError, match=r"cannot run at batch 1 and 4x4 pixels(.|\n)*\(1, 3, 8, 8\)(.|\n)*Reshape"
    ):
        settle_shapes_(model, "net.onnx", change)


def test_inference_errors_that_were_there_before_are_not_held_against_the_size(parse_network):
    # The declared output contradicts the graph, whatever the input size.
    model = parse_network("net (float[1,3,H,W] images) => (float[1,3,2,2] y) { a = Relu(images)  y = Neg(a) }")
    model.graph.value_info.append(helper.make_tensor_value_info("a", 1, [1, 5, 2, 2]))
    change = fix_input_shape_(model, "net.onnx", (8, 8))
    assert not change.strict
    settle_shapes_(model, "net.onnx", change)
    assert GraphView(model).shape("y") == (1, 3, 8, 8)


def test_shapes_settle_through_several_rounds_of_folding(dynamic_pose_model):
    model = dynamic_pose_model()
    settle_shapes_(model, "net.onnx", fix_input_shape_(model, "net.onnx", (96, 64)))
    view = GraphView(model)
    # 12·8 + 6·4 + 3·2 cells
    assert view.shape("output0") == (1, 56, 126)
    assert view.constant("anchors").shape == (1, 2, 126)
    assert not {"Shape", "Range", "Expand", "ConstantOfShape"} & {node.op_type for node in view.nodes}
    assert isinstance(model, onnx.ModelProto)
