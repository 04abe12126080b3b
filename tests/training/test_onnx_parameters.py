from __future__ import annotations

import numpy as np
import pytest
import torch
from onnx import helper, numpy_helper, parser

from qtoolkit.errors import UsageError
from qtoolkit.graph.view import GraphView
from qtoolkit.training.onnx_parameters import batch_norm_statistics, choose_parameters, write_constants_

CASES = [
    ("layer", "y = Conv(x, w4, v)", {"w4", "v"}),
    ("no bias", "y = Conv(x, w4)", {"w4"}),
    ("batch norm", "y = BatchNormalization(x, v, v2, v3, v4)", {"v", "v2"}),
    ("group norm", "y = GroupNormalization <num_groups = 2> (x, v, v2)", {"v", "v2"}),
    ("slope", "y = PRelu(x, v)", {"v"}),
    ("linear layer and its bias", "m = MatMul(x, w2) y = Add(v, m)", {"w2", "v"}),
    ("sum that others read too", "m = MatMul(x, w2) a = Add(v, m) y = Sub(a, m)", {"w2"}),
    ("arithmetic", "a = Mul(x, v) y = Add(a, v2)", set()),
    ("expectation over bins", "y = Conv(x, bins)", set()),
    ("coordinate map", "y = MatMul(x, half)", set()),
    ("transposed weight", "t = Transpose <perm = [1, 0]> (w2) y = MatMul(x, t)", set()),
    ("quantized weight", "q = QuantizeLinear(w4, s, z) d = DequantizeLinear(q, s, z) y = Conv(x, d, v)", {"w4", "v"}),
    ("integer weight", "d = DequantizeLinear(i4, s, z) y = Conv(x, d, v)", {"v"}),
    ("weight shared by two layers", "a = Conv(x, w4) y = Conv(a, w4)", {"w4"}),
]
CONSTANTS = """<float[4,4,1,1] w4, float[4,4] w2, float[4] v = {1,2,3,4}, float[4] v2 = {1,2,3,4},
float[4] v3 = {1,2,3,4}, float[4] v4 = {1,2,3,4}, float[1,4,1,1] bins = {0,1,2,3}, float[4,4] half,
float s = {0.1}, int8 z = {0}, int8[4,4,1,1] i4 = {1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1}>"""


def view_of(body):
    graph = f"net (float[1,4,4,4] x) => (float[1,4,4,4] y) {CONSTANTS} {{ {body} }}"
    model = parser.parse_model(f'<ir_version: 8, opset_import: ["" : 18]> {graph}')
    random = np.random.default_rng(0)
    for value in model.graph.value_info:
        dims = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        values = np.full(dims, 0.5) if value.name == "half" else random.normal(0, 1, dims)
        model.graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), value.name))
    del model.graph.value_info[:]
    return GraphView(model)


@pytest.mark.parametrize(("body", "expected"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_what_is_trained(body, expected):
    assert set(choose_parameters(view_of(body))) == expected


def test_what_is_asked_for_is_trained():
    view = view_of("y = Conv(x, w4, v)")
    assert choose_parameters(view, ["v"]) == ("v",)
    assert choose_parameters(view, []) == ()
    for name in ("x", "nowhere", "z"):
        with pytest.raises(UsageError, match=f"found: '{name}'"):
            choose_parameters(view, ["v", name])


def test_statistics_of_batch_norms():
    assert batch_norm_statistics(view_of("y = BatchNormalization(x, v, v2, v3, v4)")) == ("v3", "v4")
    assert batch_norm_statistics(view_of("y = Relu(x)")) == ()


def test_values_are_written_in_the_type_that_is_there():
    held = {
        "half": np.array([1, 2], np.float16),
        "double": np.array([1, 2], np.float64),
        "single": np.array([1, 2], np.float32),
        "whole": np.array([1, 2], np.int64),
    }
    graph = helper.make_graph([], "g", [], [], [numpy_helper.from_array(value, name) for name, value in held.items()])
    model = helper.make_model(graph)
    new = {name: torch.tensor([1.5, 2.5]) for name in ("half", "double", "single")}
    write_constants_(model, new)
    written = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    assert {name: array.dtype for name, array in written.items()} == {name: array.dtype for name, array in held.items()}
    assert [list(array) for array in written.values()] == [[1.5, 2.5]] * 3 + [[1, 2]]


def test_what_is_equal_keeps_the_bytes_that_it_had():
    tensor = helper.make_tensor("w", 1, [2], [1.0, 2.0])  # stored as numbers, not as raw bytes
    model = helper.make_model(helper.make_graph([], "g", [], [], [tensor]))
    write_constants_(model, {"w": torch.tensor([1.0, 2.0])})
    assert model.graph.initializer[0] == tensor


@pytest.mark.parametrize("given", [{"value_float": 1.0}, {"value_floats": [1.0]}])
def test_numbers_of_constant_nodes_become_tensors(given):
    node = helper.make_node("Constant", [], ["c"], **given)
    model = helper.make_model(helper.make_graph([node], "g", [], []))
    write_constants_(model, {"c": torch.tensor(2.5) if "value_float" in given else torch.tensor([2.5])})
    assert GraphView(model).constant("c").reshape(-1).tolist() == [2.5]
