"""Real engines of TensorRT-RTX, built ahead of time on the processor; no one can open them without a GPU."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import numpy as np
import onnx
import pytest

pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed (extra rtx)")

from qtoolkit.artifacts.plan import Precision, uniform_plan
from qtoolkit.backends.nvidia_driver import gpu_or_none
from qtoolkit.backends.targets import find_target
from qtoolkit.backends.tensorrt_builder import BuildSettings, build_engine
from qtoolkit.backends.tensorrt_library import load_tensorrt
from qtoolkit.backends.tensorrt_messages import Message, about_quantization
from qtoolkit.backends.tensorrt_rtx import TensorRtRtx, rtx_capabilities
from qtoolkit.engine_build import BuildOptions, build
from qtoolkit.errors import ModelFileError, UnavailableError, UsageError
from qtoolkit.graph.default_network import default_network
from qtoolkit.graph.load import load_network, network_input, prepare_network
from qtoolkit.graph.strongly_typed import strongly_typed
from qtoolkit.quantization.calibrate import calibrate, calibration_tensors
from qtoolkit.quantization.feeds import image_feeds
from qtoolkit.quantization.ptq import Quantizer

TARGET = find_target("tensorrt-rtx")
VARIANTS = {"float": "fp32", "16bit": "fp16", "int8": "int8", "mixed": "mixed"}
SILU_NETWORK = Path(default_network()).with_name("yolopose_n6_silu_320.onnx")


def write_variants(model, feeds, folder):
    """Variant → file, calibrated on ``feeds``."""
    statistics = calibrate(model, calibration_tensors(model, TARGET), feeds, threads=1)
    quantizer = Quantizer(model, TARGET, statistics)
    names = [layer.name for layer in quantizer.layers]
    int8 = uniform_plan(names, Precision.INT8)
    plans = {
        "16bit": uniform_plan(names, Precision.FP16),
        "int8": int8,
        "mixed": int8.with_layers(dict.fromkeys(names[::3], Precision.FP16)),
    }
    networks = {"float": model} | {variant: quantizer.quantize(plan).model for variant, plan in plans.items()}
    files = {}
    for variant, network in networks.items():
        files[variant] = folder / f"model.{variant}.onnx"
        onnx.save(network, files[variant])
    return files


def noise(model, count=2):
    spec = network_input(model)
    width, height = spec.input_size_wh
    return [{spec.name: np.random.default_rng(i).random((1, 3, height, width), dtype=np.float32)} for i in range(count)]


def check_builds(files, out):
    for variant, path in files.items():
        result = build(BuildOptions(model=path, target="tensorrt-rtx", out=out, compute_capabilities=("8.6",)))
        assert result.file_bytes == result.file.stat().st_size > 100_000
        assert result.precision.startswith(VARIANTS[variant])
        assert not result.warnings, variant
        assert json.loads(result.record.read_text())["compute_capabilities"] == ["8.6"]


@pytest.fixture(scope="module", params=["relu", "silu"])
def tiny(request, tiny_pose_model, tmp_path_factory):
    model = prepare_network(tiny_pose_model(request.param))
    return write_variants(model, noise(model), tmp_path_factory.mktemp(request.param))


def test_every_variant_of_the_tiny_networks_builds_without_a_warning(tiny, tmp_path):
    check_builds(tiny, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("path", [Path(default_network()), SILU_NETWORK], ids=["relu", "silu"])
def test_every_variant_of_the_networks_that_come_with_qtool_builds_without_a_warning(path, tmp_path):
    model = load_network(path)
    check_builds(write_variants(model, noise(model), tmp_path), tmp_path / "engines")


@pytest.mark.real
@pytest.mark.slow
def test_every_variant_of_a_real_network_builds_without_a_warning(real_data, tmp_path):
    model = load_network(real_data / "models" / "yolov8n-pose.onnx")
    photos = sorted((real_data / "coco").rglob("*.jpg"))[:8]
    check_builds(write_variants(model, image_feeds(photos, network_input(model)), tmp_path), tmp_path / "engines")


def test_it_warns_of_fp16_scales_so_the_target_keeps_float32_ones(tiny):
    trt = load_tensorrt("tensorrt_rtx")
    half = strongly_typed(onnx.load(tiny["int8"]), opset=19)
    said = build_engine(trt, half, BuildSettings(strongly_typed=True), "half").messages
    assert about_quantization(said)


def test_messages_about_quantization_are_told_from_others():
    said = [
        Message("WARNING", "Converting conv weight scales to fp32."), Message("INFO", "int8"),
        Message("WARNING", "no more memory"), Message("ERROR", "Q/DQ: zero point"),
    ]  # fmt: skip
    assert [each.text for each in about_quantization(said)] == [said[0].text, said[3].text]


def test_its_parser_refuses_what_the_linter_refuses(tiny):
    model = onnx.load(tiny["int8"])
    zero = next(each for each in model.graph.initializer if each.name == "images/quantized8/zero_point")
    zero.CopyFrom(onnx.numpy_helper.from_array(np.int8(3), zero.name))
    with pytest.raises(ModelFileError, match=r"refuses zero at node 'images/QuantizeLinear8'"):
        build_engine(load_tensorrt("tensorrt_rtx"), model, BuildSettings(strongly_typed=True), "zero")


def test_its_weak_dialect_does_not_exist(tiny):
    with pytest.raises(UnavailableError, match="does not know weakly typed"):
        build_engine(load_tensorrt("tensorrt_rtx"), onnx.load(tiny["float"]), BuildSettings(False), "x")


def test_cards_it_does_not_know_are_refused(tiny, tmp_path):
    assert "8.6" in rtx_capabilities()
    with pytest.raises(UsageError, match=r"no engine for compute capability 5\.3"):
        build(BuildOptions(model=tiny["int8"], target="tensorrt-rtx", out=tmp_path, compute_capabilities=("5.3",)))
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(gpu_or_none() is not None, reason="this machine has a GPU")
def test_without_a_gpu_an_engine_is_built_and_not_opened(tiny, tmp_path):
    result = build(BuildOptions(model=tiny["int8"], target="tensorrt-rtx", out=tmp_path))
    with pytest.raises(UnavailableError, match="no NVIDIA GPU"):
        TensorRtRtx(result.file).open()


def test_a_build_is_followed_from_the_calling_thread(tiny, tmp_path):
    seen = []

    def progress(stage, done, total):
        seen.append((stage, done, total, threading.current_thread() is threading.main_thread()))

    build(
        BuildOptions(model=tiny["int8"], target="tensorrt-rtx", out=tmp_path, compute_capabilities=("8.6",)), progress
    )
    stages = dict.fromkeys(stage for stage, *_ in seen)
    assert list(stages)[:2] == ["reading the network", "building the engine"] and len(stages) > 2
    # Ctrl-C reaches Python code in that thread alone.
    assert all(0 <= done <= total and main for _, done, total, main in seen)


def test_what_ends_the_progress_ends_the_build(tiny, tmp_path):
    def progress(stage, done, total):
        if done > 3:
            raise KeyboardInterrupt

    options = BuildOptions(model=tiny["int8"], target="tensorrt-rtx", out=tmp_path, compute_capabilities=("8.6",))
    with pytest.raises(KeyboardInterrupt):
        build(options, progress)
    assert not list(tmp_path.glob("*.engine*"))
    assert build(options).file.exists()
