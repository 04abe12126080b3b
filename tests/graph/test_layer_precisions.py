from __future__ import annotations

import numpy as np
import pytest

from qtoolkit.artifacts.plan import Precision, uniform_plan
from qtoolkit.backends.targets import find_target
from qtoolkit.graph.layer_precisions import float32_nodes, layer_precisions, precision_label
from qtoolkit.graph.layers import decode_tail
from qtoolkit.graph.load import prepare_network
from qtoolkit.graph.strongly_typed import strongly_typed
from qtoolkit.quantization.calibrate import calibrate, calibration_tensors
from qtoolkit.quantization.ptq import Quantizer


@pytest.fixture(scope="module")
def quantizer(tiny_pose_model):
    target = find_target("tensorrt")
    model = prepare_network(tiny_pose_model("relu"))
    feeds = [{"images": np.random.default_rng(0).random((1, 3, 64, 64), dtype=np.float32)}]
    return Quantizer(model, target, calibrate(model, calibration_tensors(model, target), feeds, threads=1))


@pytest.mark.parametrize("strong", [False, True], ids=["weak", "strong"])
def test_the_precisions_of_a_plan_are_read_back(strong, quantizer):
    names = [layer.name for layer in quantizer.layers]
    kinds = [Precision.INT8, Precision.FP16, Precision.FP32]
    plan = uniform_plan(names, Precision.INT8).with_layers({n: kinds[i % 3] for i, n in enumerate(names)})
    network = quantizer.quantize(plan).model
    found = layer_precisions(strongly_typed(network) if strong else network)
    assert found == {name: plan.layers[name].value for name in names}
    tail = decode_tail(quantizer.model)
    wide = {name for name in names if plan.layers[name] is Precision.FP32}
    assert {n for n in float32_nodes(network) if "/Cast" not in n} == tail | wide


def test_labels():
    assert precision_label({"a": "int8", "b": "int8"}) == "int8"
    assert precision_label({"a": "int8", "b": "fp16", "c": "int8"}) == "mixed (1 fp16, 2 int8)"
