"""The runner of TensorRT's engines, on a stand-in with the names of TensorRT 8.5, 8.6, 10.3, 10.16 and 11.4."""

from __future__ import annotations

import json
import threading

import numpy as np
import onnx
import pytest

from qtoolkit.artifacts.plan import Precision, uniform_plan
from qtoolkit.backends.nvidia_driver import gpu_or_none
from qtoolkit.backends.onnxruntime_cpu import OnnxRuntimeCpu
from qtoolkit.backends.targets import find_target
from qtoolkit.backends.tensorrt_gpu import TensorRtGpu
from qtoolkit.engine_build import BuildOptions, build, engine_node_times
from qtoolkit.errors import ModelFileError, UnavailableError, UsageError
from qtoolkit.graph.layer_precisions import layer_precisions
from qtoolkit.graph.load import prepare_network
from qtoolkit.quantization.calibrate import calibrate, calibration_tensors
from qtoolkit.quantization.layer_times import layer_times_ms, uniform_times
from qtoolkit.quantization.ptq import Quantizer


def images(seed=0, batch=1, size=64):
    return {"images": np.random.default_rng(seed).random((batch, 3, size, size), dtype=np.float32)}


@pytest.fixture(scope="module")
def network(tiny_pose_model, tmp_path_factory):
    target = find_target("tensorrt")
    model = prepare_network(tiny_pose_model("silu"))
    statistics = calibrate(model, calibration_tensors(model, target), [images(i) for i in range(2)], threads=1)
    quantizer = Quantizer(model, target, statistics)
    plan = uniform_plan([layer.name for layer in quantizer.layers], Precision.INT8)
    path = tmp_path_factory.mktemp("network") / "tiny.int8.onnx"
    onnx.save(quantizer.quantize(plan).model, path)
    return path


@pytest.fixture
def engine(version, install_tensorrt, network, tmp_path):
    """An engine of the int8 network by each version, weakly typed up to TensorRT 10; what the stand-in noted."""
    log = install_tensorrt(version)
    target = "tensorrt-strong" if version == "11.4" else "tensorrt"
    return build(BuildOptions(model=network, target=target, out=tmp_path)).file, log


def test_agrees_with_onnx_runtime(engine, network):
    with TensorRtGpu(engine[0]) as runner, OnnxRuntimeCpu(network, threads=1, integer_kernels=False) as other:
        found, expected = runner.infer(images(3))["output0"], other.infer(images(3))["output0"]
    assert np.linalg.norm(found - expected) < 0.1 * np.linalg.norm(expected)


def test_describes_inputs_and_outputs_and_states_its_conditions(engine, version):
    with TensorRtGpu(engine[0], threads=1) as runner:
        assert runner.input_shapes == {"images": (1, 3, 64, 64)}
        assert runner.output_shapes == {"output0": (1, 56, 84)}
        conditions = runner.conditions()
    assert conditions["runtime"] == "tensorrt" and str(conditions["version"]).startswith(version)
    assert conditions["provider"] == "Stand-in GPU" and conditions["precision"] == "int8"
    assert conditions["dialect"] == ("strong" if version == "11.4" else "weak")


def test_results_are_the_callers_own(engine):
    with TensorRtGpu(engine[0]) as runner:
        first = runner.infer(images(1))["output0"]
        kept = first.copy()
        runner.infer(images(2))
        np.testing.assert_array_equal(first, kept)


def test_several_threads_may_call_it(engine):
    with TensorRtGpu(engine[0], streams=3) as runner:
        expected = [runner.infer(images(seed))["output0"] for seed in range(4)]
        found = {}

        def work(seed):
            for _ in range(3):
                found[seed] = runner.infer(images(seed))["output0"]

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for seed in range(4):
        np.testing.assert_array_equal(found[seed], expected[seed])


def test_can_be_closed_and_opened_again_and_frees_its_memory(engine):
    memory = engine[1]["memory"]
    runner = TensorRtGpu(engine[0])
    for _ in range(2):
        with runner:
            assert runner.infer(images())["output0"].shape == (1, 56, 84)
            assert memory
        assert not memory
    with pytest.raises(UsageError, match="is not open"):
        runner.infer(images())


def test_a_cuda_graph_gives_the_same(engine):
    with TensorRtGpu(engine[0]) as plain, TensorRtGpu(engine[0], cuda_graph=True) as graph:
        for seed in (1, 2):
            np.testing.assert_array_equal(graph.infer(images(seed))["output0"], plain.infer(images(seed))["output0"])
    assert engine[1]["cuda"].launched == 2


def test_times_of_its_layers_carry_names_of_the_network(engine, network):
    nodes = [node.name for node in onnx.load(network).graph.node]
    layers = [node.name for node in onnx.load(network).graph.node if node.op_type == "Conv"]
    with TensorRtGpu(engine[0]) as runner:
        times = runner.node_times_ms(images(), nodes, layers, runs=3, warm_up=1)
    assert set(layers) <= set(times) and times[layers[0]] == 0.25


def test_builds_into_one_folder_share_their_times(install_tensorrt, network, tmp_path):
    log = install_tensorrt("10.3")
    for _ in range(2):
        build(BuildOptions(model=network, target="tensorrt", out=tmp_path))
    assert log["caches"] == [b"", b"cache of 10.3.0"]
    build(BuildOptions(model=network, target="tensorrt", out=tmp_path, timing_cache=tmp_path / "another.cache"))
    assert log["caches"][2] == b"" and (tmp_path / "another.cache").exists()


