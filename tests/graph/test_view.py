from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto

from qtoolkit.graph.view import GraphView, attribute, captured_names, node_name

DIAMOND = """
net (float[1,3,4,4] images, float[3] listed) => (float[1,3,4,4] y, float[1,3,4,4] side)
<float[3] listed = {1, 2, 3}, int64[1] axes = {0}>
{
  [first] a = Relu(images)
  b = Sigmoid(a)
  c = Mul(a, b)
  k = Constant<value_floats = [0.5, 0.25]>()
  side = Neg(b)
  y = Add(c, c)
}
"""
WITH_BODY = """
net (float[1,3,4,4] images, bool flag) => (float[1,3,4,4] y)
{
  a = Relu(images)
  y = If (flag) <
    then_branch = yes () => (float[1,3,4,4] t) { inner = Neg(a)  t = Abs(inner) },
    else_branch = no () => (float[1,3,4,4] e) { e = Identity(images) }
  >
}
"""


@pytest.fixture
def view(parse_network):
    return GraphView(parse_network(DIAMOND))


def test_producer_and_consumers(view):
    assert view.producer("c").op_type == "Mul"
    assert view.producer("images") is None
    assert view.producer("listed") is None
    assert [node.op_type for node in view.consumers("b")] == ["Mul", "Neg"]
    assert view.consumers("y") == []


def test_a_node_that_reads_a_tensor_twice_is_one_consumer(view):
    assert view.consumer_indices("c") == (5,)


def test_inputs_leave_out_initializers_that_are_listed_as_inputs(view):
    assert view.inputs == ("images",)
    assert view.outputs == ("y", "side")


def test_constants_are_initializers_and_constant_nodes_and_cannot_be_written(view):
    np.testing.assert_array_equal(view.constant("listed"), [1, 2, 3])
    np.testing.assert_array_equal(view.constant("k"), np.float32([0.5, 0.25]))
    assert view.constant("a") is None
    assert view.is_constant("axes") and not view.is_constant("images")
    with pytest.raises(ValueError, match="read-only"):
        view.constant("k")[0] = 1


def test_shapes_and_types(view):
    assert view.shape("images") == (1, 3, 4, 4)
    assert view.shape("listed") == (3,)
    assert view.shape("k") == (2,)
    assert view.shape("a") is None
    assert view.dtype("images") == np.float32
    assert view.dtype("axes") == np.int64
    assert view.dtype("a") is None
    assert view.elem_type("k") == TensorProto.FLOAT


def test_an_open_dimension_makes_the_shape_unknown(parse_network):
    view = GraphView(parse_network("net (float[N,3,4,4] images) => (float[N,3,4,4] y) { y = Relu(images) }"))
    assert view.shape("images") is None


def test_a_scalar_has_the_empty_shape(parse_network):
    view = GraphView(parse_network("net (float s) => (float y) { y = Relu(s) }"))
    assert view.shape("s") == ()


def test_descendants_and_ancestors(view):
    assert view.descendants(["b"]) == {2, 4, 5}
    assert view.descendants(["images"]) == {0, 1, 2, 4, 5}
    assert view.ancestors(["side"]) == {0, 1, 4}
    assert view.ancestors(["y"], stop_at=["b"]) == {0, 2, 5}
    assert view.ancestors(["y"], stop_at=["a", "b"]) == {2, 5}


def test_bodies_count_as_readers_of_outer_tensors(parse_network):
    view = GraphView(parse_network(WITH_BODY))
    assert captured_names(view.nodes[1]) == ("a", "images")
    assert [node.op_type for node in view.consumers("a")] == ["If"]
    assert view.ancestors(["y"]) == {0, 1}


def test_node_name_falls_back_to_the_first_output(view):
    assert [node_name(node) for node in view.nodes[:2]] == ["first", "b"]


def test_attribute_gives_the_default_where_it_is_absent(view):
    assert attribute(view.nodes[3], "value_floats") == pytest.approx([0.5, 0.25])
    assert attribute(view.nodes[3], "missing", 7) == 7
