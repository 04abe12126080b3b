"""Where the nodes of the runtime's graph came from, on graphs written by hand in the runtime's manner."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from qtoolkit.backends.optimized_graph import NodeOrigins, named_copy, sort_convolutions, times_by_origin


def model_of(nodes: list[onnx.NodeProto], constants: tuple[str, ...] = ()) -> onnx.ModelProto:
    initializers = [numpy_helper.from_array(np.zeros(1, np.float32), name) for name in constants]
    return helper.make_model(helper.make_graph(nodes, "g", [], [], initializers))


@pytest.fixture
def network() -> onnx.ModelProto:
    """conv_a → Relu → conv_b; + conv_a's output → Add → y."""
    nodes = [
        helper.make_node("Conv", ["x", "a.w", "a.b"], ["a/out"], "conv_a"),
        helper.make_node("Relu", ["a/out"], ["a/relu"], "relu_a"),
        helper.make_node("DequantizeLinear", ["b.wq", "b.ws"], ["b.w"], "b/DQ"),
        helper.make_node("Conv", ["a/relu", "b.w"], ["b/out"], "conv_b"),
        helper.make_node("Add", ["b/out", "a/relu"], ["y"], "add"),
        helper.make_node("MaxPool", ["y"], ["pooled"], "pool"),
    ]
    return model_of(nodes, ("a.w", "a.b", "b.wq", "b.ws"))


@pytest.mark.parametrize(
    ("node", "expected"),
    [
        pytest.param(("Conv", "conv_a", ["x"], ["a/out"]), "conv_a", id="kept name"),
        pytest.param(("QLinearConv", "conv_a_token_12", ["x"], ["t"]), "conv_a", id="made unique"),
        pytest.param(
            ("Conv", "a/relu_nchwc", ["x", "reorder"], ["reorder_token_1"]), "conv_a", id="named by fused ReLU"
        ),
        pytest.param(("Conv", "y_nchwc", ["t", "b.wq", "t2"], ["t3"]), "conv_b", id="named by fused Add, known weight"),
        pytest.param(("FusedConv", "", ["x", "reorder", "a.b"], ["t"]), "conv_a", id="known bias only"),
        pytest.param(("Conv", "", ["x", "reorder"], ["b/out"]), "conv_b", id="known output only"),
        pytest.param(("Conv", "other", ["x", "reorder"], ["t"]), None, id="unknown convolution"),
        pytest.param(("Relu", "relu_a/duplicated", ["t"], ["t"]), "relu_a", id="duplicated"),
        pytest.param(("QuickGelu", "add/QuickGeluFusion/", ["t"], ["t"]), "add", id="fusion"),
        pytest.param(("MaxPool", "pooled_nchwc", ["t"], ["reorder_token_3"]), "pool", id="named by output tensor"),
        pytest.param(
            ("Conv", "InsertedPrecisionFreeCast_a/relu_nchwc", ["x", "t"], ["t2"]), "conv_a", id="fp16 run in float32"
        ),
        pytest.param(
            ("MaxPool", "InsertedPrecisionFreeCast_pooled_nchwc", ["t"], ["t2"]), "pool", id="fp16 pool in float32"
        ),
        pytest.param(
            ("Cast", "InsertedPrecisionFreeCast_b/out_token_9", ["b/out"], ["t"]), "conv_b", id="cast of its output"
        ),
        pytest.param(("ReorderOutput", "ReorderOutput_token_4", ["t"], ["a/relu"]), None, id="layout change"),
        pytest.param(("Transpose", "Transpose_token_5", ["t"], ["a/relu"]), None, id="added transpose"),
    ],
)
def test_origin(network: onnx.ModelProto, node: tuple[str, str, list[str], list[str]], expected: str | None) -> None:
    op_type, name, inputs, outputs = node
    assert NodeOrigins(network).origin(helper.make_node(op_type, inputs, outputs, name)) == expected


