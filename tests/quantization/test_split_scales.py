from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from qtoolkit.artifacts.plan import Precision, uniform_plan
from qtoolkit.backends.targets import find_target
from qtoolkit.graph.view import GraphView
from qtoolkit.quantization.ptq import Quantizer


@pytest.fixture(scope="module")
def unlike(relu_pose) -> onnx.ModelProto:
    """The tiny network; one row of its second convolution is a hundred times as large, exactly taken back behind it."""
    model = onnx.ModelProto()
    model.CopyFrom(relu_pose)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    _scale(weights["head.keypoints.0.1.weight"], slice(0, 1), 100.0)
    _scale(weights["head.keypoints.0.0.weight"], slice(3, 4), 100.0)
    return model


def _scale(tensor: onnx.TensorProto, rows: slice, factor: float) -> None:
    value = numpy_helper.to_array(tensor).copy()
    value[rows] *= factor
    tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))


@pytest.fixture(scope="module")
def split(unlike, calibrated) -> Quantizer:
    return Quantizer(unlike, find_target("tidl"), calibrated(unlike, "tidl"), splits_scales=True)


def _all(quantizer: Quantizer, precision: Precision):
    names = (layer.name for layer in quantizer.layers)
    return uniform_plan(names, precision, model_sha256="0", target="tidl", made_by="test")


def _weight_error(quantizer: Quantizer, name: str) -> float:
    """Of the smaller rows of a layer, relative."""
    layer = next(layer for layer in quantizer.layers if layer.name == name)
    weight = GraphView(quantizer.model).constant(layer.weight)
    found = quantizer.grids({name: Precision.INT8}).weights[name]
    scale = found.params.scale.reshape(-1, 1, 1, 1) if found.params.axis == 0 else found.params.scale
    small = np.abs(weight).max(axis=(1, 2, 3)) < 0.1 * np.abs(weight).max()
    assert small.sum() > 1
    error = (found.weight * scale - weight)[small]
    return float(np.linalg.norm(error) / np.linalg.norm(weight[small]))


@pytest.mark.parametrize("name", ["head.keypoints.0.1", "head.keypoints.0.0"])
def test_small_rows_keep_their_steps(split, name):
    plain = replace(split, splits_scales=False)
    assert _weight_error(split, name) < 0.1 * _weight_error(plain, name)


def test_a_layer_is_written_in_parts_with_one_scale_each_and_named_once_in_the_plan(split):
    network = split.quantize(_all(split, Precision.INT8))
    view = GraphView(network.model)
    parts = [node for node in view.nodes if node.name.startswith("head.keypoints.0.1/part") and node.op_type == "Conv"]
    assert len(parts) == 2
    for part in parts:
        scale = view.producer(part.input[1]).input[1]
        assert view.constant(scale).shape == ()
    assert "head.keypoints.0.1" in network.plan.layers and not any("/part" in name for name in network.plan.layers)


def test_the_outputs_come_nearer(split, infer, photos):
    feeds = photos(1, seed=5)[0]
    float_one = infer(split.model, feeds)["output0"]
    errors = [
        np.square(infer(q.quantize_only({"head.keypoints.0.1": Precision.INT8}), feeds)["output0"] - float_one).sum()
        for q in (split, replace(split, splits_scales=False))
    ]
    assert errors[0] < 0.5 * errors[1]


@pytest.mark.parametrize(("precision", "parts"), [(Precision.INT16, True), (Precision.INT16W16, False)])
def test_where_weights_are_8_bit(split, precision, parts):
    network = split.quantize(_all(split, precision)).model
    assert any("/part" in node.name for node in network.graph.node) == parts


def test_any_plan_runs(split, infer, photos):
    plan = _all(split, Precision.INT8)
    names = list(plan.layers)
    mixed = plan.with_layers(dict.fromkeys(names[::3], Precision.INT16W16) | {names[1]: Precision.FP32})
    assert np.isfinite(infer(split.quantize(mixed).model, photos(1)[0])["output0"]).all()


def test_nothing_to_split_where_every_channel_has_a_scale(unlike, calibrated):
    quantizer = Quantizer(unlike, find_target("ort-cpu"), calibrated(unlike), splits_scales=True)
    network = quantizer.quantize(_all(quantizer, Precision.INT8)).model
    assert not any("/part" in node.name for node in network.graph.node)


def test_the_same_every_time(split):
    plan = _all(split, Precision.INT8)
    first, second = (split.quantize(plan).model.SerializeToString(deterministic=True) for _ in range(2))
    assert first == second
