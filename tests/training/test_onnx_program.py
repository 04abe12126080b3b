from __future__ import annotations

import pytest
import torch
from onnx import parser

from qtoolkit.errors import ModelFileError
from qtoolkit.graph.view import GraphView
from qtoolkit.training.onnx_operators.site import Pass
from qtoolkit.training.onnx_program import compile_graph, with_shapes


def compiled(body, needed=("y",), opset=13):
    text = f'<ir_version: 8, opset_import: ["" : {opset}]> net (float[1,3] x) => (float[1,3] y) {{ {body} }}'
    return compile_graph(GraphView(with_shapes(parser.parse_model(text))), needed)


def test_only_what_is_needed_is_built():
    program = compiled("a = Relu(x) b = Erosion(a) y = Abs(a)")
    assert [step.name for step in program.steps] == ["a", "y"]
    with pytest.raises(ModelFileError, match="found: Erosion 'b': unknown operator"):
        compiled("a = Relu(x) b = Erosion(a) y = Abs(b)")


def test_nodes_without_a_name_or_with_the_same_go_by_their_outputs():
    text = """<ir_version: 8, opset_import: ["" : 13]> net (float[1,3] x) => (float[1,3] y)
    { a = Relu(x) b = Abs(a) y = Neg(b) }"""
    model = parser.parse_model(text)
    for node, name in zip(model.graph.node, ("same", "same", ""), strict=True):
        node.name = name
    assert [step.name for step in compile_graph(GraphView(model), ["y"]).steps] == ["a", "b", "y"]


def test_silu_is_one_step_unless_a_part_of_it_is_wanted():
    program = compiled("s = Sigmoid(x) m = Mul(s, x) y = Abs(m)")
    merged = program.plan(["y"], ["x"], ())
    assert [(step.name, step.inputs) for step in merged] == [("m", ("x",)), ("y", ("m",))]
    x = torch.tensor([[-1.0, 0.0, 2.0]])
    torch.testing.assert_close(merged[0].operator([x], Pass()), x * torch.sigmoid(x))
    for wanted, untouched in ((["y", "s"], ()), (["y"], ("s",)), (["y"], ("m",))):
        assert [step.name for step in program.plan(wanted, ["x"], untouched)] == ["s", "m", "y"]


def test_a_gate_is_no_silu():
    program = compiled("a = Abs(x) s = Sigmoid(a) y = Mul(s, x)")
    assert [step.name for step in program.plan(["y"], ["x"], ())] == ["a", "s", "y"]
    program = compiled("s = Sigmoid(x) m = Mul(s, x) y = Add(m, s)")
    assert [step.name for step in program.plan(["y"], ["x"], ())] == ["s", "m", "y"]


def test_every_tensor_is_freed_once_and_what_is_wanted_or_known_never():
    program = compiled("a, unread = Split <axis = 1> (x) b = Relu(a) c = Concat <axis = 1> (a, b) y = Abs(c)")
    plan = program.plan(["y", "b"], ["x"], ())
    freed = [name for step in plan for name in step.frees]
    assert sorted(freed) == ["a", "c", "unread"]
    assert plan[0].frees == ("unread",)
