"""Which nodes compute in fp16 when a graph is typed strongly; ``test_strongly_typed`` tests the rest."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from qtoolkit.graph.half_types import half_nodes
from qtoolkit.graph.view import GraphView, node_name


def halves(nodes, constants, keep=()):
    initializers = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    values = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2, 4, 4])] for name in ("x", "y")]
    model = helper.make_model(helper.make_graph(nodes, "test", *values, initializers))
    view = GraphView(model)
    return {node_name(view.nodes[index]) for index in half_nodes(view, model, frozenset(keep))}


def conv(data, weight, output, name):
    return helper.make_node("Conv", [data, weight], [output], name, kernel_shape=[1, 1])


FLOAT = np.ones((2, 2, 1, 1), np.float32)
NARROW = FLOAT.astype(np.float16)


def test_layers_follow_the_type_of_their_weight_and_operators_their_inputs():
    nodes = [
        conv("x", "narrow", "a", "fp16 layer"), helper.make_node("Relu", ["a"], ["b"], "relu"),
        conv("b", "wide", "c", "fp32 layer"), helper.make_node("Relu", ["c"], ["d"], "relu32"),
        helper.make_node("Add", ["b", "d"], ["e"], "mixed add"), conv("e", "narrow", "y", "last"),
    ]  # fmt: skip
    assert halves(nodes, {"narrow": NARROW, "wide": FLOAT}) == {"fp16 layer", "relu", "last"}
    assert halves(nodes, {"narrow": NARROW, "wide": FLOAT}, keep=["relu"]) == {"fp16 layer", "last"}


def test_a_constant_beyond_fp16_keeps_its_operator_in_float32():
    nodes = [
        conv("x", "narrow", "a", "layer"), helper.make_node("Mul", ["a", "huge"], ["b"], "mul"),
        conv("b", "narrow", "y", "last"),
    ]  # fmt: skip
    assert halves(nodes, {"narrow": NARROW, "huge": np.float32(70000)}) == {"layer", "last"}
    assert "mul" in halves(nodes, {"narrow": NARROW, "huge": np.float32(60000)})


def test_the_tail_is_not_lowered():
    nodes = [conv("x", "narrow", "a", "layer"), helper.make_node("Sigmoid", ["a"], ["y"], "tail")]
    assert halves(nodes, {"narrow": NARROW}) == {"layer"}
