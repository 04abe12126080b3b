"""The one door to ONNX Runtime."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from qtoolkit.backends.cores import physical_cores
from qtoolkit.backends.onnxruntime_cpu import OnnxRuntimeCpu, int8_convolutions, optimized_model, per_node_times
from qtoolkit.errors import ModelFileError, UsageError

ModelFactory = Callable[..., onnx.ModelProto]


def images(seed: int = 0) -> dict[str, np.ndarray[Any, Any]]:
    return {"images": np.random.default_rng(seed).random((1, 3, 64, 64), dtype=np.float32)}


@pytest.fixture(scope="module")
def quantized_model() -> onnx.ModelProto:
    """x → first (int8 in, ReLU, Q) → second (int8 in, no Q behind) → third (float): one of three can be an int8 one."""
    rng = np.random.default_rng(0)
    nodes: list[onnx.NodeProto] = []
    constants = {"s": np.float32(0.02), "z": np.uint8(0)}

    def pair(tensor: str, name: str) -> str:
        nodes.append(helper.make_node("QuantizeLinear", [tensor, "s", "z"], [f"{name}_q"], f"{name}/Q"))
        nodes.append(helper.make_node("DequantizeLinear", [f"{name}_q", "s", "z"], [f"{name}_dq"], f"{name}/DQ"))
        return f"{name}_dq"

    def conv(tensor: str, name: str, quantized: bool) -> str:
        weight = rng.integers(-127, 128, (8, 8, 3, 3), dtype=np.int8)
        if quantized:
            constants[f"{name}.wq"] = weight
            constants[f"{name}.ws"] = np.full(8, 1e-3, np.float32)
            constants[f"{name}.wz"] = np.zeros(8, np.int8)
            inputs = [f"{name}.wq", f"{name}.ws", f"{name}.wz"]
            nodes.append(helper.make_node("DequantizeLinear", inputs, [f"{name}.w"], f"{name}/weight", axis=0))
        else:
            constants[f"{name}.w"] = (weight * 1e-3).astype(np.float32)
        constants[f"{name}.b"] = np.zeros(8, np.float32)
        inputs = [tensor, f"{name}.w", f"{name}.b"]
        nodes.append(helper.make_node("Conv", inputs, [f"{name}/out"], name, pads=[1] * 4))
        return f"{name}/out"

    first = conv(pair("x", "x"), "first", quantized=True)
    nodes.append(helper.make_node("Relu", [first], ["first/relu"], "first/Relu"))
    second = conv(pair("first/relu", "first"), "second", quantized=True)
    nodes.append(helper.make_node("Identity", [conv(second, "third", quantized=False)], ["y"], "end"))
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, (1, 8, 16, 16)) for name in ("x", "y")]
    initializers = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "quantized", values[:1], values[1:], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


@pytest.mark.parametrize("kind", ["proto", "bytes", "path", "text path"])
def test_reads_a_network_from(kind: str, tiny_pose_model: ModelFactory, tmp_path: Path) -> None:
    model = tiny_pose_model()
    path = tmp_path / "tiny.onnx"
    onnx.save(model, path)
    source = {"proto": model, "bytes": model.SerializeToString(), "path": path, "text path": str(path)}[kind]
    with OnnxRuntimeCpu(source, threads=1) as runner:
        assert runner.input_shapes == {"images": (1, 3, 64, 64)}
        assert runner.output_shapes == {"output0": (1, 56, 84)}
        assert runner.signature.inputs["images"].dtype == np.float32


@pytest.mark.parametrize("level", ["all", "extended", "basic", "none"])
def test_agrees_with_the_reference_evaluator(level: Any, tiny_pose_model: ModelFactory) -> None:
    # Without batch norms: below opset 14 the evaluator takes their training form.
    model = tiny_pose_model(activation="relu", batch_norm=False)
    with OnnxRuntimeCpu(model, threads=1, graph_optimization=level) as runner:
        found = runner.infer(images())["output0"]
    expected = np.asarray(ReferenceEvaluator(model).run(None, images())[0])
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


def test_free_dimensions_are_none(dynamic_pose_model: ModelFactory) -> None:
    with OnnxRuntimeCpu(dynamic_pose_model(), threads=1) as runner:
        assert runner.input_shapes == {"images": (None, 3, None, None)}
        small = runner.infer({"images": np.zeros((1, 3, 32, 32), np.float32)})["output0"]
    assert small.shape == (1, 56, 21)


def test_states_its_conditions() -> None:
    import onnxruntime

    assert OnnxRuntimeCpu("any.onnx", threads=3, spinning=False).conditions() == {
        "runtime": "onnxruntime",
        "version": onnxruntime.__version__,
        "provider": "CPUExecutionProvider",
        "threads": 3,
        "graph_optimization": "all",
        "spinning": False,
    }
    assert OnnxRuntimeCpu("any.onnx").conditions()["threads"] == physical_cores()


@pytest.mark.parametrize(
    ("options", "message"),
    [({"threads": 0}, "expected: 1 or more"), ({"graph_optimization": "most"}, "all, extended, basic, none")],
    ids=["no threads", "unknown level"],
)
def test_refuses_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        OnnxRuntimeCpu("any.onnx", **options)


@pytest.mark.parametrize("read", [lambda path: OnnxRuntimeCpu(path).open(), int8_convolutions], ids=["open", "analyse"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(None, "File doesn't exist", id="missing"),
        pytest.param(b"", "found: \\S", id="empty"),
        pytest.param(b"this is no network", "parsing failed", id="text"),
    ],
)
def test_a_file_it_cannot_load_is_named(
    read: Callable[[Path], Any], content: bytes | None, message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "broken.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelFileError, match=message) as caught:
        read(path)
    assert str(path) in caught.value.what
    assert caught.value.found is not None and "ONNXRuntimeError" not in caught.value.found
    assert capfd.readouterr().err == ""


def test_a_failure_while_running_is_a_model_error() -> None:
    nodes = [helper.make_node("Reshape", ["x", "shape"], ["y"])]
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, (4,)),
        helper.make_tensor_value_info("shape", TensorProto.INT64, (2,)),
    ]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, (None, None))
    graph = helper.make_graph(nodes, "reshape", inputs, [output])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    with OnnxRuntimeCpu(model, threads=1) as runner:
        feeds = {"x": np.zeros(4, np.float32), "shape": np.array([2, 2])}
        assert runner.infer(feeds)["y"].shape == (2, 2)
        with pytest.raises(ModelFileError, match="failed while running the network"):
            runner.infer({**feeds, "shape": np.array([3, 3])})


def test_writes_its_profile_where_asked_and_nothing_else(tiny_pose_model: ModelFactory, tmp_path: Path) -> None:
    profile = tmp_path / "profile.json"
    with OnnxRuntimeCpu(tiny_pose_model(), threads=1, profile=profile) as runner:
        runner.infer(images())
    assert [each.name for each in tmp_path.iterdir()] == ["profile.json"]
    assert any(event["name"] == "model_run" for event in json.loads(profile.read_text()))


def test_finds_which_convolutions_run_on_integers(quantized_model: onnx.ModelProto) -> None:
    int8, floating = int8_convolutions(quantized_model, threads=1)
    assert int8 == ("first",)
    assert floating == ("second", "third")


def test_every_convolution_of_a_float_network_is_found_under_its_name(tiny_pose_model: ModelFactory) -> None:
    for activation in ("silu", "relu"):
        model = tiny_pose_model(activation=activation)
        int8, floating = int8_convolutions(model, threads=1)
        assert int8 == ()
        assert sorted(floating) == sorted(node.name for node in model.graph.node if node.op_type == "Conv")


def test_unnamed_convolutions_go_by_their_output(quantized_model: onnx.ModelProto) -> None:
    unnamed = onnx.ModelProto()
    unnamed.CopyFrom(quantized_model)
    for node in unnamed.graph.node:
        node.name = ""
    assert int8_convolutions(unnamed, threads=1) == (("first/out",), ("second/out", "third/out"))
    assert all(not node.name for node in unnamed.graph.node)


def test_gives_the_graph_the_runtime_really_runs(quantized_model: onnx.ModelProto) -> None:
    optimized = [node.op_type for node in optimized_model(quantized_model, threads=1).graph.node]
    plain = [node.op_type for node in optimized_model(quantized_model, threads=1, graph_optimization="none").graph.node]
    assert optimized.count("QLinearConv") == 1
    assert "QLinearConv" not in plain and plain.count("Conv") == 3


@pytest.mark.parametrize("activation", ["silu", "relu"])
def test_times_carry_the_networks_own_names(activation: str, tiny_pose_model: ModelFactory) -> None:
    model = tiny_pose_model(activation=activation)
    times_ms = per_node_times(model, images(), runs=3, warm_up=1, threads=1)
    names = {node.name for node in model.graph.node}
    assert {name for name in times_ms if not name.startswith("runtime:")} <= names
    assert {node.name for node in model.graph.node if node.op_type == "Conv"} <= set(times_ms)
    assert list(times_ms.values()) == sorted(times_ms.values(), reverse=True)
    assert all(0 <= each < 1000 for each in times_ms.values()) and sum(times_ms.values()) > 0


def test_times_refuse_counts_without_a_run(tiny_pose_model: ModelFactory) -> None:
    with pytest.raises(UsageError, match="runs=0"):
        per_node_times(tiny_pose_model(), images(), runs=0)


@pytest.mark.real
def test_all_73_convolutions_of_a_real_network_are_found_by_name(real_data: Path) -> None:
    path = real_data / "models" / "yolov8n-pose.onnx"
    int8, floating = int8_convolutions(path, threads=1)
    assert int8 == ()
    assert sorted(floating) == sorted(node.name for node in onnx.load(path).graph.node if node.op_type == "Conv")
    assert len(floating) == 73
