from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from qtoolkit.artifacts.plan import Precision, PrecisionPlan, uniform_plan
from qtoolkit.backends.targets import find_target
from qtoolkit.errors import DataSetError
from qtoolkit.graph.layers import find_layers, last_layers, layer_levels
from qtoolkit.graph.subgraph import extract
from qtoolkit.quantization import empirical_bias
from qtoolkit.quantization.bias_correction import input_means
from qtoolkit.quantization.empirical_bias import empirical_biases
from qtoolkit.quantization.ptq import Quantizer


@pytest.fixture(scope="module", params=["tidl", "ort-cpu"])
def on_target(request, relu_pose, calibrated) -> Quantizer:
    return Quantizer(relu_pose, find_target(request.param), calibrated(relu_pose, request.param))


def int8_plan(quantizer: Quantizer) -> PrecisionPlan:
    return uniform_plan((layer.name for layer in quantizer.layers), Precision.INT8)


@pytest.fixture(scope="module")
def corrected(on_target, photos) -> Quantizer:
    return replace(on_target, biases=empirical_biases(on_target, int8_plan(on_target), lambda: photos(4), threads=1))


@pytest.fixture
def shifts(photos, infer):
    """Of each layer's output, how far the channel means of a network are from those of the float one."""

    def measure(quantizer: Quantizer, names: list[str]) -> dict[str, np.ndarray]:
        outputs = {layer.name: layer.output for layer in quantizer.layers if layer.name in names}
        means = []
        for model in (quantizer.model, quantizer.quantize(int8_plan(quantizer)).model):
            part = extract(model, ["images"], list(outputs.values()))
            found = [infer(part, feed, integer_kernels=quantizer.target.name == "ort-cpu") for feed in photos(4)]
            means.append(
                {name: np.mean([each[tensor] for each in found], axis=(0, 1, 3, 4)) for name, tensor in outputs.items()}
            )
        return {name: np.abs(means[0][name] - means[1][name]) for name in outputs}

    return measure


def test_every_layer_gets_a_bias(on_target, corrected):
    assert set(corrected.biases) == {layer.name for layer in on_target.layers}


def test_channel_means_are_those_of_the_float_network(on_target, corrected, shifts):
    names = sorted(set(corrected.biases) - set(last_layers(on_target.model)))
    before, after = shifts(on_target, names), shifts(corrected, names)
    assert sum(map(np.sum, after.values())) < 0.4 * sum(map(np.sum, before.values()))


def test_the_last_layers_take_the_error_of_their_own_weights_alone(on_target, corrected, photos):
    known = replace(on_target, means=input_means(on_target.model, photos(4), threads=1)).quantize(int8_plan(on_target))
    found = corrected.quantize(int8_plan(on_target))
    for layer in (layer for layer in on_target.layers if layer.name in last_layers(on_target.model)):
        name = f"{layer.name}/{layer.bias}/quantized"
        one, other = (
            next(numpy_helper.to_array(t) for t in each.model.graph.initializer if t.name == name)
            for each in (known, found)
        )
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1)


def test_it_is_what_one_pass_of_the_whole_network_for_each_layer_gives(on_target, corrected, photos):
    plan, biases, model = int8_plan(on_target), {}, on_target.model
    infer = empirical_bias._inference(1, integer_kernels=on_target.target.name == "ort-cpu")
    layers = {layer.name: layer for layer in on_target.layers}

    def means(network: onnx.ModelProto, tensor: str) -> np.ndarray:
        part = empirical_bias._measuring(network, ["images"], [tensor])
        return empirical_bias._channel_means(infer, part, photos(4))[tensor]

    inner = set(corrected.biases) - set(last_layers(model))
    for name in (name for level in layer_levels(model) for name in reversed(level) if name in inner):
        network, output = replace(on_target, biases=biases).quantize(plan).model, layers[name].output
        bias = next(numpy_helper.to_array(t) for t in model.graph.initializer if t.name == layers[name].bias)
        biases[name] = bias + empirical_bias._shift(means(model, output) - means(network, output))
        np.testing.assert_allclose(corrected.biases[name], biases[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("target", "is_corrected"), [("ort-cpu", False), ("tidl", True)])
def test_a_layer_whose_bias_stays_in_float_is_left(relu_pose, calibrated, photos, target, is_corrected):
    quantizer = Quantizer(relu_pose, find_target(target), calibrated(relu_pose, target))
    name = find_layers(relu_pose)[2].name
    plan = int8_plan(quantizer).with_layers({name: Precision.INT16})
    biases = empirical_biases(quantizer, plan, lambda: photos(2), threads=1)
    assert (name in biases) == is_corrected
    assert find_layers(relu_pose)[1].name in biases


def test_a_layer_without_a_bias_is_left(relu_pose, calibrated, photos):
    model = onnx.ModelProto()
    model.CopyFrom(relu_pose)
    layer = find_layers(model)[1]
    node = next(node for node in model.graph.node if node.name == layer.name)
    del node.input[2]
    quantizer = Quantizer(model, find_target("tidl"), calibrated(model, "tidl"))
    biases = empirical_biases(quantizer, int8_plan(quantizer), lambda: photos(2), threads=1)
    assert layer.name not in biases
    assert len(biases) > 3


def test_what_is_less_sure_is_corrected_less():
    differences = np.array([[1.0, 1.0, 3.0], [1.0, -1.0, 1.0]])
    # Means 1, 0, 2; squared standard errors 0, 1, 1.
    np.testing.assert_allclose(empirical_bias._shift(differences), [1.0, 0.0, 2 * 4 / 5])
    np.testing.assert_allclose(empirical_bias._shift(differences[:1]), differences[0])


def test_progress_counts_passes_and_photos_are_read_anew(on_target, photos):
    told, reads = [], []

    def feeds():
        reads.append(1)
        return photos(1)

    empirical_biases(on_target, int8_plan(on_target), feeds, threads=1, progress=lambda *at: told.append(at))
    assert told[-1] == (len(told), len(told))
    assert len(reads) == 2  # for the float network and for the quantized one


def test_no_photo_is_an_error(on_target):
    with pytest.raises(DataSetError, match="no image"):
        empirical_biases(on_target, int8_plan(on_target), lambda: [], threads=1)
