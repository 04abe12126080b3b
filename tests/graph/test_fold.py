from __future__ import annotations

import numpy as np
import pytest
from onnx import numpy_helper

from qtoolkit.graph.fold import fold_constants_
from qtoolkit.graph.tidy import remove_unused_


def _fold(model, **options):
    folded = fold_constants_(model, **options)
    remove_unused_(model)
    return folded, {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


# Nodes before the last one, which reads tensor k; value of k worked out by hand.
KNOWN = {
    "shape of the input": ("k = Shape(images)", [1, 3, 4, 6]),
    "part of a shape": ("k = Shape<start = 2, end = 4>(images)", [4, 6]),
    "size": ("k = Size(images)", 72),
    "shape arithmetic": (
        """f = Shape(images)  two = Constant<value_int = 2>()  h = Gather<axis = 0>(f, two)
           ax = Constant<value_ints = [0]>()  u = Unsqueeze(h, ax)  k = Concat<axis = 0>(u, u)""",
        [4, 4],
    ),
    "range": (
        """a = Constant<value_int = 1>()  b = Constant<value_int = 7>()  c = Constant<value_int = 2>()
           k = Range(a, b, c)""",
        [1, 3, 5],
    ),
    "filled": ("s = Constant<value_ints = [2, 2]>()  k = ConstantOfShape<value = float[1] {3}>(s)", [[3, 3], [3, 3]]),
    "cast": ("a = Constant<value_floats = [1.9, -1.9]>()  k = Cast<to = 7>(a)", [1, -1]),
    "slice": (
        """a = Constant<value_ints = [5, 6, 7, 8]>()  s = Constant<value_ints = [1]>()  e = Constant<value_ints = [3]>()
           k = Slice(a, s, e)""",
        [6, 7],
    ),
    "division of integers rounds to zero": (
        "a = Constant<value_ints = [7, -7]>()  b = Constant<value_int = 2>()  k = Div(a, b)",
        [3, -3],
    ),
}


@pytest.mark.parametrize("case", KNOWN.values(), ids=KNOWN)
def test_what_is_known_becomes_an_initializer(parse_network, case):
    nodes, expected = case
    text = "net (float[1,3,4,6] images) => (float[N] y) { %s  f32 = CastLike(k, images)  y = Mul(images, f32) }"
    model = parse_network(text % nodes, opset=15)
    # The cast of k would be folded too: the test looks at k itself.
    model.graph.output.append(model.graph.output[0])
    model.graph.output[1].name = "f32"
    _, constants = _fold(model)
    np.testing.assert_array_equal(constants["k"], expected)
    assert [node.op_type for node in model.graph.node] == ["CastLike", "Mul"]


# Nodes, how many of them go.
KEPT = {
    "random": ("r = RandomNormal<shape = [4]>()  y = Mul(images, r)", 0),
    "random like a constant": ("a = Constant<value_floats = [1.0]>()  r = RandomNormalLike(a)  y = Mul(images, r)", 1),
    "dequantized weight": (
        """q = Constant<value = int8[2] {1, 2}>()  s = Constant<value_float = 0.5>()
           d = DequantizeLinear(q, s)  y = Mul(images, d)""",
        2,
    ),
    "open shape": ("f = Shape(images)  c = Cast<to = 1>(f)  y = Mul(images, c)", 0),
    "makes a graph output": ("y = Constant<value_floats = [1.0]>()", 0),
    "part of it depends on the image": ("a = Constant<value_float = 2.0>()  m = Mul(a, images)  y = Neg(m)", 1),
}


@pytest.mark.parametrize("case", KEPT.values(), ids=KEPT)
def test_what_has_to_stay_stays(parse_network, case):
    nodes, folded = case
    model = parse_network(f"net (float[N,3,4,6] images) => (float[M] y) {{ {nodes} }}")
    before = len(model.graph.node)
    assert fold_constants_(model) == folded
    assert len(model.graph.node) == before - folded


def test_a_result_over_the_limit_stays_a_node(parse_network):
    text = """net (float[1,8] images) => (float[4096,8] y)
    <float[1,8] row = {1,2,3,4,5,6,7,8}, int64[2] shape = {4096, 8}>
    { big = Expand(row, shape)  y = Add(images, big) }"""
    assert fold_constants_(parse_network(text), size_limit_bytes=4096 * 8 * 4 - 1) == 0
    folded, constants = _fold(parse_network(text), size_limit_bytes=4096 * 8 * 4)
    assert folded == 1
    assert constants["big"].shape == (4096, 8)


def test_a_result_over_the_limit_that_does_not_grow_is_folded(parse_network):
    model = parse_network(
        """net (float[2,3] images) => (float[2,2] y) <float[2,3] w = {1,2,3,4,5,6}>
        { t = Transpose(w)  y = MatMul(images, t) }"""
    )
    folded, constants = _fold(model, size_limit_bytes=1)
    assert folded == 1
    np.testing.assert_array_equal(constants["t"], [[1, 4], [2, 5], [3, 6]])


def test_a_node_with_two_outputs_gives_two_constants(parse_network):
    model = parse_network(
        """net (float[2] images) => (float[2] y) <float[4] w = {1,2,3,4}, int64[2] parts = {2, 2}>
        { a, b = Split<axis = 0>(w, parts)  m = Mul(images, a)  y = Add(m, b) }"""
    )
    _, constants = _fold(model)
    np.testing.assert_array_equal(constants["a"], [1, 2])
    np.testing.assert_array_equal(constants["b"], [3, 4])


def test_folding_twice_finds_nothing_more(parse_network):
    model = parse_network(
        "net (float[1,3,4,6] images) => (float[M] y) { f = Shape(images)  c = Cast<to = 1>(f)  y = Mul(images, c) }"
    )
    assert fold_constants_(model) == 2
    assert fold_constants_(model) == 0
