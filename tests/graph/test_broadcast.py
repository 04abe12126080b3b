from __future__ import annotations

import numpy as np
import onnx
import pytest

from qtoolkit.graph.broadcast import expand_broadcasts
from qtoolkit.graph.view import node_name


def everything(model):
    return [node_name(node) for node in model.graph.node]


def operators(model):
    return [node.op_type for node in model.graph.node]


def network(parse_network, op_type, shape, spread, reverse=False):
    """Arithmetic on ``x`` of ``shape`` and a constant of the shape ``spread``."""
    size = ",".join(map(str, shape))
    values = ", ".join(f"{value:.3f}" for value in np.random.default_rng(0).uniform(0.5, 2, int(np.prod(spread))))
    constant = f"float[{','.join(map(str, spread))}] c = {{{values}}}"
    operands = "c, x" if reverse else "x, c"
    return parse_network(f"net (float[{size}] x) => (float[{size}] y) <{constant}> {{ y = {op_type}({operands}) }}")


@pytest.mark.parametrize("op_type", ["Add", "Sub", "Mul", "Div"])
@pytest.mark.parametrize("reverse", [False, True], ids=["behind", "in front"])
def test_a_grid_is_spread_beforehand(parse_network, run_network, op_type, reverse):
    model = network(parse_network, op_type, (1, 90, 17, 2), (90, 1, 2), reverse)
    changed = expand_broadcasts(model, everything(model))
    onnx.checker.check_model(changed, full_check=True)
    assert operators(changed) == ["Expand", op_type] and operators(model) == [op_type]
    x = np.random.default_rng(1).uniform(0.5, 2, (1, 90, 17, 2)).astype(np.float32)
    np.testing.assert_array_equal(run_network(changed, {"x": x})["y"], run_network(model, {"x": x})["y"])
    # The constant is the small one still.
    assert changed.ByteSize() < model.ByteSize() + 500
    assert expand_broadcasts(changed, everything(changed)) is changed


@pytest.mark.parametrize(
    ("shape", "spread"),
    [
        ((1, 90, 17, 2), (90, 1, 1)),
        ((1, 90, 17, 2), (1,)),
        ((1, 90, 17, 2), (1, 90, 17, 2)),
        ((1, 2, 8400), (2, 1)),
        ((1, 64, 40, 40), (1, 64, 1, 1)),
        ((1, 20, 17, 2), (20, 1, 2)),
    ],
    ids=["in long runs", "one number", "the whole", "by row", "by channel", "too few to matter"],
)
def test_others_stay(parse_network, shape, spread):
    model = network(parse_network, "Mul", shape, spread)
    assert expand_broadcasts(model, everything(model)) is model


def test_only_the_named_nodes_are_changed(parse_network):
    model = network(parse_network, "Add", (1, 90, 17, 2), (90, 1, 2))
    assert expand_broadcasts(model, ["another"]) is model


def test_what_is_no_constant_or_makes_a_new_shape_stays(parse_network):
    two = parse_network("net (float[1,90,17,2] x, float[90,1,2] c) => (float[1,90,17,2] y) { y = Add(x, c) }")
    assert expand_broadcasts(two, everything(two)) is two
    grown = network(parse_network, "Add", (1, 90, 17, 2), (90, 1, 2))
    grown.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 1
    assert expand_broadcasts(grown, everything(grown)) is grown
