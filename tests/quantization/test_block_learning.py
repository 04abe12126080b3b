from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from onnx import numpy_helper

pytest.importorskip("torch")

from qtoolkit.artifacts.plan import Precision, uniform_plan
from qtoolkit.backends.onnxruntime_cpu import OnnxRuntimeCpu
from qtoolkit.backends.targets import find_target
from qtoolkit.data.calibration_set import CalibrationSet
from qtoolkit.data.samples import Split
from qtoolkit.errors import UsageError
from qtoolkit.graph.layers import find_layers
from qtoolkit.quantization.block_learning import learn_blocks
from qtoolkit.quantization.ptq import Quantizer
from qtoolkit.training.block_reconstruction import BlockOptions

OPTIONS = BlockOptions(steps=6, batch=2, crop=32)


@pytest.fixture
def shots(tmp_path: Path) -> CalibrationSet:
    folder = tmp_path / "shots"
    folder.mkdir()
    random = np.random.default_rng(0)
    for index in range(3):
        small = random.integers(0, 256, (8, 8, 3), np.uint8)
        cv2.imwrite(str(folder / f"{index}.png"), cv2.resize(small, (64, 64)))
    return CalibrationSet.from_split(Split(folder, None))


@pytest.fixture(params=["ort-cpu", "tensorrt"])
def on_target(request, pose, calibrated) -> Quantizer:
    return Quantizer(pose, find_target(request.param), calibrated(pose, request.param), pairs_silu=True)


def learned(quantizer, shots, folder, options=OPTIONS):
    plan = uniform_plan([layer.name for layer in find_layers(quantizer.model)], Precision.INT8)
    return learn_blocks(quantizer, plan, None, shots, folder, options, threads=1), quantizer.quantize(plan).model


def test_the_graph_is_that_of_ptq_with_other_numbers(on_target, shots, tmp_path):
    found, plain = learned(on_target, shots, tmp_path / "state")
    assert [(node.op_type, node.name) for node in found.graph.node] == [
        (node.op_type, node.name) for node in plain.graph.node
    ]
    assert found.SerializeToString(deterministic=True) != plain.SerializeToString(deterministic=True)
    with OnnxRuntimeCpu(found, threads=1) as runner:
        size = on_target.model.graph.input[0].type.tensor_type.shape.dim[2].dim_value
        name = on_target.model.graph.input[0].name
        assert all(
            np.isfinite(value).all()
            for value in runner.infer({name: np.zeros((1, 3, size, size), np.float32)}).values()
        )


def test_it_is_the_same_every_time_and_after_a_stop(on_target, shots, tmp_path, monkeypatch):
    whole = learned(on_target, shots, tmp_path / "whole")[0]
    again = learned(on_target, shots, tmp_path / "again")[0]
    assert whole == again

    from qtoolkit.training import block_reconstruction

    plain_step, calls = block_reconstruction._take_step, []

    def stops(*arguments):
        calls.append(1)
        if len(calls) == OPTIONS.steps + 2:
            raise KeyboardInterrupt
        plain_step(*arguments)

    monkeypatch.setattr(block_reconstruction, "_take_step", stops)
    try:
        resumed = learned(on_target, shots, tmp_path / "stopped")[0]
    except KeyboardInterrupt:
        resumed = learned(on_target, shots, tmp_path / "stopped")[0]
    assert resumed == whole


def test_a_folder_of_other_options_is_refused(on_target, shots, tmp_path):
    learned(on_target, shots, tmp_path / "state")
    with pytest.raises(UsageError):
        learned(on_target, shots, tmp_path / "state", BlockOptions(steps=5, batch=2, crop=32))


def test_biases_that_were_corrected_are_not_lost(pose, calibrated, shots, tmp_path):
    last = find_layers(pose)[-1]
    own = next(numpy_helper.to_array(tensor) for tensor in pose.graph.initializer if tensor.name == last.bias)
    target, statistics = find_target("tidl"), calibrated(pose, "tidl")
    quantizer = Quantizer(pose, target, statistics, biases={last.name: own.astype(np.float64) + 1.0})
    found, plain = learned(quantizer, shots, tmp_path / "state")
    uncorrected = learned(Quantizer(pose, target, statistics), shots, tmp_path / "other")[1]

    def bias(model):
        name = f"{last.name}/{last.bias}/quantized"
        return next(numpy_helper.to_array(tensor) for tensor in model.graph.initializer if tensor.name == name)

    np.testing.assert_allclose(bias(found), bias(plain), rtol=1e-6, atol=1)
    assert np.abs(bias(found) - bias(uncorrected)).min() > 100
