from __future__ import annotations

import pytest

from qtoolkit.graph.activations import activation_behind, is_unit_interval, silu_around
from qtoolkit.graph.view import GraphView
from qtoolkit.numerics.activations import ACTIVATIONS

SHAPE = "float[1,3,4,4]"


def view_of(parse_network, body, outputs="y", opset=13):
    declared = ", ".join(f"{SHAPE} {name}" for name in outputs.split())
    return GraphView(parse_network(f"net ({SHAPE} x, {SHAPE} other) => ({declared}) {{ {body} }}", opset))


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("y = Relu(x)", "relu"),
        ("y = HardSwish(x)", "hard_swish"),
        ("y = Sigmoid(x)", "sigmoid"),
        ("y = Tanh(x)", "tanh"),
        ("y = Softplus(x)", "softplus"),
        ("s = Sigmoid(x) y = Mul(x, s)", "silu"),
        ("s = Sigmoid(x) y = Mul(s, x)", "silu"),
        ("y = Abs(x)", None),
        ("a = Relu(x) b = Tanh(x) y = Add(a, b)", None),
        ("s = Sigmoid(other) t = Sigmoid(x) y = Mul(x, s)", None),
        ("s = Sigmoid(x) m = Mul(x, s) y = Add(m, s)", None),
        ("s = Sigmoid(x) m = Mul(x, s) t = Abs(x) y = Add(m, t)", None),
        ("y = Relu(other)", None),
    ],
    ids=[
        *("relu", "hard swish", "sigmoid", "tanh", "softplus", "silu", "silu, sigmoid first", "no activation"),
        *("two readers", "gate of another tensor", "sigmoid read twice", "a third reader", "no reader"),
    ],
)
def test_the_function_behind_a_tensor(parse_network, body, expected):
    assert activation_behind(view_of(parse_network, body, opset=14), "x") == expected


def test_a_graph_output_is_read_by_the_caller_too(parse_network):
    view = view_of(parse_network, "a = Abs(x) y = Relu(a)", "y a")
    assert activation_behind(view, "a") is None


def test_silu_is_one_of_the_functions_that_ranges_can_look_through(parse_network):
    name = activation_behind(view_of(parse_network, "s = Sigmoid(x) y = Mul(x, s)"), "x")
    assert name in ACTIVATIONS


@pytest.mark.parametrize(
    ("op_type", "expected"), [("Sigmoid", True), ("HardSigmoid", True), ("Softmax", True), ("Tanh", False)]
)
def test_values_that_are_0_to_1_whatever_goes_in(parse_network, op_type, expected):
    view = view_of(parse_network, f"a = {op_type}(x) y = Abs(a)")
    assert is_unit_interval(view, "a") is expected
    assert is_unit_interval(view, "x") is False


def test_a_silu_is_found_from_either_of_its_two_tensors(parse_network):
    view = view_of(parse_network, "a = Abs(x) s = Sigmoid(a) m = Mul(a, s) y = Neg(m)")
    assert silu_around(view, "a") == silu_around(view, "m") == ("a", "m")
    assert [silu_around(view, name) for name in ("s", "x", "y")] == [None, None, None]


def test_a_product_with_another_gate_is_no_silu(parse_network):
    view = view_of(parse_network, "s = Sigmoid(other) m = Mul(x, s) y = Neg(m)")
    assert silu_around(view, "x") is None and silu_around(view, "m") is None
