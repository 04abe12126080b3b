from __future__ import annotations

import numpy as np
import pytest

from qtoolkit.artifacts.plan import Precision, uniform_plan
from qtoolkit.backends.targets import find_target
from qtoolkit.graph.layers import find_layers
from qtoolkit.graph.view import GraphView
from qtoolkit.numerics.affine import IntegerGrid, fake_quantize, weight_params
from qtoolkit.quantization.bias_correction import corrected_bias, input_means, read_means, write_means
from qtoolkit.quantization.ptq import Quantizer

INT8 = IntegerGrid(8, signed=True, symmetric=True, narrow_range=True)
TIDL = find_target("tidl")


@pytest.fixture(scope="module")
def means(relu_pose, photos):
    return input_means(relu_pose, photos(3), threads=1)


def test_means_are_those_of_the_channels(relu_pose, photos, means):
    assert set(means) == {layer.input for layer in find_layers(relu_pose)}
    expected = np.mean([feed["images"].mean(axis=(0, 2, 3)) for feed in photos(3)], axis=0)
    np.testing.assert_allclose(means["images"], expected, rtol=1e-5)


def test_the_mean_output_is_that_of_the_float_weight():
    rng = np.random.default_rng(0)
    for groups in (1, 2, 4):
        model = convolution(rng, groups)
        layer, view = find_layers(model)[0], GraphView(model)
        weight, bias = view.constant(layer.weight), view.constant(layer.bias)
        params = weight_params(weight, INT8, None)
        x = rng.random(4)
        corrected = corrected_bias(layer, weight, bias, params, x)
        rounded = output(fake_quantize(weight, params), corrected, x, groups)
        np.testing.assert_allclose(rounded, output(weight, bias, x, groups), rtol=1e-5)
        assert not np.allclose(corrected, bias, rtol=1e-4)


def convolution(rng, groups):
    from onnx import TensorProto, helper, numpy_helper

    constants = {"w": rng.standard_normal((8, 4 // groups, 1, 1)), "b": rng.standard_normal(8)}
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, (1, c, 4, 4)) for name, c in (("x", 4), ("y", 8))]
    nodes = [helper.make_node("Conv", ["x", "w", "b"], ["y"], "conv", group=groups)]
    initializers = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "one", values[:1], values[1:], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def output(weight, bias, x, groups):
    """A 1 × 1 convolution by hand, of one place."""
    parts = zip(np.split(weight[:, :, 0, 0], groups), np.split(x, groups), strict=True)
    return np.concatenate([rows @ part for rows, part in parts]) + bias


def test_the_tidl_network_comes_nearer_to_float(relu_pose, calibrated, photos, infer, means):
    statistics = calibrated(relu_pose, "tidl")
    plan = uniform_plan((layer.name for layer in find_layers(relu_pose)), Precision.INT8)
    errors = []
    for known in ({}, means):
        model = Quantizer(relu_pose, TIDL, statistics, means=known).quantize(plan).model
        difference = 0.0
        for feed in photos(3):
            found, expected = infer(model, feed, integer_kernels=False), infer(relu_pose, feed)
            difference += float(np.abs(found["output0"].mean(axis=2) - expected["output0"].mean(axis=2)).mean())
        errors.append(difference)
    assert errors[1] < 0.8 * errors[0]


def test_means_are_kept_and_a_damaged_file_counts_as_none(means, tmp_path):
    path = tmp_path / "means.npz"
    assert read_means(path) is None
    write_means(path, means)
    kept = read_means(path)
    assert list(kept) == list(means)
    np.testing.assert_array_equal(kept["images"], means["images"])
    path.write_bytes(path.read_bytes()[:100])
    assert read_means(path) is None


def test_means_of_no_photo_are_an_error(relu_pose):
    from qtoolkit.errors import DataSetError

    with pytest.raises(DataSetError, match="no image"):
        input_means(relu_pose, [])
