"""``qtool build``: what becomes of a network for each target, and what is missing on this machine."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest

from qtoolkit.artifacts.plan import Precision, uniform_plan
from qtoolkit.backends.nvidia_driver import gpu_or_none
from qtoolkit.backends.onnxruntime_cpu import OnnxRuntimeCpu
from qtoolkit.backends.targets import find_target
from qtoolkit.graph.load import load_network
from qtoolkit.quantization.calibrate import calibrate, calibration_tensors
from qtoolkit.quantization.ptq import Quantizer

NO_GPU = pytest.mark.skipif(gpu_or_none() is not None, reason="this machine has a GPU")


@pytest.fixture(scope="module")
def quantized(network, tmp_path_factory):
    """``quantized("ort-cpu")``: the int8 network for that target."""

    def make(name):
        target, model = find_target(name), load_network(network)
        feeds = [{"images": np.random.default_rng(i).random((1, 3, 64, 64), dtype=np.float32)} for i in range(2)]
        quantizer = Quantizer(model, target, calibrate(model, calibration_tensors(model, target), feeds, threads=1))
        plan = uniform_plan([layer.name for layer in quantizer.layers], Precision.INT8)
        path = tmp_path_factory.mktemp(name) / "model.int8.onnx"
        onnx.save(quantizer.quantize(plan).model, path)
        return path

    return make


def test_ort_cpu_gets_checked_onnx(quantized, qtool, tmp_path):
    source = quantized("ort-cpu")
    result = qtool("build", source, "--target", "ort-cpu", "--out", tmp_path, "--json", "--quiet")
    record = json.loads(result.stdout)
    assert record["library"] == "onnxruntime" and record["precision"] == "int8"
    assert record["int8_layers"] == record["layers"]["int8"] - len(record["not_int8"]) > 15
    feeds = {"images": np.zeros((1, 3, 64, 64), np.float32)}
    with OnnxRuntimeCpu(source, threads=1) as one, OnnxRuntimeCpu(record["file"], threads=1) as other:
        np.testing.assert_array_equal(one.infer(feeds)["output0"], other.infer(feeds)["output0"])


def test_openvino_gets_checked_onnx(network, qtool, tmp_path):
    pytest.importorskip("openvino", reason="OpenVINO is not installed (extra openvino)")
    result = qtool("build", network, "--target", "openvino-cpu", "--out", tmp_path, "--json", "--quiet")
    assert json.loads(result.stdout)["library"] == "openvino" and list(tmp_path.glob("*.onnx"))


def test_rtx_gets_an_engine_and_its_record(quantized, qtool, tmp_path):
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed (extra rtx)")
    source = quantized("tensorrt-rtx")
    options = ("--target", "tensorrt-rtx", "--out", tmp_path, "--compute-capability", "8.9")
    record = json.loads(qtool("build", source, *options, "--json", "--quiet").stdout)
    assert record["built_for"] == ["8.9"] and record["warnings"] == {} and record["dialect"] == "strong"
    assert {each.name for each in tmp_path.iterdir()} == {
        "model.int8.tensorrt-rtx.engine", "model.int8.tensorrt-rtx.engine.json"
    }  # fmt: skip
    shown = qtool("build", source, *options).stdout
    assert "strongly typed; NMS on the host" in shown and "8.9" in shown


@NO_GPU
@pytest.mark.parametrize("target", ["tensorrt", "tensorrt-strong"])
def test_without_a_gpu_nothing_is_built_for_tensorrt(target, network, qtool, tmp_path):
    result = qtool("build", network, "--target", target, "--out", tmp_path / "out")
    assert result.exit_code == 4 and "no NVIDIA GPU" in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_missing_library_is_named(network, qtool, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tensorrt_rtx", None)
    result = qtool("build", network, "--target", "tensorrt-rtx", "--out", tmp_path, "--json")
    assert result.exit_code == 4
    assert json.loads(result.stdout)["error"]["do"].startswith("pip install 'qtoolkit[rtx]'")


def test_a_network_quantized_for_another_target_is_refused(quantized, qtool, tmp_path):
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed (extra rtx)")
    result = qtool("build", quantized("ort-cpu"), "--target", "tensorrt-rtx", "--out", tmp_path)
    assert result.exit_code == 3 and "not quantized as tensorrt-rtx needs it" in result.stderr
    assert "--target tensorrt-rtx" in result.stderr and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--target", "tidl"), "nothing can be built for target tidl"),
        (("--target", "tpu"), "the target is not known"),
        (("--target", "ort-cpu", "--workspace-mb", "64"), "--workspace-mb means nothing"),
        (("--target", "tensorrt-rtx", "--timing-cache", "x"), "--timing-cache means nothing"),
        (("--target", "tensorrt", "--compute-capability", "8.6"), "--compute-capability means nothing"),
    ],
    ids=["tidl", "unknown", "workspace", "timing cache", "capability"],
)
def test_wrong_use(options, message, network, qtool, tmp_path):
    result = qtool("build", network, "--out", tmp_path, *options)
    assert result.exit_code == 2 and message in result.stderr


def test_suppression_goes_inside(network, qtool, tmp_path):
    options = ("--target", "ort-cpu", "--nms", "onnx", "--out", tmp_path, "--json", "--quiet")
    record = json.loads(qtool("build", network, *options).stdout)
    assert record["nms"] == "onnx" and record["file"].endswith("tiny.nms.ort-cpu.onnx")
    with OnnxRuntimeCpu(record["file"], threads=1) as runner:
        assert runner.output_names == ("boxes", "scores", "keypoints")


class TestBundle:
    def test_it_runs_with_the_network_that_was_built(self, quantized, qtool, tmp_path):
        source = quantized("ort-cpu")
        options = ("--target", "ort-cpu", "--out", tmp_path, "--bundle", tmp_path / "pose.zip")
        record = json.loads(qtool("build", source, *options, "--json", "--quiet").stdout)
        assert record["bundle"]["runtime"] == "onnxruntime" and record["bundle"]["head"] == "yolov8-pose"
        with zipfile.ZipFile(tmp_path / "pose.zip") as bundle:
            assert bundle.read("network.onnx") == Path(record["file"]).read_bytes()
            assert set(bundle.namelist()) == set(record["bundle"]["files"])
        told = qtool("build", source, *options, "--quiet").stdout
        assert f"bundle: {tmp_path / 'pose.zip'}" in told and record["bundle"]["sha256"][:12] in told

    def test_with_suppression_inside(self, network, qtool, tmp_path):
        options = ("--target", "ort-cpu", "--nms", "onnx", "--out", tmp_path, "--bundle", tmp_path / "pose.zip")
        record = json.loads(qtool("build", network, *options, "--json", "--quiet").stdout)
        assert record["bundle"]["head"] == "separate-outputs"

    @pytest.mark.parametrize(
        ("name", "options", "what"),
        [
            pytest.param("pose.tar", ("--target", "ort-cpu"), "a bundle is a zip", id="no zip"),
            pytest.param("pose.zip", ("--target", "tensorrt-rtx"), "cannot open this engine", id="an engine for RTX"),
            pytest.param(
                "pose.zip",
                ("--target", "tensorrt", "--nms", "onnx"),
                "cannot open this engine",
                id="suppression inside",
            ),
        ],
    )
    def test_what_no_bundle_is_made_of_is_refused_before_anything_is_built(
        self, network, qtool, tmp_path, name, options, what
    ):
        result = qtool("build", network, *options, "--out", tmp_path / "out", "--bundle", tmp_path / name)
        assert result.exit_code == 2
        assert what in result.stderr
        assert not (tmp_path / "out").exists()
