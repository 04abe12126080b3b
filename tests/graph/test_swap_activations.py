from __future__ import annotations

import numpy as np
import onnx
import pytest

from qtoolkit.errors import ModelFileError, UsageError
from qtoolkit.graph.layers import find_layers
from qtoolkit.graph.load import prepare_network
from qtoolkit.graph.swap_activations import ActivationSwap, find_activations, swap_activations
from qtoolkit.graph.view import node_name

SHAPE = "float[1,3,4,4]"
NUMBERS = {
    "half": 0.5,
    "one": 1.0,
    "two": 2.0,
    "three": 3.0,
    "six": 6.0,
    "zero": 0.0,
    "sixth": 1 / 6,
    "root": 2**0.5,
    "unroot": 0.5**0.5,
    "cubic": 0.044715,
    "tanh_gain": (2 / np.pi) ** 0.5,
    "quick": 1.702,
    "tenth": 0.1,
}


@pytest.fixture
def network(parse_network):
    """``network(body, opset)``: x → y, both of ``SHAPE``, with single numbers as constants by name."""

    def build(body, opset=20):
        constants = ", ".join(f"float {name} = {{{value}}}" for name, value in NUMBERS.items() if name in body)
        held = f"<{constants}>" if constants else ""
        return parse_network(f"net ({SHAPE} x, {SHAPE} other) => ({SHAPE} y) {held} {{ {body} }}", opset)

    return build


FORMULAS = [
    ("silu", "s = Sigmoid(x) y = Mul(x, s)"),
    ("silu", "s = Sigmoid(x) y = Mul(s, x)"),
    ("silu", "n = Neg(x) e = Exp(n) d = Add(one, e) y = Div(x, d)"),
    ("silu", "y = Swish(x)"),
    ("mish", "y = Mish(x)"),
    ("mish", "s = Softplus(x) t = Tanh(s) y = Mul(x, t)"),
    ("mish", "e = Exp(x) a = Add(e, one) s = Log(a) t = Tanh(s) y = Mul(t, x)"),
    ("hard_swish", "y = HardSwish(x)"),
    ("hard_swish", "h = HardSigmoid <alpha = 0.16666667, beta = 0.5> (x) y = Mul(x, h)"),
    ("hard_swish", "a = Add(x, three) c = Clip(a, zero, six) m = Mul(x, c) y = Div(m, six)"),
    ("hard_swish", "a = Add(three, x) c = Clip(a, zero, six) d = Mul(c, sixth) y = Mul(d, x)"),
    ("gelu", "y = Gelu(x)"),
    ("gelu", 'y = Gelu <approximate = "tanh"> (x)'),
    ("gelu", "d = Div(x, root) e = Erf(d) a = Add(e, one) m = Mul(x, a) y = Mul(m, half)"),
    ("gelu", "d = Mul(x, unroot) e = Erf(d) a = Add(one, e) h = Mul(x, half) y = Mul(h, a)"),
    (
        "gelu",
        "p = Pow(x, three) c = Mul(p, cubic) a = Add(x, c) g = Mul(a, tanh_gain) t = Tanh(g) b = Add(t, one) "
        "h = Mul(half, x) y = Mul(h, b)",
    ),
    (
        "gelu",
        "q = Mul(x, x) p = Mul(q, x) c = Mul(p, cubic) a = Add(x, c) g = Mul(a, tanh_gain) t = Tanh(g) "
        "b = Add(t, one) m = Mul(x, b) y = Mul(m, half)",
    ),
    ("quick_gelu", "g = Mul(x, quick) s = Sigmoid(g) y = Mul(x, s)"),
    ("leaky_relu", "y = LeakyRelu(x)"),
    ("leaky_relu", "t = Mul(x, tenth) y = Max(x, t)"),
    ("prelu", "y = PRelu(x, tenth)"),
    ("elu", "y = Elu(x)"),
    ("selu", "y = Selu(x)"),
    ("celu", "y = Celu(x)"),
]


@pytest.mark.parametrize(("kind", "formula"), FORMULAS)
def test_a_formula_becomes_one_relu(network, kind, formula):
    model = network(f"x0 = Abs(x) {formula.replace('(x', '(x0').replace(', x)', ', x0)')}", 24)
    assert find_activations(model) == (ActivationSwap(kind, "y", "x0", "y"),)
    swapped, changes = swap_activations(model, "relu")
    assert [change.kind for change in changes] == [kind]
    assert [(node.op_type, list(node.input), list(node.output)) for node in swapped.graph.node] == [
        ("Abs", ["x"], ["x0"]),
        ("Relu", ["x0"], ["y"]),
    ]
    onnx.checker.check_model(swapped)


