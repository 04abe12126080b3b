from __future__ import annotations

import numpy as np
import pytest
import torch

from qtoolkit.training.onnx_module import OnnxModule

CASES = [
    ("Relu", {}, 13),
    ("LeakyRelu", {}, 13),
    ("LeakyRelu", {"alpha": 0.1}, 13),
    ("Elu", {"alpha": 0.7}, 13),
    ("Celu", {"alpha": 0.7}, 13),
    ("Selu", {}, 13),
    ("Selu", {"alpha": 1.5, "gamma": 1.2}, 13),
    ("ThresholdedRelu", {"alpha": 0.5}, 13),
    ("Shrink", {"bias": 0.3, "lambd": 0.7}, 13),
    ("Sigmoid", {}, 13),
    ("HardSigmoid", {}, 13),
    ("HardSigmoid", {"alpha": 1 / 6, "beta": 0.5}, 13),
    ("HardSwish", {}, 14),
    ("Mish", {}, 18),
    ("Gelu", {}, 20),
    ("Gelu", {"approximate": "tanh"}, 20),
    ("Softplus", {}, 13),
    ("Softsign", {}, 13),
    ("Tanh", {}, 13),
    ("Relu", {}, 7),
    ("Clip", {"min": -0.5, "max": 1.0}, 7),
    ("Clip", {"max": 1.0}, 10),
    ("Clip", {}, 10),
]


@pytest.mark.parametrize(("op_type", "attributes", "opset"), CASES)
def test_activation(same_in_torch, noise, op_type, attributes, opset):
    same_in_torch(op_type, {"x": noise(2, 3, 4, 5)}, opset=opset, **attributes)


@pytest.mark.parametrize("shape", [(3, 1, 1), (1,), (1, 3, 1, 1), (5,)])
def test_prelu(same_in_torch, noise, shape):
    same_in_torch("PRelu", {"x": noise(2, 3, 4, 5)}, {"slope": noise(*shape, seed=1)})


@pytest.mark.parametrize(
    ("constants", "order"),
    [
        ({"low": -0.5, "high": 1.0}, ("x", "low", "high")),
        ({"low": -0.5}, ("x", "low")),
        ({"high": 1.0}, ("x", "", "high")),
        ({}, ("x",)),
    ],
    ids=["both", "low", "high", "none"],
)
@pytest.mark.parametrize("opset", [11, 13])
def test_clip_with_bounds_as_inputs(same_in_torch, noise, constants, order, opset):
    held = {name: np.float32(value) for name, value in constants.items()}
    same_in_torch("Clip", {"x": noise(2, 3)}, held, opset=opset, order=order)


def test_clip_at_computed_bounds(same_in_torch, noise):
    same_in_torch("Clip", {"x": noise(2, 3), "low": np.array(-1.0, np.float32), "high": np.array(0.5, np.float32)})


@pytest.mark.parametrize("alpha", [1.0, 1.5])
def test_swish_is_x_times_sigmoid(parse_network, noise, alpha):
    text = f"net (float[2,3] x) => (float[2,3] y) {{ y = Swish <alpha = {alpha}> (x) }}"
    x = noise(2, 3)
    found = OnnxModule(parse_network(text, opset=24))(torch.from_numpy(x))["y"]
    np.testing.assert_allclose(found, x / (1 + np.exp(-alpha * x)), rtol=1e-5)