def test_a_name_that_ends_like_the_runtimes_own_is_taken_as_it_is() -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["t"], "relu"),
        helper.make_node("Relu", ["t"], ["y"], "relu_token_1"),
    ]
    assert NodeOrigins(model_of(nodes)).origin(nodes[1]) == "relu_token_1"


def test_a_weight_that_two_convolutions_share_tells_nothing() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["p"], "left"),
        helper.make_node("Conv", ["x", "w"], ["q"], "right"),
    ]
    origins = NodeOrigins(model_of(nodes, ("w",)))
    assert origins.origin(helper.make_node("Conv", ["x", "w"], ["t"], "")) is None
    assert origins.origin(helper.make_node("Conv", ["x", "w"], ["q"], "")) == "right"


def test_sorts_convolutions_and_keeps_an_unknown_one_under_the_runtimes_name(network: onnx.ModelProto) -> None:
    optimized = model_of(
        [
            helper.make_node("QLinearConv", ["x"], ["t"], "conv_b_token_1"),
            helper.make_node("FusedConv", ["x"], ["u"], "conv_a"),
            helper.make_node("Conv", ["u"], ["v"], "invented"),
        ]
    )
    assert sort_convolutions(network, optimized) == (("conv_b",), ("conv_a", "invented"))


def test_names_what_has_no_name_of_its_own_and_leaves_the_network_alone() -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"], "same"),
        helper.make_node("Relu", ["b"], ["c"], "same"),
    ]
    model = model_of(nodes)
    assert [node.name for node in named_copy(model).graph.node] == ["a", "same", "c"]
    assert [node.name for node in model.graph.node] == ["", "same", "same"]


def profile(*runs: dict[str, int]) -> list[dict[str, Any]]:
    """Events of inferences that take 1000 µs each; each run maps a runtime node's name to its µs."""
    events: list[dict[str, Any]] = [{"cat": "Session", "name": "session_initialization", "ts": 0, "dur": 9}]
    for index, nodes in enumerate(runs):
        start = 1000 * (index + 1)
        events.append({"cat": "Session", "name": "model_run", "ts": start, "dur": 1000, "args": {}})
        for offset, (name, duration) in enumerate(nodes.items()):
            args = {"op_name": name.split("_")[0]}
            event = {"cat": "Node", "name": f"{name}_kernel_time", "ts": start + 1 + offset, "dur": duration}
            events.append({**event, "args": args})
    return events


def test_times_are_medians_over_the_runs_after_the_warm_up(network: onnx.ModelProto) -> None:
    optimized = model_of(
        [
            helper.make_node("Conv", ["x"], ["t"], "conv_a"),
            helper.make_node("Relu", ["t"], ["u"], "relu_a"),
            helper.make_node("Relu", ["t"], ["v"], "relu_a/duplicated"),
            helper.make_node("ReorderOutput", ["u"], ["a/relu"], "ReorderOutput"),
            helper.make_node("ReorderOutput", ["v"], ["w"], "ReorderOutput_token_1"),
        ]
    )
    events = profile(
        {"conv_a": 9000, "relu_a": 9000, "ReorderOutput": 9000},
        {"conv_a": 400, "relu_a": 10, "relu_a/duplicated": 20, "ReorderOutput": 5, "ReorderOutput_token_1": 2},
        {"conv_a": 100, "relu_a": 10, "relu_a/duplicated": 30, "ReorderOutput": 5, "ReorderOutput_token_1": 3},
        {"conv_a": 200, "relu_a": 10, "relu_a/duplicated": 90, "ReorderOutput": 5, "ReorderOutput_token_1": 4},
    )
    times_ms = times_by_origin(events, network, optimized, skip_runs=1)
    assert times_ms == pytest.approx({"conv_a": 0.2, "relu_a": 0.04, "runtime:ReorderOutput": 0.008})
    assert list(times_ms) == ["conv_a", "relu_a", "runtime:ReorderOutput"]