def test_selection_gets_the_times_of_layers_from_an_engine(install_tensorrt, network, tmp_path):
    install_tensorrt("10.3")
    target, model = find_target("tensorrt"), onnx.load(network)
    layers = frozenset(layer_precisions(model))

    def measure(each):
        return engine_node_times(each, target, images(), tmp_path)

    times = layer_times_ms(model, layers, images(), node_times=measure)
    assert set(times) == layers and all(ms >= 0.25 for ms in times.values())
    uniform = uniform_times(model, model, layers, images(), node_times=measure)
    assert uniform.added_ms == dict.fromkeys(layers, 0.0)


def test_tells_which_layers_run_in_int8(engine, network):
    with TensorRtGpu(engine[0]) as runner:
        layers = runner.layers([node.name for node in onnx.load(network).graph.node])
    kinds = {layer.onnx_nodes[0]: layer.inputs[0] for layer in layers if layer.onnx_nodes}
    assert kinds["stem"] == "int8" and kinds["dfl.conv.node"] == "fp16"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gpu": "Orin"}, "another GPU"),
        ({"version": "8.4.1"}, "another TensorRT version"),
        ({"machine": "linux-aarch64"}, "another machine"),
        ({"library": "tensorrt_rtx"}, "another library"),
        ({"compute_capabilities": ["8.6"]}, "another compute capability"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_an_engine_of_something_else_is_refused_first(change, message, install_tensorrt, network, tmp_path):
    log = install_tensorrt("10.3")
    result = build(BuildOptions(model=network, target="tensorrt", out=tmp_path))
    result.record.write_text(json.dumps(json.loads(result.record.read_text()) | change))
    log["runtimes"] = 0
    with pytest.raises(ModelFileError, match=message):
        TensorRtGpu(result.file).open()
    assert log["runtimes"] == 0


def test_an_engine_of_another_network_is_refused(install_tensorrt, network, tmp_path):
    install_tensorrt("10.3")
    result = build(BuildOptions(model=network, target="tensorrt", out=tmp_path))
    with TensorRtGpu(result.file, onnx_sha256=result.onnx_sha256):
        pass
    with pytest.raises(ModelFileError, match="another network"):
        TensorRtGpu(result.file, onnx_sha256="0" * 64).open()


def test_a_damaged_engine_is_refused(install_tensorrt, network, tmp_path):
    install_tensorrt("10.3")
    result = build(BuildOptions(model=network, target="tensorrt", out=tmp_path))
    result.file.write_bytes(result.file.read_bytes()[:-1])
    with pytest.raises(ModelFileError, match="not the engine that its record describes"):
        TensorRtGpu(result.file).open()


@pytest.mark.parametrize(
    ("failure", "error", "message"),
    [
        ("refuses", ModelFileError, "cannot load the engine"),
        ("no_memory", ModelFileError, "the engine cannot be started"),
    ],
)
def test_what_tensorrt_refuses_is_said(failure, error, message, install_tensorrt, network, tmp_path):
    log = install_tensorrt("10.3")
    result = build(BuildOptions(model=network, target="tensorrt", out=tmp_path))
    log[failure] = True
    runner = TensorRtGpu(result.file)
    with pytest.raises(error, match=message):
        runner.open()
    assert not runner.is_open


def test_a_failing_run_is_said(install_tensorrt, network, tmp_path):
    log = install_tensorrt("10.3")
    result = build(BuildOptions(model=network, target="tensorrt", out=tmp_path))
    with TensorRtGpu(result.file) as runner:
        log["run_fails"] = True
        with pytest.raises(ModelFileError, match="failed while running"):
            runner.infer(images())


@pytest.mark.skipif(gpu_or_none() is not None, reason="this machine has a GPU")
def test_without_a_driver_it_is_unavailable_and_tensorrt_is_not_touched(tmp_path):
    with pytest.raises(UnavailableError, match="no NVIDIA GPU") as caught:
        TensorRtGpu(tmp_path / "any.engine").open()
    assert caught.value.exit_code == 4


def test_it_opens_engines_only(tmp_path):
    with pytest.raises(UsageError, match="runs engines, not ONNX networks") as caught:
        TensorRtGpu(tmp_path / "model.onnx")
    assert "qtool build" in caught.value.do
    with pytest.raises(UsageError, match="number of streams"):
        TensorRtGpu(tmp_path / "model.engine", streams=0)


@pytest.mark.skipif(gpu_or_none() is None, reason="no NVIDIA GPU here")
def test_on_a_real_gpu(network, tmp_path):
    pytest.importorskip("tensorrt", reason="TensorRT is not installed (extra tensorrt)")
    result = build(BuildOptions(model=network, target="tensorrt-strong", out=tmp_path))
    with TensorRtGpu(result.file) as runner, OnnxRuntimeCpu(network, threads=1, integer_kernels=False) as other:
        found, expected = runner.infer(images(3))["output0"], other.infer(images(3))["output0"]
    assert np.linalg.norm(found - expected) < 0.1 * np.linalg.norm(expected)
