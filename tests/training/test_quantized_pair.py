"""Which places of a network are fake-quantized in torch, and what of them is trained."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch

from qtoolkit.artifacts.plan import Precision
from qtoolkit.backends.targets import find_target
from qtoolkit.graph.load import prepare_network
from qtoolkit.graph.placement import place_qdq
from qtoolkit.graph.qdq import LayerWeights
from qtoolkit.numerics.affine import IntegerGrid, QuantParams, fake_quantize, params_from_range, weight_params
from qtoolkit.training.quantized_pair import GRID_RATE_SHARE, QuantizedPair

_ON_ACTIVATIONS = IntegerGrid(8, signed=True, symmetric=True)
_ON_WEIGHTS = IntegerGrid(8, signed=True, symmetric=True, narrow_range=True)


@pytest.fixture
def model(network_builder) -> onnx.ModelProto:
    """Two convolutions that share their weight, then one in float; the head is the last of them."""
    net = network_builder(3, "relu", batch_norm=False)
    x = net.conv("a", "images", 3, 3, kernel=3)
    shared = net.node("Conv", [x, "a.weight", net.constant("b.bias", [0.1, -0.2, 0.3])], "b.out", pads=[1] * 4)
    x = net.plain_conv("c", net.act("b", shared), 3, 2, kernel=1)
    return prepare_network(net.model({"images": (1, 3, 8, 8)}, {"c.out": (1, 2, 8, 8)}))


@pytest.fixture
def pair(model):
    """On tensorrt, all layers but c at 8 bit."""
    precisions = {"a": Precision.INT8, "b.out.node": Precision.INT8}
    placement = place_qdq(model, precisions, find_target("tensorrt"))
    activations = {key: params_from_range(-1.0, 2.0, _ON_ACTIVATIONS) for key in placement.tensors}
    weight = onnx.numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == "a.weight"))
    weights = {name: LayerWeights.quantized(weight, weight_params(weight, _ON_WEIGHTS, 0)) for name in precisions}
    return QuantizedPair.of(model, None, placement, activations, weights)


def test_constants_and_8_bit_grids_are_trained_but_not_that_of_the_input(pair):
    grids = {"grid of a.act at 8 bit", "grid of the weight of a", "grid of the weight of b.out.node"}
    assert set(pair.activations) == {("images", 8), ("a.act", 8)}
    assert set(pair.trained()) == {"a.weight", "a.bias", "b.bias", "c.weight", "c.bias"} | grids
    assert {name for name in pair.trained() if pair.rate_share(name) == GRID_RATE_SHARE} == grids
    assert all(pair.rate_share(name) == 1 for name in set(pair.trained()) - grids)


def test_one_shared_weight_has_a_grid_of_each_layer(pair, model):
    with torch.no_grad():
        pair.trained()["grid of the weight of b.out.node"].fill_(1.0)
    first, second = (pair.weight_params()[name].scale for name in ("a", "b.out.node"))
    np.testing.assert_allclose(second, 2 * first)
    assert pair.trained()["a.weight"].shape == (3, 3, 3, 3)


def test_the_student_computes_with_rounded_tensors(pair):
    images = torch.rand(2, 3, 8, 8)
    found = pair.student(images, capture=("a.out",))["a.out"]
    weight = pair.trained()["a.weight"].detach().numpy()
    rounded = torch.from_numpy(fake_quantize(weight, pair.weight_params()["a"]))
    on_input: QuantParams = pair.activation_params()["images", 8]
    inputs = torch.from_numpy(fake_quantize(images.numpy(), on_input))
    expected = torch.nn.functional.conv2d(inputs, rounded, pair.trained()["a.bias"], padding=1)
    torch.testing.assert_close(found, expected)


def test_the_teacher_is_the_float_network_and_stays(pair):
    assert not any(parameter.requires_grad for parameter in pair.teacher.parameters())
    images = torch.rand(1, 3, 8, 8)
    before = pair.teacher(images)["c.out"]
    with torch.no_grad():
        pair.trained()["a.weight"].add_(1.0)
    assert torch.equal(before, pair.teacher(images)["c.out"])


def test_states_bring_everything_back(pair):
    kept = {name: tensor.detach().clone() for name, tensor in pair.tensors().items()}
    with torch.no_grad():
        for parameter in pair.trained().values():
            parameter.add_(0.5)
    pair.load_(kept)
    assert all(torch.equal(tensor, kept[name]) for name, tensor in pair.tensors().items())


def test_a_batch_norm_that_is_left_keeps_its_statistics(network_builder):
    net = network_builder(0, "relu", batch_norm=False)
    x = net.norm("first.bn", "images", 3)
    net.plain_conv("c", x, 3, 2, kernel=1)
    model = prepare_network(net.model({"images": (1, 3, 8, 8)}, {"c.out": (1, 2, 8, 8)}))
    assert "BatchNormalization" in {node.op_type for node in model.graph.node}
    pair = QuantizedPair.of(model, None, place_qdq(model, {}, find_target("ort-cpu")), {}, {})
    before = {name: value.clone() for name, value in pair.student.statistics_by_name().items()}
    pair.student(torch.rand(4, 3, 8, 8))
    assert before and all(torch.equal(before[name], now) for name, now in pair.student.statistics_by_name().items())
    assert {"first.bn.scale", "first.bn.shift"} <= set(pair.trained())
    assert pair.network().SerializeToString() == model.SerializeToString()
