"""``qtool eval`` and ``qtool bench`` of engine files, on the stand-in for TensorRT, in worker processes too."""

from __future__ import annotations

import json
import shutil
from functools import partial

import pytest

from qtoolkit.backends.nvidia_driver import gpu_or_none
from qtoolkit.bench import latency
from qtoolkit.engine_build import BuildOptions, build

VERSION = "10.3"
NO_GPU = pytest.mark.skipif(gpu_or_none() is not None, reason="this machine has a GPU")


@pytest.fixture(autouse=True)
def short_warm_up(monkeypatch):
    monkeypatch.setattr(latency, "measure_run", partial(latency.measure_run, warmup_s=0.02))


@pytest.fixture(scope="module")
def built(tensorrt_stand_in, network, tmp_path_factory):
    """Engines of the network with suppression on the host and inside, and their records."""
    folder = tmp_path_factory.mktemp("engines")
    with pytest.MonkeyPatch.context() as patch:
        tensorrt_stand_in.install(VERSION, lambda name, module: patch.setitem(__import__("sys").modules, name, module),
                                  patch.setattr)  # fmt: skip
        for nms in ("host", "onnx"):
            build(BuildOptions(model=network, target="tensorrt", out=folder, nms=nms))
    return folder


@pytest.fixture
def engines(built, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(built, tmp_path / "engines")


@pytest.fixture
def engine(engines):
    return engines / "tiny.tensorrt.engine"


def change_record(engine, **changes):
    path = engine.with_name(f"{engine.name}.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


class TestEval:
    def test_gives_the_figures_of_the_network(self, engine, network, people, qtool, install_tensorrt):
        log = install_tensorrt(VERSION)
        found = json.loads(qtool("eval", engine, "--data", people, "--json", "--quiet").stdout)
        expected = json.loads(qtool("eval", network, "--data", people, "--json", "--quiet").stdout)
        assert log["runtimes"] == 1
        assert (found["model"], found["head"], found["input_size_wh"]) == (engine.name, "yolov8-pose", [64, 64])
        runtime = found["runtime"]
        assert (runtime["runtime"], runtime["device"], runtime["precision"]) == ("tensorrt", "Stand-in GPU", "fp32")
        for name in ("ap", "ap50", "ap75", "ar", "images", "data_sha256", "score_threshold"):
            assert found[name] == pytest.approx(expected[name], abs=0.5), name

    def test_suppression_inside(self, engines, people, qtool, install_tensorrt):
        install_tensorrt(VERSION)["data_dependent"] = ("scores", "boxes", "keypoints")
        result = qtool("eval", engines / "tiny.nms.tensorrt.engine", "--data", people, "--json", "--quiet")
        assert result.exit_code == 0, result.stderr
        assert json.loads(result.stdout)["head"] == "separate-outputs"

    def test_the_table_names_the_gpu(self, engine, people, qtool, install_tensorrt):
        install_tensorrt(VERSION)
        result = qtool("eval", engine, "--data", people, "--device", "cuda")
        assert "Stand-in GPU · tensorrt 10.3" in result.stdout

    @pytest.mark.parametrize(
        "words",
        [("--device", "cpu"), ("--device", "ssh://a@b"), ("--threads", 2), ("--runtime", "tensorrt")],
        ids=lambda words: " ".join(map(str, words)),
    )
    def test_what_an_engine_does_not_take(self, words, engine, people, qtool):
        result = qtool("eval", engine, "--data", people, *words)
        assert result.exit_code == 2
        assert "is an engine, which runs on this machine's GPU" in result.stderr and words[0] in result.stderr

    def test_another_input_size(self, engine, people, qtool, install_tensorrt):
        install_tensorrt(VERSION)
        result = qtool("eval", engine, "--data", people, "--input-size", "96")
        assert result.exit_code == 2 and "an engine has one input size" in result.stderr

    def test_a_network_on_the_gpu_is_told_to_become_an_engine(self, network, people, qtool):
        result = qtool("eval", network, "--data", people, "--device", "cuda")
        assert result.exit_code == 2 and "qtool build MODEL.onnx --target tensorrt" in result.stderr


class TestRefusals:
    """The same for both commands: before TensorRT sees the engine, and before any photo is read."""

    @pytest.fixture(params=["eval", "bench"])
    def call(self, request, people, qtool):
        more = ("--data", people) if request.param == "eval" else ("--runs", "10")
        return lambda *models: qtool(request.param, *models, *more)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"version": "8.5.2"}, "another TensorRT version"),
            ({"gpu": "Orin"}, "another GPU"),
            ({"engine_sha256": "0" * 64}, "is not the engine that its record describes"),
        ],
        ids=["version", "gpu", "engine"],
    )
    def test_a_record_that_does_not_fit(self, changes, message, call, engine, install_tensorrt, tensorrt_in_workers):
        log = install_tensorrt(VERSION)
        tensorrt_in_workers(VERSION)
        change_record(engine, **changes)
        result = call(engine)
        assert result.exit_code == 3 and message in result.stderr
        assert "runtimes" not in log

    def test_an_engine_without_its_record(self, call, engine):
        engine.with_name(f"{engine.name}.json").unlink()
        result = call(engine)
        assert result.exit_code == 3 and "tiny.tensorrt.engine.json cannot be read" in result.stderr

    @NO_GPU
    def test_no_driver(self, call, engine):
        result = call(engine)
        assert result.exit_code == 4 and "there is no NVIDIA GPU that could be used" in result.stderr

    @NO_GPU
    def test_an_engine_of_rtx_without_a_driver(self, call, engine):
        change_record(engine, library="tensorrt_rtx", gpu=None, compute_capabilities=["8.7"])
        result = call(engine)
        assert result.exit_code == 4 and "there is no NVIDIA GPU that could be used" in result.stderr


