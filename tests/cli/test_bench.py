from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import onnx
import pytest

from qtoolkit import engine_build
from qtoolkit.backends import tensorrt_library
from qtoolkit.backends.nvidia_driver import Gpu, gpu_or_none
from qtoolkit.bench import latency, pose_stages, throughput
from qtoolkit.cli.bench_networks import network_names
from qtoolkit.cli.engines import build_engines


@pytest.fixture(autouse=True)
def short_warm_up(monkeypatch):
    for module, name in ((latency, "measure_run"), (throughput, "measure_throughput"), (pose_stages, "measure_stages")):
        monkeypatch.setattr(module, name, partial(getattr(module, name), warmup_s=0.02))


def test_the_table_has_figures_and_conditions(finished, qtool):
    networks = [finished[1] / f"model.{variant}.onnx" for variant in ("float", "int8")]
    result = qtool("bench", *networks, "--runs", "10", "--threads", "1")
    assert result.exit_code == 0
    heading = result.stdout.splitlines()[0]
    assert all(title in heading for title in ("p50 ms", "p90 ms", "p99 ms", "images/s", "× first", "GMACs"))
    assert "\nmodel.float.onnx " in result.stdout
    assert "\nmodel.int8.onnx " in result.stdout
    assert "1 thread · batch 1" in result.stdout
    assert "10 inferences each, in turns of 1 · inputs: noise, 1×3×64×64" in result.stdout


def test_json_with_photos(network, people, qtool):
    result = qtool("bench", network, "--runs", "10", "--data", people, "--threads", "1", "--json", "--quiet")
    document = json.loads(result.stdout)
    (row,) = document["results"]
    assert (row["network"], row["inputs"]) == ("tiny.onnx", "photos of people")
    assert row["latency"]["inputs"] == "file"
    assert row["latency"]["count"] == 10
    assert 0 < row["latency"]["p50_ms"] <= row["latency"]["p99_ms"]
    assert row["gmacs"] > 0
    assert document["environment"]["cores_logical"] >= 1


def test_an_open_size_is_fixed_by_input_size(dynamic_pose_model, tmp_path, qtool):
    onnx.save(dynamic_pose_model(activation="relu"), tmp_path / "open.onnx")
    assert qtool("bench", tmp_path / "open.onnx", "--runs", "10").exit_code == 3
    result = qtool("bench", tmp_path / "open.onnx", "--runs", "10", "--input-size", "64x96", "--json")
    assert json.loads(result.stdout)["results"][0]["latency"]["input_size_wh"] == [64, 96]


def test_photos_cannot_be_fed_to_networks_of_two_sizes(network, tiny_pose_model, people, tmp_path, qtool):
    onnx.save(tiny_pose_model(input_size=96), tmp_path / "large.onnx")
    result = qtool("bench", network, tmp_path / "large.onnx", "--data", people)
    assert result.exit_code == 2
    assert "the same photos cannot be fed to these networks" in result.stderr
    assert "found: (1, 3, 64, 64), (1, 3, 96, 96)" in result.stderr


@pytest.mark.skipif(gpu_or_none() is not None, reason="this machine has a GPU")
def test_a_gpu_that_is_not_there(network, qtool):
    result = qtool("bench", network, "--device", "cuda")
    assert result.exit_code == 4
    assert "GPU" in result.stderr


@pytest.mark.parametrize(
    ("version", "target"), [("8.6.1", "tensorrt"), ("10.3.0", "tensorrt"), ("11.4.0.106", "tensorrt-strong")]
)
def test_engines_are_built_for_the_gpu_in_the_dialect_of_its_library(version, target, network, tmp_path, monkeypatch):
    built = []

    def build(options, gpu):
        built.append((options.model, options.target, gpu))
        return SimpleNamespace(file=options.out / "network.engine")

    monkeypatch.setattr(tensorrt_library, "load_tensorrt", lambda name: SimpleNamespace(__version__=version))
    monkeypatch.setattr(engine_build, "build", build)
    gpu, ready = Gpu("Orin", "8.7", "12.6"), tmp_path / "ready.engine"
    engines = build_engines(
        {"a": network, "ready": ready, "b": network}, tmp_path, gpu, lambda stage, done, total: None
    )
    assert built == [(network, target, gpu)] * 2
    assert list(engines) == ["a", "ready", "b"] and engines["a"] != engines["b"] and engines["ready"] == ready


@pytest.mark.parametrize("option", [("--threads", 2), ("--batch", 2), ("--stages",), ("--runtime", "ort-cpu")])
def test_options_that_mean_nothing_on_a_gpu(option, network, qtool):
    result = qtool("bench", network, "--device", "cuda", *option)
    assert result.exit_code == 2
    assert "these options cannot be used with --device cuda" in result.stderr and option[0] in result.stderr


def test_an_unknown_runtime_lists_the_known_ones(network, qtool):
    result = qtool("bench", network, "--runtime", "caffe")
    assert result.exit_code == 2
    assert "expected: one of ort-cpu, openvino-cpu" in result.stderr


@pytest.mark.parametrize(
    "words",
    [("bench",), ("quantize", "--target", "openvino-cpu", "--data", "synthetic:4@1", "--out")],
    ids=["bench", "quantize"],
)
def test_a_missing_library_is_told_before_any_work(words, network, qtool, tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "qtoolkit.backends.openvino_cpu", raising=False)
    monkeypatch.setitem(sys.modules, "openvino", None)
    more = (tmp_path / "out", network) if words[0] == "quantize" else (network, "--runtime", "openvino-cpu")
    result = qtool(*words, *more)
    assert result.exit_code == 4
    assert "backend 'openvino-cpu' needs a library" in result.stderr and "qtool doctor" in result.stderr
    assert not (tmp_path / "out").exists()


