from __future__ import annotations

import math

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

from qtoolkit.numerics.activations import ACTIVATIONS

# By a calculator, to nine digits.
AT_ONE = {
    "silu": 0.731058579,
    "mish": 0.865098388,
    "hard_swish": 2 / 3,
    "gelu": 0.841191991,
    "relu": 1.0,
    "sigmoid": 0.731058579,
    "tanh": 0.761594156,
    "softplus": 1.313261688,
}
AT_MINUS_TWO = {
    "silu": -0.238405844,
    "mish": -0.252501483,
    "hard_swish": -1 / 3,
    "gelu": -0.045402306,
    "relu": 0.0,
    "sigmoid": 0.119202922,
    "tanh": -0.964027580,
    "softplus": 0.126928011,
}
OPERATORS = {"hard_swish": "HardSwish", "mish": "Mish", "sigmoid": "Sigmoid", "tanh": "Tanh", "softplus": "Softplus"}


def test_every_function_is_checked_here():
    assert set(AT_ONE) == set(AT_MINUS_TWO) == set(ACTIVATIONS)


@pytest.mark.parametrize("name", list(ACTIVATIONS))
def test_values_by_hand(name):
    found = ACTIVATIONS[name](np.array([1.0, -2.0]))
    np.testing.assert_allclose(found, [AT_ONE[name], AT_MINUS_TWO[name]], rtol=1e-8)


@pytest.mark.parametrize("name", list(ACTIVATIONS))
def test_shape_and_type_stay_and_large_values_do_not_overflow(name):
    x = np.array([[-1e4, -50.0, 0.0], [50.0, 1e4, 3.0]])
    y = ACTIVATIONS[name](x)
    assert y.shape == x.shape and y.dtype == np.float64
    assert np.isfinite(y).all()
    top = {"sigmoid": 1.0, "tanh": 1.0}.get(name, 1e4)
    bottom = {"tanh": -1.0}.get(name, 0.0)
    assert y[1, 1] == pytest.approx(top) and y[0, 0] == pytest.approx(bottom, abs=1e-12)


@given(x=st.floats(-700, 700))
def test_silu_by_its_formula(x):
    assert ACTIVATIONS["silu"](np.array(x)) == pytest.approx(x / (1 + math.exp(-x)), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("name", list(OPERATORS))
def test_the_runtimes_operator_is_the_same_function(name):
    value, result = (helper.make_tensor_value_info(each, onnx.TensorProto.FLOAT, [401]) for each in "xy")
    graph = helper.make_graph([helper.make_node(OPERATORS[name], ["x"], ["y"])], "g", [value], [result])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    x = np.linspace(-8, 8, 401, dtype=np.float32)
    expected = session.run(None, {"x": x})[0]
    np.testing.assert_allclose(ACTIVATIONS[name](x.astype(np.float64)), expected, rtol=1e-5, atol=1e-6)


def test_the_tanh_form_of_gelu_is_within_a_thousandth_of_the_exact_one():
    x = np.linspace(-6, 6, 601)
    exact = np.array([each * 0.5 * (1 + math.erf(each / math.sqrt(2))) for each in x])
    assert 1e-5 < np.abs(ACTIVATIONS["gelu"](x) - exact).max() < 1e-3


def test_the_table_cannot_be_changed():
    with pytest.raises(TypeError):
        ACTIVATIONS["silu"] = ACTIVATIONS["relu"]
