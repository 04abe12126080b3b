"""What the tests of the quantization package share: the tiny pose network, calibrated for a target."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from qtoolkit.backends.onnxruntime_cpu import OnnxRuntimeCpu
from qtoolkit.backends.targets import find_target
from qtoolkit.graph.load import prepare_network
from qtoolkit.quantization.calibrate import CalibrationStatistics, calibrate, calibration_tensors
from qtoolkit.quantization.ptq import Quantizer

Feeds = list[dict[str, np.ndarray[Any, Any]]]


@pytest.fixture(scope="session")
def photos() -> Callable[..., Feeds]:
    """``photos(3)`` → feeds of three images (1, 3, 64, 64), noise 0–1, the same every time."""

    def make(count: int, seed: int = 0, size: int = 64) -> Feeds:
        random = np.random.default_rng(seed)
        return [{"images": random.random((1, 3, size, size), dtype=np.float32)} for _ in range(count)]

    return make


@pytest.fixture(scope="session")
def pose(tiny_pose_model: Callable[..., onnx.ModelProto]) -> onnx.ModelProto:
    """The tiny SiLU pose network, prepared. Do not change it."""
    return prepare_network(tiny_pose_model("silu"))


@pytest.fixture(scope="session")
def relu_pose(tiny_pose_model: Callable[..., onnx.ModelProto]) -> onnx.ModelProto:
    """The tiny ReLU pose network, prepared. Do not change it."""
    return prepare_network(tiny_pose_model("relu"))


@pytest.fixture(scope="session")
def calibrated(photos: Callable[..., Feeds]) -> Callable[..., CalibrationStatistics]:
    """``calibrated(model, "ort-cpu")`` → statistics of four images."""

    def run(model: onnx.ModelProto, target: str = "ort-cpu") -> CalibrationStatistics:
        size = model.graph.input[0].type.tensor_type.shape.dim[2].dim_value
        tensors = calibration_tensors(model, find_target(target))
        return calibrate(model, tensors, photos(4, size=size), threads=1)

    return run


@pytest.fixture(scope="session")
def quantizer(pose: onnx.ModelProto, calibrated: Callable[..., CalibrationStatistics]) -> Quantizer:
    """Of the tiny SiLU network for ort-cpu."""
    return Quantizer(pose, find_target("ort-cpu"), calibrated(pose))


@pytest.fixture(scope="session")
def infer() -> Callable[..., dict[str, np.ndarray[Any, Any]]]:
    """``infer(model, feeds)`` → outputs by name, ONNX Runtime with one thread."""

    def run(model: onnx.ModelProto, feeds: dict[str, Any], **options: Any) -> dict[str, np.ndarray[Any, Any]]:
        with OnnxRuntimeCpu(model, threads=1, **options) as runner:
            return dict(runner.infer(feeds))

    return run


@pytest.fixture(scope="session")
def confident(
    pose: onnx.ModelProto, calibrated: Callable[..., CalibrationStatistics], quantizer: Quantizer
) -> Quantizer:
    """Of the same network with scores and keypoint confidences that are high, so that it finds people in noise."""
    model = onnx.ModelProto()
    model.CopyFrom(pose)
    for tensor in model.graph.initializer:
        raised = re.fullmatch(r"head\.(score|keypoints)\.\d\.1\.bias", tensor.name)
        if raised:
            bias = numpy_helper.to_array(tensor).copy()
            # Of (x, y, confidence) of each keypoint, the confidence alone.
            bias[slice(None) if raised[1] == "score" else slice(2, None, 3)] += 2.5
            tensor.CopyFrom(numpy_helper.from_array(bias, tensor.name))
    return Quantizer(model, quantizer.target, calibrated(model))