def test_measures_on_openvino(network, qtool):
    pytest.importorskip("openvino", reason="OpenVINO is not installed (extra openvino)")
    document = json.loads(qtool("bench", network, "--runtime", "openvino-cpu", "--runs", "10", "--json").stdout)
    assert "openvino" in json.dumps(document)


@pytest.mark.parametrize("device", ["tpu", "CPU0", "cudax", ""])
def test_unknown_devices(device, network, qtool):
    result = qtool("bench", network, "--device", device)
    assert result.exit_code == 2
    assert "the device is not known" in result.stderr


def test_no_network(qtool):
    assert qtool("bench").exit_code == 2


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["a/x.onnx", "a/y.onnx"], ["x.onnx", "y.onnx"]),
        (["a/x.onnx", "b/x.onnx"], [str(Path("a/x.onnx")), str(Path("b/x.onnx"))]),
        (["a/x.onnx", "a/x.onnx", "y.onnx"], ["x.onnx #1", "x.onnx #2", "y.onnx"]),
    ],
    ids=["different", "same name", "same file"],
)
def test_every_network_has_a_name_of_its_own(paths, names):
    assert network_names([Path(path) for path in paths]) == names


def test_throughput_at_a_batch_and_with_streams(network, qtool):
    words = ("bench", network, "--runs", "10", "--threads", "1", "--batch", "2", "--streams", "2", "--energy")
    document = json.loads(qtool(*words, "--json").stdout)
    (row,) = document["throughput"]
    assert (row["batch"], row["streams"], row["input_shapes"]["images"]) == (2, 2, [2, 3, 64, 64])
    assert row["images_per_second"] > 0
    assert document["results"][0]["latency"]["batch"] == 1
    if row["millijoules_per_image"] is None:
        assert document["energy_missing"].startswith("the energy cannot be measured here")


def test_stages_and_verdict_in_the_tables(network, people, qtool):
    words = ("--runs", "10", "--threads", "1", "--stages", "--compare", "--data", people, "--streams", "1")
    result = qtool("bench", network, network, *words)
    assert result.exit_code == 0
    assert "letterbox, normalise ms" in result.stdout and "decode, NMS ms" in result.stdout
    assert "photos · score threshold 0.25 · IoU threshold 0.7" in result.stdout
    assert "tiny.onnx #2 is " in result.stdout and "95 % interval" in result.stdout
    assert "batch 1 · 1 stream of 1 thread each" in result.stdout
    assert "p50 is known to ±" in result.stdout


def test_until_says_what_came_of_it(network, qtool):
    result = qtool("bench", network, "--runs", "10", "--threads", "1", "--until", "0.001%", "--limit", "0")
    assert result.exit_code == 0
    assert "NOT within ±0.001 %" in result.stderr
    document = json.loads(qtool("bench", network, "--runs", "10", "--threads", "1", "--until", "99%", "--json").stdout)
    assert document["until"]["reached"] is True and document["until"]["asked_pct"] == 99
    assert set(document["noise"]) >= {"others_pct", "steal_pct", "clock_mhz", "quiet"}


def test_two_files_of_results(network, qtool, tmp_path):
    for name in ("a", "b"):
        text = qtool("bench", network, "--runs", "20", "--threads", "1", "--json").stdout
        (tmp_path / f"{name}.json").write_text(text)
    result = qtool("bench", "--compare", tmp_path / "a.json", tmp_path / "b.json")
    assert result.exit_code == 0
    assert "were not measured in turns" in result.stderr
    assert "tiny.onnx is " in result.stdout
    changed = (tmp_path / "b.json").read_text().replace('"threads": 1', '"threads": 2')
    (tmp_path / "b.json").write_text(changed)
    refused = qtool("bench", "--compare", tmp_path / "a.json", tmp_path / "b.json")
    assert refused.exit_code == 2 and "found: threads 2" in refused.stderr
    forced = qtool("bench", "--compare", "--force", "--json", tmp_path / "a.json", tmp_path / "b.json")
    assert json.loads(forced.stdout)["comparisons"][0]["differing"] == {"threads": [1, 2]}


def test_the_gate_ends_with_1(network, qtool):
    words = ("bench", network, network, "--runs", "10", "--threads", "1")
    assert qtool(*words, "--max-ratio", "1000").exit_code == 0
    result = qtool(*words, "--max-ratio", "0.001")
    assert result.exit_code == 1
    assert "1 of 1 networks are slower than allowed" in result.stderr
    assert "p50 ms" in result.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--compare", "a.onnx"), "this cannot be compared"),
        (("--compare", "a.onnx", "b.json"), "this cannot be compared"),
        (("a.json", "b.json"), "a file of results is no network"),
        (("--compare", "--force", "a.onnx", "b.onnx"), "--force is for files of results"),
        (("a.onnx", "--max-ratio", "1.1"), "a ratio needs two networks"),
        (("a.onnx", "--until", "many"), "is not a share"),
        (("a.onnx", "--until", "0%"), "is not a share"),
    ],
)
def test_options_that_do_not_go_together(words, message, qtool):
    result = qtool("bench", *words)
    assert result.exit_code == 2
    assert message in result.stderr