class TestBench:
    def test_engines_are_measured_side_by_side(self, engines, people, qtool, install_tensorrt, tensorrt_in_workers):
        log = install_tensorrt(VERSION)
        tensorrt_in_workers(VERSION)
        shutil.copy(engines / "tiny.tensorrt.engine", engines / "other.engine")
        shutil.copy(engines / "tiny.tensorrt.engine.json", engines / "other.engine.json")
        models = (engines / "tiny.tensorrt.engine", engines / "other.engine")
        result = qtool("bench", *models, "--runs", "10", "--json", "--quiet", "--data", people)
        assert result.exit_code == 0, result.stderr
        document = json.loads(result.stdout)
        assert [row["network"] for row in document["results"]] == ["tiny.tensorrt.engine", "other.engine"]
        for row in document["results"]:
            assert row["latency"]["target"] == row["latency"]["runtime"] == "tensorrt"
            assert row["latency"]["device"] == row["latency"]["provider"] == "Stand-in GPU"
            assert row["latency"]["input_shapes"] == {"images": [1, 3, 64, 64]}
            assert row["gmacs"] > 0 and row["inputs"] == "photos of people"
        assert log["probes"] == 1

    def test_networks_are_built_beside_them(self, engine, network, qtool, install_tensorrt, tensorrt_in_workers):
        log = install_tensorrt(VERSION)
        tensorrt_in_workers(VERSION)
        result = qtool("bench", engine, network, network, "--device", "cuda", "--runs", "10")
        assert result.exit_code == 0, result.stderr
        assert "tiny.tensorrt.engine" in result.stdout and "tiny.onnx #2" in result.stdout
        assert log["probes"] == 1, "the driver is asked once, however many engines are built"
        refused = qtool("bench", engine, network, "--runs", "10")
        assert refused.exit_code == 2 and "give --device cuda" in refused.stderr

    def test_an_engine_of_an_older_release(self, engine, people, qtool, install_tensorrt, tensorrt_in_workers):
        install_tensorrt(VERSION)
        tensorrt_in_workers(VERSION)
        change_record(engine, input_shapes=None, gmacs=None)
        document = json.loads(qtool("bench", engine, "--runs", "10", "--json", "--quiet").stdout)
        assert document["results"][0]["gmacs"] is None
        assert qtool("bench", engine, "--runs", "10", "--quiet").exit_code == 0
        result = qtool("bench", engine, "--runs", "10", "--data", people)
        assert result.exit_code == 2 and "whose record does not tell its input" in result.stderr

    def test_engines_of_two_libraries(self, engines, qtool):
        other = engines / "tiny.nms.tensorrt.engine"
        change_record(other, library="tensorrt_rtx")
        result = qtool("bench", engines / "tiny.tensorrt.engine", other)
        assert result.exit_code == 2 and "one run has one runtime" in result.stderr

    @pytest.mark.parametrize("words", [("--device", "jetson"), ("--device", "cpu"), ("--device", "ssh://a@b")])
    def test_other_devices(self, words, engine, qtool):
        result = qtool("bench", engine, *words)
        assert result.exit_code == 2 and "is an engine, which runs on this machine's GPU" in result.stderr

    @pytest.mark.parametrize("option", [("--threads", 2), ("--batch", 2), ("--stages",), ("--input-size", "64")])
    def test_options_that_mean_nothing(self, option, engine, qtool, install_tensorrt):
        install_tensorrt(VERSION)
        result = qtool("bench", engine, *option)
        assert result.exit_code == 2 and option[0] in result.stderr
