"""A network on a board as a runner: batches, refused calls, and what travels. On this machine, without ssh."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from io import BytesIO

import numpy as np
import onnx
import pytest

from qtoolkit.backends.board_job import BoardNetwork, pack_feeds
from qtoolkit.backends.board_runner import BoardRunner
from qtoolkit.backends.jetson_ssh import Board
from qtoolkit.backends.onnxruntime_cpu import OnnxRuntimeCpu
from qtoolkit.errors import UsageError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/qtoolkit/board"


def feed(seed: int) -> dict[str, np.ndarray]:
    pixels = np.random.default_rng(seed).integers(0, 256, (1, 3, 64, 64))
    return {"images": pixels.astype(np.float32) / np.float32(255)}


def test_many_calls_make_few_round_trips(tiny_pose_model, cache, monkeypatch):
    asked: list[str] = []
    real = Board.ask

    def ask(self, do, **parameters):
        asked.append(do)
        return real(self, do, **parameters)

    monkeypatch.setattr(Board, "ask", ask)
    model = tiny_pose_model()
    with BoardRunner(model, threads=1, batch=4) as there, OnnxRuntimeCpu(model, threads=1) as here:
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda seed: there.infer(feed(seed))["output0"], range(24)))
        for seed, output in enumerate(found):
            np.testing.assert_array_equal(output, here.infer(feed(seed))["output0"])
        assert there.signature.outputs == here.signature.outputs
        assert there.conditions()["version"] == here.conditions()["version"]
    assert asked.count("infer") < 12
    assert [path for path in (cache / "jobs").glob("*") if path.is_dir()] == []


def test_can_be_closed_and_opened_again(tiny_pose_model):
    runner = BoardRunner(tiny_pose_model(), threads=1)
    for _ in range(2):
        with runner:
            assert runner.infer(feed(0))["output0"].shape == (1, 56, 84)
    with pytest.raises(UsageError, match="the board runner is not open"):
        runner.infer(feed(0))


def test_refuses_an_open_size(dynamic_pose_model):
    with pytest.raises(UsageError, match="has no fixed size"):
        BoardRunner(dynamic_pose_model()).open()


def test_refuses_another_runtime(tiny_pose_model):
    with pytest.raises(UsageError, match="the runtime is none a board can run"):
        BoardRunner(tiny_pose_model(), runtime="caffe").open()


def test_images_travel_as_bytes_and_arrive_with_the_same_bits():
    image = feed(0)["images"]
    noise = np.random.default_rng(0).random(image.shape, dtype=np.float32)
    assert len(pack_feeds([{"x": image}], ["x"])) < len(pack_feeds([{"x": noise}], ["x"])) / 3


@pytest.mark.parametrize(
    ("change", "precisions"), [("none", []), ("half weights", ["fp16"]), ("cast", ["fp16"]), ("q/dq", ["fp16", "int8"])]
)
def test_precisions_that_tensorrt_may_use(change, precisions, network_builder):
    net = network_builder()
    x = net.plain_conv("conv", "images", 3, 4, kernel=1)
    if change == "half weights":
        net.constant("half", [1.0], np.float16)
    if change == "cast":
        x = net.node("Cast", [net.node("Cast", [x], "to16", to=10)], "to32", to=1)
    if change == "q/dq":
        ends = [net.constant("scale", 0.1), net.constant("zero", 0, np.int8)]
        x = net.node("DequantizeLinear", [net.node("QuantizeLinear", [x, *ends], "q"), *ends], "dq")
    model = net.model({"images": (1, 3, 8, 8)}, {x: (1, 4, 8, 8)})
    assert BoardNetwork(model).precisions == precisions
    # Of a network that is float all over nothing has to be kept in it.
    options = BoardNetwork(model, lambda proto: ["tail", "end"]).options
    assert options == {"precisions": precisions, "float32": ["end", "tail"] if precisions else []}


def test_what_is_packed_is_what_was_given():
    with np.load(BytesIO(pack_feeds([{"x": np.full((1, 2), 0.3, np.float32)}], ["x"]))) as arrays:
        assert arrays.files == ["0.0"]


def test_external_weights_travel_inside(tiny_pose_model, tmp_path):
    path = tmp_path / "model.onnx"
    onnx.save(tiny_pose_model(), path, save_as_external_data=True, location="weights.bin", size_threshold=1024)
    with BoardRunner(path, threads=1) as there, OnnxRuntimeCpu(path, threads=1) as here:
        np.testing.assert_array_equal(there.infer(feed(1))["output0"], here.infer(feed(1))["output0"])
