"""What the tests of the graph package share: small graphs written as text, and running them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import parser


@pytest.fixture(scope="session")
def run_network() -> Callable[..., dict[str, np.ndarray[Any, Any]]]:
    """``run_network(model, feeds)`` → outputs by name, computed by ONNX Runtime without graph optimization."""

    def run(model: onnx.ModelProto, feeds: Mapping[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(None, dict(feeds)), strict=True))

    return run


@pytest.fixture(scope="session")
def parse_network() -> Callable[..., onnx.ModelProto]:
    """``parse_network("net (float[1,3,4,4] images) => (float[1,3,4,4] y) { y = Relu(images) }")`` → model."""

    def parse(text: str, opset: int = 13, ir_version: int = 8) -> onnx.ModelProto:
        return parser.parse_model(f'<ir_version: {ir_version}, opset_import: ["" : {opset}]>\n{text}')

    return parse


@pytest.fixture(scope="session")
def image() -> Callable[[int], np.ndarray[Any, Any]]:
    """``image(64)`` → noise (1, 3, 64, 64) float32 in 0–1, the same every time."""
    return lambda size: np.random.default_rng(7).random((1, 3, size, size), dtype=np.float32)
