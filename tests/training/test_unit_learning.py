"""One unit: learned rounding against rounding to nearest, and what is left where it is no better."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from qtoolkit.artifacts.plan import Precision
from qtoolkit.backends.targets import find_target
from qtoolkit.graph.layers import Structure, find_layers
from qtoolkit.graph.load import prepare_network
from qtoolkit.graph.placement import place_qdq
from qtoolkit.graph.qdq import LayerWeights
from qtoolkit.graph.units import find_units
from qtoolkit.numerics.affine import IntegerGrid, params_from_range, weight_params
from qtoolkit.training.output_fisher import channel_weights
from qtoolkit.training.quantized_pair import QuantizedPair
from qtoolkit.training.unit_inputs import UnitInputs
from qtoolkit.training.unit_learning import RoundingOptions, UnitLearning
from qtoolkit.training.unit_traffic import unit_traffic

_COARSE = IntegerGrid(8, signed=True, symmetric=True, narrow_range=True)
_ON_ACTIVATIONS = IntegerGrid(8, signed=True, symmetric=True)


@pytest.fixture
def model(network_builder):
    """Two convolutions whose inputs are strongly correlated, which rounding to nearest does not know."""
    net = network_builder(3, "relu", batch_norm=False)
    x = net.conv("a", "images", 3, 8, kernel=3)
    net.plain_conv("b", x, 8, 4, kernel=3)
    return prepare_network(net.model({"images": (1, 3, 16, 16)}, {"b.out": (1, 4, 16, 16)}))


@pytest.fixture
def learning(model, tmp_path):
    """``learning(**options)`` → the learning of the only unit, its weights on 15 values, on smooth images."""
    precisions = {layer.name: Precision.INT8 for layer in find_layers(model)}
    placement = place_qdq(model, precisions, find_target("tensorrt"))
    activations = {key: params_from_range(-4.0, 4.0, _ON_ACTIVATIONS) for key in placement.tensors}
    structure, weights = Structure.of(model), {}
    for layer in structure.layers.values():
        weight = structure.view.constant(layer.weight)
        # As large a range as if there were a weight 18 times the others: 7 steps for each of them.
        weights[layer.name] = LayerWeights.quantized(weight, weight_params(weight * 18, _COARSE, None))
    pair = QuantizedPair.of(model, None, placement, activations, weights)
    for parameter in pair.trained().values():
        parameter.requires_grad_(False)
    (traffic,) = unit_traffic(structure, placement, find_units(structure))
    random = np.random.default_rng(0)
    small = torch.from_numpy(random.random((32, 1, 3, 3), dtype=np.float32)).expand(-1, 3, -1, -1)
    images = torch.nn.functional.interpolate(small, size=16, mode="bilinear").contiguous()
    inputs = UnitInputs(pair, [traffic], images, tmp_path)
    inputs.run_teacher(traffic)

    def make(**options):
        chosen = RoundingOptions(**{"batch": 8, "drop": 0.0} | options)
        return pair, UnitLearning(pair, traffic, list(precisions), inputs, chosen, 0, {}, {})

    with inputs:
        yield make


def test_the_error_is_far_below_that_of_rounding_to_nearest(learning):
    pair, unit = learning(grid_lr=0.0)
    found = unit.learn(lambda step: None)
    assert found.learned < 0.5 * found.before
    assert found.weights is not None
    for name, weight in found.weights.items():
        assert torch.equal(weight, pair.weights[name](weight))


def test_biases_alone_do_not_explain_it(learning):
    only_biases = learning(lr=1e-9, pull=0.0)[1].learn(lambda step: None)
    both = learning()[1].learn(lambda step: None)
    assert both.learned < 0.7 * min(only_biases.learned, only_biases.before)


def test_scales_are_learned_only_where_asked_for(learning):
    pair, unit = learning(grid_lr=0.0, steps=3)
    unit.learn(lambda step: None)
    assert all(float(each.log2_ratio) == 0 for each in pair.activations.values())


@pytest.mark.parametrize("drop", [0.0, 0.5, 1.0])
def test_what_is_no_better_leaves_the_student_as_it_was(learning, monkeypatch, drop):
    pair, unit = learning(steps=3, drop=drop)
    before = {name: tensor.detach().clone() for name, tensor in pair.tensors().items()}
    images = torch.rand(2, 3, 16, 16)
    outputs = pair.student(images)["b.out"].detach()
    monkeypatch.setattr(UnitLearning, "_error", lambda *_: 1.0)
    assert unit.learn(lambda step: None).weights is None
    assert torch.equal(pair.student(images)["b.out"].detach(), outputs)
    assert all(torch.equal(tensor, before[name]) for name, tensor in pair.tensors().items())


def test_channels_count_by_what_they_do_to_the_outputs(network_builder):
    net = network_builder(0, "relu", batch_norm=False)
    x = net.plain_conv("a", "images", 3, 2, kernel=1)
    weight = net.constant("b.weight", [[[[3.0]], [[0.0]]], [[[0.5]], [[0.0]]]])
    net.node("Conv", [x, weight], "b.out")
    model = prepare_network(net.model({"images": (1, 3, 8, 8)}, {"b.out": (1, 2, 8, 8)}))
    pair = QuantizedPair.of(model, None, place_qdq(model, {}, find_target("ort-cpu")), {}, {})
    images = torch.rand(3, 3, 8, 8)
    (weights,) = channel_weights(pair, images, ["a.out"], 0).values()
    assert weights.shape == (1, 2, 1, 1) and float(weights[0, 1]) == 0
    with torch.no_grad():
        energies = [float(pair.teacher(image[None])["b.out"].square().mean()) for image in images]
    # The signs of the two outputs are drawn apart: E[g²] = Σ w² · (1 / places) / mean square.
    expected = np.mean([(3.0**2 + 0.5**2) / 64 / energy for energy in energies]) / 2
    assert float(weights[0, 0]) == pytest.approx(expected, rel=0.3)