@pytest.mark.parametrize(("kind", "formula"), [FORMULAS[0], FORMULAS[9], FORMULAS[13]])
def test_a_formula_of_a_graph_input_is_one_too(network, kind, formula):
    assert [swap.kind for swap in find_activations(network(formula))] == [kind]


@pytest.mark.parametrize(
    "body",
    [
        "y = Relu(x)",
        "y = Sigmoid(x)",
        "y = Tanh(x)",
        "s = Sigmoid(other) y = Mul(x, s)",
        "p = GlobalAveragePool(x) s = Sigmoid(p) y = Mul(x, s)",
        "p = GlobalAveragePool(x) s = HardSigmoid <alpha = 0.16666667> (p) y = Mul(x, s)",
        "s = Sigmoid(x) y = Mul(s, s)",
        "s = Sigmoid(x) y = Mul(two, s)",
        "s = Softmax(x) y = Mul(x, s)",
        "h = HardSigmoid(x) y = Mul(x, h)",
        "t = Tanh(x) y = Mul(x, t)",
        "y = Mul(x, x)",
        "y = Clip(x, zero, six)",
    ],
)
def test_gates_and_other_functions_are_none(network, body):
    assert find_activations(network(body)) == ()


def test_a_factor_behind_an_activation_stays(network):
    swapped, _ = swap_activations(network("s = Sigmoid(x) m = Mul(x, s) y = Mul(m, half)"))
    assert [node.op_type for node in swapped.graph.node] == ["Relu", "Mul"]


def test_a_sigmoid_that_something_else_reads_stays(network):
    swapped, changes = swap_activations(network("s = Sigmoid(x) m = Mul(x, s) y = Add(m, s)"))
    assert [node.op_type for node in swapped.graph.node] == ["Sigmoid", "Relu", "Add"]
    assert changes == (ActivationSwap("silu", "m", "x", "m"),)


def test_only_the_named_ones(network):
    model = network("a = HardSwish(x) b = Mish(a) y = Mish(b)")
    swapped, changes = swap_activations(model, only=["b"])
    assert [node.op_type for node in swapped.graph.node] == ["HardSwish", "Relu", "Mish"]
    assert [change.node for change in changes] == ["b"]
    with pytest.raises(UsageError, match="'nowhere'"):
        swap_activations(model, only=["b", "nowhere"])


def test_the_original_is_left_alone_and_the_result_is_the_same_every_time(network):
    model = network("s = Sigmoid(x) y = Mul(x, s)")
    before = model.SerializeToString(deterministic=True)
    results = {swap_activations(model)[0].SerializeToString(deterministic=True) for _ in range(2)}
    assert model.SerializeToString(deterministic=True) == before
    assert len(results) == 1 and before not in results


def test_nothing_to_replace_says_what_there_is(network):
    with pytest.raises(ModelFileError, match="found: 1 Relu, 1 Sigmoid"):
        swap_activations(network("r = Relu(x) y = Sigmoid(r)"))
    with pytest.raises(ModelFileError, match="found: no activation function"):
        swap_activations(network("y = Abs(x)"))


def test_another_function_than_relu_is_refused(network):
    with pytest.raises(UsageError, match="found: gelu"):
        swap_activations(network("y = Mish(x)"), "gelu")


def test_layers_and_tensors_of_a_network_keep_their_names(tiny_pose_model, run_network, image):
    model = prepare_network(tiny_pose_model())
    swapped, changes = swap_activations(model)
    assert find_layers(swapped) == find_layers(model)
    # Batch norms and weights come in the same order from the same seed, so the ReLU twin is the same network.
    twin = prepare_network(tiny_pose_model("relu"))
    feeds = {"images": image(64)}
    np.testing.assert_allclose(
        run_network(swapped, feeds)["output0"], run_network(twin, feeds)["output0"], rtol=1e-4, atol=1e-4
    )
    assert {change.kind for change in changes} == {"silu"}
    kept = {node_name(node) for node in swapped.graph.node}
    assert {change.node for change in changes} <= kept
    assert sum(node.op_type == "Sigmoid" for node in swapped.graph.node) == 2


@pytest.mark.real
def test_the_real_network(real_data):
    model = prepare_network(onnx.load(real_data / "models" / "yolov8n-pose.onnx"))
    swapped, changes = swap_activations(model)
    assert len(changes) == 63
    assert sum(node.op_type == "Sigmoid" for node in swapped.graph.node) == 2
    assert [layer.name for layer in find_layers(swapped)] == [layer.name for layer in find_layers(model)]
