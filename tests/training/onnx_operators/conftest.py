"""Running one node in ONNX Runtime and in torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper, numpy_helper, parser

from qtoolkit.training.onnx_module import OnnxModule

TOLERANCE = 1e-4


def one_node(
    op_type: str,
    feeds: Mapping[str, Any],
    constants: Mapping[str, Any],
    opset: int,
    outputs: Sequence[str] = ("y",),
    order: Sequence[str] | None = None,
    domain: str = "",
    **attributes: Any,
) -> onnx.ModelProto:
    """A model of one node; its inputs are ``order`` or the feeds and then the constants, its output types open."""
    inputs = list(order if order is not None else (*feeds, *constants))
    node = helper.make_node(op_type, inputs, list(outputs), name="node", domain=domain, **attributes)
    declared = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
        for name, value in feeds.items()
    ]
    held = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    results = [onnx.ValueInfoProto(name=name) for name in outputs if name]
    graph = helper.make_graph([node], "test", declared, results, held)
    opsets = [helper.make_opsetid("", opset)]
    if domain:
        opsets.append(helper.make_opsetid(domain, 1))
    return helper.make_model(graph, opset_imports=opsets, ir_version=helper.find_min_ir_version_for(opsets[:1]))


def by_runtime(model: onnx.ModelProto, feeds: Mapping[str, Any]) -> list[np.ndarray[Any, Any]]:
    """Outputs by ONNX Runtime, without graph optimization."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    results: list[np.ndarray[Any, Any]] = session.run(None, dict(feeds))
    return results


def by_torch(model: onnx.ModelProto, feeds: Mapping[str, Any]) -> list[np.ndarray[Any, Any]]:
    """Outputs by the torch module in evaluation mode."""
    with torch.no_grad():
        results = OnnxModule(model).eval()({name: torch.from_numpy(np.array(value)) for name, value in feeds.items()})
    return [result.numpy() for result in results.values()]


@pytest.fixture(scope="session")
def same_in_torch() -> Callable[..., None]:
    """``same_in_torch("Relu", {"x": array}, opset=13, …)``: asserts equal values, shapes and types of all outputs."""

    def check(
        op_type: str, feeds: Mapping[str, Any], constants: Mapping[str, Any] | None = None, opset: int = 13, **rest: Any
    ) -> None:
        model = one_node(op_type, feeds, constants or {}, opset, **rest)
        expected, found = by_runtime(model, feeds), by_torch(model, feeds)
        assert len(expected) == len(found)
        for wanted, got in zip(expected, found, strict=True):
            assert got.shape == wanted.shape
            assert got.dtype == wanted.dtype
            limit = TOLERANCE * max(1.0, float(np.abs(wanted[np.isfinite(wanted)]).max(initial=0.0)))
            np.testing.assert_allclose(got, wanted, rtol=TOLERANCE, atol=limit if wanted.dtype.kind == "f" else 0)

    return check


@pytest.fixture(scope="session")
def noise() -> Callable[..., np.ndarray[Any, Any]]:
    """``noise(2, 3)`` → normal noise float32, the same every time."""
    return lambda *shape, seed=0: np.random.default_rng(seed).normal(0, 2, shape).astype(np.float32)


@pytest.fixture(scope="session")
def parse_network() -> Callable[..., onnx.ModelProto]:
    """``parse_network("net (float[1,3] x) => (float[1,3] y) { y = Relu(x) }")`` → model."""

    def parse(text: str, opset: int = 13, ir_version: int = 8) -> onnx.ModelProto:
        return parser.parse_model(f'<ir_version: {ir_version}, opset_import: ["" : {opset}]>\n{text}')

    return parse
