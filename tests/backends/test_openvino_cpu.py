"""The one door to OpenVINO."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

pytest.importorskip("openvino", reason="OpenVINO is not installed (extra openvino)")

from qtoolkit.artifacts.plan import Precision, uniform_plan
from qtoolkit.backends.onnxruntime_cpu import OnnxRuntimeCpu
from qtoolkit.backends.openvino_cpu import OpenVinoCpu
from qtoolkit.backends.targets import find_target
from qtoolkit.errors import ModelFileError, UsageError
from qtoolkit.graph.load import prepare_network
from qtoolkit.quantization.calibrate import calibrate, calibration_tensors
from qtoolkit.quantization.ptq import Quantizer

TARGET = find_target("openvino-cpu")


def images(seed: int = 0) -> dict[str, np.ndarray[Any, Any]]:
    return {"images": np.random.default_rng(seed).random((1, 3, 64, 64), dtype=np.float32)}


@pytest.fixture(scope="module")
def quantizer(tiny_pose_model):
    model = prepare_network(tiny_pose_model("silu"))
    statistics = calibrate(model, calibration_tensors(model, TARGET), [images(seed) for seed in range(4)], threads=1)
    return Quantizer(model, TARGET, statistics)


def at(quantizer, precision):
    return quantizer.quantize(uniform_plan((layer.name for layer in quantizer.layers), precision)).model


@pytest.mark.parametrize("kind", ["proto", "bytes", "path", "text path"])
def test_reads_a_network_from(kind, tiny_pose_model, tmp_path):
    model = tiny_pose_model()
    path = tmp_path / "tiny.onnx"
    onnx.save(model, path)
    source = {"proto": model, "bytes": model.SerializeToString(), "path": path, "text path": str(path)}[kind]
    with OpenVinoCpu(source, threads=1) as runner:
        assert runner.input_shapes == {"images": (1, 3, 64, 64)}
        assert runner.output_shapes == {"output0": (1, 56, 84)}
        assert runner.signature.inputs["images"].dtype == np.float32


@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_agrees_with_onnx_runtime(activation, tiny_pose_model):
    model = tiny_pose_model(activation)
    with OnnxRuntimeCpu(model, threads=1) as one, OpenVinoCpu(model, threads=1) as other:
        np.testing.assert_allclose(
            other.infer(images())["output0"], one.infer(images())["output0"], rtol=1e-3, atol=1e-3
        )


def test_free_dimensions_are_none(dynamic_pose_model):
    with OpenVinoCpu(dynamic_pose_model(), threads=1) as runner:
        assert runner.input_shapes["images"][2:] == (None, None)
        assert runner.infer({"images": np.zeros((1, 3, 32, 32), np.float32)})["output0"].shape == (1, 56, 21)


def test_states_its_conditions(tiny_pose_model):
    import openvino

    with OpenVinoCpu(tiny_pose_model(), threads=1) as runner:
        assert runner.conditions() == {
            "runtime": "openvino",
            "version": openvino.__version__,
            "provider": "CPU",
            "threads": 1,
            "performance_hint": "LATENCY",
            "float_precision": "f32",
        }


def test_a_network_that_asks_for_16_bit_gets_it_where_the_processor_has_it(quantizer):
    import openvino

    has_bf16 = "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    with OpenVinoCpu(at(quantizer, Precision.FP16), threads=1) as runner:
        assert runner.conditions()["float_precision"] == ("bf16" if has_bf16 else "f32")
    with OpenVinoCpu(at(quantizer, Precision.FP16), threads=1, float_precision="f32") as runner:
        assert runner.conditions()["float_precision"] == "f32"


@pytest.mark.parametrize(("precision", "limit"), [(Precision.INT8, 0.2), (Precision.FP16, 0.05)])
def test_quantized_networks_are_near_float(precision, limit, quantizer):
    with OpenVinoCpu(quantizer.model, threads=1) as exact, OpenVinoCpu(at(quantizer, precision), threads=1) as runner:
        expected, found = exact.infer(images(9))["output0"], runner.infer(images(9))["output0"]
    assert 0 < np.linalg.norm(found - expected) < limit * np.linalg.norm(expected)


def test_8_bit_convolutions_run_on_integers(quantizer):
    import openvino

    compiled = openvino.Core().compile_model(
        openvino.Core().read_model(at(quantizer, Precision.INT8).SerializeToString(), b""), "CPU",
        {"INFERENCE_PRECISION_HINT": "f32"},
    )  # fmt: skip
    kinds = [
        str(op.get_rt_info()["runtimePrecision"].astype(str))
        for op in compiled.get_runtime_model().get_ops()
        if op.get_rt_info()["layerType"].astype(str) == "Convolution"
    ]
    assert len(kinds) >= len(quantizer.layers)
    assert sum(kind in ("u8", "i8") for kind in kinds) >= 0.9 * len(quantizer.layers)


def test_results_are_the_callers_own(tiny_pose_model):
    with OpenVinoCpu(tiny_pose_model(), threads=1) as runner:
        first = runner.infer(images(1))["output0"]
        kept = first.copy()
        runner.infer(images(2))
        np.testing.assert_array_equal(first, kept)


def test_several_threads_may_call_it(tiny_pose_model):
    with OpenVinoCpu(tiny_pose_model(), threads=1) as runner:
        expected = [runner.infer(images(seed))["output0"] for seed in range(4)]
        found: dict[int, Any] = {}

        def work(seed: int) -> None:
            for _ in range(10):
                found[seed] = runner.infer(images(seed))["output0"]

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for seed in range(4):
        np.testing.assert_array_equal(found[seed], expected[seed])


def test_can_be_closed_and_opened_again(tiny_pose_model):
    runner = OpenVinoCpu(tiny_pose_model(), threads=1)
    for _ in range(2):
        with runner:
            assert runner.infer(images())["output0"].shape == (1, 56, 84)
    with pytest.raises(UsageError, match="is not open"):
        runner.infer(images())


@pytest.mark.parametrize(
    ("options", "message"),
    [({"threads": 0}, "expected: 1 or more"), ({"float_precision": "f64"}, "f32, bf16, f16")],
    ids=["no threads", "unknown precision"],
)
def test_refuses_options(options, message):
    with pytest.raises(UsageError, match=message):
        OpenVinoCpu("any.onnx", **options)


@pytest.mark.parametrize("content", [None, b"", b"this is no network"], ids=["missing", "empty", "text"])
def test_a_file_it_cannot_load_is_named(content, tmp_path: Path):
    path = tmp_path / "broken.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelFileError, match="OpenVINO cannot load") as caught:
        OpenVinoCpu(path).open()
    assert str(path) in caught.value.what and caught.value.found
