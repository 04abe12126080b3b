from __future__ import annotations

import onnx
import pytest

from qtoolkit.errors import ModelFileError
from qtoolkit.graph.tidy import name_nodes_, remove_unused_, sort_nodes_

CHAIN = """
net (float[1,3,4,4] images) => (float[1,3,4,4] d)
{ a = Relu(images)  b = Neg(images)  c = Add(a, b)  d = Abs(c) }
"""


def _outputs(model):
    return [node.output[0] for node in model.graph.node]


def _reordered(model, order):
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes[index] for index in order)
    return model


def test_nodes_in_order_stay_where_they_are(parse_network):
    model = parse_network(CHAIN)
    sort_nodes_(model)
    assert _outputs(model) == ["a", "b", "c", "d"]


def test_nodes_out_of_order_are_sorted_and_pass_the_checker(parse_network):
    model = _reordered(parse_network(CHAIN), [3, 2, 1, 0])
    with pytest.raises(onnx.checker.ValidationError):
        onnx.checker.check_model(model)
    sort_nodes_(model)
    assert _outputs(model) == ["b", "a", "c", "d"]
    onnx.checker.check_model(model)


def test_a_tensor_that_nothing_makes_is_named(parse_network):
    model = parse_network(CHAIN)
    del model.graph.node[1]
    with pytest.raises(ModelFileError, match=r"node 'c' \(Add\) reads a tensor(.|\n)*found: 'b'"):
        sort_nodes_(model)


def test_a_cycle_is_an_error(parse_network):
    model = parse_network(CHAIN)
    model.graph.node[0].input[0] = "d"
    with pytest.raises(ModelFileError, match="the graph has a cycle"):
        sort_nodes_(model)


def test_unused_nodes_initializers_records_and_listed_inputs_go(parse_network):
    model = parse_network(
        """net (float[1,3,4,4] images, float[3] used) => (float[1,3,4,4] y)
        <float[1,3,1,1] spare = {1, 2, 3}, float[1,3,1,1] scale = {1, 2, 3}, float[3] used = {1, 2, 3}>
        { y = Mul(images, scale)  dead = Mul(images, spare)  dead2 = Neg(dead) }"""
    )
    model.graph.value_info.append(onnx.helper.make_tensor_value_info("dead", 1, [1, 3, 4, 4]))
    remove_unused_(model)
    assert _outputs(model) == ["y"]
    assert [tensor.name for tensor in model.graph.initializer] == ["scale"]
    assert [value.name for value in model.graph.input] == ["images"]
    assert not model.graph.value_info


def test_a_constant_graph_output_stays(parse_network):
    model = parse_network(
        "net (float[1,3,4,4] images) => (float[1,3,4,4] y, float[2] k) <float[2] k = {1, 2}> { y = Relu(images) }"
    )
    remove_unused_(model)
    assert [tensor.name for tensor in model.graph.initializer] == ["k"]


def test_names_are_kept_or_made_from_the_output_and_unique(parse_network):
    model = parse_network(
        """net (float[1] images) => (float[1] e)
        { [b] a = Relu(images)  b = Neg(a)  [same] c = Abs(b)  [same] d = Neg(c)  e = Abs(d) }"""
    )
    name_nodes_(model)
    assert [node.name for node in model.graph.node] == ["b", "b_2", "same", "d", "e"]
