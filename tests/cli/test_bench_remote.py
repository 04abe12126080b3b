"""``--device ssh://…`` of bench and eval, over a real ssh server on this machine."""

from __future__ import annotations

import json
from functools import partial

import pytest

from qtoolkit.bench import board_latency
from qtoolkit.cli import bench_remote


@pytest.fixture(autouse=True)
def short_warm_up(monkeypatch):
    measure = partial(board_latency.measure_on_board, warmup_s=0.02)
    monkeypatch.setattr(board_latency, "measure_on_board", measure)


def test_bench_prints_what_the_board_says(loopback_board, network, qtool):
    result = qtool("bench", network, network, "--device", loopback_board.device, "--runs", "10", "--threads", "1")
    assert result.exit_code == 0, result.stderr
    assert "tiny.onnx #2" in result.stdout and "10 inferences each, in turns of 1" in result.stdout
    assert "the board: " in result.stdout


def test_bench_as_json(loopback_board, network, people, qtool):
    words = ("--runs", "10", "--data", people, "--json", "--quiet", "--runtime", "onnxruntime")
    document = json.loads(qtool("bench", network, "--device", loopback_board.device, *words).stdout)
    (row,) = document["results"]
    assert row["latency"]["measured"] is True
    assert row["latency"]["device"] == document["board"]["cpu"]
    assert row["inputs"] == "photos of people"
    assert {"power_mode", "clocks_mhz", "temperatures_c", "power_w", "tegrastats"} <= document["board"].keys()
    assert document["reconnects"] == 0


def test_bench_with_a_runtime_that_is_not_there(loopback_board, network, qtool):
    result = qtool("bench", network, "--device", loopback_board.device, "--runtime", "tensorrt")
    assert result.exit_code == 4
    assert "TensorRT is missing on" in result.stderr
    assert qtool("bench", network, "--device", loopback_board.device, "--runtime", "openvino-cpu").exit_code == 2


@pytest.mark.parametrize(
    "device",
    ["ssh://", "ssh://-oProxyCommand=x", "ssh://a@-b", "ssh://a b", "ssh://host;id", "ssh://host:0", "ssh://h/py thon"],
)
def test_addresses_that_are_refused(device, network, qtool):
    for command in (("bench", network), ("eval", network, "--data", "synthetic:4@1")):
        result = qtool(*command, "--device", device)
        assert result.exit_code == 2
        assert "the address of the board cannot be used" in result.stderr


def test_eval_gives_the_same_figures_as_here(loopback_board, network, people, qtool):
    here = json.loads(qtool("eval", network, "--data", people, "--json", "--quiet").stdout)
    result = qtool("eval", network, "--data", people, "--json", "--quiet", "--device", loopback_board.device)
    there = json.loads(result.stdout)
    assert there["runtime"].pop("device") and there["runtime"].pop("power_mode") is None
    assert there == here


def test_eval_names_the_board(loopback_board, network, people, qtool):
    shown = qtool("eval", network, "--data", people, "--device", loopback_board.device, "--quiet").stdout
    assert "onnxruntime" in shown


@pytest.mark.parametrize("words", [("--device", "tpu"), ("--runtime", "tensorrt")], ids=["device", "runtime alone"])
def test_eval_elsewhere(words, network, people, qtool):
    result = qtool("eval", network, "--data", people, *words)
    assert result.exit_code == 2
    assert "the network cannot be evaluated so" in result.stderr


def test_the_board_itself_needs_no_address(monkeypatch):
    assert bench_remote.board_of("jetson") is None
    monkeypatch.setattr("qtoolkit.backends.board_address.local_board", lambda: "NVIDIA Jetson AGX Orin")
    address = bench_remote.board_of("jetson")
    assert address is not None and address.host is None
