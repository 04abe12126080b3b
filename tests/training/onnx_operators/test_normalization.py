from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch

from qtoolkit.training.onnx_module import OnnxModule

SINCE_1_24 = pytest.mark.skipif(
    tuple(int(part) for part in onnxruntime.__version__.split(".")[:2]) < (1, 24),
    reason="ONNX Runtime before 1.24 refuses a scale of fewer dimensions there",
)


def norms(noise, channels):
    scale, shift, mean = (noise(channels, seed=seed) for seed in (1, 2, 3))
    return {"scale": scale, "shift": shift, "mean": mean, "variance": np.abs(noise(channels, seed=4)) + np.float32(0.1)}


@pytest.mark.parametrize("opset", [7, 9, 13, 15])
@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (2, 3), (2, 3, 7)])
def test_batch_norm_of_inference(same_in_torch, noise, opset, shape):
    same_in_torch("BatchNormalization", {"x": noise(*shape)}, norms(noise, 3), opset=opset, epsilon=1e-3)


def test_batch_norm_of_training(parse_network, noise):
    model = parse_network(
        """net (float[B,3,4,5] x) => (float[B,3,4,5] y)
        <float[3] s = {1, 2, 3}, float[3] b = {0, 1, 2}, float[3] m = {0, 0, 0}, float[3] v = {1, 1, 1}>
        { y = BatchNormalization <momentum = 0.8> (x, s, b, m, v) }"""
    )
    x = noise(4, 3, 4, 5)
    module = OnnxModule(model)
    y = module(torch.from_numpy(x))["y"].detach().numpy()
    mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3))
    shaped = [part.reshape(3, 1, 1) for part in (mean, np.sqrt(variance + 1e-5), np.float32([1, 2, 3]), np.arange(3))]
    np.testing.assert_allclose(y, (x - shaped[0]) / shaped[1] * shaped[2] + shaped[3], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(module.statistics_by_name()["m"], 0.2 * mean, rtol=1e-4, atol=1e-6)


def test_instance_norm(same_in_torch, noise):
    constants = {"scale": noise(3, seed=1), "shift": noise(3, seed=2)}
    same_in_torch("InstanceNormalization", {"x": noise(2, 3, 4, 5)}, constants, epsilon=1e-3)


@pytest.mark.parametrize(
    ("axis", "shape"), [(-1, (5,)), (2, (4, 5)), (-3, (3, 4, 5)), pytest.param(1, (5,), marks=SINCE_1_24)]
)
@pytest.mark.parametrize("shifted", [True, False])
def test_layer_norm(same_in_torch, noise, axis, shape, shifted):
    constants = {"scale": noise(*shape, seed=1)} | ({"shift": noise(*shape, seed=2)} if shifted else {})
    same_in_torch("LayerNormalization", {"x": noise(2, 3, 4, 5)}, constants, opset=17, axis=axis)


@pytest.mark.parametrize(("opset", "sizes"), [(18, 2), (21, 6)], ids=["scale a group", "scale a channel"])
def test_group_norm(same_in_torch, noise, opset, sizes):
    constants = {"scale": noise(sizes, seed=1), "shift": noise(sizes, seed=2)}
    same_in_torch("GroupNormalization", {"x": noise(2, 6, 4, 5)}, constants, opset=opset, num_groups=2)


@pytest.mark.parametrize("op_type", ["Softmax", "LogSoftmax"])
@pytest.mark.parametrize(("opset", "attributes"), [(7, {}), (11, {"axis": 2}), (13, {}), (13, {"axis": 1})])
def test_softmax(same_in_torch, noise, op_type, opset, attributes):
    same_in_torch(op_type, {"x": noise(2, 3, 4, 5)}, opset=opset, **attributes)


@pytest.mark.parametrize("order", [1, 2])
def test_lp_norm(same_in_torch, noise, order):
    same_in_torch("LpNormalization", {"x": noise(2, 3, 4)}, axis=1, p=order)


def test_local_response_norm(same_in_torch, noise):
    same_in_torch("LRN", {"x": noise(2, 6, 4, 5)}, size=3, alpha=0.02, beta=0.6, bias=1.5)


@pytest.mark.parametrize("opset", [7, 10, 13])
def test_dropout_hands_its_input_on(same_in_torch, noise, opset):
    same_in_torch("Dropout", {"x": noise(2, 3)}, opset=opset)


def test_the_mask_of_a_dropout_is_true(same_in_torch, noise):
    same_in_torch("Dropout", {"x": noise(2, 3)}, outputs=("y", "mask"))
